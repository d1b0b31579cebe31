"""What a key may be called, and how long it may work. Pure."""

from idefics_chat.storage.errors import InvalidExpiry, InvalidName

LATEST_S = 253_402_300_800.0
"""The year 10000, in seconds since the epoch."""


def check_name(name: str) -> None:
    """Refuse a name, of an owner or a key, that lists could not show on one line. Raises InvalidName."""
    if not name.strip() or not name.isprintable():
        raise InvalidName(name)


def check_expiry(expires_at: float, now: float) -> None:
    """Refuse an end (seconds since the epoch) that is past, or never comes. Raises InvalidExpiry."""
    if not now < expires_at < LATEST_S:
        raise InvalidExpiry
