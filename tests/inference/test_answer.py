import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.inference.answer import Answer


@pytest.fixture(scope="module")
def backend(tokenizer):
    return tokenizer.backend_tokenizer


def told(answer: Answer, ids) -> str:
    """The streamed text of an answer that is given ids until it ends."""
    pieces = []
    for index in ids:
        if answer.finish_reason is not None:
            break
        pieces.append(answer.push(index))
    return "".join(pieces) + answer.finish()


def test_an_end_token_ends_the_answer_and_is_no_part_of_it(tokenizer, backend):
    ids = tokenizer.encode("the fox", add_special_tokens=False)
    answer = Answer(backend, frozenset({2}), 100)
    assert told(answer, [*ids, 2, *ids]) == tokenizer.decode(ids)
    assert (answer.finish_reason, answer.token_ids(), answer.output_tokens) == ("stop", tuple(ids), len(ids) + 1)


def test_the_token_limit_ends_the_answer(tokenizer, backend):
    ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    answer = Answer(backend, frozenset(), 2)
    assert told(answer, ids) == tokenizer.decode(ids[:2])
    assert (answer.finish_reason, answer.token_ids()) == ("length", tuple(ids[:2]))


def test_an_answer_of_no_tokens_is_over_before_it_begins(backend):
    assert Answer(backend, frozenset(), 0).finish_reason == "length"


def test_an_interrupted_answer_keeps_what_was_said(tokenizer, backend):
    ids = tokenizer.encode("the fox", add_special_tokens=False)
    answer = Answer(backend, frozenset(), 100)
    text = "".join(answer.push(index) for index in ids) + answer.finish("cancelled")
    assert (answer.finish_reason, text, answer.text) == ("cancelled", tokenizer.decode(ids), tokenizer.decode(ids))


def test_the_prefix_is_taken_off_once(tokenizer, backend):
    ids = tokenizer.encode("xx the", add_special_tokens=False)
    answer = Answer(backend, frozenset(), 100, prefix="x")
    assert told(answer, ids) == tokenizer.decode(ids).removeprefix("x")


def test_a_text_that_only_begins_like_the_prefix_is_kept(tokenizer, backend):
    ids = tokenizer.encode("the", add_special_tokens=False)
    answer = Answer(backend, frozenset(), 100, prefix="then")
    assert told(answer, ids) == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_text_and_ids_of_record_always_agree(tokenizer, backend, data):
    text = data.draw(st.text("the fox\n.é👍", max_size=30))
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    stops = data.draw(st.lists(st.text("the fox\n.", min_size=1, max_size=4), max_size=2))
    answer = Answer(backend, frozenset(), 1000, stops, " ")
    streamed = told(answer, ids)
    whole = tokenizer.decode(ids).removeprefix(" ")
    assert streamed == answer.text
    assert whole.startswith(streamed)
    assert not any(stop in streamed for stop in stops)
    if answer.token_ids():
        assert tokenizer.decode(answer.token_ids()).removeprefix(" ") == streamed
    if not any(stop in whole for stop in stops):
        assert (streamed, answer.token_ids()) == (whole, tuple(ids))


def test_a_stop_string_inside_a_token_leaves_no_record(tokenizer, backend):
    ids = tokenizer.encode("a the quick", add_special_tokens=False)
    answer = Answer(backend, frozenset(), 100, ["uick"])
    text = told(answer, ids)
    assert text == "a the q" or text.endswith("the q")
    assert answer.finish_reason == "stop"
    assert answer.token_ids() == () or tokenizer.decode(answer.token_ids()) == text


def test_an_answer_that_goes_on_keeps_its_spaces_and_its_own_ids(tokenizer, backend):
    ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    for cut in range(1, len(ids)):
        answer = Answer(backend, frozenset(), 100, before=ids[:cut])
        assert tokenizer.decode(ids[:cut]) + told(answer, ids[cut:]) == tokenizer.decode(ids)
        assert answer.token_ids() == tuple(ids[cut:])
    stopped = Answer(backend, frozenset(), 100, [" fox"], before=ids[:1])
    said = tokenizer.decode(ids[:1]) + told(stopped, ids[1:])
    assert said == "the quick brown"
    record = stopped.token_ids()
    assert not record or tokenizer.decode([*ids[:1], *record]) == said
