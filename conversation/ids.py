"""Identifiers: opaque, unguessable, and sorted by the time they were made.

60 bits of time since the epoch, then 80 random bits, in hex after a prefix that says what the id names. The time is
milliseconds with twelve bits of fraction (as in UUID version 7, RFC 9562, section 6.2, method 3).
"""

import secrets
from collections.abc import Callable
from typing import Literal

Kind = Literal["conv", "msg", "resp", "file", "batch"]

TICKS_PER_S = 1000 * 2**12


class IdMaker:
    """Makes ids that sort in the order in which they were made, however fast they are made and whatever the clock does.

    `clock` gives seconds since the epoch, `token_hex(n)` n random bytes in hex. For one thread.
    """

    def __init__(self, clock: Callable[[], float], token_hex: Callable[[int], str] = secrets.token_hex) -> None:
        self._clock = clock
        self._token_hex = token_hex
        self._ticks = 0

    def __call__(self, kind: Kind) -> str:
        """A new id."""
        self._ticks = max(self._ticks + 1, int(self._clock() * TICKS_PER_S))
        return _written(kind, self._ticks, self._token_hex(10))


def earliest_id(kind: Kind, moment_s: float) -> str:
    """What sorts before all ids made from that moment on (seconds since the epoch)."""
    return _written(kind, int(moment_s * TICKS_PER_S), "00" * 10)


def _written(kind: Kind, ticks: int, random: str) -> str:
    return f"{kind}_{ticks & (2**60 - 1):015x}{random}"
