"""The numbers for Prometheus: the dashboard finds all that it asks for, and they count what happens."""

import asyncio
import re
import socket
import urllib.request
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from idefics_chat.inference.counters import Counters
from idefics_chat.server.metrics import Metrics
from idefics_chat.server.serving import metrics_port
from idefics_chat.server.settings import Settings
from tests.server.live import answering, events_to_end, live_server, say

pytestmark = pytest.mark.anyio

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"


def series(text: str) -> set[str]:
    """The names of all samples in Prometheus' text format, and of the families that have none yet."""
    found: set[str] = set()
    for family in text_string_to_metric_families(text):
        found |= {sample.name for sample in family.samples}
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        found |= {family.name + suffix for suffix in suffixes}
    return found


async def test_every_number_that_the_dashboard_shows_is_there(tmp_path: Path) -> None:
    asked = set(re.findall(r"idefics_chat_\w+", DASHBOARD.read_text()))
    assert len(asked) >= 20
    async with live_server(tmp_path) as live:
        live.state.metrics.watch_engine(Counters().snapshot)
        async with httpx.AsyncClient(base_url=f"http://{live.address}", trust_env=False) as client:
            shown = series((await client.get("/metrics")).text)
    assert asked <= shown, asked - shown


async def test_what_happens_is_counted(tmp_path: Path) -> None:
    async with live_server(tmp_path) as live:
        work = asyncio.create_task(answering(live.engine, "one ", "two ", "three"))
        async with httpx.AsyncClient(base_url=f"http://{live.address}", trust_env=False) as client:
            await client.post("/v1/responses", json={"input": "Hi"})
            await client.get("/v1/responses/resp_none")
            await client.get("/wp-admin/x.php")
        async with live.connect() as client_socket:
            await say(client_socket, "Hi")
            await events_to_end(client_socket)
            await client_socket.send("{}")
            await events_to_end(client_socket)
            assert live.value("websocket_connections", route="/v1/responses") == 1
        work.cancel()
        await live.until(lambda: live.value("websocket_connections", route="/v1/responses") == 0)
        assert live.value("turns_total", end="stop") == 2
        assert live.value("turns_running") == 0
        assert live.value("tokens_total", kind="output") == 6
        assert live.value("time_to_first_token_seconds_count") == 2
        assert live.value("errors_total", code="response_not_found") == 1
        assert live.value("errors_total", code="missing_required_parameter") == 1
        assert live.value("http_requests_total", method="GET", route="/v1/responses/{response_id}", status="404") == 1
        assert live.value("http_requests_total", method="GET", route="unknown", status="404") == 1
        assert live.value("database_seconds_count", kind="write") > 2
        assert live.value("database_seconds_count", kind="read") >= 2
        assert live.value("received_bytes_total") > 50


def test_on_a_port_of_its_own_the_numbers_are_served_without_a_key() -> None:
    metrics = Metrics()
    metrics.errors.labels("server_busy").inc()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/metrics"
    with metrics_port(Settings(metrics_port=port), metrics), urllib.request.urlopen(url, timeout=10) as answer:
        assert 'idefics_chat_errors_total{code="server_busy"} 1.0' in answer.read().decode()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=10)
