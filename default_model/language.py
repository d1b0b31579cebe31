"""Stage two: the text part learns to speak of what the (now frozen) vision part saw, over remembered latents.

Images are seen once and their latents kept, so that a step costs text only. The answers' tokens are learnt, each
answer weighed by the root of its length so that short ones do not drown, and by how often its kind is still wrong;
beside them what `memory_heads.py` asks of the states.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import IdeficsForVisionText2Text, PreTrainedTokenizerBase

from idefics_chat.default_model import optimizers
from idefics_chat.default_model.architecture import LATENTS
from idefics_chat.default_model.attention_guides import GUIDED_LAYER, GUIDED_SIGHT, guide_loss, guided_scores
from idefics_chat.default_model.batches import Batch, Encoder, bucketed
from idefics_chat.default_model.course import Course, Tally
from idefics_chat.default_model.memory_heads import FindingHeads, MemoryHeads
from idefics_chat.default_model.scene_table import SceneTable
from idefics_chat.default_model.text_forward import TextStates, text_states

#: The decoder layers after which the memory is read (two cross-attentions below), and what a question has found.
MEMORY_LAYER, FINDING_LAYER = 3, 5
#: The learning rate at its highest, from nothing; to go on from trained weights, about a third.
TEXT_RATE = 2.5e-3


def states_of(model: IdeficsForVisionText2Text, batch: Batch, table: SceneTable, device: torch.device) -> TextStates:
    """The states of the text part over the remembered latents of the batch's images."""
    latents = table.latents[batch.scenes.clamp(min=0)].to(device)
    taps = {MEMORY_LAYER, FINDING_LAYER, GUIDED_LAYER, GUIDED_SIGHT}
    return text_states(model, batch.ids.to(device), batch.seen.to(device).bool(), latents, taps)


def answer_loss(
    model: IdeficsForVisionText2Text, last: Tensor, batch: Batch, weight_of: Callable[[str], float]
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the answers' tokens, and which of them were guessed wrong `(batch, tokens - 1)`."""
    inside = batch.answer[:, 1:] >= 0
    target = batch.ids[:, 1:][inside].to(last.device)
    owner = (batch.answer + torch.arange(len(batch.kinds))[:, None] * 1000)[:, 1:][inside]
    answers, which, length = torch.unique(owner, return_inverse=True, return_counts=True)
    by_kind = torch.tensor([weight_of(batch.kinds[a // 1000][a % 1000]) for a in answers.tolist()])
    weight = (by_kind * length.float().rsqrt())[which].to(last.device)
    with torch.autocast(last.device.type, torch.bfloat16):
        logits = model.lm_head(last[:, :-1][inside.to(last.device)])
    entropy = functional.cross_entropy(logits.float(), target, reduction="none")
    wrong = torch.zeros_like(inside)
    wrong[inside] = (logits.argmax(-1) != target).cpu()
    return (entropy * weight).sum() / weight.sum(), wrong


def text_parameters(model: IdeficsForVisionText2Text, heads: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All that stage two trains: everything but what sees."""
    named = [(n, p) for n, p in model.named_parameters() if "vision_model" not in n and "perceiver" not in n]
    return named + [("memory_head." + n, p) for n, p in heads.named_parameters()]


@dataclass
class Progress:
    """What is kept to go on after an interruption, beside the weights."""

    step: int = 0
    spent: float = 0.0
    heads: dict[str, Any] | None = None
    optimizers: list[dict[str, Any]] | None = None


class Lesson:
    """One step of stage two: its losses over a batch. Holds the heads that help."""

    def __init__(self, model: IdeficsForVisionText2Text, table: SceneTable, device: torch.device) -> None:
        width = int(model.config.hidden_size)
        self.heads = nn.ModuleDict({"memory": MemoryHeads(width), "finding": FindingHeads(width)}).to(device)
        self._model, self._table, self._device = model, table, device

    def losses(self, batch: Batch, weight_of: Callable[[str], float]) -> tuple[dict[str, Tensor], Tensor]:
        """The losses by name, weighted, and which answer tokens were guessed wrong."""
        states = states_of(self._model, batch, self._table, self._device)
        middle, late = states.after[MEMORY_LAYER], states.after[FINDING_LAYER]
        loss, wrong = answer_loss(self._model, states.last, batch, weight_of)
        memory, finding = self.heads["memory"], self.heads["finding"]
        assert isinstance(memory, MemoryHeads)
        assert isinstance(finding, FindingHeads)
        return {
            "answers": loss,
            "memory": 0.15 * memory.loss(middle, batch, self._table.targets),
            "grounding": 0.3 * memory.grounding_loss(middle, batch, self._table.things),
            "hints": 0.15 * memory.hint_loss(middle, batch),
            "finding": 0.1 * finding.loss(late, batch, self._table.things, self._table.targets),
            "guides": 0.1 * guide_loss(guided_scores(states), batch.guides, batch.seen.argmax(-1)),
        }, wrong


def resume(state: Progress, lesson: Lesson, steppers: list[torch.optim.Optimizer]) -> None:
    """Gives heads and optimizers what `state` has kept of them, if anything."""
    if state.heads and state.optimizers:
        lesson.heads.load_state_dict(state.heads)
        for stepper, kept in zip(steppers, state.optimizers, strict=True):
            stepper.load_state_dict(kept)


def report(state: Progress, losses: dict[str, Tensor], tally: Tally) -> None:
    told = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
    print(f"text {state.spent:5.0f}s step {state.step} {told} {tally.line()}", flush=True)


def train_language(
    model: IdeficsForVisionText2Text,
    tokenizer: PreTrainedTokenizerBase,
    table: SceneTable,
    seconds: float,
    device: torch.device,
    save: Callable[[Progress], None],
    resumed: Progress | None = None,
    tokens: int = 3072,
    peak: float = TEXT_RATE,
) -> None:
    """Trains the text part until `seconds` by the device's clock are spent, calling `save` every two minutes.

    Mutates `model`.
    """
    assert table.latents.shape[1] == LATENTS
    lesson, state, tally = Lesson(model, table, device), resumed or Progress(), Tally()
    named = text_parameters(model, lesson.heads)
    parameters = [p for _, p in named]
    steppers = optimizers.build(named, peak)
    resume(state, lesson, steppers)
    course = Course(table, Encoder(tokenizer), random.Random(7919 + state.step), tally)
    usual = bucketed(course.documents(), tokens, course.rng)
    long = bucketed(course.long_documents(), tokens, course.rng, ahead=8)
    clock = optimizers.clock_of(device)
    began, before, saved = clock(), state.spent, time.monotonic()
    while state.spent < seconds:
        course.progress = state.spent / seconds
        batch = next(long) if course.progress > 0.5 and state.step % 40 == 0 else next(usual)
        losses, wrong = lesson.losses(batch, course.weight)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizers.update(steppers, parameters, optimizers.rate_at(course.progress, state.step, peak))
        tally.add(batch, wrong)
        state.step, state.spent = state.step + 1, before + clock() - began
        if state.step % 100 == 0:
            report(state, losses, tally)
        if time.monotonic() - saved > 120 or state.spent >= seconds:
            state.heads, state.optimizers = lesson.heads.state_dict(), [s.state_dict() for s in steppers]
            save(state)
            saved = time.monotonic()
