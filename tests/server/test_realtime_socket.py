"""One Realtime connection, without a socket: what is received is a list, what is sent is another."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from idefics_chat.server.errors import ApiError
from idefics_chat.server.realtime_request import CreateItem, CreateResponse, UpdateSession, parse_realtime
from idefics_chat.server.realtime_socket import MAX_ECHOED_BYTES, RealtimeSocket
from idefics_chat.server.socket_connection import SocketLine
from idefics_chat.server.socket_frames import ClientGone, SocketLimits
from tests.server.http_world import answer
from tests.server.realtime_types import check_realtime
from tests.server.test_chat import ask, say, texts
from tests.server.waiting import until
from tests.server.world import World

pytestmark = pytest.mark.anyio

LIMITS = SocketLimits(max_frame_bytes=1_000_000, max_pending_frames=2, max_pending_bytes=100)

Json = dict[str, Any]


@dataclass
class Line:
    """A client at the other end of the line."""

    arriving: asyncio.Queue[str | bytes | None] = field(default_factory=asyncio.Queue)
    sent: asyncio.Queue[Json] = field(default_factory=asyncio.Queue)
    gone: bool = False

    def say(self, kind: str, **fields: Any) -> None:
        self.arriving.put_nowait(json.dumps({"type": kind, **fields}))

    def add(self, *content: Json, role: str = "user", **fields: Any) -> None:
        item = {"type": "message", "role": role, "content": list(content), **fields.pop("item", {})}
        self.say("conversation.item.create", item=item, **fields)

    async def send(self, text: str) -> None:
        if self.gone:
            raise ClientGone
        frame = json.loads(text)
        check_realtime(frame)
        self.sent.put_nowait(frame)

    async def until(self, *kinds: str) -> Json:
        async with asyncio.timeout(10):
            while (frame := await self.sent.get())["type"] not in kinds:
                assert frame["type"] != "error", frame
        return frame

    async def through(self, last: str) -> list[Json]:
        frames = [await self.sent.get()]
        while frames[-1]["type"] != last:
            frames.append(await self.sent.get())
        return frames

    async def refused(self) -> Json:
        error: Json = (await self.until("error"))["error"]
        return error


@asynccontextmanager
async def connected(world: World, conversation_id: str | None = None) -> AsyncIterator[Line]:
    line = Line()
    socket = RealtimeSocket(
        SocketLine(world.chat, world.store, world.owner_id, line.arriving.get, line.send, LIMITS),
        conversation_id=conversation_id,
    )
    serving = asyncio.create_task(socket.serve())
    try:
        yield line
    finally:
        line.arriving.put_nowait(None)
        async with asyncio.timeout(5):
            await serving


def text(said: str) -> Json:
    return {"type": "input_text", "text": said}


def picture(data: bytes) -> Json:
    return {"type": "input_image", "image_url": "data:image/png;base64," + base64.b64encode(data).decode()}


async def test_a_turn_has_its_events_in_their_order(world: World, png: bytes) -> None:
    async with connected(world) as line:
        assert (await line.until("session.created"))["session"]["model"] == "scripted"
        line.add(picture(png), text("What is it?"))
        added, done = await line.until("conversation.item.added"), await line.until("conversation.item.done")
        assert added["item"] == done["item"]
        assert added["previous_item_id"] is None
        assert added["item"]["content"][0]["image_url"] == picture(png)["image_url"]
        line.say("response.create")
        await answer(world, 0, "A ", "dog.")
        frames = await line.through("response.done")
        assert [frame["type"] for frame in frames] == [
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
        ]
        assert len({frame["event_id"] for frame in frames}) == len(frames)
        assert frames[2]["previous_item_id"] == added["item"]["id"]
        response = frames[-1]["response"]
        assert response["output"][0]["content"] == [{"type": "output_text", "text": "A dog."}]
        assert (response["status"], response["usage"]["output_tokens"]) == ("completed", 2)
        path = await world.store.path(response["conversation_id"], response["output"][0]["id"])
        assert texts(path) == [("user", "What is it?"), ("assistant", "A dog.")]


async def test_a_stored_conversation_goes_on(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    async with connected(world, first["conversation"]["id"]) as line:
        line.add(text("And?"))
        line.say("response.create", response={"instructions": "Be kind.", "metadata": {"a": "b"}})
        await answer(world, 1, "Yes")
        response = (await line.until("response.done"))["response"]
        assert (response["conversation_id"], response["metadata"]) == (first["conversation"]["id"], {"a": "b"})
        prompt = "".join(getattr(run, "text", "") for run in world.engine.asked[1].request.prompt.runs)
        assert all(said in prompt for said in ("Be kind.", "Hi", "Hello", "And?"))


async def test_one_response_at_a_time_and_a_cancel_keeps_what_was_said(world: World) -> None:
    async with connected(world) as line:
        line.say("response.cancel", event_id="mine")
        error = await line.refused()
        assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "mine")
        line.add(text("Hi"))
        line.say("response.create")
        line.say("response.create")
        assert (await line.refused())["code"] == "conversation_already_has_active_response"
        (await world.engine.turn(0)).say("Hel")
        await line.until("response.output_text.delta")
        line.say("response.cancel")
        response = (await line.until("response.done"))["response"]
        assert (response["status"], response["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        assert response["output"][0]["status"] == "incomplete"
        assert response["output"][0]["content"][0]["text"] == "Hel"
        line.add(text("Again"))
        line.say("response.create")
        await answer(world, 1, "Hello")
        assert (await line.until("response.done"))["response"]["status"] == "completed"


async def test_a_cancel_reaches_a_turn_that_still_waits(world: World) -> None:
    conversation = await world.chat.edits.create(world.owner_id, (), None)
    async with connected(world, conversation.id) as line:
        line.add(text("Hi"))
        await line.until("conversation.item.done")
        async with world.chat.turns.places.hold(conversation.id):
            line.say("response.create")
            line.say("response.cancel")
            line.say("response.cancel")
            line.say("session.update", session={"type": "realtime"})
            await line.until("session.updated")
        await line.until("response.created")
        response = (await line.until("response.done"))["response"]
        assert (response["status"], response["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        line.say("response.cancel")
        assert (await line.refused())["code"] == "response_cancel_not_active"
        line.add(text("Again"))
        line.say("response.create")
        await answer(world, 1, "Hello")
        assert (await line.until("response.done"))["response"]["status"] == "completed"


async def test_a_cancel_of_an_answer_that_never_began_is_not_the_next_one_s(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create")
        line.say("response.cancel")
        assert (await line.refused())["code"] == "missing_required_parameter"
        line.add(text("Hi"))
        line.say("response.create")
        await answer(world, 0, "Hello")
        assert (await line.until("response.done"))["response"]["status"] == "completed"


async def test_an_answer_out_of_band_is_in_no_conversation(world: World) -> None:
    async with connected(world) as line:
        line.add(text("Hi"))
        line.say("response.create", response={"conversation": "none", "metadata": {"topic": "x"}})
        await answer(world, 0, "Aside")
        await line.until("response.created")
        frames = await line.through("response.done")
        assert not any(frame["type"].startswith("conversation.") for frame in frames)
        assert "conversation_id" not in frames[-1]["response"]
        beside = [{"type": "message", "role": "user", "content": [text("Count")]}]
        line.say("response.create", response={"conversation": "none", "input": beside})
        generation = await world.engine.turn(1)
        assert "Hi" not in "".join(getattr(run, "text", "") for run in generation.request.prompt.runs)
        created = await line.until("response.created")
        line.say("response.cancel", response_id=created["response"]["id"])
        assert (await line.until("response.done"))["response"]["status"] == "cancelled"
        line.say("response.create")
        await answer(world, 2, "Hello")
        done = (await line.until("response.done"))["response"]
        path = await world.store.path(done["conversation_id"], done["output"][0]["id"])
        assert texts(path) == [("user", "Hi"), ("assistant", "Hello")]


async def test_an_answer_out_of_band_can_refer_to_items_of_the_conversation(world: World, png: bytes) -> None:
    async with connected(world) as line:
        line.add(picture(png), text("Look"), item={"id": "mine"})
        line.add(text("And not at this"))
        await line.until("conversation.item.done")
        added = (await line.until("conversation.item.done"))["item"]

        def ask_about(*items: Json) -> None:
            line.say("response.create", response={"conversation": "none", "input": list(items)})

        ask_about({"type": "item_reference", "id": "mine"}, {"role": "user", "content": [text("Name it")]})
        await answer(world, 0, "A dog")
        assert (await line.until("response.done"))["response"]["status"] == "completed"
        request = world.engine.asked[0].request
        prompt = "".join(getattr(run, "text", "") for run in request.prompt.runs)
        assert ("Look" in prompt, "Name it" in prompt, "not at this" in prompt) == (True, True, False)
        assert [await request.load_image(digest) for digest in request.prompt.digests] == [png]
        ask_about({"type": "item_reference", "id": added["id"]})
        await answer(world, 1, "Why")
        assert (await line.until("response.done"))["response"]["status"] == "completed"
        stranger = (await ask(world, say("Elsewhere"), "Hello"))["output"][0]["id"]
        for items, code in (
            ([{"type": "item_reference", "id": stranger}], "item_not_found"),
            ([{"type": "item_reference", "id": "msg_none"}], "item_not_found"),
            ([{"type": "item_reference"}], "missing_required_parameter"),
            ([], "empty_input"),
        ):
            ask_about(*items)
            assert (await line.refused())["code"] == code, items


async def test_items_are_shown_and_removed_by_the_client_s_own_names(world: World, png: bytes) -> None:
    async with connected(world) as line:
        line.add(text("One"), item={"id": "mine"}, previous_item_id="root")
        assert (await line.until("conversation.item.added"))["item"]["id"] == "mine"
        line.add(picture(png), item={"id": "other"}, previous_item_id="mine")
        added = await line.until("conversation.item.added")
        assert (added["item"]["id"], added["previous_item_id"]) == ("other", "mine")
        line.say("conversation.item.retrieve", item_id="other")
        item = (await line.until("conversation.item.retrieved"))["item"]
        assert item["content"][0]["image_url"] == picture(png)["image_url"]
        line.say("conversation.item.delete", item_id="mine")
        assert (await line.until("conversation.item.deleted"))["item_id"] == "mine"
        for kind, fields, code in (
            ("conversation.item.retrieve", {"item_id": "mine"}, "item_not_found"),
            ("conversation.item.delete", {"item_id": "msg_x"}, "item_not_found"),
        ):
            line.say(kind, **fields)
            assert (await line.refused())["code"] == code
        line.add(text("x"), item={"id": "other"})
        assert (await line.refused())["code"] == "already_exists"
        line.add(text("x"), previous_item_id="root")
        assert (await line.refused())["param"] == "previous_item_id"


async def test_a_large_image_is_not_echoed_and_is_there_over_http(world: World) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(buffer, "PNG")
    assert len(buffer.getvalue()) > MAX_ECHOED_BYTES
    async with connected(world) as line:
        line.add(picture(buffer.getvalue()))
        part = (await line.until("conversation.item.added"))["item"]["content"][0]
        assert "image_url" not in part
        image = await world.chat.uploads.content(world.owner_id, part["file_id"])
        assert image.data == buffer.getvalue()


async def test_the_session_is_what_was_asked_of_it(world: World) -> None:
    async with connected(world) as line:
        session = {"type": "realtime", "instructions": "Be kind.", "max_output_tokens": 7, "audio": {"input": {}}}
        line.say("session.update", session={**session, "tracing": "auto", "output_modalities": ["audio"]})
        updated = (await line.until("session.updated"))["session"]
        assert (updated["instructions"], updated["max_output_tokens"]) == ("Be kind.", 7)
        assert updated["output_modalities"] == ["text"]
        line.add(text("Hi"))
        line.say("response.create")
        request = (await world.engine.turn(0)).request
        assert request.max_output_tokens == 7
        (await world.engine.turn(0)).finish("length")
        response = (await line.until("response.done"))["response"]
        assert (response["status"], response["status_details"]["reason"]) == ("incomplete", "max_output_tokens")


async def test_a_failed_turn_says_so_and_the_next_one_may_come(world: World) -> None:
    async with connected(world) as line:
        line.say("response.create")
        assert (await line.refused())["code"] == "missing_required_parameter"
        line.add(text("Hi"))
        line.say("response.create")
        (await world.engine.turn(0)).fail()
        response = (await line.until("response.done"))["response"]
        assert (response["status"], response["status_details"]["type"]) == ("failed", "failed")
        assert response["status_details"]["error"]["message"]
        line.say("response.create")
        await answer(world, 1, "Hello")
        assert (await line.until("response.done"))["response"]["status"] == "completed"


async def test_what_is_wrong_with_a_frame_is_told_and_the_connection_stays(world: World, png: bytes) -> None:
    async with connected(world) as line:
        await line.until("session.created")
        for frame, code in (
            ("nonsense", "invalid_json"),
            (b"binary", "invalid_json"),
            ('{"event_id": "e"}', "missing_required_parameter"),
            ('{"type": "dance"}', "unknown_event"),
            ('{"type": "input_audio_buffer.append", "audio": ""}', "unsupported_value"),
            ('{"type": "conversation.item.truncate", "item_id": "x"}', "unsupported_value"),
            ('{"type": "response.create", "response": {"output_modalities": ["audio"]}}', "unsupported_value"),
            ('{"type": "response.create", "response": {"input": []}}', "unsupported_value"),
            (json.dumps({"type": "session.update", "session": {"instructions": "x" * 150_001}}), "invalid_value"),
            ('{"type": "conversation.item.create", "item": {"type": "function_call"}}', "unsupported_value"),
            ("x" * 1_000_001, "frame_too_large"),
        ):
            line.arriving.put_nowait(frame)
            assert (await line.refused())["code"] == code, frame
        line.say("dance", event_id="x" * 513)
        assert "event_id" not in await line.refused()
        line.add(picture(png[:40]))
        assert (await line.refused())["code"] == "invalid_image"
        line.add(text("Hi"))
        await line.until("conversation.item.added")


async def test_a_client_that_goes_leaves_its_answer_running(world: World) -> None:
    async with connected(world) as line:
        line.add(text("Hi"))
        line.say("response.create")
        created = (await line.until("response.created"))["response"]
        line.say("response.create", response={"conversation": "none"})
        await world.engine.turn(1)
    await until(lambda: world.engine.asked[1].cancelled)
    assert world.chat.turns.running == 1
    await answer(world, 0, "Hello")
    await world.chat.turns.wait(world.owner_id, created["id"])
    assert (await world.store.response(world.owner_id, created["id"])).status == "completed"


def test_events_are_read_into_commands() -> None:
    item = {"type": "message", "role": "user", "content": [text("Hi")], "id": "x"}
    command = parse_realtime({"type": "conversation.item.create", "item": item, "previous_item_id": "y"})
    assert isinstance(command, CreateItem)
    assert (command.item_id, command.previous_item_id, command.message.parts) == ("x", "y", ("Hi",))
    assert parse_realtime({"type": "session.update", "session": {"type": "realtime"}}) == UpdateSession(None, None)
    command = parse_realtime({"type": "response.create", "response": {"max_output_tokens": "inf"}})
    assert command == CreateResponse(False, None, "inf", {}, None)


@given(
    st.dictionaries(
        st.sampled_from(["type", "session", "item", "item_id", "response", "response_id", "event_id"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=6,
        )
        | st.sampled_from(["session.update", "conversation.item.create", "response.create", "response.cancel"]),
    )
)
def test_any_event_is_a_command_or_is_refused_with_a_code(event: Json) -> None:
    try:
        parse_realtime(event)
    except ApiError as error:
        assert error.message.endswith((".", "!"))


async def test_what_waits_is_bounded_in_bytes(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    async with connected(world, log.conversation_id) as line:
        for _ in range(3):
            line.add(picture(b"x" * 300_000))
        assert (await line.refused())["code"] == "rate_limit_exceeded"
        await answer(world, 0, "Hello")
        for _ in range(2):
            assert (await line.refused())["code"] == "invalid_image"
        for _ in range(2):
            line.add(picture(b"x" * 300_000))
            assert (await line.refused())["code"] == "invalid_image"
