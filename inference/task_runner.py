"""Runs tasks on an engine: one prompt or many, whoever asks for them.

The Python functions, the command line and the server all go through here, so that a task means the same to each. Knows
tasks, prompts and the engine's interface; knows nothing of files, sockets or tables, and needs no torch.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from idefics_chat.conversation.errors import InvalidTask
from idefics_chat.conversation.prompt import ImageRun, Prompt, TextRun
from idefics_chat.conversation.tasks import Classify, Task, TaskName, category_text, task_prompt
from idefics_chat.inference.errors import EngineBusy, EngineStopped
from idefics_chat.inference.requests import (
    Engine,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    ImageLoader,
    Usage,
)
from idefics_chat.inference.sampling_params import SamplingParams

Normalization = Literal["none", "tokens"]
"""What a category's log-likelihood is divided by: nothing, or the number of its tokens."""

AT_ONCE = 32
"""Tasks of a batch that are handed out together: enough to keep an engine's rows full, few enough to leave its queue
to others."""

STORY_BEAMS = 2
"""Beams of a story, as the guide has it."""

LONGEST_PAUSE_S = 1.0
"""How long to wait at most before a full queue is asked again."""


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that scores given continuations too."""

    async def score(self, prompt: Prompt, continuations: Sequence[str], load_image: ImageLoader) -> tuple[float, ...]:
        """Log-likelihood (natural, summed over its tokens) of each text as what comes next after the prompt."""
        ...


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How a task is answered. `max_new_tokens` None is the task's own; `stop` strings end an answer and are not part
    of it; `bad_words` are never said (the tokens of images never are). `rank` scores every category of a `Classify`
    instead of generating one, and `normalization` says how."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    rank: bool = False
    normalization: Normalization = "none"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came of a task.

    `text` is what the model wrote, without spaces around it. Of a classification `category` is the one that was meant,
    None where the text names none of them; when it was ranked, `text` is the best category, `scores` the probability
    of each (they add up to 1) and `log_likelihoods` what they were made of.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    category: str | None = None
    scores: dict[str, float] | None = None
    log_likelihoods: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A task to run, with what it needs."""

    task: Task
    load_image: ImageLoader
    settings: TaskSettings = field(default_factory=TaskSettings)


Key = TypeVar("Key")

Job = Callable[[], Coroutine[Any, Any, TaskResult]]
"""Something that reads what a task needs, and runs it."""


async def run_all(
    jobs: Iterable[tuple[Key, Job]], at_once: int = AT_ONCE
) -> AsyncGenerator[tuple[Key, TaskResult | Exception]]:
    """Run jobs beside each other; each result (or what was raised) under its key, as they are done.

    Jobs are taken one by one as there is room, so that their number does not matter. A failure ends its own job alone,
    but for `EngineStopped`, which is raised. To leave early, close the iterator: what runs is cancelled.
    """
    waiting = iter(jobs)
    running: dict[asyncio.Task[TaskResult], Key] = {}
    try:
        while True:
            for key, job in _taken(waiting, at_once - len(running)):
                running[asyncio.create_task(job())] = key
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield running.pop(task), _outcome(task)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class TaskRunner:
    """Runs tasks on one engine. Those of one `cache_key`, which is an owner, share what their prompts begin with: no
    more than that is kept of them, so that many tasks do not push conversations out of the cache."""

    def __init__(self, engine: Engine, cache_key: str | None = None) -> None:
        self._engine = engine
        self._cache_key = cache_key

    async def run(self, order: Order, *, patient: bool = False) -> TaskResult:
        """Run one task. `patient`: wait while the engine has no place in its queue.

        Raises:
            PromptTooLong, EngineBusy, EngineStopped, GenerationFailed; what `load_image` raises.
        """
        while True:
            try:
                return await self._run(order)
            except EngineBusy as busy:
                if not patient:
                    raise
                await asyncio.sleep(min(busy.retry_after_s, LONGEST_PAUSE_S))

    async def _run(self, order: Order) -> TaskResult:
        prompt = task_prompt(order.task, self._engine.info.layout)
        if isinstance(order.task, Classify) and order.settings.rank:
            return await self._ranked(prompt, order.task, order)
        longest = order.settings.max_new_tokens
        request = GenerationRequest(
            prompt=prompt,
            load_image=order.load_image,
            sampling=order.settings.sampling,
            max_output_tokens=order.task.max_new_tokens if longest is None else longest,
            stop=order.settings.stop,
            bad_words=order.settings.bad_words,
            cache_key=self._cache_key,
            kept_runs=_runs_alike(prompt),
        )
        result = await self._generated(request)
        text = result.text.strip()
        category = named_category(text, order.task.categories) if isinstance(order.task, Classify) else None
        return TaskResult(text, result.finish_reason, result.usage, category)

    async def _generated(self, request: GenerationRequest) -> GenerationResult:
        generation = await self._engine.submit(request)
        try:
            async for item in generation:
                if isinstance(item, GenerationResult):
                    break
            else:
                raise RuntimeError("the engine ended a generation without a result")
        finally:
            generation.cancel()  # past its end this does nothing
        if item.finish_reason == "stopped":
            raise EngineStopped
        return item

    async def _ranked(self, prompt: Prompt, task: Classify, order: Order) -> TaskResult:
        """Rank classification: the log-likelihood of every category behind the same prompt."""
        texts = [category_text(category) for category in task.categories]
        scores = await scoring_engine(self._engine).score(prompt, texts, order.load_image)
        lengths = [await self._lengths(prompt, text, order.load_image) for text in texts]
        divided = [
            score if order.settings.normalization == "none" else score / max(1, run_lengths[-1])
            for score, run_lengths in zip(scores, lengths, strict=True)
        ]
        shares = probabilities(divided)
        ranked = sorted(zip(task.categories, shares, divided, strict=True), key=lambda item: -item[1])
        best = ranked[0][0]
        return TaskResult(
            text=best,
            finish_reason="stop",
            usage=_scored_usage(prompt, lengths),
            category=best,
            scores={category: share for category, share, _ in ranked},
            log_likelihoods={category: score for category, _, score in ranked},
        )

    async def _lengths(self, prompt: Prompt, text: str, load_image: ImageLoader) -> tuple[int, ...]:
        whole = Prompt((*prompt.runs, TextRun(text)), (*prompt.owners, None))
        return await self._engine.count_tokens(whole, load_image)


def _runs_alike(prompt: Prompt) -> int:
    """How many runs tasks of one kind may have in common: those before the image that is asked about, the last one."""
    return max((place for place, run in enumerate(prompt.runs) if isinstance(run, ImageRun)), default=0)


def scoring_engine(engine: Engine) -> ScoringEngine:
    """The engine, if it can score. Raises InvalidTask."""
    if not isinstance(engine, ScoringEngine):
        raise InvalidTask("This model's engine cannot score texts that it is given; leave rank out.", "rank")
    return engine


def sampling_for(name: TaskName, given: Mapping[str, Any]) -> SamplingParams:
    """How a task of that name chooses its tokens, from those fields that were given: greedily, and a story by beam
    search.

    Raises:
        InvalidSampling: a value out of its range.
    """
    fields = dict(given)
    if name == "story" and not fields.get("temperature") and fields.get("n", 1) == 1:
        fields.setdefault("num_beams", STORY_BEAMS)
    return SamplingParams(**fields)


def _scored_usage(prompt: Prompt, lengths: Sequence[Sequence[int]]) -> Usage:
    """Tokens of the prompt, counted once, and of every text behind it, by the runs' lengths."""
    shown = sum(tokens for run, tokens in zip(prompt.runs, lengths[0], strict=False) if isinstance(run, ImageRun))
    scored = sum(run_lengths[-1] for run_lengths in lengths)
    return Usage(input_tokens=sum(lengths[0][:-1]) + scored, image_tokens=shown)


def probabilities(log_likelihoods: Sequence[float]) -> list[float]:
    """Shares that add up to 1 (softmax)."""
    most = max(log_likelihoods)
    weights = [math.exp(value - most) for value in log_likelihoods]
    return [weight / sum(weights) for weight in weights]


def named_category(text: str, categories: Sequence[str]) -> str | None:
    """The category that a text begins with, the longest where several fit; upper and lower case count the same."""
    written = text.strip().casefold()
    fitting = [category for category in categories if _begins_with(written, category.strip().casefold())]
    return max(fitting, key=len, default=None)


def _begins_with(written: str, category: str) -> bool:
    rest = written.removeprefix(category)
    return written.startswith(category) and not rest[:1].isalnum()


def _taken(waiting: Iterator[tuple[Key, Job]], count: int) -> Iterator[tuple[Key, Job]]:
    """The next `count`, or as many as there are."""
    for _ in range(count):
        try:
            yield next(waiting)
        except StopIteration:
            return


def _outcome(task: asyncio.Task[TaskResult]) -> TaskResult | Exception:
    """What a finished task gave or raised. Raises `EngineStopped`: all others will meet it too."""
    error = task.exception()
    if error is None:
        return task.result()
    if not isinstance(error, Exception) or isinstance(error, EngineStopped):
        raise error
    return error
