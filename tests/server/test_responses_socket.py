"""One connection, without a socket: what is received is a list, what is sent is another."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from idefics_chat.inference.requests import Choice, GenerationResult, TokenLogprob, Usage
from idefics_chat.server import responses_socket
from idefics_chat.server.responses_socket import ResponsesSocket
from idefics_chat.server.socket_connection import SocketLine
from idefics_chat.server.socket_frames import ClientGone, SocketLimits, on_lane
from tests.server.http_world import answer
from tests.server.openai_types import check_frame
from tests.server.waiting import until
from tests.server.world import World

pytestmark = pytest.mark.anyio

LIMITS = SocketLimits(max_frame_bytes=10_000, max_pending_frames=2, max_pending_bytes=100)


@dataclass
class Line:
    """A client at the other end of the line."""

    arriving: asyncio.Queue[str | bytes | None] = field(default_factory=asyncio.Queue)
    sent: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    gone: bool = False
    largest: int = 0

    def say(self, kind: str, **fields: Any) -> None:
        self.arriving.put_nowait(json.dumps({"type": kind, **fields}))

    async def send(self, text: str) -> None:
        if self.gone:
            raise ClientGone
        self.largest = max(self.largest, len(text.encode()))
        frame = json.loads(text)
        check_frame(frame)
        self.sent.put_nowait(frame)

    async def until(self, *kinds: str) -> dict[str, Any]:
        while (frame := await self.sent.get())["type"] not in kinds:
            pass
        return frame


@asynccontextmanager
async def connected(world: World) -> AsyncIterator[Line]:
    line = Line()
    socket = ResponsesSocket(SocketLine(world.chat, world.store, world.owner_id, line.arriving.get, line.send, LIMITS))
    serving = asyncio.create_task(socket.serve())
    try:
        yield line
    finally:
        line.arriving.put_nowait(None)
        async with asyncio.timeout(5):
            await serving


async def test_turns_without_a_lane_run_one_after_another(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="first")
        line.say("response.create", input="second")
        first = await world.engine.turn(0)
        await asyncio.sleep(0.05)
        assert len(world.engine.asked) == 1
        first.end()
        await line.until("response.completed")
        (await world.engine.turn(1)).end()
        await line.until("response.completed")


async def test_no_event_is_larger_than_clients_take(world: World) -> None:
    likely = TokenLogprob(7, "ä".encode(), -0.5, (TokenLogprob(8, b" dog", -1.5),) * 20)
    choice = Choice("ä", (7,), "stop", (likely,) * 1000)
    async with connected(world) as line:
        line.say("response.create", input="Hi", top_logprobs=20)
        generation = await world.engine.turn(0)
        generation.say("ä")
        generation.words.put_nowait(GenerationResult("ä", (7,), "stop", Usage(), (choice,)))
        done = await line.until("response.completed")
    stored = await world.store.events(done["response"]["id"])
    assert max(len(event.payload) for event in stored) > 2**20
    assert line.largest < 2**20
    assert done["response"]["output"][0]["content"][0]["text"] == "ä"


async def test_lanes_run_beside_each_other_and_each_event_names_its_lane(world: World) -> None:
    async with connected(world) as line:
        for lane in ("a", "b"):
            line.say("response.create", input=lane, stream_id=lane)
        for number in (1, 0):
            (await world.engine.turn(number)).end()
        ended = [(await line.until("response.completed"))["stream_id"] for _ in range(2)]
        assert sorted(ended) == ["a", "b"]


async def test_a_cancel_does_not_wait_for_the_turn_it_ends(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi")
        created = await line.until("response.created")
        (await world.engine.turn(0)).say("Hel")
        line.say("response.cancel", response_id=created["response"]["id"])
        assert (await line.until("response.incomplete"))["response"]["status"] == "cancelled"


async def test_an_interrupt_is_accepted_before_the_end_that_it_brings(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi", stream_id="a")
        created = await line.until("response.created")
        (await world.engine.turn(0)).say("Hel")
        response_id = created["response"]["id"]
        line.say("response.interrupt", response_id=response_id, mode="discard_partial_items", stream_id="b")
        accepted = await line.until("response.interrupt.accepted", "response.incomplete")
        assert (accepted["type"], accepted["response_id"], accepted["stream_id"]) == (
            "response.interrupt.accepted",
            response_id,
            "b",
        )
        ended = (await line.until("response.incomplete"))["response"]
        assert (ended["status"], ended["output"][0]["content"][0]["text"]) == ("cancelled", "Hel")


async def test_steering_is_refused_in_its_own_event_and_the_answer_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi")
        response_id = (await line.until("response.created"))["response"]["id"]
        said = [{"type": "message", "role": "user", "content": "Shorter"}]
        for most, given_back in ((1000, said), (10, "")):
            monkeypatch.setattr(responses_socket, "MAX_ECHOED_CHARACTERS", most)
            line.say("response.steer", previous_response_id=response_id, input=said)
            failed = await line.until("response.steer.failed", "error")
            assert failed["error"]["code"] == "steering_not_supported"
            assert failed["steer"] == {"previous_response_id": response_id, "input": given_back}
        await answer(world, 0, "Hello")
        assert (await line.until("response.completed"))["response"]["id"] == response_id


async def test_no_error_gives_back_more_than_a_name(world: World) -> None:
    async with connected(world) as line:
        line.say("response.dance", stream_id="x" * 256)
        assert (await line.until("error"))["stream_id"] == "x" * 256
        line.say("response.dance", stream_id="x" * 257)
        assert "stream_id" not in await line.until("error")


async def test_an_interrupt_that_comes_too_late_fails_without_an_error_event(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi")
        created = await line.until("response.created")
        (await world.engine.turn(0)).end()
        await line.until("response.completed")
        for response_id, code in (
            (created["response"]["id"], "response_not_active"),
            ("resp_x", "response_not_found"),
        ):
            line.say("response.interrupt", response_id=response_id)
            failed = await line.until("response.interrupt.failed", "error")
            assert (failed["type"], failed["error"]["code"]) == ("response.interrupt.failed", code)


async def test_a_client_that_goes_away_leaves_its_turn_running(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi")
        created = await line.until("response.created")
    generation = await world.engine.turn(0)
    assert world.chat.turns.running == 1
    generation.say("Hello")
    generation.end()
    events = [e async for e in await world.chat.turns.follow(world.owner_id, created["response"]["id"])]
    assert events[-1].type == "response.completed"


async def test_a_client_whose_line_breaks_while_it_is_sent_to_leaves_its_turn_running(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi")
        await line.until("response.created")
        line.gone = True
        generation = await world.engine.turn(0)
        generation.say("Hello")
        generation.end()
        await asyncio.sleep(0.05)
    assert world.chat.turns.running == 0


async def test_binary_frames_belong_to_the_next_create(world: World, png: bytes) -> None:
    picture = [{"role": "user", "content": [{"type": "input_image", "image_url": "frame:0"}]}]
    async with connected(world) as line:
        line.arriving.put_nowait(png)
        line.say("response.create", input=picture)
        (await world.engine.turn(0)).end()
        assert (await line.until("response.completed", "error"))["type"] == "response.completed"
        line.say("response.create", input=picture)
        assert (await line.until("error"))["code"] == "invalid_image_url"


async def test_binary_frames_that_nobody_names_are_bounded(world: World) -> None:
    async with connected(world) as line:
        for _ in range(3):
            line.arriving.put_nowait(b"x")
        assert (await line.until("error"))["code"] == "invalid_value"
        line.arriving.put_nowait(b"x" * 101)
        assert (await line.until("error"))["code"] == "invalid_value"


async def test_lanes_and_waiting_turns_are_bounded(world: World) -> None:
    async with connected(world) as line:
        for number in range(33):
            line.say("response.create", input="Hi", stream_id=str(number))
        assert (await line.until("error"))["code"] == "rate_limit_exceeded"
        for _ in range(18):
            line.say("response.create", input="Hi", stream_id="0")
        assert (await line.until("error"))["code"] == "rate_limit_exceeded"
        for number in range(32):
            (await world.engine.turn(number)).end()


async def test_what_waits_is_bounded_in_bytes_and_only_what_is_too_much_is_lost(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="first", stream_id="0")
        running = await world.engine.turn(0)
        await line.until("response.created")
        conversation = (await world.store.conversations(world.owner_id)).items[0].id
        # Turns behind an answer on their lane, and on lanes of their own behind the conversation's answer.
        for lane in ("0", "0", "1", "2"):
            line.say("response.create", input="x" * 2400, stream_id=lane, conversation=conversation)
        line.arriving.put_nowait(b"x" * 100)
        line.say("response.create", input="x" * 2400, stream_id="3", conversation=conversation)
        refused = await line.until("error")
        assert (refused["code"], refused["stream_id"]) == ("rate_limit_exceeded", "3")
        assert refused["message"].endswith("then send this again.")
        line.say("response.create", input="short", stream_id="3")
        running.end()
        for number in range(1, 6):
            (await world.engine.turn(number)).end()
        for _ in range(6):
            await line.until("response.completed")
        line.say("response.create", input="x" * 9800, stream_id="4")
        (await world.engine.turn(6)).end()
        await line.until("response.completed")


async def test_a_refused_turn_waits_no_more(world: World) -> None:
    async with connected(world) as line:
        for _ in range(3):
            line.say("response.create", input="x" * 9000, conversation="conv_unknown")
            assert (await line.until("error"))["code"] == "conversation_not_found"


async def test_an_error_names_the_lane_of_its_frame(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="", stream_id="x")
        assert (await line.until("error"))["stream_id"] == "x"
        line.say("response.create", input="", stream_id=7)
        assert "stream_id" not in await line.until("error")


async def test_an_answer_is_read_on_from_a_number_on_another_lane(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi")
        created = await line.until("response.created")
        generation = await world.engine.turn(0)
        generation.say("Hello")
        generation.end()
        await line.until("response.completed")
        line.say("response.resume", response_id=created["response"]["id"], starting_after=1, stream_id="again")
        frame = await line.sent.get()
        assert (frame["sequence_number"], frame["stream_id"]) == (2, "again")


def test_a_lane_is_added_to_an_event_as_json() -> None:
    assert json.loads(on_lane('{"a":1}', 'x"y')) == {"a": 1, "stream_id": 'x"y'}
    assert on_lane('{"a":1}', None) == '{"a":1}'


async def test_an_unstored_turn_is_followed_up_on_its_connection_and_on_no_other(world: World) -> None:
    async with connected(world) as line, connected(world) as other:
        line.say("response.create", input="Hi", store=False)
        await answer(world, 0, "Hello")
        first = (await line.until("response.completed"))["response"]
        line.say("response.create", input="And?", store=False, previous_response_id=first["id"])
        await answer(world, 1, "Yes")
        await line.until("response.completed")
        other.say("response.create", input="And?", store=False, previous_response_id=first["id"])
        assert (await other.until("error"))["code"] == "previous_response_not_found"


async def test_an_unstored_answer_is_cancelled_resumed_and_ended_with_its_connection(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create", input="Hi", store=False, stream_id="a")
        response_id = (await line.until("response.created"))["response"]["id"]
        (await world.engine.turn(0)).say("Hel")
        line.say("response.resume", response_id=response_id, stream_id="b")
        while (frame := await line.sent.get())["stream_id"] == "a":
            pass
        assert frame["type"] == "response.created"
        line.say("response.cancel", response_id=response_id)
        assert (await line.until("response.incomplete"))["response"]["status"] == "cancelled"
        line.say("response.create", input="Hi", store=False)
        await line.until("response.created")
    await until(lambda: world.engine.asked[1].cancelled)


async def test_a_connection_watches_a_conversation_that_another_one_talks_in(world: World) -> None:
    async with connected(world) as line, connected(world) as other:
        other.say("response.create", input="Hi")
        await answer(world, 0, "Hello")
        conversation = (await other.until("response.completed"))["response"]["conversation"]["id"]
        line.say("conversation.subscribe", conversation=conversation, stream_id="w")
        await line.until("conversation.subscribed")
        line.say("conversation.subscribe", conversation=conversation)
        assert (await line.until("error"))["code"] == "already_exists"
        other.say("response.create", input="And?", conversation=conversation)
        await answer(world, 1, "Yes")
        added = await line.until("conversation.item.added")
        assert (added["item"]["content"][0]["text"], added["stream_id"]) == ("And?", "w")
        assert (await line.until("response.completed"))["cursor"].startswith("resp_")
        line.say("conversation.unsubscribe", conversation=conversation)
        assert (await line.until("conversation.unsubscribed"))["code"] is None
        line.say("conversation.unsubscribe", conversation=conversation)
        assert (await line.until("error"))["code"] == "conversation_not_found"
        line.say("conversation.subscribe", conversation="conv_x")
        assert (await line.until("error"))["code"] == "conversation_not_found"
    await until(lambda: len(world.chat.turns.feeds) == 0)
