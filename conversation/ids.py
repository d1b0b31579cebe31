"""Identifiers: opaque, unguessable, and sorted by the time they were made.

48 bits of milliseconds since the epoch, then 80 random bits (as in UUID version 7, RFC 9562), in hex after a prefix
that says what the id names.
"""

import secrets
from collections.abc import Callable
from typing import Literal

Kind = Literal["conv", "msg", "resp", "file", "batch"]


def new_id(kind: Kind, now_s: float, token_hex: Callable[[int], str] = secrets.token_hex) -> str:
    """A new id; `now_s` is seconds since the epoch, `token_hex(n)` gives n random bytes in hex."""
    return f"{kind}_{int(now_s * 1000) & (2**48 - 1):012x}{token_hex(10)}"
