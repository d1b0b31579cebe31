"""Parked prefixes are found by what they are, within their group."""

import time
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.inference.prefix_index import BLOCK, MOST_FOUND
from idefics_chat.inference.prefix_store import Prefix, PrefixStore, common_length

PLENTY = 10**9


def prefix(keys: list[Any]) -> Prefix:
    return Prefix(list(keys), [(torch.zeros(1, len(keys), 1), torch.zeros(1, len(keys), 1))])


# Few tokens and long runs, so that much begins alike.
sequences = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2 * BLOCK)), max_size=6).map(
    lambda runs: [token for token, count in runs for _ in range(count)]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), sequences), max_size=12), st.sampled_from("ab"), sequences)
def test_the_longest_common_beginning_of_the_group_is_found(
    parked: list[tuple[str, list[int]]], group: str, wanted: list[int]
) -> None:
    store = PrefixStore(PLENTY, 0)
    for owner, keys in parked:
        store.park(owner, prefix(keys))
        store.check()
    found, length = store.longest(group, wanted)
    lengths = [common_length(keys, wanted) for owner, keys in parked if owner == group]
    assert length == max(lengths, default=0)
    assert (found is None) == (length == 0)
    if found is not None:
        assert common_length(store.take(found).keys, wanted) == length


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), sequences), max_size=12))
def test_what_a_longer_one_holds_is_kept_once(parked: list[tuple[str, list[int]]]) -> None:
    store = PrefixStore(PLENTY, 0)
    for owner, keys in parked:
        store.park(owner, prefix(keys))
    kept = {(owner, tuple(keys)) for owner, keys in parked}
    for index, (owner, keys) in enumerate(parked):
        if any(other == owner and later[: len(keys)] == keys for other, later in parked[index + 1 :]):
            # A later one began with it: only as itself parked again may it be there.
            last = max(place for place, item in enumerate(parked) if item == (owner, keys))
            if last == index:
                kept.discard((owner, tuple(keys)))
    assert len(store) == len(kept)


def test_a_prefix_is_found_as_fast_among_thousands() -> None:
    def seconds(count: int) -> float:
        store = PrefixStore(PLENTY, 0)
        for number in range(count):
            store.park("owner", prefix([*range(2 * BLOCK), *[number + 1000] * BLOCK]))
        wanted = [*range(2 * BLOCK), *[count + 999] * BLOCK, 7]
        times = []
        for _ in range(20):
            started = time.perf_counter()
            assert store.longest("owner", wanted)[1] == 3 * BLOCK
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(5000) < 20 * seconds(2 * MOST_FOUND)
