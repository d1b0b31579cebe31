"""A websocket does not outlive the key that it was opened with."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from idefics_chat.server.auth import key_hash, make_key
from idefics_chat.storage.errors import DatabaseUnavailable
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
        await chat.wait(held.owner_id, response_id)
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
