"""Work that goes on only while something holds, and work that is not to be broken off."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


async def beside(work: Coroutine[Any, Any, T], watch: Coroutine[Any, Any, NoReturn]) -> T:
    """What `work` gives. Where `watch` raises first, `work` is cancelled and awaited, and that is raised."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(watch)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else watching.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. It is not broken off: a cancel comes when it is done."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.gather(working, return_exceptions=True)
        raise
