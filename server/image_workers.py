"""Checks images in processes of their own, off the event loop, each within a time and an amount of memory.

A worker that takes too long or dies of an image is replaced, and the image is refused. Workers are started when they
are first needed and stay.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import sys
from collections.abc import Sequence

from idefics_chat.conversation.errors import ImageTooLarge, InvalidImage
from idefics_chat.conversation.images import CheckedImage, ImageLimits
from idefics_chat.server.image_worker import LENGTH_BYTES, read_description

COMMAND = (sys.executable, "-m", "idefics_chat.server.image_worker")
BYTES_PER_PIXEL = 24
"""The most that a check holds for one pixel: a transparent image on its ground, the sum of the two and its copies."""

BASE_BYTES = 512 * 2**20
"""What a worker takes besides, of address space: the interpreter, the libraries, the file itself."""

_log = logging.getLogger(__name__)


class ImageWorkers:
    """A pool of `count` processes. `time_s` bounds one image's check, `memory_bytes` a process's address space.

    Belongs to one event loop; `aclose` ends the processes.
    """

    def __init__(
        self,
        limits: ImageLimits,
        *,
        count: int = 2,
        time_s: float = 20.0,
        memory_bytes: int | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._limits = limits
        self._time_s = time_s
        self._memory_bytes = memory_bytes or BASE_BYTES + BYTES_PER_PIXEL * limits.max_pixels
        self._command = command
        self._places = asyncio.Semaphore(count)
        self._idle: list[asyncio.subprocess.Process] = []

    async def check(self, data: bytes) -> CheckedImage:
        """Check an image's bytes and describe it, as `conversation.images.check_image` does.

        Raises:
            ImageTooLarge, InvalidImage
        """
        if len(data) > self._limits.max_bytes:
            raise ImageTooLarge(len(data), self._limits.max_bytes, "bytes")
        async with self._places:
            while self._idle:
                # One that died while it had nothing to do says nothing of this image.
                with contextlib.suppress(_WorkerDied):
                    return await self._checked_by(self._idle.pop(), data)
            try:
                return await self._checked_by(await self._start(), data)
            except _WorkerDied:
                _log.warning("an image check ended its process; the image is refused and the process replaced")
                raise InvalidImage("its check failed") from None

    async def aclose(self) -> None:
        """End the processes. Idempotent."""
        while self._idle:
            await _end(self._idle.pop())

    async def _checked_by(self, worker: asyncio.subprocess.Process, data: bytes) -> CheckedImage:
        """The worker is idle again, or it is ended: one that was left in the middle of an image is of no use."""
        line = b""
        try:
            async with asyncio.timeout(self._time_s):
                line = await _ask(worker, data)
        except TimeoutError:
            _log.warning("an image check took longer than %s s and was ended", self._time_s)
            raise InvalidImage(f"it takes longer than {self._time_s:g} s to decode") from None
        finally:
            if line.endswith(b"\n"):
                self._idle.append(worker)
            else:
                await asyncio.shield(_end(worker))
        if not line.endswith(b"\n"):
            raise _WorkerDied
        media_type, width, height = read_description(line)
        return CheckedImage(await asyncio.to_thread(_digest, data), media_type, width, height, data)

    async def _start(self) -> asyncio.subprocess.Process:
        bounds = {
            "--max-bytes": self._limits.max_bytes,
            "--max-pixels": self._limits.max_pixels,
            "--memory-bytes": self._memory_bytes,
            "--time-s": math.ceil(self._time_s) + 1,
        }
        arguments = [str(word) for pair in bounds.items() for word in pair]
        return await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for the server, which ends its workers
        )


class _WorkerDied(Exception):
    """The process ended before it answered."""


async def _ask(worker: asyncio.subprocess.Process, data: bytes) -> bytes:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(len(data).to_bytes(LENGTH_BYTES, "big"))
        worker.stdin.write(data)
        await worker.stdin.drain()
        return await worker.stdout.readline()
    except (ConnectionError, ValueError):  # ended, or a line without an end
        return b""


async def _end(worker: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()
    if worker.stdin is not None:
        worker.stdin.close()
    await worker.wait()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
