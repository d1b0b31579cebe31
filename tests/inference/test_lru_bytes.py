from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.inference.lru_bytes import LruBytes


def test_what_was_used_longest_ago_goes_first():
    cache = LruBytes[str, bytes](10, len)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    cache.get("a")
    assert cache.put("c", b"1234") == [("b", b"1234")]
    assert ("a" in cache, "b" in cache, cache.used_bytes) == (True, False, 8)


def test_a_value_over_the_budget_is_not_kept():
    cache = LruBytes[str, bytes](3, len)
    assert cache.put("a", b"1234") == [("a", b"1234")]
    assert len(cache) == 0


def test_room_is_made_before_a_value_is_there():
    cache = LruBytes[str, bytes](10, len)
    for key in "abc":
        cache.put(key, b"123")
    assert cache.make_room(1) == []
    assert cache.make_room(5) == [("a", b"123"), ("b", b"123")]
    assert cache.make_room(11) == []
    assert cache.used_bytes == 3


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 7)), max_size=40))
def test_the_budget_is_never_exceeded_and_the_sum_is_right(steps):
    cache = LruBytes[str, bytes](12, len)
    for key, size in steps:
        cache.put(key, bytes(size)) if size else cache.pop(key)
        held = [cache.get(key) for key in "abcde"]
        assert cache.used_bytes == sum(len(value) for value in held if value is not None) <= 12
