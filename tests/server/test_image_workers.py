"""Images checked in processes of their own: what a decoder does there harms nobody."""

import asyncio
import io
import sys
import time
from collections.abc import AsyncIterator

import pytest
from PIL import Image

from idefics_chat.conversation.errors import ImageTooLarge, InvalidImage
from idefics_chat.conversation.images import ImageLimits, check_image
from idefics_chat.server.image_worker import read_description
from idefics_chat.server.image_workers import ImageWorkers

pytestmark = pytest.mark.anyio

SCRIPT = """
import sys
stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
while header := stdin.read(8):
    data = stdin.read(int.from_bytes(header, "big"))
    {obey}
    stdout.write(b'{{"media_type": "image/png", "width": 1, "height": 1}}\\n')
    stdout.flush()
"""


def scripted(obey: str) -> tuple[str, ...]:
    """A worker with a decoder of the test's own."""
    return (sys.executable, "-c", SCRIPT.format(obey=obey))


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that decodes to `side` squared grey pixels."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


@pytest.fixture
async def workers() -> AsyncIterator[ImageWorkers]:
    pool = ImageWorkers(ImageLimits())
    yield pool
    await pool.aclose()


async def test_a_worker_says_of_an_image_what_the_check_says(workers: ImageWorkers, png: bytes) -> None:
    assert await workers.check(png) == check_image(png)
    assert await workers.check(png) == check_image(png)
    assert len(workers._idle) == 1, "the process is used again"


async def test_refusals_come_through(workers: ImageWorkers, png: bytes) -> None:
    for data in (b"", b"no image", png[:40], bomb(8000)):
        with pytest.raises((InvalidImage, ImageTooLarge)) as here:
            check_image(data)
        with pytest.raises(type(here.value)) as there:
            await workers.check(data)
        assert str(there.value) == str(here.value)
    assert await workers.check(png) == check_image(png)
    with pytest.raises(ImageTooLarge):
        await ImageWorkers(ImageLimits(max_bytes=10)).check(png)


async def test_a_bomb_that_fits_the_pixel_limit_meets_the_memory_limit() -> None:
    pool = ImageWorkers(ImageLimits(max_pixels=200_000_000), memory_bytes=256 * 2**20)
    try:
        with pytest.raises(InvalidImage):
            await pool.check(bomb(12_000))
        small = bomb(10)
        assert await pool.check(small) == check_image(small)
    finally:
        await pool.aclose()


async def test_a_large_image_of_every_kind_passes_with_the_memory_that_is_set(workers: ImageWorkers) -> None:
    side = 7000
    for mode in ("RGBA", "L"):
        buffer = io.BytesIO()
        Image.new(mode, (side, side)).save(buffer, "PNG", compress_level=1)
        assert (await workers.check(buffer.getvalue())).width == side


async def test_a_decoder_that_hangs_is_ended_and_replaced(png: bytes) -> None:
    pool = ImageWorkers(ImageLimits(), time_s=1, command=scripted("if data == b'hang': import time; time.sleep(600)"))
    try:
        assert (await pool.check(png)).width == 1
        began = time.monotonic()
        with pytest.raises(InvalidImage, match="longer than 1 s"):
            await pool.check(b"hang")
        assert time.monotonic() - began < 10
        assert pool._idle == []
        assert (await pool.check(png)).width == 1
    finally:
        await pool.aclose()


async def test_a_decoder_that_crashes_is_replaced(png: bytes) -> None:
    pool = ImageWorkers(ImageLimits(), command=scripted("if data == b'crash': import os; os.abort()"))
    try:
        for _ in range(2):
            with pytest.raises(InvalidImage, match="check failed"):
                await pool.check(b"crash")
            assert (await pool.check(png)).width == 1
    finally:
        await pool.aclose()


async def test_a_worker_that_was_killed_meanwhile_refuses_nobody(workers: ImageWorkers, png: bytes) -> None:
    await workers.check(png)
    workers._idle[0].kill()
    await workers._idle[0].wait()
    assert await workers.check(png) == check_image(png)


async def test_an_asker_that_goes_away_leaves_no_half_read_answer(png: bytes) -> None:
    pool = ImageWorkers(ImageLimits(), count=1, command=scripted("import time; time.sleep(0.3)"))
    try:
        asking = asyncio.create_task(pool.check(b"one"))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await pool.check(png)).data == png
    finally:
        await pool.aclose()


async def test_checks_run_beside_each_other_and_the_event_loop_goes_on(png: bytes) -> None:
    pool = ImageWorkers(ImageLimits(), count=2, command=scripted("import time; time.sleep(0.2)"))
    try:
        ticks = 0
        checks = [asyncio.create_task(pool.check(png)) for _ in range(4)]
        while not all(check.done() for check in checks):
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 10
        assert len(pool._idle) == 2
    finally:
        await pool.aclose()


@pytest.mark.parametrize(
    "line", [b"[]\n", b"7\n", b"{}\n", b"\xff\n", b'{"media_type": "text/html", "width": 1, "height": 1}\n']
)
def test_what_a_worker_says_is_not_believed(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"worker|decode|Expecting"):
        read_description(line)
