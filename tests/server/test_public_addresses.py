"""No address of anybody's inside counts as public, however it is written."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.server.fetch_policy import FetchError, FetchPolicy, read_policy, read_url
from idefics_chat.server.public_addresses import is_public, literal_address

INSIDE = [
    ipaddress.IPv4Network(net)
    for net in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/29", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
]


def within(network: ipaddress.IPv4Network) -> st.SearchStrategy[ipaddress.IPv4Address]:
    return st.integers(int(network[0]), int(network[-1])).map(ipaddress.IPv4Address)


inside = st.sampled_from(INSIDE).flatmap(within)


def spellings(address: ipaddress.IPv4Address) -> list[str]:
    """How the C library's `inet_aton` lets the address be written, with the usual way first."""
    a, b, c, d = address.packed
    return [
        str(address),
        str(int(address)),
        hex(int(address)),
        f"0{int(address):o}",
        f"{a}.{(b << 16) + (c << 8) + d}",
        f"{a}.{b}.{(c << 8) + d}",
        ".".join(f"0{part:o}" for part in address.packed),
        ".".join(f"{part:#x}" for part in address.packed),
        f"{a:#x}.{b}.0{c:o}.{d}",
    ]


def carriers(address: ipaddress.IPv4Address) -> list[ipaddress.IPv6Address]:
    """IPv6 addresses that lead to, or stand for, an IPv4 address."""
    low = int(address)
    return [
        ipaddress.IPv6Address(number)
        for number in (
            (0xFFFF << 32) + low,
            low,
            (0x64FF9B << 96) + low,
            (0x64FF9B0001 << 80) + low,
            (0x2002 << 112) + (low << 80) + 1,
            (0x20010000 << 96) + (low ^ 0xFFFFFFFF),
            (0x2A00 << 112) + (0x5EFE << 32) + low,
            (0xFE80 << 112) + (0x02005EFE << 32) + low,
        )
    ]


@given(inside)
def test_no_inner_ipv4_address_is_public(address: ipaddress.IPv4Address) -> None:
    assert not is_public(address)


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address))
def test_an_ipv6_address_that_carries_an_ipv4_address_is_not_public(address: ipaddress.IPv4Address) -> None:
    assert [carrier for carrier in carriers(address) if is_public(carrier)] == []


@pytest.mark.parametrize(
    "address",
    [
        *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "100::1"),
        *("3fff::1", "4000::1", "2001:10::1", "fe80::1%eth0", "2a00:1450:4001::1%eth0"),
    ],
)
def test_no_inner_ipv6_address_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:830::200e"]
)
def test_the_open_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_the_inner_services_of_a_cloud_are_not_public() -> None:
    assert not is_public(ipaddress.ip_address("168.63.129.16"))
    assert not is_public(ipaddress.ip_address("169.254.169.254"))


@given(inside, st.integers(0, 8), st.sampled_from(["http", "https", "HTTP"]), st.booleans())
def test_no_spelling_of_an_inner_address_gets_through(
    address: ipaddress.IPv4Address, which: int, scheme: str, dot: bool
) -> None:
    spelling = spellings(address)[which]
    assert socket.inet_aton(spelling) == address.packed, "this spelling is read as the address"
    with pytest.raises(FetchError) as refused:
        check(f"{scheme}://{spelling}{'.' if dot else ''}/a.png")
    assert refused.value.code == "invalid_image_url"


@given(inside, st.integers(0, 7))
def test_no_ipv6_spelling_of_an_inner_address_gets_through(address: ipaddress.IPv4Address, which: int) -> None:
    carrier = carriers(address)[which]
    for spelling in (carrier.compressed, carrier.exploded, carrier.compressed.upper()):
        with pytest.raises(FetchError):
            check(f"http://[{spelling}]/a.png")


def check(url: str) -> None:
    """Read and judge a link as far as that goes without a resolver."""
    target = read_url(url)
    policy = FetchPolicy()
    policy.check_target(target)
    address = literal_address(target.host)
    assert address is not None, "a name would be resolved, and what it leads to be checked"
    policy.check_addresses(target.host, target.port, [address])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.png",
        "file:///etc/passwd",
        "gopher://example.org/",
        "//example.org/a.png",
        "http:///a.png",
        "http://user@example.org/a.png",
        "http://user:secret@example.org/a.png",
        "http://example.org@10.0.0.1/a.png",
        "http://exa mple.org/",
        "http://example.org\\@10.0.0.1/",
        "http://example.org/\r\nHost: inner",
        "http://ex\u00e4mple.org/",
        "http://\u2460\u2461\u2466.0.0.1/",
        "http://example.org:99999/",
        "http://example.org:abc/",
        "http://[::1/",
        "http://10.0.0.1:80:80/",
        "http://-a.org/",
        "http://" + "a" * 64 + ".org/",
        "http://example.org/" + "a" * 5000,
    ],
)
def test_what_is_no_plain_link_is_refused(url: str) -> None:
    with pytest.raises(FetchError) as refused:
        read_url(url)
    assert refused.value.code == "invalid_image_url"


@given(st.text(max_size=60))
def test_reading_any_text_gives_a_plain_link_or_a_refusal(text: str) -> None:
    for url in (text, f"http://{text}", f"https://example.org/{text}"):
        try:
            target = read_url(url)
        except FetchError:
            continue
        assert target.url.isascii()
        assert not set(target.url) & set(" \\\r\n\t@#") - set("@")
        assert read_url(target.url) == target


def test_a_link_is_read_into_its_parts() -> None:
    target = read_url("HTTPS://Example.ORG:8443/a b/\u00e4.png?x=1#there".replace(" ", "%20"))
    assert (target.scheme, target.host, target.port) == ("https", "example.org", 8443)
    assert target.path == "/a%20b/%C3%A4.png?x=1"
    assert (target.authority, read_url("http://[2606:4700::1]/").authority) == ("example.org:8443", "[2606:4700::1]")


def test_a_redirect_is_read_relative_to_where_it_came_from() -> None:
    base = read_url("https://example.org/a/b.png")
    assert read_url("../c.png", base).url == "https://example.org/c.png"
    assert read_url("//other.org/d", base).url == "https://other.org/d"


def test_the_operator_chooses() -> None:
    assert read_policy("off") is None
    assert read_policy("") is None
    assert read_policy("public") == FetchPolicy()
    policy = read_policy("Images.example.org, cdn.example.org:8443,10.0.0.7:8080")
    assert policy is not None
    policy.check_target(read_url("https://images.example.org/a.png"))
    policy.check_target(read_url("https://cdn.example.org:8443/a.png"))
    policy.check_target(read_url("http://10.0.0.7:8080/a.png"))
    for url in (
        "https://example.org/",
        "https://images.example.org:8443/",
        "https://cdn.example.org/",
        "http://10.0.0.7/",
    ):
        with pytest.raises(FetchError, match="operator"):
            policy.check_target(read_url(url))


def test_a_listed_name_must_lead_to_public_addresses_and_a_listed_address_need_not() -> None:
    policy = read_policy("images.example.org,10.0.0.7:8080")
    assert policy is not None
    inner, outer = ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("8.8.8.8")
    policy.check_addresses("10.0.0.7", 8080, [inner])
    policy.check_addresses("images.example.org", 443, [outer])
    for addresses in ([inner], [outer, inner], []):
        with pytest.raises(FetchError, match="public address"):
            policy.check_addresses("images.example.org", 443, addresses)


def test_only_the_usual_ports_of_public_hosts_are_asked() -> None:
    for url in ("http://example.org:22/", "https://example.org:6379/", "http://example.org:443/"):
        with pytest.raises(FetchError, match="ports"):
            FetchPolicy().check_target(read_url(url))


@pytest.mark.parametrize("setting", ["public,example.org:x", "http://example.org", "a b", "off,on/", "127.1", "a@b"])
def test_a_setting_that_lists_no_hosts_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        read_policy(setting)
