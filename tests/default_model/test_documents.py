"""Documents: the layouts of IDEFICS-1, letter by letter, and ids that are the processor's own."""

import random

import pytest
from transformers import AutoProcessor

from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.base_tasks import (
    FEW,
    SINGLE,
    Task,
    caption_prompted,
    category,
    few_shot,
    question_answer,
    story,
    tell_story,
)
from idefics_chat.default_model.batches import Encoder, collate
from idefics_chat.default_model.dialogues import add_turn, sample_dialogue
from idefics_chat.default_model.documents import END, Document
from idefics_chat.default_model.evaluate import prompt_until
from idefics_chat.default_model.memory import Memory
from idefics_chat.default_model.question import Question
from idefics_chat.default_model.scenes import Scene, Thing, render, sample_scene

F = "<fake_token_around_image>"
SCENE = Scene((Thing("red", "circle", 0.5, 0.5, 0.2),), "white")


@pytest.fixture(scope="module")
def processor() -> object:
    return AutoProcessor.from_pretrained(checkpoint_path())


class Calm(random.Random):
    """Always the usual form: no slips of typing."""

    def random(self) -> float:
        return 0.99


def test_a_turn_is_written_as_the_task_guide_writes_it() -> None:
    document, memory = Document(END), Memory()
    add_turn(document, memory, Question("What is this?", "A red circle.", "caption"), [SCENE], Calm())
    add_turn(document, memory, Question("What color is it?", "Red.", "color"), [], Calm())
    assert document.text() == (
        f"<s>User: What is this?{F}<image>{F}{END}\nAssistant: A red circle.{END}\n"
        f"User: What color is it?{END}\nAssistant: Red.{END}"
    )


def test_neighbouring_images_share_one_token() -> None:
    document = Document(END)
    document.add("User:", SCENE, SCENE, "What?")
    assert document.text() == f"<s>User:{F}<image>{F}<image>{F}What?"


def written(task: Task, seed: int) -> str:
    return task(random.Random(seed), lambda: SCENE).text()


def test_the_base_layouts_are_those_of_the_task_guide() -> None:
    many = range(40)
    instruction = "Instruction: Provide an answer to the question. Use the image to answer.\n"
    assert any(written(question_answer, s).startswith(f"<s>{instruction}{F}<image>{F}Question: ") for s in many)
    assert any(written(caption_prompted, s).startswith(f"<s>{F}<image>{F}This is an image of a red") for s in many)
    start = f"<s>Instruction: Use the image to write a story. \n{F}<image>{F}Story: \nOnce upon a time"
    assert any(written(story, s).startswith(start) for s in many)
    classify = "<s>Instruction: Classify the following image into a single category from the following list: ['"
    assert all(written(category, s).startswith(classify) for s in many)
    shot = f"User:{F}<image>{F}Describe this image.\nAssistant: A red circle on a white background."
    assert any(written(few_shot, s) == f"<s>{shot}\n{shot}</s>" for s in range(400))


def test_base_tasks_end_in_the_end_of_text() -> None:
    assert all(written(task, seed).endswith("</s>") for task in SINGLE | FEW for seed in range(10))


def test_a_story_has_two_or_three_sentences() -> None:
    for seed in range(50):
        assert tell_story(sample_scene(random.Random(seed))).count(".") in (2, 3)


def test_conversations_reach_twenty_turns_and_eight_images() -> None:
    rng = random.Random(1)
    made = [sample_dialogue(rng, lambda: SCENE) for _ in range(2000)]
    assert max(len(d.scenes) for d in made) == 8
    assert max(len(d.answers) for d in made) == 20


def test_segments_give_the_ids_of_the_processor(processor: object) -> None:
    encoder = Encoder(processor.tokenizer)  # type: ignore[attr-defined]
    rng = random.Random(4)
    for _ in range(40):
        document = sample_dialogue(rng, lambda: sample_scene(rng))
        pictures = {i: render(s, rng) for i, s in enumerate(document.items) if isinstance(s, Scene)}
        prompt = prompt_until(document, pictures, len(document.items))
        ids = processor(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt")["input_ids"][0].tolist()  # type: ignore[operator]
        assert ids == encoder.document(document, []).ids


def test_base_tasks_give_the_ids_of_the_processor(processor: object) -> None:
    encoder = Encoder(processor.tokenizer)  # type: ignore[attr-defined]
    for seed in range(60):
        for task in (SINGLE | FEW).keys() - {category}:  # its trailing space is stripped by the processor
            document = task(random.Random(seed), lambda: SCENE)
            pictures = dict.fromkeys(range(20), render(SCENE, random.Random(1)))
            prompt = prompt_until(document, pictures, len(document.items))
            ids = processor(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt")["input_ids"][
                0
            ].tolist()  # type: ignore[operator]
            assert ids == encoder.document(document, []).ids


def test_each_token_sees_the_last_image_before_it(processor: object) -> None:
    encoder = Encoder(processor.tokenizer)  # type: ignore[attr-defined]
    document, memory = Document(END), Memory()
    for _ in range(2):
        add_turn(document, memory, Question("What is this?", "A red circle.", "caption"), [SCENE], Calm())
    rows = [{"prompt": prompt_until(document, {i: render(SCENE, random.Random(1)) for i in range(20)}, 99)}]
    expected = processor(text=[rows[0]["prompt"]], add_end_of_utterance_token=False, return_tensors="pt")  # type: ignore[operator]
    batch = collate([encoder.document(document, [0, 1])])
    assert (batch.seen == expected["image_attention_mask"]).all()
