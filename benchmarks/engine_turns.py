"""Conversations with images: many at once, long ones, and a long prompt that joins others.

The peer is stock `generate` one request after the other with nothing kept between turns, which is how
`transformers serve` runs vision models, without its HTTP part.

    python benchmarks/engine_turns.py
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from engine_cases import IMAGE_ID, IMAGE_TOKENS, Bench, image, median, medium_model, one_image_prompt, seconds, words

from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

CONVERSATIONS = 16
TURNS = 3
ANSWER_TOKENS = 64
SAMPLED = 3
NEW_TOKENS = 20


def many_at_once(bench: Bench) -> float:
    """Tokens a second of 16 conversations of three turns about an image, over those of the same one after the other."""
    talks = [one_image_prompt(1000 + seed, text=24) for seed in range(CONVERSATIONS)]
    ours_s, stock_s = 0.0, 0.0
    for turn in range(TURNS):
        jobs = [
            bench.job(ids, images, shown, ANSWER_TOKENS, group=str(index))
            for index, (ids, images, shown) in enumerate(talks)
        ]
        ours_s += seconds(bench.run)
        sample = talks[:SAMPLED]
        stock_s += seconds(
            lambda sample=sample: [bench.stock(ids, list(shown.values()), ANSWER_TOKENS) for ids, _, shown in sample]
        )
        talks = [_continued(talk, job, turn) for talk, job in zip(talks, jobs, strict=True)]
    return (stock_s * CONVERSATIONS / SAMPLED) / ours_s


def _continued(talk: tuple[Any, Any, Any], job: Any, turn: int) -> tuple[Any, Any, Any]:
    """A conversation after its answer, with a new question."""
    ids, images, shown = talk
    new = [*job.sink.result.token_ids, *words(NEW_TOKENS, turn)]
    return [*ids, *new], [*images, *[None] * len(new)], shown


class Talk:
    """One conversation that grows turn by turn; `image_at` says in which turns an image is shown."""

    def __init__(self, bench: Bench, image_at: Callable[[int], bool], answer_tokens: int = 24) -> None:
        self._bench, self._image_at, self._answer_tokens = bench, image_at, answer_tokens
        self.ids: list[int] = []
        self.images: list[str | None] = []
        self.shown: dict[str, Any] = {}
        self.turn = 0

    def ask(self) -> float:
        """Say something new; the time to the first token of the answer."""
        self.turn += 1
        if self._image_at(self.turn):
            digest = f"{self.turn:064x}"
            self.shown[digest] = image(self.turn)
            self.ids += [IMAGE_ID] * IMAGE_TOKENS
            self.images += [digest] * IMAGE_TOKENS
        self.ids += words(NEW_TOKENS, self.turn)
        self.images += [None] * NEW_TOKENS
        started = time.perf_counter()
        job = self._bench.job(self.ids, self.images, self.shown, self._answer_tokens, group="talk")
        self._bench.run()
        first_s: float = job.sink.times_s[0] - started  # type: ignore[attr-defined]
        self.ids = [*self.ids, *job.sink.result.token_ids]  # type: ignore[attr-defined]
        self.images += [None] * (len(self.ids) - len(self.images))
        return first_s

    def stock_s(self) -> float:
        """The time to the first token of stock `generate` for the same conversation."""
        return seconds(lambda: self._bench.stock(self.ids, list(self.shown.values()), 1))


def late_turns(bench: Bench) -> float:
    """Time to first token of stock over ours at turns 10 to 12 of a conversation with 4 images."""
    talk = Talk(bench, lambda turn: turn in (1, 3, 5, 7))
    ratios = []
    for turn in range(1, 13):
        ours_s = talk.ask()
        if turn >= 10:
            ratios.append(talk.stock_s() / ours_s)
    return median(ratios)


def turn_forty(bench: Bench) -> float:
    """Time to first token at about turn 40 over that at about turn 3, the same number of new tokens."""
    talk = Talk(bench, lambda turn: turn == 1)
    times_s = [talk.ask() for _ in range(42)]
    return median(times_s[-5:]) / median(times_s[1:6])


def a_long_prompt_joins(bench: Bench) -> float:
    """The 99th percentile of the gaps between tokens of 8 streams while 1,500 tokens join, over their median."""
    streams = [bench.job(words(60, seed), [None] * 60, {}, 400) for seed in range(8)]
    while any(len(job.sink.times_s) < 40 for job in streams):  # type: ignore[attr-defined]
        bench.scheduler.step()
    quiet = [gap for job in streams for gap in _gaps(job, 0.0)]
    joined_s = time.perf_counter()
    long = bench.job(words(1500, 99), [None] * 1500, {}, 2)
    while not long.sink.times_s:  # type: ignore[attr-defined]
        bench.scheduler.step()
    during = sorted(gap for job in streams for gap in _gaps(job, joined_s))
    bench.scheduler.stop()
    return during[int(0.99 * len(during))] / median(quiet[-8 * 20 :])


def kv_bytes_under_pressure(bench: Bench) -> float:
    """The most bytes that rows and parked prefixes took together at the end of any step, over the budget, with room for
    about three of eight conversations."""
    token_bytes = bench.family.cache_shape.token_bytes
    limits = SchedulerLimits(max_running=4, kv_bytes=400 * token_bytes, host_bytes=200 * token_bytes)
    bench.scheduler = Scheduler(bench.family, limits, 400)
    most = 0
    for turn in range(2):
        for index in range(8):
            ids = words(40 + 30 * turn, index)
            bench.job(ids, [None] * len(ids), {}, 8, group=str(index))
        while not bench.scheduler.is_idle:
            bench.scheduler.step()
            bench.scheduler.check()
            counters = bench.scheduler.counters
            most = max(most, counters.slot_bytes_now + counters.parked_device_bytes_now)
    return most / limits.kv_bytes


def _gaps(job: Any, since_s: float) -> list[float]:
    """Seconds between a stream's tokens, of those that end after `since_s`."""
    return [later - earlier for earlier, later in pairwise(job.sink.times_s) if later > since_s]


def main() -> None:
    torch.set_num_threads(1)
    model = medium_model()
    print(f"16 image conversations at once, over one after the other:   {many_at_once(Bench(model)):.1f}x")
    print(f"first token at turns 10 to 12 with 4 images, over stock's:  {late_turns(Bench(model)):.1f}x less")
    print(f"first token at turn 40 over turn 3:                         {turn_forty(Bench(model)):.2f}")
    print(f"KV bytes in use at any moment, over the budget:             {kv_bytes_under_pressure(Bench(model)):.3f}")
    print(f"a 1,500-token prompt joins 8 streams, p99 gap over median:  {a_long_prompt_joins(Bench(model)):.1f}")


if __name__ == "__main__":
    main()
