"""Identifiers."""

from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.conversation.ids import new_id


@given(st.floats(0, 1e11), st.floats(0, 1e11))
def test_ids_sort_by_the_time_they_were_made(first: float, second: float) -> None:
    earlier, later = sorted((first, second))
    if int(earlier * 1000) < int(later * 1000):
        assert new_id("msg", earlier) < new_id("msg", later)


def test_ids_of_one_moment_differ() -> None:
    assert len({new_id("conv", 1.0) for _ in range(1000)}) == 1000


def test_an_id_says_what_it_names_and_has_eighty_random_bits() -> None:
    assert new_id("resp", 1.5, lambda n: "ab" * n) == "resp_0000000005dc" + "ab" * 10
