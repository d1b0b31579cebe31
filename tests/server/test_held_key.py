"""Neither a websocket nor an HTTP stream outlives the key that it was opened with."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from idefics_chat.server.auth import key_hash, make_key
from idefics_chat.server.held_key import HeldKey
from idefics_chat.server.response_log import ResponseLog
from idefics_chat.server.settings import Settings
from idefics_chat.server.sse import ReadingStream
from idefics_chat.server.state import ServerState
from idefics_chat.storage.errors import DatabaseUnavailable
from tests.server.http_world import check_answer
from tests.server.live import Json, LiveServer, answering, events_to_end, live_server, next_event, say

pytestmark = pytest.mark.anyio

OFTEN_S = 0.05
NEVER_S = 600.0


@dataclass
class Held:
    """A server, and a key of Ann's for it."""

    live: LiveServer
    key: str
    owner_id: str

    def connect(self, path: str = "/v1/responses", key: str | None = None) -> Any:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return self.live.connect(path, additional_headers=headers)

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key or self.key}"}
        hooks = {"response": [check_answer]}
        return httpx.AsyncClient(base_url=f"http://{self.live.address}", headers=headers, event_hooks=hooks, timeout=10)

    async def revoke(self) -> None:
        await self.live.store.revoke_key(self.owner_id, "ann")


@asynccontextmanager
async def held_key(folder: Path, interval_s: float) -> AsyncIterator[Held]:
    """A server that looks keys up so often, beside each frame."""
    async with live_server(folder) as live:
        live.state.key_check_interval_s = interval_s
        ann = await live.store.owner("ann")
        key = make_key()
        await live.store.add_key(ann.id, key_hash(key), "ann")
        yield Held(live, key, ann.id)


async def read_into(events: list[Json], socket: ClientConnection) -> None:
    while True:
        events.append(await next_event(socket))


async def ending(socket: ClientConnection) -> list[Json]:
    """What still comes, to the close for a key that has ended."""
    events: list[Json] = []
    with pytest.raises(ConnectionClosed) as closed:
        await read_into(events, socket)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert closed.value.rcvd.reason.startswith("This key was revoked or has expired")
    assert (events[-1]["type"], events[-1]["error"]["code"]) == ("error", "invalid_api_key")
    return events


async def test_a_command_behind_the_revocation_is_not_obeyed(tmp_path: Path) -> None:
    async with held_key(tmp_path, NEVER_S) as held, held.connect() as socket:
        await socket_answers(held, socket)
        await held.revoke()
        await say(socket, "Hi")
        assert len(await ending(socket)) == 1
        assert len(held.live.engine.asked) == 1
        await held.live.until(lambda: not held.live.value("connections", route="/v1/responses"))


async def test_a_realtime_session_ends_with_its_key(tmp_path: Path) -> None:
    async with held_key(tmp_path, NEVER_S) as held, held.connect("/v1/realtime") as socket:
        assert (await next_event(socket))["type"] == "session.created"
        await held.revoke()
        await socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime"}}))
        (error,) = await ending(socket)
        assert error["event_id"].startswith("event_")


@pytest.mark.parametrize(
    ("path", "told"), [("/v1/responses", ["error"]), ("/v1/realtime", ["session.created", "error"])]
)
async def test_a_websocket_that_only_listens_ends_with_its_key(tmp_path: Path, path: str, told: list[str]) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, held.connect(path) as socket:
        await held.revoke()
        assert [event["type"] for event in await ending(socket)] == told


async def test_a_subscriber_hears_no_more_once_the_key_has_ended(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, held.connect() as socket:
        conversation = await held.live.store.create_conversation(held.owner_id, id="conv_1")
        await socket.send(json.dumps({"type": "conversation.subscribe", "conversation": conversation.id}))
        assert (await next_event(socket))["type"] == "conversation.subscribed"
        await held.revoke()
        assert [event["type"] for event in await ending(socket)] == ["error"]


async def test_a_key_that_expires_ends_its_websocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with held_key(tmp_path, OFTEN_S) as held:
        key, store = make_key(), held.live.store
        now = store._clock()
        await store.add_key(held.owner_id, key_hash(key), "ann", expires_at=now + 100)
        async with held.connect(key=key) as short, held.connect() as long:
            monkeypatch.setattr(store, "_clock", lambda: now + 200)
            await ending(short)
            await socket_answers(held, long)


async def test_an_answer_under_way_goes_on_without_its_key(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, held.connect() as socket:
        await say(socket, "Hi")
        response_id = (await next_event(socket))["response"]["id"]
        (await held.live.engine.turn(0)).say("Hel")
        await held.revoke()
        await ending(socket)
        held.live.engine.asked[0].say("lo")
        held.live.engine.asked[0].end()
        chat = held.live.state.ready().chat
        await chat.turns.wait(held.owner_id, response_id)
        assert (await held.live.store.response(held.owner_id, response_id)).status == "completed"


async def test_other_keys_and_websockets_without_one_stay(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held:
        other = make_key()
        await held.live.store.add_key(held.owner_id, key_hash(other), "phone")
        async with held.connect() as ended, held.connect(key=other) as kept, held.live.connect() as local:
            await held.revoke()
            await ending(ended)
            await asyncio.sleep(3 * OFTEN_S)
            for socket in (kept, local):
                await socket_answers(held, socket)


async def test_while_the_database_cannot_be_read_commands_are_refused_and_the_websocket_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, held.connect() as socket:
        asked = asyncio.Event()

        async def unavailable(key_hash: str) -> None:
            asked.set()
            raise DatabaseUnavailable("locked")

        with monkeypatch.context() as broken:
            broken.setattr(held.live.store, "owner_of_key", unavailable)
            await asked.wait()
            await say(socket, "Hi")
            assert (await next_event(socket))["error"]["code"] == "storage_unavailable"
        await socket_answers(held, socket)


async def socket_answers(held: Held, socket: ClientConnection) -> None:
    work = asyncio.create_task(answering(held.live.engine, "Hello"))
    try:
        await say(socket, "Hi", store=False)
        assert (await events_to_end(socket))[-1]["type"] == "response.completed"
    finally:
        work.cancel()


HELLO = [{"role": "user", "content": "Hi"}]
STREAMS: dict[str, tuple[str, Json]] = {
    "response": ("/v1/responses", {"input": "Hi", "stream": True}),
    "unstored response": ("/v1/responses", {"input": "Hi", "stream": True, "store": False}),
    "chat completion": ("/v1/chat/completions", {"messages": HELLO, "model": "scripted", "stream": True}),
}
NAMED = "event: error"


@asynccontextmanager
async def stream(held: Held, kind: str, key: str | None = None) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of an HTTP stream that stands, of an answer that has begun and waits for its next word."""
    path, body = STREAMS[kind]
    async with held.client(key) as client, client.stream("POST", path, json=body) as given:
        assert given.status_code == 200
        (await held.live.engine.turn(0)).say("Hel")
        lines = given.aiter_lines()
        async with asyncio.timeout(10):
            while "Hel" not in await anext(lines):
                pass
        yield lines


async def last_frame(lines: AsyncIterator[str]) -> tuple[list[str], Json]:
    """The lines up to the stream's end, and what its last data say."""
    async with asyncio.timeout(10):
        got = [line async for line in lines if line]
    frame: Json = json.loads(got[-1].removeprefix("data: "))
    return got, frame


@pytest.mark.parametrize("kind", STREAMS)
async def test_an_http_stream_ends_with_its_key_and_says_so(tmp_path: Path, kind: str) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, stream(held, kind) as lines:
        await held.revoke()
        got, frame = await last_frame(lines)
        assert frame["error"]["code"] == "invalid_api_key"
        assert frame["error"]["message"].startswith("This key was revoked or has expired")
        assert (NAMED in got) is kind.endswith("response")
        assert frame.get("type") == ("error" if kind.endswith("response") else None)


async def test_an_http_stream_that_is_never_silent_ends_with_its_key(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, stream(held, "response") as lines:

        async def talk() -> None:
            while True:
                held.live.engine.asked[0].say("lo")
                await asyncio.sleep(OFTEN_S / 10)

        talking = asyncio.create_task(talk())
        try:
            await held.revoke()
            assert (await last_frame(lines))[1]["error"]["code"] == "invalid_api_key"
        finally:
            talking.cancel()


async def test_the_resume_of_a_response_over_http_ends_with_its_key(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, held.client() as client:
        made = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
        async with client.stream("GET", f"/v1/responses/{made['id']}", params={"stream": "true"}) as given:
            await held.revoke()
            assert (await last_frame(given.aiter_lines()))[1]["error"]["code"] == "invalid_api_key"


async def test_the_results_of_a_batch_end_with_their_key_and_the_batch_goes_on(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, held.client() as client:
        task = {"task": "instruct", "messages": HELLO}
        made = (await client.post("/v1/tasks/batches", json={"tasks": [task]})).json()
        async with client.stream("GET", f"/v1/tasks/batches/{made['id']}/results?stream=true") as given:
            await held.revoke()
            assert (await last_frame(given.aiter_lines()))[1]["error"]["code"] == "invalid_api_key"
        assert not (await held.live.engine.turn(0)).cancelled


async def test_an_answer_that_was_streamed_over_http_goes_on_without_its_key(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, stream(held, "response") as lines:
        await held.revoke()
        await last_frame(lines)
        (response_id,) = held.live.state.ready().chat.turns._running
        held.live.engine.asked[0].say("lo")
        held.live.engine.asked[0].end()
        await held.live.state.ready().chat.turns.wait(held.owner_id, response_id)
        assert (await held.live.store.response(held.owner_id, response_id)).status == "completed"


async def test_a_chat_completion_ends_with_its_stream(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, stream(held, "chat completion") as lines:
        await held.revoke()
        await last_frame(lines)
        assert held.live.engine.asked[0].cancelled


async def test_http_streams_with_another_key_go_on_to_their_end(tmp_path: Path) -> None:
    async with held_key(tmp_path, OFTEN_S) as held:
        other = make_key()
        await held.live.store.add_key(held.owner_id, key_hash(other), "phone")
        async with stream(held, "response", other) as lines:
            await held.revoke()
            await asyncio.sleep(3 * OFTEN_S)
            held.live.engine.asked[0].end()
            assert (await last_frame(lines))[1]["type"] == "response.completed"


async def test_while_the_database_cannot_be_read_an_http_stream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held_key(tmp_path, OFTEN_S) as held, stream(held, "response") as lines:
        asked = asyncio.Event()

        async def unavailable(key_hash: str) -> None:
            asked.set()
            raise DatabaseUnavailable("locked")

        monkeypatch.setattr(held.live.store, "owner_of_key", unavailable)
        await asked.wait()
        held.live.engine.asked[0].end()
        assert (await last_frame(lines))[1]["type"] == "response.completed"


async def test_a_stream_that_has_not_begun_has_no_frame_to_end_with() -> None:
    sent: list[Json] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(NEVER_S)  # its peer takes nothing
        sent.append(message)

    async def receive() -> Json:
        await asyncio.sleep(NEVER_S)
        return {"type": "http.disconnect"}

    async def owner_of_key(_: str) -> None:
        return None

    store: Any = SimpleNamespace(owner_of_key=owner_of_key)
    log = ResponseLog("resp_1", "conv_1")
    readers: list[int] = []
    log.on_readers = readers.append
    answer = ReadingStream(log.read(), HeldKey(store, "hash", OFTEN_S))
    app = SimpleNamespace(state=SimpleNamespace(server=ServerState(Settings())))
    async with asyncio.timeout(10):
        await answer({"type": "http", "app": app}, receive, send)
    assert sent == []
    assert readers == [1, 0]
