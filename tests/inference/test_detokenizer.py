from collections.abc import Sequence
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.inference.detokenizer import Detokenizer

TEXTS = [
    "A red circle.",
    "  leading spaces, and   inner ones ",
    "\n\nlines\n  indented\n\ttabs\n",
    "emoji 👩‍👩‍👧‍👦 and 🇫🇷 flags 👍🏽",
    "مرحبا بالعالم",
    "你好，世界。日本語もある。",
    "def f(x):\n    return x ** 2  # code\n",
    "a\ufffdb\ufffd",
    "naïve café e\u0301",
    "\u2581 looks like a space",
    "",
]


def pieces_of(tokenizer, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.backend_tokenizer)
    return [*(detokenizer.push(index) for index in ids), detokenizer.finish()]


def full_decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_add_up_to_the_decode_of_every_prefix_of_a_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    for end in range(len(ids) + 1):
        assert "".join(pieces_of(tokenizer, ids[:end])) == full_decode(tokenizer, ids[:end])


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_the_pieces_add_up_to_the_full_decode_whatever_the_ids_are(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=60))
    assert "".join(pieces_of(tokenizer, ids)) == full_decode(tokenizer, ids)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_pieces_add_up_where_bytes_and_control_tokens_crowd(tokenizer, data):
    byte_like = [i for i in range(len(tokenizer)) if len(tokenizer.decode([i]).encode()) <= 3]
    ids = data.draw(st.lists(st.sampled_from(byte_like) | st.sampled_from(tokenizer.all_special_ids), max_size=80))
    assert "".join(pieces_of(tokenizer, ids)) == full_decode(tokenizer, ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_the_pieces_add_up_for_any_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, ids)) == full_decode(tokenizer, ids)


def test_no_piece_shows_half_a_character(tokenizer):
    ids = tokenizer.encode("so 👩‍👩‍👧 it is", add_special_tokens=False)
    assert not any("\ufffd" in piece for piece in pieces_of(tokenizer, ids))


def test_plain_words_come_out_token_by_token(tokenizer):
    ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert sum(bool(piece) for piece in pieces[:-1]) >= len(ids) - 1


def test_a_long_answer_costs_time_in_proportion_to_its_length(tokenizer):
    ids = tokenizer.encode("the quick brown fox jumps. 你好 " * 40, add_special_tokens=False)

    def seconds(repeats: int) -> float:
        started = perf_counter()
        pieces_of(tokenizer, ids * repeats)
        return perf_counter() - started

    seconds(1)
    assert seconds(12) < 12 * 4 * max(seconds(1), 0.002)


@pytest.mark.parametrize("text", TEXTS)
def test_what_goes_on_behind_other_ids_is_the_rest_of_their_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    for cut in range(len(ids) + 1):
        detokenizer = Detokenizer(tokenizer.backend_tokenizer, ids[:cut])
        rest = "".join([*(detokenizer.push(index) for index in ids[cut:]), detokenizer.finish()])
        # A character that was cut through is shown as U+FFFD before, and comes whole behind.
        assert full_decode(tokenizer, ids[:cut]).rstrip("\ufffd") + rest == full_decode(tokenizer, ids)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_go_on_behind_any_others(tokenizer, data):
    size = tokenizer.backend_tokenizer.get_vocab_size()
    before = data.draw(st.lists(st.integers(0, size - 1), max_size=8))
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=8))
    detokenizer = Detokenizer(tokenizer.backend_tokenizer, before)
    rest = "".join([*(detokenizer.push(index) for index in ids), detokenizer.finish()])
    given_before = full_decode(tokenizer, before).rstrip("\ufffd")
    whole = full_decode(tokenizer, [*before, *ids])
    assert not whole.startswith(given_before) or given_before + rest == whole
