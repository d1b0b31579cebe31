"""What becomes of an answer that nobody reads, as the policy says; and of a turn whose asker did not wait for it."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request

from idefics_chat.server.attendance import Attendance, grace_of
from idefics_chat.server.http_presence import while_connected
from idefics_chat.server.turns import Disconnect
from tests.server.http_world import http_client
from tests.server.test_chat import history, say, texts
from tests.server.waiting import until
from tests.server.world import World

pytestmark = pytest.mark.anyio


async def final(world: World, response_id: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        await world.chat.turns.wait(world.owner_id, response_id)
    row = await world.store.response(world.owner_id, response_id)
    return {"status": row.status, "reason": row.incomplete_reason, "conversation": {"id": row.conversation_id}}


@pytest.mark.parametrize("policy", ["cancel", 0.05])
async def test_an_answer_ends_when_its_last_reader_goes(world: World, policy: Disconnect) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi", on_disconnect=policy))
    first, second = log.read(), log.read()
    (await world.engine.turn(0)).say("Hel", "lo")
    assert (await anext(first)).type == "response.created"
    first.close()
    first.close()
    await asyncio.sleep(0.1)
    assert world.chat.turns.running == 1, "another one reads"
    second.close()
    await until(lambda: not world.chat.turns.running)
    ended = await final(world, log.response_id)
    assert (ended["status"], ended["reason"]) == ("cancelled", "disconnected")
    assert texts(await history(world, ended)) == [("user", "Hi"), ("assistant", "Hello")]


async def test_a_reader_who_is_back_in_time_keeps_the_answer_going(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi", on_disconnect=0.2))
    for _ in range(4):
        with log.read() as events:
            await anext(events)
        await asyncio.sleep(0.1)
    with log.read() as events:
        generation = await world.engine.turn(0)
        generation.say("Hello")
        generation.end()
        async for _ in events:
            pass
    assert (await final(world, log.response_id))["status"] == "completed"


async def test_by_default_and_in_the_background_an_answer_goes_on(world: World) -> None:
    for number, fields in enumerate(({}, {"on_disconnect": "cancel", "background": True})):
        log = await world.chat.turns.respond(world.owner_id, say("Hi", **fields))
        log.read().close()
        await asyncio.sleep(0.05)
        generation = await world.engine.turn(number)
        generation.say("Hello")
        generation.end()
        assert (await final(world, log.response_id))["status"] == "completed"


async def test_a_cancel_is_a_cancel_whoever_reads(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi", on_disconnect=60.0))
    with log.read() as events:
        await anext(events)
        await world.chat.turns.cancel(world.owner_id, log.response_id)
    assert (await final(world, log.response_id))["reason"] == "cancelled"


def test_policies_are_times() -> None:
    assert [grace_of(policy) for policy in ("continue", "cancel", 2.5)] == [None, 0.0, 2.5]


async def test_the_end_of_an_answer_ends_its_attendance() -> None:
    left = []
    attendance = Attendance(0.01, lambda: left.append(True))
    attendance.count(0)
    attendance.end()
    attendance.count(0)
    await asyncio.sleep(0.05)
    assert (left, attendance.left) == ([], False)


async def gone_after(world: World, path: str, body: bytes, ready: Any) -> None:
    """Ask, wait until `ready`, and go away: the raw ASGI of a client that closes its connection."""
    client = http_client(world)
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    leave = asyncio.Event()
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if bodies:
            return bodies.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """What is sent to nobody is dropped, as uvicorn does."""

    headers = [(b"host", b"localhost:8000"), (b"content-type", b"application/json")]
    scope = {
        **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"},
        **{"method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers},
        **{"scheme": "http", "server": ("localhost", 8000), "client": ("127.0.0.1", 1), "root_path": ""},
    }
    serving = asyncio.create_task(transport.app(scope, receive, send))
    await ready()
    leave.set()
    async with asyncio.timeout(5):
        await serving


async def test_a_waiting_turn_is_withdrawn_when_its_asker_goes(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi", conversation_key="k"))
    body = b'{"input": "And?", "conversation": {"key": "k"}}'
    await gone_after(world, "/v1/responses", body, lambda: asyncio.sleep(0.1))
    generation = await world.engine.turn(0)
    generation.say("Hello")
    generation.end()
    ended = await final(world, log.response_id)
    await asyncio.sleep(0.05)
    assert texts(await history(world, ended)) == [("user", "Hi"), ("assistant", "Hello")]
    assert len(world.engine.asked) == 1


async def test_askers_who_go_again_and_again_leave_no_work_behind(world: World) -> None:
    await world.chat.turns.respond(world.owner_id, say("Hi", conversation_key="k"))
    before = len(asyncio.all_tasks())
    body = b'{"input": "And?", "conversation": {"key": "k"}}'
    for _ in range(3):
        await gone_after(world, "/v1/responses", body, lambda: asyncio.sleep(0.1))
    assert len(asyncio.all_tasks()) == before
    (await world.engine.turn(0)).end()


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_over_http_the_asker_is_the_reader(world: World, stream: bytes) -> None:
    body = b'{"input": "Hi", "on_disconnect": "cancel", "stream": ' + stream + b"}"

    async def said() -> None:
        (await world.engine.turn(0)).say("Hel")
        await asyncio.sleep(0.1)

    await gone_after(world, "/v1/responses", body, said)
    await until(lambda: not world.chat.turns.running)
    conversation = (await world.store.conversations(world.owner_id)).items[0]
    path = await world.store.path(conversation.id, conversation.tip_id)
    assert [(message.text, message.status) for message in path] == [("Hi", "completed"), ("Hel", "incomplete")]


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_an_unstored_answer_over_http_ends_with_its_asker(world: World, stream: bytes) -> None:
    async def said() -> None:
        (await world.engine.turn(0)).say("Hel")
        await asyncio.sleep(0.1)

    for path, body in (
        ("/v1/responses", b'{"input": "Hi", "store": false, "stream": ' + stream + b"}"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "Hi"}], "stream": ' + stream + b"}"),
    ):
        world.engine.asked.clear()
        await gone_after(world, path, body, said)
        await until(lambda: world.engine.asked[0].cancelled)


async def test_work_for_a_client_that_stays_is_done_and_its_failure_told() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    request = Request({"type": "http"}, receive)

    async def work() -> int:
        return 3

    async def fail() -> int:
        raise KeyError("x")

    assert await while_connected(request, work()) == 3
    with pytest.raises(KeyError):
        await while_connected(request, fail())


async def test_work_for_a_client_that_goes_is_cancelled_and_awaited() -> None:
    ended = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(ClientDisconnect):
        await while_connected(Request({"type": "http"}, receive), work())
    assert ended == [True]
