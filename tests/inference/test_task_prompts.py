"""The task prompts as token ids: those of the models' own processors."""

from typing import Any

import pytest
from transformers import AutoProcessor

from idefics_chat.conversation.messages import ImagePart, TextPart
from idefics_chat.conversation.prompt import Prompt
from idefics_chat.conversation.tasks import Caption, Classify, Continue, Example, FewShot, Question, Story, task_prompt
from idefics_chat.default_model import checkpoint_path

pytestmark = pytest.mark.anyio

FUN_FACT = (
    "An image of the Eiffel Tower at night. Fun fact: the Eiffel Tower is the same height as an 81-storey building."
)
DESCRIBED = f"Describe this image.\nAssistant: {FUN_FACT}\n"
CATEGORIES = ("animals", "vegetables", "city landscape", "cars", "office")
ASKED = "Where are these people and what's the weather like?"


def cases(album: Any) -> dict[str, tuple[Any, list[Any]]]:
    """Each task, and the list that the guide passes to the processor for it."""
    one, other = album.add("red"), album.add("blue")
    first, second = album.image(one), album.image(other)
    listed = list(CATEGORIES)
    return {
        "caption": (Caption(one), [first]),
        "prompted caption": (Caption(one, "This is an image of "), [first, "This is an image of "]),
        "few-shot": (
            FewShot(other, (Example(one, FUN_FACT),)),
            ["User:", first, DESCRIBED, "User:", second, "Describe this image.\nAssistant:"],
        ),
        "question": (
            Question(one, ASKED),
            [
                "Instruction: Provide an answer to the question. Use the image to answer.\n",
                first,
                f"Question: {ASKED} Answer:",
            ],
        ),
        "classification": (
            Classify(one, CATEGORIES),
            [
                "Instruction: Classify the following image into a single category from the following list: "
                f"{listed}.\n",
                first,
                "Category: ",
            ],
        ),
        "story": (Story(one), ["Instruction: Use the image to write a story. \n", first, "Story: \n"]),
        "anything": (
            Continue((TextPart("Look: "), ImagePart(one), ImagePart(other), TextPart(" which is red?"))),
            ["Look: ", first, second, " which is red?"],
        ),
    }


NAMES = ["caption", "prompted caption", "few-shot", "question", "classification", "story", "anything"]


@pytest.mark.parametrize("name", NAMES)
async def test_ids_are_those_of_the_processor_for_the_guide_s_own_examples(
    shipped: Any, running: Any, album: Any, name: str
) -> None:
    task, items = cases(album)[name]
    processor = AutoProcessor.from_pretrained(checkpoint_path())
    expected = processor(text=items, return_tensors="pt")["input_ids"][0].tolist()
    for layout in ("idefics-instruct", "idefics-base"):
        assert await ids_of(running(shipped), task_prompt(task, layout)) == expected


async def ids_of(engine: Any, prompt: Prompt) -> list[int]:
    encoded = await engine._encode(prompt)
    assert sum(encoded.run_lengths) == len(encoded.ids)
    return list(encoded.ids)
