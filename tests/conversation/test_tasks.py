"""The task prompts, against the strings of the model's own task guide."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.conversation.errors import InvalidTask
from idefics_chat.conversation.layouts import LAYOUTS, layout_named
from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart
from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, TextRun, TokenRun
from idefics_chat.conversation.tasks import (
    Caption,
    Classify,
    Continue,
    Example,
    FewShot,
    Instruct,
    Question,
    Story,
    Task,
    guide_prompt,
    task_prompt,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64
CATEGORIES = ("animals", "vegetables", "city landscape", "cars", "office")
EIFFEL = (
    "An image of the Eiffel Tower at night. Fun fact: the Eiffel Tower is the same height as an 81-storey building."
)
TASKS = [
    Caption(A),
    Caption(A, "This is an image of "),
    FewShot(B, (Example(A, EIFFEL),)),
    Question(A, "Where are these people and what's the weather like?"),
    Classify(A, CATEGORIES),
    Story(A),
    Continue((TextPart("Look:"), ImagePart(A), ImagePart(B), TextPart("Which?"))),
]


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


@pytest.mark.parametrize("layout", ["idefics-instruct", "idefics-base"])
@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Caption(A), "<s><f><image><f>"),
        (Caption(A, "This is an image of "), "<s><f><image><f>This is an image of"),
        (
            FewShot(B, (Example(A, EIFFEL),)),
            f"<s>User:<f><image><f>Describe this image.\nAssistant: {EIFFEL}\n"
            "User:<f><image><f>Describe this image.\nAssistant:",
        ),
        (
            Question(A, "Where are these people and what's the weather like?"),
            "<s>Instruction: Provide an answer to the question. Use the image to answer.\n"
            "<f><image><f>Question: Where are these people and what's the weather like? Answer:",
        ),
        (
            Classify(A, CATEGORIES),
            "<s>Instruction: Classify the following image into a single category from the following list: "
            "['animals', 'vegetables', 'city landscape', 'cars', 'office'].\n<f><image><f>Category:",
        ),
        (Story(A), "<s>Instruction: Use the image to write a story. \n<f><image><f>Story: \n"),
    ],
)
def test_the_guide_s_prompts_are_written_to_the_letter(task: Task, text: str, layout: str) -> None:
    assert written(task_prompt(task, layout)) == text


def test_the_guide_s_conversation_is_the_instruct_layout_s() -> None:
    messages = (Message("", "user", (TextPart("What is in this image?"), ImagePart(A))),)
    assert task_prompt(Instruct(messages), "idefics-instruct") == layout_named("idefics-instruct")(messages)


def test_a_base_model_s_conversation_is_the_same_without_the_end_of_an_utterance() -> None:
    messages = (
        Message("", "user", (TextPart("What is this?"), ImagePart(A))),
        Message("", "assistant", (TextPart("A dog."),)),
        Message("", "user", (TextPart("Whose?"),)),
    )
    prompt = task_prompt(Instruct(messages), "idefics-base")
    assert written(prompt) == "<s>User: What is this?<f><image><f>\nAssistant: A dog.\nUser: Whose?\nAssistant:"
    assert prompt.stop == ("\nUser:",)


def test_examples_end_where_the_next_one_would_begin() -> None:
    assert task_prompt(TASKS[2], "idefics-base").stop == ("\nUser:",)
    assert task_prompt(Caption(A), "idefics-base").stop == ()


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        (Caption(A), "Describe this image."),
        (Question(A, "What is it?"), "Provide an answer to the question. Use the image to answer.\nWhat is it?"),
        (
            Classify(A, ("cat", "dog")),
            "Classify the following image into a single category from the following list: ['cat', 'dog'].",
        ),
        (Story(A), "Use the image to write a story."),
    ],
)
@pytest.mark.parametrize("layout", ["idefics2-chat", "idefics3-chat"])
def test_other_families_get_the_guide_s_words_in_a_turn_of_their_template(task: Task, asked: str, layout: str) -> None:
    gap = " " if layout == "idefics2-chat" else ""
    assert written(task_prompt(task, layout)) == f"<s>User:<image>{gap}{asked}<end_of_utterance>\nAssistant:"


def test_a_lead_in_begins_the_answer_for_a_chat_model() -> None:
    prompt = task_prompt(Caption(A, "This is an image of "), "idefics3-chat")
    assert written(prompt) == "<s>User:<image>Describe this image.<end_of_utterance>\nAssistant: This is an image of"


def test_examples_are_turns_for_a_chat_model() -> None:
    assert written(task_prompt(FewShot(C, (Example(A, "one"), Example(B, "two"))), "idefics3-chat")) == (
        "<s>User:<image>Describe this image.<end_of_utterance>\nAssistant: one<end_of_utterance>\n"
        "User:<image>Describe this image.<end_of_utterance>\nAssistant: two<end_of_utterance>\n"
        "User:<image>Describe this image.<end_of_utterance>\nAssistant:"
    )


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda: Question(A, "  "), "question"),
        (lambda: Classify(A, ()), "categories"),
        (lambda: Classify(A, ("a", " ")), "categories"),
        (lambda: Classify(A, ("a", "b", "a")), "categories"),
        (lambda: Continue((TextPart(" "),)), "parts"),
        (lambda: Instruct(()), "messages"),
        (lambda: Instruct((Message("", "assistant", (TextPart("Hi"),)),)), "messages"),
    ],
)
def test_a_task_with_nothing_to_do_is_refused(make, param) -> None:
    with pytest.raises(InvalidTask) as refused:
        make()
    assert refused.value.param == param


texts = st.text(max_size=20)
parts: st.SearchStrategy[Part] = st.one_of(texts.map(TextPart), st.sampled_from([A, B]).map(ImagePart))
hostile = st.sampled_from(["<image>", "<end_of_utterance>", "http://x/y.png", "</s>", "\nUser:"]) | texts


@given(st.lists(parts, max_size=8))
def test_a_guide_prompt_is_text_and_images_in_their_order(given_parts: list[Part]) -> None:
    prompt = guide_prompt(given_parts)
    assert prompt.digests == tuple(part.digest for part in given_parts if isinstance(part, ImagePart))
    said = "".join(part.text.strip(" ") for part in given_parts if isinstance(part, TextPart))
    assert "".join(run.text for run in prompt.runs if isinstance(run, TextRun)) == said
    assert not any(isinstance(a, TextRun) and isinstance(b, TextRun) for a, b in itertools.pairwise(prompt.runs))


@given(hostile, hostile.filter(str.strip), st.sampled_from(sorted(LAYOUTS)))
def test_what_is_given_is_only_ever_text(text: str, word: str, layout: str) -> None:
    """Control tokens and images come from the layout: their number does not depend on what the texts say."""
    plain: list[Task] = [Caption(A, "x"), Question(A, "x"), Classify(A, ("x",)), FewShot(A, (Example(B, "x"),))]
    given: list[Task] = [Caption(A, text), Question(A, word), Classify(A, (word,)), FewShot(A, (Example(B, word),))]
    for one, other in zip(plain, given, strict=True):
        controls = [
            [run for run in task_prompt(task, layout).runs if isinstance(run, ControlRun | ImageRun)]
            for task in (one, other)
        ]
        assert controls[0] == controls[1]
