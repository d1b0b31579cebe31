"""What training draws: more of what is still wrong, and comparisons only where the eye can tell."""

import random

import torch
from transformers import AutoProcessor

from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.architecture import LATENTS
from idefics_chat.default_model.batches import Encoder
from idefics_chat.default_model.course import CANDIDATES, ECHO, Course, Tally, echo, reminder
from idefics_chat.default_model.documents import Piece
from idefics_chat.default_model.grounding import ThingTable
from idefics_chat.default_model.scene_table import SceneTable, memory_targets
from idefics_chat.default_model.scenes import sample_scene


def new_course(tally: Tally) -> Course:
    scenes = [sample_scene(random.Random(n)) for n in range(200)]
    latents = torch.zeros(len(scenes), LATENTS, 1)
    table = SceneTable(scenes, latents, memory_targets(scenes), ThingTable.of(scenes))
    encoder = Encoder(AutoProcessor.from_pretrained(checkpoint_path()).tokenizer)
    return Course(table, encoder, random.Random(5), tally, progress=0.6)


def share_of(kind: str, tally: Tally) -> float:
    documents = new_course(tally).documents()
    kinds = [kind for _ in range(300) for kind in next(documents).kinds]
    return kinds.count(kind) / len(kinds)


def test_what_is_wrong_comes_more_often() -> None:
    assert CANDIDATES > 1
    calm, troubled = Tally(), Tally()
    troubled.wrong_lately["recall said"] = 0.9
    assert share_of("recall said", troubled) > 1.5 * share_of("recall said", calm)
    assert new_course(troubled).weight("recall said") > new_course(troubled).weight("count")


def test_an_echo_asks_for_what_was_said() -> None:
    document = echo(random.Random(1))
    answer = document.items[document.answers[0]]
    assert isinstance(answer, Piece)
    assert answer.kind == ECHO
    assert document.text().startswith(f"<s>User:{answer.text}<end_of_utterance>")


def test_a_reminder_asks_for_what_was_said() -> None:
    documents = [reminder(random.Random(n), lambda: sample_scene(random.Random(1))) for n in range(50)]
    pieces = [d.items[i] for d in documents for i in d.answers]
    recalled = [piece.text for piece in pieces if isinstance(piece, Piece) and piece.kind == "recall said"]
    assert len(recalled) > 50
    assert all(text.startswith((" Your ", " You asked: ")) for text in recalled)


def test_scenes_that_are_hard_are_found() -> None:
    table = new_course(Tally()).table
    for row, scene in enumerate(table.scenes):
        names = [t.name for t in scene.things]
        assert (row in table.alike) == (len(set(names)) < len(names))
        if row in table.crowded:
            assert len(names) > 2
            assert min(len({t.color for t in scene.things}), len({t.shape for t in scene.things})) < len(names)
        kinds = [len({t.color for t in scene.things}), len({t.shape for t in scene.things})]
        assert (row in table.uniform) == (len(names) > 1 and 1 in kinds)
    assert table.alike
    assert table.uniform
    assert table.crowded
