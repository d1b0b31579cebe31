"""Jumps: from any message any ancestor is found in a few steps."""

import math

from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.storage.tree import Place, add_child


def steps_to(places: dict[str, Place], parents: dict[str, str | None], start: str, depth: int) -> tuple[str, int]:
    """The ancestor of `start` at `depth`, and the number of steps to it."""
    here, steps = start, 0
    while places[here].depth > depth:
        jump = places[here].jump_id
        here = jump if places[jump].depth >= depth else parents[here] or ""
        steps += 1
    return here, steps


@given(st.lists(st.integers(0, 10**6), max_size=60), st.integers(0, 10**6), st.integers(0, 10**6))
def test_jumps_find_the_ancestor_at_any_depth_in_any_tree(choices, start, depth):
    places: dict[str, Place] = {}
    parents: dict[str, str | None] = {}
    for number, choice in enumerate(choices):
        parent = None if number == 0 else str(choice % number)
        parents[str(number)] = parent
        add_child(places, parent, str(number))
    if not choices:
        return
    here = str(start % len(choices))
    depth %= places[here].depth + 1
    line = [here]
    while parents[line[-1]] is not None:
        line.append(parents[line[-1]])
    assert steps_to(places, parents, here, depth)[0] == line[::-1][depth]


def test_a_hundred_thousand_messages_are_few_steps():
    places: dict[str, Place] = {}
    parents: dict[str, str | None] = {}
    for number in range(100_000):
        parents[str(number)] = str(number - 1) if number else None
        add_child(places, parents[str(number)], str(number))
    limit = 3 * math.log2(100_000)
    for depth in (0, 1, 49_999, 65_535, 99_998):
        here, steps = steps_to(places, parents, "99999", depth)
        assert (here, steps <= limit) == (str(depth), True)
