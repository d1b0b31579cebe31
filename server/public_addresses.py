"""Which internet addresses are public: reachable by everyone, and nobody's inside. Pure.

Sources: the IANA registries of special-purpose IPv4 and IPv6 addresses (through `ipaddress`), RFC 4291 (mapped and
compatible addresses), 3056 (6to4), 4380 (Teredo), 5214 (ISATAP), 6052 and 8215 (NAT64). An IPv6 address that carries
an IPv4 address is refused whatever it carries: an honest name has the IPv4 address itself.
"""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

_IPV4_REFUSED = (
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv4Network("168.63.129.16/32"),  # a cloud's inner services, on a public address
)
_IPV6_UNICAST = IPv6Network("2000::/3")
_IPV6_REFUSED = (IPv6Network("2001::/23"), IPv6Network("2002::/16"), IPv6Network("3fff::/20"))
_ISATAP = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))


def is_public(address: Address) -> bool:
    """Whether the address is one of the open internet's, for one receiver."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in net for net in _IPV4_REFUSED)
    return (
        address.scope_id is None
        and address in _IPV6_UNICAST
        and address.is_global
        and not any(address in net for net in _IPV6_REFUSED)
        and address.packed[8:12] not in _ISATAP
    )


def literal_address(host: str) -> Address | None:
    """The address that a URL's host is, in its one usual spelling (IPv6 in brackets or without); None for a name."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ipaddress.ip_address(bare)
    except ValueError:
        return None


def is_odd_spelling(host: str) -> bool:
    """Whether a host that is no address in its usual spelling would be read as one by some resolvers: `127.1`,
    `2130706433`, `0x7f.0.0.1`, `0177.0.0.1`."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last[:2] in ("0x", "0X")
