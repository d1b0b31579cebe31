"""What the guarded fetch may ask for: URLs read strictly, and the operator's choice of hosts. Pure.

The operator's choice is `off`, `public` (any host with public addresses, on the usual ports) or a list of hosts, each
`name`, `name:port`, or an address. A listed name must lead to public addresses too; an address that the operator
listed by itself is taken as it is, since no name can be turned against it.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from idefics_chat.server.public_addresses import Address, is_odd_spelling, is_public, literal_address

MAX_URL_CHARACTERS = 4096
PORTS = {"http": 80, "https": 443}

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~-._|"


class FetchError(Exception):
    """An image that was not fetched. `code` is one of the server's error codes, the message a sentence for the user.

    It never says what a name resolves to: strangers learn nothing of the network that the server stands in.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Place(NamedTuple):
    """A host that the operator lists. `port` None stands for the scheme's own."""

    host: str
    port: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, read. `host` is a name in small letters or an address without brackets; `path` is path and query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The URL again, written in the usual way."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """What the `Host` header says: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Where images may be fetched from; `places` None is any public host."""

    places: frozenset[Place] | None = None

    def check_target(self, target: Target) -> None:
        """Raises FetchError `invalid_image_url` for a host or port that is not allowed."""
        usual = target.port == PORTS[target.scheme]
        if self.places is None:
            if not usual:
                raise _refused("Images are fetched from the ports 80 and 443 alone; use such a link.")
        elif not self._lists(target.host, target.port, usual):
            message = f"Images are not fetched from {target.host[:80]!r} here; the operator can allow it."
            raise _refused(message)

    def check_addresses(self, host: str, port: int, addresses: list[Address]) -> None:
        """Raises FetchError `invalid_image_url` unless every address that the host leads to may be connected to."""
        named = literal_address(host) is not None and self._lists(host, port, port in PORTS.values())
        if not addresses or not (named or all(map(is_public, addresses))):
            raise _refused(f"The host {host[:80]!r} has no public address; send the image itself, as a data URL.")

    def _lists(self, host: str, port: int, usual: bool) -> bool:
        if self.places is None:
            return False
        return Place(host, port) in self.places or (usual and Place(host, None) in self.places)


def read_policy(setting: str) -> FetchPolicy | None:
    """The policy that the operator's setting stands for; None where nothing is fetched.

    Raises:
        ValueError: it stands for none.
    """
    entries = [entry.strip().lower() for entry in setting.split(",") if entry.strip()]
    if entries in ([], ["off"]):
        return None
    if entries == ["public"]:
        return FetchPolicy()
    return FetchPolicy(frozenset(_read_place(entry) for entry in entries))


def read_url(url: str, base: Target | None = None) -> Target:
    """Read a link strictly; `base` is what a redirect's location is relative to.

    Raises:
        FetchError: `invalid_image_url`.
    """
    joined = url if base is None else urljoin(base.url, url)
    if len(joined) > MAX_URL_CHARACTERS or re.search(r"[\x00-\x20\x7f\\]", joined):
        raise _refused("The link is too long, or holds spaces or backslashes; encode them.")
    try:
        parts = urlsplit(joined)
        port = parts.port
    except ValueError:
        raise _refused("The link is no URL; send http://... or https://... .") from None
    if parts.scheme not in PORTS:
        raise _refused("Only http and https links are fetched; send one of them, or a data URL.")
    if "@" in parts.netloc:
        raise _refused("The link holds a user name or password; send one without.")
    host = _host(parts.hostname or "", parts.netloc)
    path = quote(parts.path or "/", safe=_URL_CHARACTERS)
    query = "?" + quote(parts.query, safe=_URL_CHARACTERS) if parts.query else ""
    return Target(parts.scheme, host, port or PORTS[parts.scheme], path + query)


def _host(host: str, netloc: str) -> str:
    address = literal_address(host)
    if address is not None and ("[" in netloc) == (address.version == 6):
        return str(address)
    if address is not None or is_odd_spelling(host) or not _NAME.fullmatch(host):
        raise _refused(
            "The link's host is no plain name (a name in other letters is written xn--...); use one that is."
        )
    return host.rstrip(".")


def _read_place(entry: str) -> Place:
    try:
        parts = urlsplit(f"//{entry}")
        place = Place(_host(parts.hostname or "", parts.netloc), parts.port)
    except (ValueError, FetchError):
        place = None
    if place is None or parts.path or parts.query or parts.fragment or "@" in entry:
        raise ValueError(f"{entry!r} is no host; write off, public, or hosts such as images.example.org,10.0.0.7:8080")
    return place


def _refused(message: str) -> FetchError:
    return FetchError("invalid_image_url", message)
