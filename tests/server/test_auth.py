"""Who is asking, and from where."""

from pathlib import Path

import pytest

from idefics_chat.server.auth import (
    KEY_PREFIX,
    Identity,
    check_host,
    check_origin,
    identify,
    is_loopback,
    key_hash,
    make_key,
    may_see_metrics,
    presented_key,
)
from idefics_chat.server.errors import ApiError
from idefics_chat.storage.store import Store


def test_keys_differ_and_only_their_hash_is_for_keeping() -> None:
    keys = {make_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith(KEY_PREFIX) and len(key) > 40 for key in keys)
    assert not any(key in key_hash(key) for key in keys)


def test_a_key_comes_in_the_header_or_for_browsers_in_the_subprotocols() -> None:
    assert presented_key({"authorization": "Bearer abc"}) == "abc"
    assert presented_key({"authorization": "bearer abc "}) == "abc"
    assert presented_key({}, ["realtime", "openai-insecure-api-key.xyz"]) == "xyz"
    assert presented_key({"authorization": "Basic abc"}) is None
    assert presented_key({"authorization": "Bearer "}, ["realtime"]) is None


@pytest.mark.anyio
async def test_a_key_is_its_owner_s_and_none_is_the_local_owner_s_where_none_is_needed(tmp_path: Path) -> None:
    store = await Store.open(str(tmp_path / "chat.db"))
    try:
        key = make_key()
        ann = await store.owner("ann")
        await store.add_key(ann.id, key_hash(key), "ann")
        assert await identify(store, key, require_key=True) == Identity(ann, key_hash(key))
        local = Identity(await store.owner("local"), None)
        assert await identify(store, None, require_key=False) == local
        assert await identify(store, "sk-something-else", require_key=False) == local
        for wrong, needed in ((make_key(), False), (make_key(), True), (None, True), ("sk-x", True)):
            with pytest.raises(ApiError) as error:
                await identify(store, wrong, require_key=needed)
            assert error.value.code == "invalid_api_key"
            assert error.value.message.startswith("A key is needed" if wrong is None else "This key is not one of")
    finally:
        await store.close()


@pytest.mark.anyio
async def test_what_does_not_look_like_a_key_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await Store.open(str(tmp_path / "chat.db"))
    looked_up: list[str] = []

    async def note(hashed: str) -> None:
        looked_up.append(hashed)

    monkeypatch.setattr(store, "owner_of_key", note)
    try:
        assert (await identify(store, "sk-something-else", require_key=False)).key_hash is None
        assert looked_up == []
        with pytest.raises(ApiError):
            await identify(store, make_key(), require_key=False)
        assert len(looked_up) == 1
    finally:
        await store.close()


def test_pages_may_come_from_here_and_from_where_the_operator_allows() -> None:
    check_origin({"host": "localhost:8000"}, ())
    check_origin({"host": "localhost:8000", "origin": "http://localhost:8000"}, ())
    check_origin({"host": "localhost:8000", "origin": "https://shop.example"}, ("https://shop.example",))
    for origin in ("https://evil.example", "http://localhost:9000", "null"):
        with pytest.raises(ApiError) as error:
            check_origin({"host": "localhost:8000", "origin": origin}, ("https://shop.example",))
        assert error.value.status == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "127.8.9.1:80", "[::1]:8000", "app.localhost"])
def test_on_loopback_names_of_this_machine_are_answered(host: str) -> None:
    check_host({"host": host}, "127.0.0.1")


@pytest.mark.parametrize(
    "host", ["evil.example", "10.0.0.1:8000", "localhost.evil.example", "", "127.0.0.1.evil.example"]
)
def test_on_loopback_other_names_are_refused(host: str) -> None:
    with pytest.raises(ApiError):
        check_host({"host": host}, "127.0.0.1")
    check_host({"host": host}, "0.0.0.0")


def test_loopback_is_a_matter_of_addresses() -> None:
    assert is_loopback("127.0.0.2")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("128.0.0.1")


@pytest.mark.anyio
async def test_a_key_with_scopes_does_what_they_say_and_no_more(tmp_path: Path) -> None:
    store = await Store.open(str(tmp_path / "chat.db"))
    try:
        keys = {}
        ann = await store.owner("ann")
        for scopes in ((), ("chat",), ("read",), ("metrics",)):
            keys[scopes] = make_key()
            await store.add_key(ann.id, key_hash(keys[scopes]), "ann", scopes=scopes)
        may_write = {(), ("chat",)}
        for scopes, key in keys.items():
            for reads, allowed in ((True, may_write | {("read",)}), (False, may_write)):
                if scopes in allowed:
                    assert (await identify(store, key, require_key=True, reads=reads)).owner == ann
                else:
                    with pytest.raises(ApiError) as refused:
                        await identify(store, key, require_key=True, reads=reads)
                    assert refused.value.code == "insufficient_scope"
                    assert f"was made for {scopes[0]} alone" in refused.value.message
            assert await may_see_metrics(store, key) == (scopes == ("metrics",))
        assert not await may_see_metrics(store, make_key())
    finally:
        await store.close()


def test_behind_a_proxy_the_names_that_the_operator_allows_are_answered_to() -> None:
    check_host({"host": "chat.example:443"}, "127.0.0.1", ("chat.example",))
    check_host({"host": "localhost:8000"}, "127.0.0.1", ("chat.example",))
    for host, listening_on in (("evil.example", "127.0.0.1"), ("evil.example", "0.0.0.0"), ("[", "127.0.0.1")):
        with pytest.raises(ApiError) as refused:
            check_host({"host": host}, listening_on, ("chat.example",))
        assert refused.value.code == "forbidden_origin"


def test_an_origin_that_is_no_url_is_refused_as_another_s() -> None:
    with pytest.raises(ApiError) as refused:
        check_origin({"origin": "http://[", "host": "localhost"}, ())
    assert refused.value.code == "forbidden_origin"
