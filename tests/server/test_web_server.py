"""What clients meet on a real socket: limits, names on answers, a stop that loses nothing."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from idefics_chat.server.asker import Asker
from idefics_chat.server.auth import key_hash, make_key
from idefics_chat.server.serving import restore_quotas
from idefics_chat.server.settings import Settings
from idefics_chat.server.start_error import StartError
from idefics_chat.server.web_server import listen
from tests.server.live import LiveServer, answering, events_to_end, live_server, next_event, say

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def answered(folder: Path, *words: str, **settings: Any) -> Any:
    """A server whose model answers every turn with these words, and a client for its HTTP side."""
    async with live_server(folder, **settings) as live:
        work = asyncio.create_task(answering(live.engine, *words))
        try:
            async with httpx.AsyncClient(base_url=f"http://{live.address}", trust_env=False) as client:
                yield live, client
        finally:
            work.cancel()


def no_places_taken(live: LiveServer) -> bool:
    accounts = live.state.quotas._accounts.values()
    return not any(account.connections or account.running_turns for account in accounts)


async def test_a_connection_too_many_is_refused_at_the_handshake_until_one_is_closed(tmp_path: Path) -> None:
    async with answered(tmp_path, "Hi", connections_per_key=2) as (live, _):
        async with live.connect(), live.connect():
            with pytest.raises(InvalidStatus) as refused:
                await live.connect()
            assert refused.value.response.status_code == 429
            assert json.loads(refused.value.response.body)["error"]["code"] == "rate_limit_exceeded"
            assert refused.value.response.headers["retry-after"] == "1"
            assert refused.value.response.headers["x-request-id"].startswith("req_")
        await live.until(lambda: no_places_taken(live))
        async with live.connect() as socket:
            assert socket.response is not None
            assert socket.response.headers["x-request-id"].startswith("req_")


async def test_a_turn_too_many_is_an_error_event_and_the_connection_stays(tmp_path: Path) -> None:
    async with live_server(tmp_path, running_turns_per_address=1) as live, live.connect() as socket:
        await say(socket, "One", stream_id="one")
        assert (await next_event(socket))["type"] == "response.created"
        await say(socket, "Two", stream_id="two")
        while (event := await next_event(socket)).get("stream_id") == "one":
            pass
        assert (event["type"], event["code"], event["status"]) == ("error", "rate_limit_exceeded", 429)
        (await live.engine.turn(0)).end()
        assert (await events_to_end(socket))[-1]["type"] == "response.completed"
        await say(socket, "Three")
        (await live.engine.turn(1)).end()
        assert (await events_to_end(socket))[-1]["type"] == "response.completed"
        assert live.value("errors_total", code="rate_limit_exceeded") == 1


async def test_turns_a_minute_are_told_in_the_headers_that_clients_know(tmp_path: Path) -> None:
    async with answered(tmp_path, "Hi", turns_per_minute_per_key=2, tokens_per_day_per_key=100) as (live, client):
        body = {"messages": [{"role": "user", "content": "one two"}]}
        left = [(await client.post("/v1/chat/completions", json=body)).headers for _ in range(2)]
        assert [headers["x-ratelimit-remaining-requests"] for headers in left] == ["1", "0"]
        assert left[0]["x-ratelimit-limit-tokens"] == "100"
        assert int(left[1]["x-ratelimit-remaining-tokens"]) < int(left[0]["x-ratelimit-remaining-tokens"]) < 100
        refused = await client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 50 < int(refused.headers["retry-after"]) <= 60
        assert "x-should-retry" not in refused.headers
        assert no_places_taken(live)


async def test_a_repeat_under_its_idempotency_key_costs_no_turn(tmp_path: Path) -> None:
    async with answered(tmp_path, "Hi", turns_per_minute_per_key=1) as (_, client):
        body = {"input": "Hi", "idempotency_key": "k"}
        first, second = [(await client.post("/v1/responses", json=body)).json() for _ in range(2)]
        assert first["id"] == second["id"]
        assert (await client.post("/v1/responses", json={"input": "Hi"})).status_code == 429


async def test_a_day_s_bytes_used_up_nothing_more_is_taken_in(tmp_path: Path) -> None:
    async with answered(tmp_path, "Hi", bytes_per_day_per_key=2000) as (live, client):
        async with live.connect() as socket:
            await say(socket, "x" * 3000)
            refused = (await events_to_end(socket))[-1]
            assert (refused["type"], refused["code"]) == ("error", "quota_exceeded")
        answer = await client.get("/v1/conversations")
        assert answer.status_code == 429
        assert answer.headers["x-should-retry"] == "false"
        assert int(answer.headers["retry-after"]) > 0
        with pytest.raises(InvalidStatus, match="429"):
            await live.connect()


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/responses/", "/v1/models", "/"])
async def test_a_websocket_to_a_path_where_there_is_none_is_refused_as_not_found(tmp_path: Path, path: str) -> None:
    async with live_server(tmp_path) as live:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://{live.address}{path}", proxy=None)
        assert refused.value.response.status_code == 404
        error = json.loads(refused.value.response.body)["error"]
        assert (error["code"], error["type"], error["param"]) == ("unknown_url", "invalid_request_error", None)
        assert "/v1/realtime" in error["message"]


async def test_a_port_that_is_taken_is_said_once_with_its_reason() -> None:
    with listen(Settings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as refused:
            listen(Settings(port=port))
    assert str(refused.value).startswith(f"Cannot listen on 127.0.0.1:{port} (Address already in use); choose")


async def test_limits_are_each_key_s_own(tmp_path: Path) -> None:
    async with answered(tmp_path, "Hi", turns_per_minute_per_key=1, require_key=True) as (live, client):
        keys = []
        for name in ("ann", "bob"):
            keys.append(make_key())
            await live.store.add_key((await live.store.owner(name)).id, key_hash(keys[-1]), name)
        for status in (200, 429):
            for key in keys:
                headers = {"authorization": f"Bearer {key}"}
                answer = await client.post("/v1/responses", json={"input": "Hi"}, headers=headers)
                assert answer.status_code == status


async def test_a_stop_takes_no_more_lets_the_running_answer_end_and_closes_with_1012(tmp_path: Path) -> None:
    async with live_server(tmp_path, drain_s=30) as live, live.connect() as socket:
        await say(socket, "Hi")
        generation = await live.engine.turn(0)
        generation.say("Hel")
        live.server.stop()
        await live.until(lambda: not live.server.servers[0].is_serving())
        with pytest.raises(ConnectionRefusedError):
            await live.connect()
        await say(socket, "More", stream_id="more")
        while (event := await next_event(socket)).get("stream_id") != "more":
            pass
        assert event["code"] == "server_stopping"
        generation.say("lo")
        generation.end()
        last = (await events_to_end(socket))[-1]
        assert last["response"]["output"][0]["content"][0]["text"] == "Hello"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        await live.serving


async def test_what_does_not_end_in_time_is_saved_and_told(tmp_path: Path) -> None:
    async with live_server(tmp_path, drain_s=0.2) as live, live.connect() as socket:
        await say(socket, "Hi")
        (await live.engine.turn(0)).say("Hel")
        live.server.stop()
        last = (await events_to_end(socket))[-1]
        assert last["type"] == "response.incomplete"
        assert last["response"]["incomplete_details"]["cause"] == "server_stopping"
        await live.serving
        owner = await live.store.owner("local")
        row = await live.store.response(owner.id, last["response"]["id"])
        assert row.status == "incomplete"


async def test_asked_twice_to_stop_the_server_waits_for_no_answer(tmp_path: Path) -> None:
    async with live_server(tmp_path, drain_s=600) as live, live.connect() as socket:
        await say(socket, "Hi")
        await live.engine.turn(0)
        live.server.stop()
        await live.until(lambda: not live.server.servers[0].is_serving())
        live.server.stop()
        async with asyncio.timeout(10):
            await live.serving


async def test_the_metrics_are_the_operator_s_alone(tmp_path: Path) -> None:
    async with answered(tmp_path, "Hi") as (_, client):
        assert (await client.get("/metrics")).status_code == 200
        for name in ("x-forwarded-for", "forwarded", "x-real-ip"):
            assert (await client.get("/metrics", headers={name: "127.0.0.1"})).status_code == 401
        assert (await client.get("/metrics", headers={"origin": "https://evil.example"})).status_code == 403
    async with answered(tmp_path, "Hi", require_key=True) as (live, client):
        ann = await live.store.owner("ann")
        for scopes, status in (((), 401), (("chat",), 401), (("metrics",), 200)):
            key = make_key()
            await live.store.add_key(ann.id, key_hash(key), "ann", scopes=scopes)
            given = await client.get("/metrics", headers={"authorization": f"Bearer {key}"})
            assert given.status_code == status
        assert (await client.get("/metrics")).status_code == 401


async def test_an_owner_s_tokens_of_today_outlive_a_restart(tmp_path: Path) -> None:
    async with answered(tmp_path, "a", "b", "c", tokens_per_day_per_key=8) as (live, client):
        assert (await client.post("/v1/responses", json={"input": "one two"})).status_code == 200
        used = 8 - live.state.quotas.windows(Asker("", "", (await live.store.owner("local")).id))["tokens"].remaining
        assert used > 3
    async with answered(tmp_path, "Hi", tokens_per_day_per_key=used) as (live, client):
        await restore_quotas(live.state.quotas, live.store, time.time())
        refused = await client.post("/v1/responses", json={"input": "Hi"})
        assert refused.json()["error"]["code"] == "quota_exceeded"
    async with answered(tmp_path, "Hi", tokens_per_day_per_key=used) as (live, client):
        await restore_quotas(live.state.quotas, live.store, time.time() + 86_400)
        assert (await client.post("/v1/responses", json={"input": "Hi"})).status_code == 200


async def test_a_turn_of_too_many_items_is_refused(tmp_path: Path) -> None:
    async with answered(tmp_path, "Hi", max_items_per_turn=2) as (_, client):
        items = [{"role": "user", "content": "Hi"}] * 3
        refused = await client.post("/v1/responses", json={"input": items})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")
        assert (await client.post("/v1/responses", json={"input": items[:2]})).status_code == 200
