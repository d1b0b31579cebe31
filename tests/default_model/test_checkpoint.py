"""The checkpoint that ships: small, loadable by plain transformers, and right about what it sees."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.documents import END
from idefics_chat.default_model.evaluate import Speaker, describe_in_turn, fresh_cases, image_order, judge
from idefics_chat.default_model.scenes import Scene, Thing, render

ASK = "User: What is in this image?"
ANSWER = f"{END}\nAssistant:"


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Speaker(checkpoint_path(), torch.float32)
    torch.set_num_threads(threads)


def picture(*things: Thing, background: str = "white", seed: int = 1) -> Image.Image:
    return render(Scene(things, background), random.Random(seed), (224, 224))


RED_CIRCLE = Thing("red", "circle", 0.5, 0.5, 0.25)
BLUE_SQUARE = Thing("blue", "square", 0.2, 0.5, 0.15)
GREEN_STAR = Thing("green", "star", 0.8, 0.5, 0.15)


def test_all_files_together_have_at_most_sixteen_megabytes() -> None:
    assert sum(f.stat().st_size for f in checkpoint_path().iterdir()) <= 16_000_000


def test_it_loads_with_the_auto_classes() -> None:
    processor = AutoProcessor.from_pretrained(checkpoint_path())
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_path())
    assert (type(processor).__name__, type(model).__name__) == ("IdeficsProcessor", "IdeficsForVisionText2Text")
    assert model.generation_config.eos_token_id == [processor.tokenizer.convert_tokens_to_ids(END), 2]
    assert model.config.max_position_embeddings == 2048


def test_it_says_what_is_in_a_picture(speaker: Speaker) -> None:
    pictures = [picture(RED_CIRCLE), picture(BLUE_SQUARE, GREEN_STAR, background="black")]
    assert speaker.answers([[ASK, p, ANSWER] for p in pictures]) == [
        "A red circle on a white background.",
        "A blue square and a green star on a black background.",
    ]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many shapes are there?", "Two."),
        ("What color is the star?", "Green."),
        ("what colour is the square", "Blue."),
        ("What shape is green?", "A star."),
        ("Where is the square?", "On the left."),
        ("What is to the left of the star?", "A blue square."),
        ("Is there a red square?", "No."),
        ("Is there a blue square?", "Yes."),
        ("Is the star to the right of the square?", "Yes."),
        ("What color is the background?", "White."),
    ],
)
def test_it_answers_questions_about_a_picture(speaker: Speaker, question: str, answer: str) -> None:
    assert speaker.answers([[f"User: {question}", picture(BLUE_SQUARE, GREEN_STAR), ANSWER]]) == [answer]


def test_the_simplest_relations_are_known(speaker: Speaker) -> None:
    """Two things side by side, as a user would draw them: what fails there may drown in the evaluation's average."""
    colors, shapes = ("red", "blue", "green", "yellow", "pink", "black"), ("circle", "square", "star", "ring", "heart")
    prompts, expected = [], []
    for i, color in enumerate(colors):
        for j, shape in enumerate(shapes):
            other = Thing(colors[i - 4], shapes[j - 4], 0.8, 0.5, 0.15)
            shown = picture(Thing(color, shape, 0.2, 0.5, 0.15), other)
            prompts.append([f"User: What is to the left of the {other.shape}?", shown, ANSWER])
            expected.append(f"A {color} {shape}.")
    right = sum(got == wanted for got, wanted in zip(speaker.answers(prompts), expected, strict=True))
    assert right >= 28, f"{right} of {len(expected)}"


def test_it_sees_what_a_user_draws_without_our_renderer(speaker: Speaker) -> None:
    drawing = Image.new("RGB", (300, 240), "white")
    ImageDraw.Draw(drawing).ellipse([90, 60, 210, 180], fill="blue")
    assert speaker.answers([[ASK, drawing, ANSWER]]) == ["A blue circle on a white background."]


def test_swapping_two_pictures_swaps_the_answers(speaker: Speaker) -> None:
    pictures = [picture(RED_CIRCLE), picture(BLUE_SQUARE, GREEN_STAR)]
    straight, swapped = describe_in_turn(speaker, [pictures, pictures[::-1]])
    assert straight == swapped[::-1]
    assert straight[0] != straight[1]


@pytest.fixture(scope="module")
def orders(speaker: Speaker) -> Counter[str]:
    return Counter(image_order(speaker, range(300)))


@pytest.mark.timeout(600)  # 1,200 answers, on a slow and busy machine too
def test_image_order_holds_on_fresh_pairs(orders: Counter[str]) -> None:
    """The same pairs as the evaluation's, held to its target."""
    assert orders["image order"] > 290
    assert orders["image order+"] >= 0.99 * orders["image order"]


def test_it_remembers_an_earlier_picture(speaker: Speaker) -> None:
    prompt: list[Any] = [ASK, picture(RED_CIRCLE), f"{ANSWER} A red circle on a white background.{END}\n{ASK}"]
    prompt += [picture(BLUE_SQUARE), f"{ANSWER} A blue square on a white background.{END}\n"]
    prompt[-1] += f"User: What was in the first image?{ANSWER}"
    assert speaker.answers([prompt]) == ["A red circle on a white background."]


def test_without_a_picture_it_says_so(speaker: Speaker) -> None:
    assert speaker.answers([[f"{ASK}{ANSWER}"]]) == ["I do not see any image."]


def test_outside_its_world_it_says_that_it_does_not_know(speaker: Speaker) -> None:
    assert speaker.answers([[f"User: What is the capital of France?{ANSWER}"]])[0].startswith("I do not know.")


def test_base_layouts_end_in_the_end_of_text(speaker: Speaker) -> None:
    prompts: list[list[Any]] = [
        [picture(RED_CIRCLE)],
        [picture(RED_CIRCLE), "This is an image of"],
        ["Instruction: Provide an answer to the question. Use the image to answer.\n", picture(RED_CIRCLE)],
    ]
    prompts[2].append("Question: What color is the circle? Answer:")
    assert speaker.answers(prompts) == [
        "A red circle on a white background.",
        "a red circle on a white background.",
        "Red.",
    ]


def test_on_fresh_conversations_it_is_mostly_right(speaker: Speaker) -> None:
    """A small fixed part of the evaluation; the card has the whole."""
    cases = [case for number in range(30) for case in fresh_cases(number)]
    counts = judge(speaker, cases)
    asked = sum(n for kind, n in counts.items() if not kind.endswith("+"))
    right = sum(n for kind, n in counts.items() if kind.endswith("+"))
    assert asked > 100
    assert right / asked > 0.9


def test_the_card_has_licence_limits_and_a_figure_for_every_kind() -> None:
    card = (checkpoint_path() / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "small and narrow" in card.lower()
    kinds = {case.kind for number in range(60) for case in fresh_cases(number)} | {"image order"}
    for kind in kinds:
        assert re.search(rf"^\| {re.escape(kind)} \| \d+ \| [01]\.\d+", card, re.MULTILINE), kind
