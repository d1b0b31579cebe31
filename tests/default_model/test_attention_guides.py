"""Where the guided heads should look: at the words that are quoted, and at what holds the thing that is named next."""

import random

import pytest
import torch
from transformers import AutoProcessor

from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.architecture import IMAGE, LATENTS
from idefics_chat.default_model.attention_guides import MEMORY, QUOTE, SIGHT, Guide, guide_loss
from idefics_chat.default_model.batches import Encoded, Encoder
from idefics_chat.default_model.dialogues import add_turn
from idefics_chat.default_model.documents import END, Document
from idefics_chat.default_model.memory import Memory, recall_asked, recall_caption, recall_fact
from idefics_chat.default_model.question import Question
from idefics_chat.default_model.scenes import Scene, Thing
from idefics_chat.default_model.wording import caption, sentence

FIRST = Scene((Thing("red", "star", 0.2, 0.2, 0.08), Thing("red", "ring", 0.8, 0.8, 0.08)), "white")
SECOND = Scene((Thing("blue", "heart", 0.5, 0.5, 0.08),), "black")
HERE = Question("What is this?", sentence(caption(FIRST)), "caption", listed=FIRST.things)
NOW = Question("And this?", sentence(caption(SECOND)), "caption", listed=SECOND.things)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoProcessor.from_pretrained(checkpoint_path()).tokenizer


def encoded(tokenizer, *turns: tuple[Question, list[Scene]]) -> Encoded:
    document, memory = Document(END), Memory()
    for question, shown in turns:
        add_turn(document, memory, question, shown, random.Random(5))
    return Encoder(tokenizer).document(document, list(range(len(document.scenes))))


def looked_at(told: Encoded, head: str, tokenizer) -> list[tuple[str, tuple[int, ...]]]:
    """By guide of a head, the token that comes next, as text, and the targets."""
    return [(tokenizer.decode(told.ids[guide.place + 1]), guide.targets) for guide in told.guides if guide.head == head]


def test_what_comes_next_of_a_quotation_is_where_it_was_said(tokenizer) -> None:
    asked = Question("Where is the ring?", "In the bottom right.", "where")
    memory = Memory(scenes=[FIRST], asked=[asked.text])
    question = recall_asked(memory, random.Random(1))
    assert question is not None
    told = encoded(tokenizer, (HERE, [FIRST]), (asked, []), (question, []))
    found = looked_at(told, QUOTE, tokenizer)
    assert len(found) == len(tokenizer.encode(f" {asked.text}", add_special_tokens=False)) + 1
    for word, targets in found[1:-1]:  # the first may be spelt without a space where it was said
        assert [tokenizer.decode(told.ids[place]) for place in targets] == [word]


@pytest.mark.parametrize("fact", [("name", "Ursula"), ("color", "red"), ("shape", "the star")])
def test_a_fact_is_looked_up_where_it_was_told_and_nowhere_else(tokenizer, fact: tuple[str, str]) -> None:
    what, value = fact
    text = f"My name is {value}." if what == "name" else f"My favorite {what} is {value}."
    question = recall_fact(Memory(facts={what: value}), random.Random(1))
    assert question is not None
    told = encoded(tokenizer, (Question(text, "I see.", "small talk"), []), (HERE, [FIRST]), (question, []))
    found = looked_at(told, QUOTE, tokenizer)
    image = told.ids.index(IMAGE)
    assert found
    assert all(place < image for _, targets in found for place in targets)


def test_things_of_an_earlier_image_are_looked_up_after_it_in_their_order(tokenizer) -> None:
    question = recall_caption(Memory(scenes=[FIRST, SECOND]), random.Random(1))
    assert question is not None
    told = encoded(tokenizer, (HERE, [FIRST]), (NOW, [SECOND]), (question, []))
    image = told.ids.index(IMAGE)
    found = dict(looked_at(told, MEMORY, tokenizer))
    assert found[" star"] == (image,)
    assert found[" ring"] == (image + 1,)
    assert found[" white"] == (image + 4,)
    assert found["<end_of_utterance>"] == tuple(range(image, image + 5))


def test_of_an_earlier_image_only_what_is_asked_for_is_looked_up(tokenizer) -> None:
    stars = tuple(thing for thing in FIRST.things if thing.shape == "star")
    question = Question("What color was the star?", "Red.", "recall color", image=0, listed=stars)
    told = encoded(tokenizer, (HERE, [FIRST]), (NOW, [SECOND]), (question, []))
    assert dict(looked_at(told, MEMORY, tokenizer))[" Red"] == (told.ids.index(IMAGE),)  # and not the red ring


def test_what_follows_a_quotation_is_looked_up_only_where_it_is_the_same(tokenizer) -> None:
    told_badly = Question("My name is Ursula", "Nice to meet you.", "small talk")
    question = Question("Who am I?", "Your name is Ursula.", "recall said", quoted="Ursula")
    told = encoded(tokenizer, (told_badly, []), (question, []))
    assert "." not in dict(looked_at(told, QUOTE, tokenizer))


def test_things_of_the_last_image_are_looked_for_in_their_cells(tokenizer) -> None:
    told = encoded(tokenizer, (HERE, [FIRST]), (NOW, [SECOND]))
    found = looked_at(told, SIGHT, tokenizer)
    assert (" star", (0,)) in found
    assert (" ring", (8,)) in found
    assert (" and", (8,)) in found  # already on the way to what is named next
    assert (" white", (LATENTS - 1,)) in found
    assert (" heart", (4,)) in found


def test_no_thing_that_is_not_there_is_looked_for(tokenizer) -> None:
    absent = Question("Where is the green cross?", "There is no green cross.", "absent")
    assert encoded(tokenizer, (absent, [FIRST])).guides == []


def test_the_loss_is_the_share_of_attention_that_goes_elsewhere() -> None:
    scores = {head: torch.zeros(1, 3, 4) for head in (QUOTE, MEMORY)} | {SIGHT: torch.zeros(1, 3, 2 * LATENTS)}
    number = torch.ones(1, 3, dtype=torch.long)
    guides = [(0, Guide(QUOTE, 2, (1,))), (0, Guide(MEMORY, 2, (0, 1))), (0, Guide(SIGHT, 1, (3,)))]
    expected = torch.tensor([4.0, 2.0, 2.0 * LATENTS]).log().sum()
    torch.testing.assert_close(guide_loss(scores, guides, number), expected)
    scores[SIGHT][0, 1, LATENTS + 3] = 100.0  # the image that the token sees is the second
    torch.testing.assert_close(guide_loss(scores, guides, number), torch.tensor([4.0, 2.0]).log().sum())
    assert guide_loss(scores, [], number) == 0
