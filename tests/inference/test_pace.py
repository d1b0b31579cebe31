"""How much of a prompt is read in a step: what fits beside a decode step, whatever sizes were measured."""

from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.inference.pace import LEAST_TOKENS, MOST_SHARE, Pace

costs = st.tuples(st.floats(0, 200), st.floats(1e-5, 1e-2))
"""What reading costs to start, in tokens, and the seconds that a token costs."""


@given(costs, st.lists(st.integers(1, 1000), min_size=2, max_size=30), st.integers(1, 16), st.integers(1, 16))
def test_what_is_read_takes_no_longer_than_its_share(
    cost: tuple[float, float], sizes: list[int], decoding: int, joining: int
) -> None:
    start_s, token_s = cost[0] * cost[1], cost[1]
    decode_s = start_s + token_s * decoding
    pace = Pace(1024)
    for size in [*sizes, 1, 500]:
        pace.prefilled(size, start_s + token_s * size)
    pace.decoded(decode_s)
    tokens = pace.prefill_tokens(decoding, joining)
    share = max(min(joining, MOST_SHARE), joining / decoding)
    assert tokens == LEAST_TOKENS or start_s + token_s * tokens <= 1.01 * share * decode_s


def test_small_parts_do_not_lead_to_ever_smaller_ones() -> None:
    pace = Pace(1024)
    pace.decoded(0.015 + 0.0005 * 4)
    pace.prefilled(200, 0.015 + 0.0005 * 200)
    for _ in range(30):
        size = pace.prefill_tokens(4, joining=3)
        # A prompt is read in two parts, of which the second is a few tokens.
        for part in (size, 2):
            pace.prefilled(part, 0.015 + 0.0005 * part)
    # Three decode steps of 17 ms, less the 15 ms that reading takes to start.
    assert 68 <= size <= 76


def test_nobody_is_held_up_where_nobody_decodes() -> None:
    pace = Pace(1024)
    pace.prefilled(16, 1.0)
    pace.decoded(0.001)
    assert pace.prefill_tokens(0) == 1024
    assert pace.prefill_tokens(1) == LEAST_TOKENS


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 10)), max_size=20), st.integers(0, 16), st.integers(0, 16))
def test_whatever_is_measured_something_is_read_and_not_too_much(
    measured: list[tuple[int, float]], decoding: int, joining: int
) -> None:
    pace = Pace(256)
    for tokens, seconds in measured:
        pace.prefilled(tokens, seconds)
        pace.decoded(seconds)
    assert 1 <= pace.prefill_tokens(decoding, joining) <= 256
