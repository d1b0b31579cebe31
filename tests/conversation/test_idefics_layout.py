"""The IDEFICS-1 instruct layout, against the strings of the model's own guide."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.conversation.layouts import LAYOUTS, layout_named
from idefics_chat.conversation.layouts.idefics import idefics_instruct
from idefics_chat.conversation.messages import ImagePart, Message, Part, Role, TextPart, TokenRecord
from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, TextRun, TokenRun


def say(role: Role, *parts: Part | str, tokens: TokenRecord | None = None) -> Message:
    full = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return Message("m", role, full, tokens=tokens)


def written(prompt: Prompt) -> str:
    """The prompt as one string, `<f>` for the fake token."""
    pieces = []
    for run in prompt.runs:
        match run:
            case TextRun(text) | TokenRun(text=text):
                pieces.append(text)
            case ControlRun(token):
                pieces.append({BOS: "<s>", "<fake_token_around_image>": "<f>"}.get(token, token))
            case ImageRun():
                pieces.append("<image>")
    return "".join(pieces)


A, B = ImagePart("a" * 64), ImagePart("b" * 64)


def test_the_guide_s_own_conversation_is_written_to_the_letter() -> None:
    prompt = idefics_instruct(
        [
            say("user", "What is in this image?", A),
            say("assistant", "This picture depicts Idefix."),
            say("user", B, "And who is that?"),
        ]
    )
    assert written(prompt) == (
        "<s>User: What is in this image?<f><image><f><end_of_utterance>"
        "\nAssistant: This picture depicts Idefix.<end_of_utterance>"
        "\nUser:<f><image><f>And who is that?<end_of_utterance>\nAssistant:"
    )
    assert prompt.digests == (A.digest, B.digest)


def test_consecutive_images_share_a_fake_token() -> None:
    prompt = idefics_instruct([say("user", A, B, "Which is bigger?")])
    assert written(prompt) == "<s>User:<f><image><f><image><f>Which is bigger?<end_of_utterance>\nAssistant:"


def test_images_with_text_between_do_not() -> None:
    prompt = idefics_instruct([say("user", A, "or", B)])
    assert written(prompt) == "<s>User:<f><image><f>or<f><image><f><end_of_utterance>\nAssistant:"


def test_system_text_is_a_preamble() -> None:
    prompt = idefics_instruct([say("system", "Be kind."), say("user", "Hi")], instructions="Answer briefly.")
    assert written(prompt) == "<s>Answer briefly.\nBe kind.\nUser: Hi<end_of_utterance>\nAssistant:"


def test_neighbouring_texts_of_one_message_stand_on_lines_of_their_own() -> None:
    assert written(idefics_instruct([say("user", "one", "two")])) == "<s>User: one\ntwo<end_of_utterance>\nAssistant:"


def test_an_answer_cancelled_before_its_first_token_leaves_no_trace() -> None:
    prompt = idefics_instruct([say("user", "Hi"), say("assistant", ""), say("user", "Still there?")])
    assert written(prompt) == "<s>User: Hi<end_of_utterance>\nUser: Still there?<end_of_utterance>\nAssistant:"


def test_a_generated_answer_goes_back_by_its_ids_of_record() -> None:
    record = TokenRecord((5, 6), "fingerprint")
    prompt = idefics_instruct([say("user", "Hi"), say("assistant", "Hello", tokens=record)])
    assert TokenRun((5, 6), "fingerprint", " Hello") in prompt.runs


def test_layouts_are_found_by_name() -> None:
    assert layout_named("idefics-instruct") is idefics_instruct
    try:
        layout_named("none")
    except KeyError as error:
        assert all(name in str(error) for name in LAYOUTS)
    else:
        raise AssertionError("an unknown layout was found")


parts = st.lists(st.one_of(st.text(max_size=20).map(TextPart), st.sampled_from([A, B])), min_size=1, max_size=4)
questions = parts.map(lambda p: Message("m", "user", tuple(p)))
answers = st.text(max_size=20).map(lambda t: Message("m", "assistant", (TextPart(t),)))
systems = st.text(max_size=20).map(lambda t: Message("m", "system", (TextPart(t),)))
conversations = st.lists(st.one_of(questions, answers, systems), max_size=6)


@given(conversations, st.none() | st.text(max_size=10))
def test_control_tokens_come_from_the_layout_alone(messages: list[Message], instructions: str | None) -> None:
    prompt = idefics_instruct(messages, instructions)
    spoken = [m for m in messages if m.role != "system" and (m.digests or any(p.text.strip(" ") for p in m.parts))]
    ends = [run for run in prompt.runs if run == ControlRun("<end_of_utterance>")]
    assert len(ends) == len(spoken)
    assert prompt.digests == tuple(digest for m in messages for digest in m.digests)
    assert prompt.runs[0] == ControlRun(BOS)
    last = prompt.runs[-1]
    assert isinstance(last, TextRun)
    assert last.text.endswith("Assistant:")


@given(conversations)
def test_no_two_text_runs_are_neighbours(messages: list[Message]) -> None:
    runs = idefics_instruct(messages, "System").runs
    assert not any(isinstance(a, TextRun) and isinstance(b, TextRun) for a, b in itertools.pairwise(runs))


@given(conversations)
def test_a_longer_history_begins_with_the_shorter_one(messages: list[Message]) -> None:
    """What prefix reuse rests on: up to the open answer, a later turn's prompt begins with an earlier one's."""
    spoken = [m for m in messages if m.role != "system"]
    before = idefics_instruct(spoken).runs[:-1]
    after = idefics_instruct([*spoken, Message("m", "user", (TextPart("more"),))]).runs
    assert after[: len(before)] == before
