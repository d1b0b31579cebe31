"""Image tasks in batches, beside the loop of the models' own task guide: one image after another through `generate`.

    python benchmarks/tasks.py [--images 16] [--rounds 5] [--medium] [--show]

The shipped model in fp32 on one thread. Each round runs both ways, on images that neither has seen, in turns, so that
what else the machine does falls on both; on a busy machine the processor's time says more than the clock. Batches go
the way of `idefics-chat batch`: a runner, the engine, sixteen rows at once. The answers are compared: in fp32 they must
be the same, token for token. Images arrive as PNG files' bytes, so that decoding them counts on both sides.
"""

import argparse
import asyncio
import hashlib
import io
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, IdeficsConfig, IdeficsForVisionText2Text

from idefics_chat.conversation.images import decode_image
from idefics_chat.conversation.tasks import Caption, Question, Story, Task
from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.scenes import render, sample_scene
from idefics_chat.inference.engine import create_engine
from idefics_chat.inference.loader import load_model
from idefics_chat.inference.task_runner import Order, TaskResult, TaskRunner, TaskSettings, run_all
from idefics_chat.server.memory import share_heaps

QUESTION = "Where is the first shape, and what color is the background?"


@dataclass(frozen=True)
class Kind:
    """A task: as we name it, as the guide writes it down, and the guide's length."""

    name: str
    task: Callable[[str], Task]
    prompt: Callable[[Image.Image], list[Any]]
    max_new_tokens: int


KINDS = (
    Kind("captions, 10 tokens", Caption, lambda image: [image], 10),
    Kind(
        "questions, 20 tokens",
        lambda digest: Question(digest, QUESTION),
        lambda image: [
            "Instruction: Provide an answer to the question. Use the image to answer.\n",
            image,
            f"Question: {QUESTION} Answer:",
        ],
        20,
    ),
    Kind(
        "stories, 200 tokens, greedy",
        Story,
        lambda image: ["Instruction: Use the image to write a story. \n", image, "Story: \n"],
        200,
    ),
)


class Pictures:
    """Fresh pictures of shapes, as PNG bytes by digest."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.data: dict[str, bytes] = {}

    def draw(self, count: int) -> list[str]:
        """The digests of so many new pictures."""
        digests = []
        for _ in range(count):
            buffer = io.BytesIO()
            render(sample_scene(self._random), self._random).save(buffer, "PNG")
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            self.data[digest] = buffer.getvalue()
            digests.append(digest)
        return digests

    async def load(self, digest: str) -> bytes:
        """What the engine asks for."""
        return self.data[digest]


class Guide:
    """The guide's loop."""

    def __init__(self, checkpoint: Path) -> None:
        self._processor: Any = AutoProcessor.from_pretrained(checkpoint)
        self._model: Any = IdeficsForVisionText2Text.from_pretrained(checkpoint, dtype=torch.float32).eval()
        names = ["<image>", "<fake_token_around_image>"]
        self._bad_words = self._processor.tokenizer(names, add_special_tokens=False).input_ids

    def run(self, kind: Kind, images: Sequence[bytes]) -> list[str]:
        """The answers, one image after another."""
        return [self._answer(kind, decode_image(data)) for data in images]

    def _answer(self, kind: Kind, image: Image.Image) -> str:
        inputs = self._processor(text=kind.prompt(image), return_tensors="pt")
        ids = self._model.generate(
            **inputs, max_new_tokens=kind.max_new_tokens, bad_words_ids=self._bad_words, do_sample=False
        )
        new = ids[:, inputs["input_ids"].shape[1] :]
        return str(self._processor.batch_decode(new, skip_special_tokens=True)[0]).strip()


async def batched(runner: TaskRunner, kind: Kind, pictures: Pictures, digests: Sequence[str]) -> list[str]:
    """The answers, all at once."""
    settings = TaskSettings(max_new_tokens=kind.max_new_tokens)
    orders = [Order(kind.task(digest), pictures.load, settings) for digest in digests]
    jobs = ((index, partial(runner.run, order, patient=True)) for index, order in enumerate(orders))
    answers: dict[int, str] = {}
    async for index, result in run_all(jobs):
        assert isinstance(result, TaskResult), result
        answers[index] = result.text
    return [answers[index] for index in range(len(digests))]


@dataclass
class Spent:
    """Seconds that one way took in each round: by the clock, and of the processor, all threads together."""

    clock_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """What is done within is one round."""
        clock, processor = time.perf_counter(), time.process_time()
        yield
        self.clock_s.append(time.perf_counter() - clock)
        self.processor_s.append(time.process_time() - processor)


def medium_checkpoint(folder: Path) -> Path:
    """An IDEFICS of about 50 million parameters with random weights, and the shipped model's tokenizer."""
    torch.manual_seed(0)
    config = IdeficsConfig.from_pretrained(checkpoint_path())
    config.update({"hidden_size": 640, "intermediate_size": 1920, "num_hidden_layers": 6, "num_attention_heads": 8})
    IdeficsForVisionText2Text(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(checkpoint_path()).save_pretrained(folder)
    return folder


async def measure(checkpoint: Path, images: int, rounds: int, show: bool) -> None:
    """Print the table."""
    guide, pictures = Guide(checkpoint), Pictures(seed=11)
    engine = create_engine(load_model(str(checkpoint), dtype="float32", device="cpu"))
    runner = TaskRunner(engine, cache_key="tasks")
    print("| task | images | loop, images/s | batched, images/s | times | times, processor | same answers |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for kind in KINDS:
        warm = pictures.draw(images)
        guide.run(kind, [pictures.data[digest] for digest in warm[:2]])
        await batched(runner, kind, pictures, warm)
        loop, batch, same = Spent(), Spent(), True
        for _ in range(rounds):
            digests = pictures.draw(images)
            with loop.measured():
                one_by_one = guide.run(kind, [pictures.data[digest] for digest in digests])
            with batch.measured():
                at_once = await batched(runner, kind, pictures, digests)
            same = same and one_by_one == at_once
            if show:
                print(f"  {loop.processor_s[-1]:.3f} s, {batch.processor_s[-1]:.3f} s of the processor", flush=True)
        print(
            f"| {kind.name} | {images} | {images / median(loop.clock_s):.1f} | {images / median(batch.clock_s):.1f} "
            f"| {times(loop.clock_s, batch.clock_s):.1f} | {times(loop.processor_s, batch.processor_s):.1f} "
            f"| {'yes' if same else 'NO'} |",
            flush=True,
        )
    await engine.aclose()


def times(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return median(one / other for one, other in zip(slow, fast, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--medium", action="store_true", help="a larger model, with random weights")
    parser.add_argument("--show", action="store_true", help="each round too")
    given = parser.parse_args()
    share_heaps()  # as the command line does
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = medium_checkpoint(Path(folder)) if given.medium else checkpoint_path()
        asyncio.run(measure(checkpoint, given.images, given.rounds, given.show))


if __name__ == "__main__":
    main()
