"""The read-outs that help training: each is asked for by some question, and each tells of the right things."""

import random
from itertools import islice

import torch
from transformers import AutoProcessor

from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.architecture import LATENTS
from idefics_chat.default_model.batches import Encoder, collate
from idefics_chat.default_model.course import Course, Tally
from idefics_chat.default_model.grounding import ThingTable
from idefics_chat.default_model.memory_heads import FindingHeads, MemoryHeads, entropies, listed_target
from idefics_chat.default_model.scene_table import SceneTable, memory_targets
from idefics_chat.default_model.scenes import COLORS, SHAPES, Thing, sample_scene

WIDTH = 8


def test_every_read_out_learns_from_some_conversation() -> None:
    torch.manual_seed(0)
    scenes = [sample_scene(random.Random(n)) for n in range(200)]
    table = SceneTable(scenes, torch.zeros(len(scenes), LATENTS, 1), memory_targets(scenes), ThingTable.of(scenes))
    encoder = Encoder(AutoProcessor.from_pretrained(checkpoint_path()).tokenizer)
    batch = collate(list(islice(Course(table, encoder, random.Random(5), Tally(), 0.6).documents(), 150)))
    states = torch.randn(*batch.ids.shape, WIDTH)
    memory, finding = MemoryHeads(WIDTH), FindingHeads(WIDTH)
    loss = memory.loss(states, batch, table.targets) + memory.hint_loss(states, batch)
    loss = loss + memory.grounding_loss(states, batch, table.things)
    loss = loss + finding.loss(states, batch, table.things, table.targets)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in [*memory.named_parameters(), *finding.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_like_things_are_listed_once_with_their_number() -> None:
    cross, star = Thing("red", "cross", 0.2, 0.2, 0.1), Thing("blue", "star", 0.8, 0.2, 0.1)
    red, blue = 1 + COLORS.index("red"), 1 + COLORS.index("blue")
    crosses, stars = 1 + SHAPES.index("cross"), 1 + SHAPES.index("star")
    assert listed_target((cross, star, cross)) == [crosses, red, 2, stars, blue, 1, 0, 0, 0, 0, 0, 0]
    assert listed_target(()) == [0] * 12


def test_the_entropies_are_the_sum_over_the_parts() -> None:
    logits, target = torch.randn(4, 5), torch.tensor([[0, 1], [1, 2], [1, 0], [0, 0]])
    parts = [torch.nn.functional.cross_entropy(p, t) for p, t in zip(logits.split((2, 3), -1), target.T, strict=True)]
    torch.testing.assert_close(entropies(logits, (2, 3), target), parts[0] + parts[1])
    assert entropies(logits[:0], (2, 3), target[:0]) == 0
