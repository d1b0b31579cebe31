"""Who is asking: keys, and the pages and names that a browser may connect from.

A key is made once and shown once; only its sha256 is kept (it has 256 random bits, so a plain hash is enough).
Without a key the asker is the local owner, unless the server insists on keys. A string that is no key of ours is let
pass as none where keys are not insisted on: the SDKs always send something.
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import urlsplit

from idefics_chat.server.errors import ApiError
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Owner

KEY_PREFIX = "ick_"
LOCAL_OWNER = "local"
_SUBPROTOCOL_KEY = "openai-insecure-api-key."


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


async def identify(store: Store, key: str | None, *, require_key: bool) -> Owner:
    """The owner of the key.

    Raises:
        ApiError: `invalid_api_key`.
    """
    if key is not None and (owner := await store.owner_of_key(key_hash(key))) is not None:
        return owner
    if key is not None and key.startswith(KEY_PREFIX):
        raise ApiError("invalid_api_key", "This key is not known here; make one with: idefics-chat keys create NAME.")
    if require_key:
        message = "A key is needed: send Authorization: Bearer KEY. Make one with: idefics-chat keys create NAME."
        raise ApiError("invalid_api_key", message)
    return await store.owner(LOCAL_OWNER)


def check_origin(headers: Mapping[str, str], allowed: Collection[str]) -> None:
    """Refuse web pages of other sites: a browser names the page's origin, and says nothing else of who asks.

    Raises:
        ApiError: `forbidden_origin`.
    """
    origin = headers.get("origin")
    if origin is None or origin in allowed or urlsplit(origin).netloc == headers.get("host"):
        return
    message = f"Pages of {origin[:200]!r} may not connect; the operator can allow them with --allowed-origins."
    raise ApiError("forbidden_origin", message)


def check_host(headers: Mapping[str, str], listening_on: str) -> None:
    """On loopback, refuse a `Host` that is a name of somebody else's (DNS rebinding).

    Raises:
        ApiError: `forbidden_origin`.
    """
    if not is_loopback(listening_on):
        return
    name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not is_loopback(name):
        message = f"This server answers to localhost alone, not to {name[:200]!r}; start it with --host to change that."
        raise ApiError("forbidden_origin", message)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own and no other's."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
