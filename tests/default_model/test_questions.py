"""Questions: one right answer each, and it follows from the scene."""

import random

from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.default_model.comparison_questions import ask_larger
from idefics_chat.default_model.memory import Memory, recall
from idefics_chat.default_model.place_questions import RELATIONS
from idefics_chat.default_model.question import Question
from idefics_chat.default_model.questions import ASKERS, ask
from idefics_chat.default_model.scenes import SHAPES, Scene, Thing, sample_scene
from idefics_chat.default_model.wording import NUMBERS, article, as_typed, caption, joined, listing

SEEDS = st.integers(0, 2**40)


def sample(seed: int) -> tuple[Scene, Question]:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    return scene, ask(scene, rng)


def thing(color: str, shape: str, x: float = 0.5, y: float = 0.5) -> Thing:
    return Thing(color, shape, x, y, 0.14)


def test_a_caption_counts_like_things_together() -> None:
    things = (thing("red", "cross", 0.2, 0.2), thing("orange", "star", 0.5, 0.2), thing("red", "cross", 0.8, 0.8))
    assert caption(Scene(things, "white")) == "two red crosses and an orange star on a white background"


def test_a_list_is_joined_with_commas_and_one_and() -> None:
    assert [joined(parts) for parts in ("a", "ab", "abc", "aab")] == ["a", "a and b", "a, b and c", "a and b"]


@given(SEEDS)
def test_the_same_seed_asks_the_same(seed: int) -> None:
    assert sample(seed) == sample(seed)


@given(SEEDS)
def test_questions_and_answers_are_whole_sentences(seed: int) -> None:
    _, question = sample(seed)
    assert question.text[0].isupper()
    assert question.text[-1] in "?."
    assert question.answer[0].isupper()
    assert question.answer[-1] == "."
    assert "{" not in question.text


def test_in_one_scene_a_question_never_has_two_answers() -> None:
    rng = random.Random(11)
    for _ in range(150):
        scene = sample_scene(rng)
        answers: dict[str, str] = {}
        for _ in range(60):
            question = ask(scene, rng)
            assert answers.setdefault(question.text, question.answer) == question.answer


def test_every_kind_of_question_can_be_asked() -> None:
    rng = random.Random(3)
    for asker in ASKERS:
        assert any(asker(sample_scene(rng), rng) for _ in range(50)), asker


def test_two_things_are_of_one_size_only_where_they_look_it() -> None:
    def answers(*radii: float) -> set[str]:
        things = [Thing("red", SHAPES[i], 0.2 + 0.6 * i, 0.5, radius) for i, radius in enumerate(radii)]
        asked = (ask_larger(Scene(tuple(things), "white"), random.Random(seed)) for seed in range(40))
        return {question.answer for question in asked if question}

    assert answers(0.13, 0.2) == set()
    assert answers(0.15, 0.16) == {"No.", "They are the same size."}
    assert {"Yes.", "No."} < answers(0.07, 0.2)
    assert "They are the same size." not in answers(0.07, 0.2)


@given(SEEDS)
def test_counting_agrees_with_the_scene(seed: int) -> None:
    scene, question = sample(seed)
    if question.kind == "count":
        assert question.answer == f"{NUMBERS[len(scene.things)].capitalize()}."


@given(SEEDS)
def test_left_is_the_mirror_of_right(seed: int) -> None:
    things = sample_scene(random.Random(seed)).things
    for one in things:
        for other in things:
            assert RELATIONS["to the left of"](one, other) == RELATIONS["to the right of"](other, one)
            assert RELATIONS["above"](one, other) == RELATIONS["below"](other, one)


@given(SEEDS)
def test_what_is_listed_is_what_is_there(seed: int) -> None:
    scene = sample_scene(random.Random(seed))
    for found in SHAPES:
        assert (found in listing(scene.things)) == any(t.shape == found for t in scene.things)


@given(SEEDS)
def test_recall_is_about_earlier_images_of_the_conversation(seed: int) -> None:
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(rng.randint(2, 8))]
    question = recall(Memory(scenes), rng)
    assert question is not None
    if question.kind == "recall caption":
        assert question.answer[:-1].lower() in {caption(s) for s in scenes[:-1]}


def told(question: Question, things: tuple[Thing, ...]) -> str:
    """What the answer says of `things`, the ground apart."""
    if question.kind in ("color", "colors", "recall color"):
        return joined(t.color for t in things)
    if question.kind in ("shape", "recall shape"):
        return joined(article(t.shape) for t in things)
    return listing(things)


@given(SEEDS)
def test_the_things_that_an_answer_lists_are_given_in_its_order(seed: int) -> None:
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(3)]
    questions = [ask(scenes[-1], rng), *filter(None, [recall(Memory(scenes), rng)])]
    for question in questions:
        if question.listed:
            said = told(question, question.listed)
            assert question.answer.removesuffix(".").split(" on a")[0].lower() == said
        elif question.listed is not None:
            assert question.answer == "Nothing." or question.answer.startswith("There is no ")


@given(st.text(min_size=1), SEEDS)
def test_what_people_type_is_the_same_question(text: str, seed: int) -> None:
    typed = as_typed(text, random.Random(seed))
    same = typed.lower().replace("colour", "color").replace("grey", "gray").rstrip("?.!")
    assert same == text.lower().replace("colour", "color").replace("grey", "gray").rstrip("?.!")
