"""Who is asking: keys, and the pages and names that a browser may connect from.

A key is made once and shown once; only its sha256 is kept (it has 256 random bits, so a plain hash is enough).
Without a key the asker is the local owner, unless the server insists on keys. A string that is no key of ours is let
pass as none where keys are not insisted on: the SDKs always send something.
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from idefics_chat.server.errors import ApiError
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Owner

KEY_PREFIX = "ick_"
LOCAL_OWNER = "local"
SCOPES = ("chat", "read", "metrics")
"""What a key can be made for: all that is its owner's, looking at it, the server's metrics. A key without scopes may do
all that its owner may."""

_SUBPROTOCOL_KEY = "openai-insecure-api-key."


@dataclass(frozen=True, slots=True)
class Identity:
    """An owner, and the hash of the key that it was known by; None where it needed none."""

    owner: Owner
    key_hash: str | None


def make_key() -> str:
    """A new key, with 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """What is stored of a key: hex sha256."""
    return hashlib.sha256(key.encode()).hexdigest()


def presented_key(headers: Mapping[str, str], subprotocols: Sequence[str] = ()) -> str | None:
    """The key in the Authorization header, else (browsers) in the websocket's subprotocols."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    named = (p.removeprefix(_SUBPROTOCOL_KEY) for p in subprotocols if p.startswith(_SUBPROTOCOL_KEY))
    return next(named, None)


async def identify(store: Store, key: str | None, *, require_key: bool, reads: bool = False) -> Identity:
    """The owner of the key, which begins with `KEY_PREFIX`: nothing else is looked up. `reads`: what is asked changes
    nothing, so that the scope `read` is enough.

    Raises:
        ApiError: `invalid_api_key`, `insufficient_scope`.
    """
    ours = key if key is not None and key.startswith(KEY_PREFIX) else None
    if ours is not None and (owner := await store.owner_of_key(key_hash(ours))) is not None:
        await _check_scope(store, ours, {"chat", "read"} if reads else {"chat"})
        return Identity(owner, key_hash(ours))
    if ours is not None or (key is not None and require_key):
        message = (
            "This key is not one of this server's, or no longer works; make one with: idefics-chat keys create NAME."
        )
        raise ApiError("invalid_api_key", message)
    if require_key:
        message = "A key is needed: send Authorization: Bearer KEY. Make one with: idefics-chat keys create NAME."
        raise ApiError("invalid_api_key", message)
    return Identity(await store.owner(LOCAL_OWNER), None)


async def may_see_metrics(store: Store, key: str) -> bool:
    """Whether the key works and has the scope `metrics`; a key without scopes is its owner's, not the operator's."""
    hashed = key_hash(key)
    known = await store.key(hashed)
    return known is not None and "metrics" in known.scopes and await store.owner_of_key(hashed) is not None


async def _check_scope(store: Store, key: str, sufficient: Collection[str]) -> None:
    known = await store.key(key_hash(key))
    if known is not None and known.scopes and not set(known.scopes) & set(sufficient):
        message = f"This key was made for {' and '.join(known.scopes)} alone; use one that was made for more."
        raise ApiError("insufficient_scope", message)


def check_origin(headers: Mapping[str, str], allowed: Collection[str]) -> None:
    """Refuse web pages of other sites: a browser names the page's origin, and says nothing else of who asks.

    Raises:
        ApiError: `forbidden_origin`.
    """
    origin = headers.get("origin")
    if origin is None or origin in allowed or _place(origin) == headers.get("host"):
        return
    message = f"Pages of {origin[:200]!r} may not connect; the operator can allow them with --allowed-origins."
    raise ApiError("forbidden_origin", message)


def check_host(headers: Mapping[str, str], listening_on: str, allowed: Collection[str] = ()) -> None:
    """Refuse a `Host` that is none of the allowed names, and on loopback one that is somebody else's (DNS rebinding).

    Raises:
        ApiError: `forbidden_origin`.
    """
    if not is_loopback(listening_on) and not allowed:
        return
    name = _host_name(headers.get("host", ""))
    if not is_loopback(name) and name not in allowed:
        message = f"This server does not answer to {name[:200]!r}; the operator can allow it with --allowed-hosts."
        raise ApiError("forbidden_origin", message)


def _place(origin: str) -> str | None:
    """The host and port in an `Origin` header, None for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """The name in a `Host` header, empty for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own and no other's."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
