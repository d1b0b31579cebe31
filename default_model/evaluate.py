"""How often the checkpoint is right: `python -m idefics_chat.default_model.evaluate [--conversations 2000]`.

Every answer of freshly drawn conversations (a seed range that training never uses) is generated greedily by plain
transformers, `AutoProcessor` and `IdeficsForVisionText2Text.generate`, after the RIGHT answers to the earlier turns; it
counts as right only if it is the expected answer letter by letter. Image order is tried with the model's own answers.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, IdeficsForVisionText2Text

from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.base_tasks import sample_base_task
from idefics_chat.default_model.dialogues import sample_dialogue
from idefics_chat.default_model.documents import END, Document, Piece
from idefics_chat.default_model.scenes import HELD_OUT, Scene, render, sample_scene
from idefics_chat.default_model.wording import caption, sentence

#: Training's seeds stay far below.
FIRST_SEED = 10**12
Prompt = list[str | Image.Image]


@dataclass(frozen=True)
class Case:
    """A prompt as `IdeficsProcessor` takes it, the right answer, and what kind of question it is."""

    prompt: Prompt
    expected: str
    kind: str


class Speaker:
    """The checkpoint in plain transformers."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
        self.model: Any = IdeficsForVisionText2Text.from_pretrained(folder, dtype=dtype)
        self.model.eval()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def answers(self, prompts: list[Prompt], max_new_tokens: int = 64) -> list[str]:
        """Greedy answers without the token that ends them, stripped."""
        inputs = self.processor(text=prompts, padding="longest", add_end_of_utterance_token=False, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = self.processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [str(text).strip() for text in texts]


def fresh_scene(rng: random.Random, held_out: bool) -> Scene:
    """A scene; with `held_out`, one that shows a held-out pair."""
    while True:
        scene = sample_scene(rng)
        if not held_out or any((t.color, t.shape) in HELD_OUT for t in scene.things):
            return scene


def prompt_until(document: Document, pictures: dict[int, Image.Image], answer: int) -> Prompt:
    """The items before item `answer`, neighbouring texts joined; `pictures` are those of the scenes by their item."""
    prompt: Prompt = []
    for i, item in enumerate(document.items[:answer]):
        if isinstance(item, Scene):
            prompt.append(pictures[i])
            continue
        text = item.text + (document.stop if item.kind else "")
        if prompt and isinstance(prompt[-1], str):
            prompt[-1] += text
        else:
            prompt.append(text)
    return prompt


def cases_of(document: Document, rng: random.Random) -> list[Case]:
    """One case an answer of `document`."""
    pictures = {i: render(item, rng) for i, item in enumerate(document.items) if isinstance(item, Scene)}
    cases = []
    for answer in document.answers:
        piece = document.items[answer]
        assert isinstance(piece, Piece)
        cases.append(Case(prompt_until(document, pictures, answer), piece.text.strip(), piece.kind))
    return cases


def fresh_cases(number: int, held_out: bool = False) -> list[Case]:
    """The cases of conversation `number`: two in three a dialogue, one in three a base layout."""
    rng = random.Random(FIRST_SEED + number)
    make = sample_base_task if number % 3 == 2 else sample_dialogue
    return cases_of(make(rng, lambda: fresh_scene(rng, held_out)), rng)


def weight(case: Case) -> tuple[int, int]:
    """Images and letters: like cases go into one batch."""
    return sum(not isinstance(i, str) for i in case.prompt), sum(len(i) for i in case.prompt if isinstance(i, str))


def judge(speaker: Speaker, cases: Iterable[Case], batch: int = 48, wrong: list[str] | None = None) -> Counter[str]:
    """Counts by kind: `kind` asked, `kind+` right. Wrong answers are told to `wrong`."""
    counts: Counter[str] = Counter()
    ordered = sorted(cases, key=weight)
    began = time.monotonic()
    for start in range(0, len(ordered), batch):
        group = ordered[start : start + batch]
        for case, got in zip(group, speaker.answers([c.prompt for c in group]), strict=True):
            counts[case.kind] += 1
            counts[case.kind + "+"] += got == case.expected
            if got != case.expected and wrong is not None:
                asked = "".join(i if isinstance(i, str) else "[image]" for i in case.prompt)
                wrong.append(f"{case.kind}: {asked[-90:]!r} expected {case.expected!r} got {got!r}")
        if start // batch % 50 == 49:
            print(f"{start + batch} of {len(ordered)}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return counts


def describe_in_turn(speaker: Speaker, conversations: list[list[Image.Image]]) -> list[list[str]]:
    """Shows each conversation's pictures one a turn, asks what is in them; the history holds the model's answers."""
    prompts: list[Prompt] = [[] for _ in conversations]
    answers: list[list[str]] = [[] for _ in conversations]
    for turn in range(len(conversations[0])):
        for prompt, pictures, said in zip(prompts, conversations, answers, strict=True):
            start = "User: What is in this image?"
            if turn:
                start = f"{prompt.pop()} {said[-1]}{END}\n{start}"
            prompt += [start, pictures[turn], f"{END}\nAssistant:"]
        for said, answer in zip(answers, speaker.answers(prompts), strict=True):
            said.append(answer)
    return answers


def image_order(speaker: Speaker, pairs: Iterable[int], held_out: bool = False) -> Counter[str]:
    """Two pictures in two turns, then the same two swapped: the answers must swap (and are counted when also right)."""
    counts: Counter[str] = Counter()
    for number in pairs:
        rng = random.Random(2 * FIRST_SEED + number)
        one, other = fresh_scene(rng, held_out), fresh_scene(rng, held_out)
        if caption(one) == caption(other):
            continue
        pictures = [render(one, rng), render(other, rng)]
        straight, swapped = describe_in_turn(speaker, [pictures, pictures[::-1]])
        counts["image order"] += 1
        counts["image order+"] += straight == swapped[::-1] and straight[0] != straight[1]
        counts["image order, answers right"] += 1
        counts["image order, answers right+"] += (
            straight == swapped[::-1] == [sentence(caption(s)) for s in (one, other)]
        )
    return counts


@dataclass(frozen=True)
class Share:
    """One process's part of the work: every `of`-th conversation and pair from number `first` on."""

    folder: Path
    dtype: str
    conversations: int
    pairs: int
    held_out: bool
    first: int = 0
    of: int = 1


def work(share: Share) -> tuple[Counter[str], list[str]]:
    """Counts by kind and the wrong answers of one share, on one thread."""
    torch.set_num_threads(1)
    speaker, wrong = Speaker(share.folder, getattr(torch, share.dtype)), list[str]()
    numbers = range(share.first, share.conversations, share.of)
    counts = judge(speaker, [case for n in numbers for case in fresh_cases(n, share.held_out)], wrong=wrong)
    counts += image_order(speaker, range(share.first, share.pairs, share.of), share.held_out)
    return counts, wrong


def target_of(kind: str) -> float | None:
    """The share to reach; small talk has none."""
    if kind.startswith("image order"):
        return 0.99 if kind == "image order" else None
    if kind in ("small talk", "unknown", "no image"):
        return None
    return 0.95 if kind.startswith(("recall", "compare", "base")) else 0.97


def table(counts: Counter[str]) -> str:
    """Markdown: one row a kind, then the share of all."""
    kinds = sorted((k for k in counts if not k.endswith("+")), key=lambda k: (target_of(k) or 0, k), reverse=True)
    rows = ["| kind | asked | right | target |", "|---|---:|---:|---:|"]
    for kind in kinds:
        target = target_of(kind)
        share = counts[kind + "+"] / counts[kind]
        short = " (below)" if target and share < target else ""
        rows.append(f"| {kind} | {counts[kind]} | {share:.3f}{short} | {target or ''} |")
    asked = sum(counts[k] for k in kinds if not k.startswith("image order"))
    right = sum(counts[k + "+"] for k in kinds if not k.startswith("image order"))
    return "\n".join([*rows, f"| all questions | {asked} | {right / max(1, asked):.3f} | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path())
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=300, help="pairs of images for the test of image order")
    parser.add_argument("--held-out", action="store_true", help="only scenes with a pair that --hold-out leaves out")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--processes", type=int, default=1, help="each on one thread")
    parser.add_argument("--show-wrong", type=int, default=0, help="how many wrong answers to print")
    args = parser.parse_args()
    whole = Share(args.checkpoint, args.dtype, args.conversations, args.pairs, args.held_out)
    shares = [replace(whole, first=i, of=args.processes) for i in range(args.processes)]
    counts, wrong = Counter[str](), list[str]()
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        for part, failed in pool.map(work, shares):
            counts += part
            wrong += failed
    print("\n".join(random.Random(0).sample(wrong, min(len(wrong), args.show_wrong))))
    print(f"{args.conversations} conversations, right answers as history, greedy, {args.dtype}\n\n{table(counts)}")


if __name__ == "__main__":
    main()
