import itertools

from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.inference.stop_strings import StopStrings


def run(stops, pieces):
    watcher = StopStrings(stops)
    out = [watcher.push(piece) for piece in pieces]
    return "".join(out) + watcher.finish(), watcher.found


def test_the_text_before_a_stop_string_comes_out_and_nothing_behind_it():
    assert run(["END"], ["one EN", "D two"]) == ("one ", True)


def test_a_stop_string_is_never_partly_given_out():
    watcher = StopStrings(["\nUser:"])
    assert [watcher.push(piece) for piece in ("hello\n", "Us", "er")] == ["hello", "", ""]
    assert watcher.push("s and others") == "\nUsers and others"


def test_what_was_held_back_comes_out_at_the_end():
    assert run(["END"], ["the EN"]) == ("the EN", False)


def test_of_two_stop_strings_the_one_that_begins_first_ends_the_text():
    assert run(["cd", "bcd"], ["abcdef"]) == ("a", True)


def test_an_empty_stop_string_stops_nothing():
    assert run([""], ["abc"]) == ("abc", False)


@given(
    text=st.text("ab", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_however_the_text_is_cut_the_result_is_that_of_the_whole(text, cuts, stops):
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    # A stream cannot wait for a longer stop string that begins earlier but ends later than one already complete.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    out, found = run(stops, pieces)
    assert found == bool(ends)
    if ends:
        assert not any(stop in out for stop in stops)
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
    else:
        assert out == text
