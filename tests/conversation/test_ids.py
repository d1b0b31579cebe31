"""Identifiers."""

from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.conversation.ids import IdMaker, earliest_id


@given(st.lists(st.floats(0, 1e11), min_size=2))
def test_ids_sort_in_the_order_in_which_they_were_made_whatever_the_clock_does(moments: list[float]) -> None:
    clock = iter(moments)
    make_id = IdMaker(lambda: next(clock))
    made = [make_id("msg") for _ in moments]
    assert sorted(set(made)) == made


@given(st.floats(0, 1e11), st.floats(0, 1e11))
def test_ids_of_different_makers_sort_by_the_time_to_the_millisecond(first: float, second: float) -> None:
    earlier, later = sorted((first, second))
    if int(earlier * 1000) < int(later * 1000):
        assert IdMaker(lambda: earlier)("msg") < earliest_id("msg", later) <= IdMaker(lambda: later)("msg")


def test_ids_of_one_moment_cannot_be_told_from_one_another() -> None:
    assert len({IdMaker(lambda: 1.0)("conv") for _ in range(1000)}) == 1000


def test_an_id_says_what_it_names_and_has_eighty_random_bits() -> None:
    assert IdMaker(lambda: 1.5, lambda n: "ab" * n)("resp") == "resp_0000000005dc000" + "ab" * 10
