"""The context window."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idefics_chat.conversation.errors import ContextLengthExceeded
from idefics_chat.conversation.layouts.idefics import idefics_instruct
from idefics_chat.conversation.messages import ImagePart, Message, Role, TextPart
from idefics_chat.conversation.prompt import ImageRun, Prompt, TextRun
from idefics_chat.conversation.window import Window, shrink, system_messages

IMAGE_TOKENS = 64


def count(prompt: Prompt) -> list[int]:
    """A character a token, an image 64."""
    return [
        len(run.text) if isinstance(run, TextRun) else IMAGE_TOKENS if isinstance(run, ImageRun) else 1
        for run in prompt.runs
    ]


def fit(messages: list[Message], limit: int, instructions: str | None = None) -> tuple[Window, int]:
    window = Window(tuple(messages))
    fixed = sum(count(idefics_instruct(system_messages(messages), instructions)))
    while True:
        prompt = idefics_instruct(window.messages, instructions)
        smaller = shrink(window, prompt, count(prompt), limit, fixed)
        if smaller == window:
            return window, sum(count(prompt))
        window = smaller


def dialogue(turns: int, text: str = "x" * 20) -> list[Message]:
    roles: list[Role] = ["user", "assistant"]
    return [Message(f"m{i}", roles[i % 2], (TextPart(text),)) for i in range(2 * turns - 1)]


def test_what_fits_is_left_as_it_is() -> None:
    messages = dialogue(3)
    assert fit(messages, 10_000)[0] == Window(tuple(messages))


def test_the_oldest_whole_turns_leave_and_are_reported() -> None:
    window, tokens = fit(dialogue(5), 160)
    assert tokens <= 160
    dropped = len(window.dropped_ids)
    assert dropped > 0
    assert dropped % 2 == 0
    assert window.dropped_ids == tuple(f"m{index}" for index in range(dropped))
    assert [m.id for m in window.messages] == [f"m{index}" for index in range(dropped, 9)]


def test_a_conversation_that_outgrows_the_context_goes_on_from_the_same_beginning_for_several_turns() -> None:
    limit, text = 1000, "x" * 30
    starts = [fit(dialogue(turns, text), limit)[0].messages[0].id for turns in range(1, 60)]
    turn_tokens = sum(count(idefics_instruct(dialogue(3, text), None))) - sum(
        count(idefics_instruct(dialogue(2, text), None))
    )
    changes = sum(one != other for one, other in pairwise(starts))
    # A quarter of the context has to fill up before the beginning moves again.
    assert 2 < changes <= 59 * turn_tokens / (0.25 * limit - 2 * turn_tokens)


lengths = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=2, max_size=25)


SEAM = 1
"""A turn that stands first lacks the line's end before it; turns are counted as they stand behind others."""


@given(lengths, st.integers(250, 700), st.none() | st.text("s", min_size=1, max_size=80))
@example([(1, 1)] * 25, 158, None)
def test_a_window_moves_on_only_when_it_must_and_then_by_a_good_part(
    spoken: list[tuple[int, int]], limit: int, instructions: str | None
) -> None:
    history = [
        message
        for turn, (question, answer) in enumerate(spoken)
        for message in (
            Message(f"q{turn}", "user", (TextPart("q" * question),)),
            Message(f"a{turn}", "assistant", (TextPart("a" * answer),)),
        )
    ]
    before: tuple[Message, ...] = ()
    for end in range(1, len(history), 2):
        window, tokens = fit(history[:end], limit, instructions)
        assert tokens <= limit
        if before and window.messages[0] != before[0]:
            # Turns left: with all that was shown before it would not have fitted.
            whole = idefics_instruct([*before, *history[len(before) + history.index(before[0]) : end]], instructions)
            assert sum(count(whole)) + SEAM > limit
            alone = sum(count(idefics_instruct(history[end - 1 : end], instructions)))
            fixed = sum(count(idefics_instruct([], instructions)))
            assert len(window.messages) == 1 or tokens <= fixed + 0.75 * (limit - fixed) + alone
        else:
            assert window.messages[: len(before)] == before
        before = window.messages


def test_system_text_stays() -> None:
    system = Message("s", "system", (TextPart("Be kind."),))
    window, _ = fit([system, *dialogue(6)], 150)
    assert window.messages[0] is system
    assert "s" not in window.dropped_ids


def test_images_count() -> None:
    first = Message("i", "user", (ImagePart("a" * 64), TextPart("What?")))
    window, _ = fit([first, *dialogue(2)[1:]], 110)
    assert "i" in window.dropped_ids


def test_a_newest_turn_that_cannot_fit_is_an_error_with_both_lengths() -> None:
    with pytest.raises(ContextLengthExceeded) as error:
        fit([*dialogue(3)[:-1], Message("long", "user", (TextPart("y" * 500),))], 300)
    assert error.value.code == "context_length_exceeded"
    assert error.value.limit_tokens == 300
    assert error.value.prompt_tokens > 500


contents = st.lists(
    st.one_of(st.text("ab ", min_size=1, max_size=60).map(TextPart), st.just(ImagePart("a" * 64))),
    min_size=1,
    max_size=3,
)
said = st.tuples(st.sampled_from(["user", "assistant", "system"]), contents)


@given(st.lists(said, min_size=1, max_size=12), st.integers(20, 400), st.none() | st.text("s", max_size=30))
def test_a_window_fits_keeps_the_end_and_the_order_and_drops_no_more_than_whole_turns(
    spoken: list[tuple[Role, list[TextPart | ImagePart]]], limit: int, instructions: str | None
) -> None:
    messages = [
        Message(f"m{i}", role, tuple(p for p in parts if role == "user" or isinstance(p, TextPart)))
        for i, (role, parts) in enumerate(spoken)
    ]
    messages.append(Message("last", "user", (TextPart("?"),)))
    try:
        window, tokens = fit(messages, limit, instructions)
    except ContextLengthExceeded:
        return
    assert tokens <= limit
    kept = [m.id for m in window.messages]
    assert kept[-1] == "last"
    assert sorted([*kept, *window.dropped_ids]) == sorted(m.id for m in messages)
    assert kept == [m.id for m in messages if m.id in kept]
    talk = [m for m in window.messages if m.role != "system"]
    if window.dropped_ids:
        assert talk[0].role == "user"
        assert set(window.dropped_ids) == {m.id for m in messages[: messages.index(talk[0])] if m.role != "system"}
