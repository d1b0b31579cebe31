"""What is done about the memory of a process that runs for weeks."""

import asyncio
import ctypes
import gc
import os

ARENAS = 2
"""Heaps that glibc's allocator may have. By default it makes one for each of the first eight threads a core; each keeps
room of its own, and what one thread frees no other can use."""

_M_ARENA_MAX = -8
"""`mallopt`'s number for it (malloc.h)."""


def share_heaps() -> None:
    """To be called before there are threads, by a process that is ours. Does nothing without glibc, nor where the
    environment tunes the allocator."""
    if "MALLOC_ARENA_MAX" in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)


GIVE_BACK_S = 60.0
"""How often memory that is free is given back."""


async def keep_giving_back(interval_s: float = GIVE_BACK_S) -> None:
    """Until cancelled: give back to the system what the allocator holds and nobody uses.

    By itself it gives back only what lies at the end of a heap. What steps of all sizes leave free in between came to
    60 to 110 MiB, and came and went with what was asked; to look through it takes some milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(interval_s)
        await asyncio.to_thread(trim, 0)


def settle_memory() -> None:
    """To be called when all that stays has been made: half a million objects, most of them the libraries'.

    The garbage collector would look through them all in every full collection, while all streams stand still, and would
    put full collections off until a quarter as many new objects are there, among them tensors that turns left behind.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts what is left: the next full collection waits for a quarter of that
