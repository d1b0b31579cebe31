"""Comments on silent streams belong to the stream: none outlives it, however it ends."""

import asyncio

import pytest
from starlette.types import Message

from idefics_chat.server.sse_keepalive import COMMENT, SseKeepalive

pytestmark = pytest.mark.anyio

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def beating() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "sse-keepalive"]


async def test_a_silent_stream_gets_comments_and_none_behind_its_end() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async with SseKeepalive(send, 0.01) as keepalive:
        await keepalive.send(START)
        await asyncio.sleep(0.1)
        assert beating()
    assert not beating()
    count = len(sent)
    assert count > 2
    assert {message["body"] for message in sent[1:]} == {COMMENT}
    await asyncio.sleep(0.05)
    assert len(sent) == count


async def test_a_stream_that_cannot_be_started_leaves_nothing_running() -> None:
    async def gone(_: Message) -> None:
        raise OSError("the peer has gone")

    with pytest.raises(OSError, match="gone"):
        async with SseKeepalive(gone, 0.01) as keepalive:
            await keepalive.send(START)
    assert not beating()


async def test_a_comment_that_cannot_be_sent_is_not_the_stream_s_end() -> None:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the peer has gone")

    async with SseKeepalive(send, 0.01) as keepalive:
        await keepalive.send(START)
        await asyncio.sleep(0.05)
    assert not beating()
