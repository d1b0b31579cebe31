"""What the engine adds to the model: its decode steps beside bare ones, and beside stock `generate` alone.

Both sides take turns, step by step and run by run, so that a busy machine is busy for both; medians are compared.

    python benchmarks/engine_decode.py
"""

import time
from typing import Any

import torch
from engine_cases import Bench, median, medium_model, one_image_prompt, seconds, words
from transformers import DynamicCache

ROWS = 16
PROMPT_TOKENS = 124
STEPS = 40
ALONE_TOKENS = 40


class BareLoop:
    """A batch decoded by a model with its stock cache, and nothing else done."""

    def __init__(self, model: Any, rows: int) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config.get_text_config())
        ids = torch.tensor([words(PROMPT_TOKENS, seed) for seed in range(rows)])
        self._next = self._forward(ids)

    def step(self) -> None:
        self._next = self._forward(self._next)

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1)


def beside_bare_loops(bench: Bench, rows: int) -> list[float]:
    """Tokens a second of the engine over those of a bare loop, both with `rows` requests that decode: of the stock
    model, and of the model whose weights are packed as the engine's."""
    for seed in range(rows):
        bench.job(words(PROMPT_TOKENS, seed), [None] * PROMPT_TOKENS, {}, PROMPT_TOKENS + 2 * STEPS)
    while bench.scheduler.counters.running_now < rows or bench.scheduler.is_reading:
        bench.scheduler.step()
    steps = [bench.scheduler.step, BareLoop(bench.model, rows).step, BareLoop(bench.packed, rows).step]
    times_s = [[seconds(step) for step in steps] for _ in range(STEPS)]
    bench.scheduler.stop()
    ours_s, *bare_s = (median(column) for column in zip(*times_s, strict=True))
    return [one_s / ours_s for one_s in bare_s]


def alone_beside_stock(bench: Bench, runs: int = 5) -> float:
    """Tokens a second of one image request over those of stock `generate` for the same, both cold."""
    ours_s, stock_s = [], []
    for run in range(runs):
        ids, images, shown = one_image_prompt(run)
        bench.job(ids, images, shown, ALONE_TOKENS)
        ours_s.append(seconds(bench.run))
        stock_s.append(seconds(lambda ids=ids, shown=shown: bench.stock(ids, list(shown.values()), ALONE_TOKENS)))
    return median(stock_s) / median(ours_s)


def main() -> None:
    torch.set_num_threads(1)
    started = time.perf_counter()
    bench = Bench(medium_model(), ROWS)
    print(f"one stream alone, beside stock generate:     {alone_beside_stock(bench):.2f}")
    for rows in (1, 8, ROWS):
        stock, packed = beside_bare_loops(bench, rows)
        print(f"{rows:2d} streams, beside a bare loop of as many:    {stock:.2f}, with packed weights {packed:.2f}")
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
