"""Traces: a span a request, one a turn in it, nothing of what was said, and nothing at all where nobody wants them."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from idefics_chat.server.metered_engine import MeteredEngine
from idefics_chat.server.tracing import Tracing
from tests.server.live import answering, live_server

pytestmark = pytest.mark.anyio

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_turn_is_a_span_in_its_request_s_under_its_caller_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(seen))
    tracing = Tracing(provider)
    original = MeteredEngine.__init__
    monkeypatch.setattr(MeteredEngine, "__init__", lambda *given: original(*given, tracing=tracing))
    async with live_server(tmp_path) as live:
        live.state.tracing = tracing
        work = asyncio.create_task(answering(live.engine, "secret"))
        async with httpx.AsyncClient(base_url=f"http://{live.address}", trust_env=False) as client:
            await client.post("/v1/responses", json={"input": "secret"}, headers={"traceparent": CALLER})
            await client.get("/v1/conversations/search", params={"q": "secret"})
        work.cancel()
    tracing.stop()
    turn, request, search = seen.get_finished_spans()
    assert (turn.name, request.name, search.name) == ("turn", "/v1/responses", "/v1/conversations/search")
    assert turn.parent is not None
    assert turn.parent.span_id == request.context.span_id
    assert request.parent is not None
    assert request.parent.span_id == int(CALLER.split("-")[2], 16)
    assert turn.attributes is not None
    assert turn.attributes["output_tokens"] == 1
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert not any("secret" in span.to_json() for span in (turn, request, search))


def test_without_an_endpoint_opentelemetry_s_sdk_is_not_imported() -> None:
    code = (
        "import sys; from idefics_chat.server.tracing import start_tracing\n"
        "with start_tracing(None).request({}) as span: span.note('x', {})\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra_the_endpoint_is_refused_with_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from idefics_chat.server.start_error import StartError\n"
        "from idefics_chat.server.tracing import start_tracing\n"
        "try: start_tracing('http://127.0.0.1:1')\n"
        "except StartError as error: assert 'idefics-chat[otel]' in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
