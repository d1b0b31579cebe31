"""An engine, with what goes through it counted and limited: all surfaces ask it, so that nothing passes by the limits.

A turn takes its place when it is submitted and gives it back when its answer ends, fails, is cancelled or is dropped.
An idempotent repeat never comes this far, so it costs nothing. Work of the server itself has no asker and no limits.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

from idefics_chat.conversation.prompt import Prompt
from idefics_chat.inference.errors import EngineBusy, InferenceError
from idefics_chat.inference.requests import (
    Engine,
    Generation,
    GenerationRequest,
    GenerationResult,
    ImageLoader,
    ModelInfo,
    TextDelta,
    Usage,
)
from idefics_chat.inference.task_runner import scoring_engine
from idefics_chat.server.asker import ASKER, Asker
from idefics_chat.server.metrics import Metrics
from idefics_chat.server.quotas import Place, Quotas
from idefics_chat.server.tracing import SpanNote, Tracing

ABANDONED = "abandoned"
"""How a turn ended that nobody read to its end."""

_log = logging.getLogger(__name__)


class MeteredEngine:
    """Keeps the interface `Engine`. `clock` gives seconds from any start."""

    def __init__(
        self,
        engine: Engine,
        quotas: Quotas,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self._engine = engine
        self._quotas = quotas
        self._metrics = metrics
        self._clock = clock
        self._tracing = tracing or Tracing()

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._engine.info

    async def count_tokens(self, prompt: Prompt, load_image: ImageLoader) -> tuple[int, ...]:
        """As the engine's."""
        return await self._engine.count_tokens(prompt, load_image)

    async def submit(self, request: GenerationRequest) -> Generation:
        """As the engine's.

        Raises:
            ApiError: `rate_limit_exceeded`, `quota_exceeded`. What the engine raises.
        """
        started = self._clock()
        meter = TurnMeter(ASKER.get(), self._quotas, self._metrics)
        try:
            if meter.counts_tokens:
                meter.reserve(sum(await self._engine.count_tokens(request.prompt, request.load_image)))
            generation = await self._engine.submit(request)
        except BaseException as error:
            meter.withdraw(error)
            raise
        return MeteredGeneration(generation, meter, self._clock, started, self._tracing.turn())

    async def score(self, prompt: Prompt, continuations: Sequence[str], load_image: ImageLoader) -> tuple[float, ...]:
        """As the engine's, where it has it: one turn, which costs its prompt.

        Raises:
            ApiError: as `submit`. InvalidTask: the engine cannot score. What the engine raises.
        """
        meter = TurnMeter(ASKER.get(), self._quotas, self._metrics)
        try:
            if meter.counts_tokens:
                meter.reserve(sum(await self._engine.count_tokens(prompt, load_image)))
            scores = await scoring_engine(self._engine).score(prompt, continuations, load_image)
        except BaseException as error:
            meter.withdraw(error)
            raise
        meter.leave()
        return scores

    async def aclose(self) -> None:
        """As the engine's."""
        await self._engine.aclose()


class TurnMeter:
    """One turn's place and tokens. Raises ApiError where there is no place for it."""

    def __init__(self, asker: Asker | None, quotas: Quotas, metrics: Metrics) -> None:
        self._asker = asker
        self._quotas = quotas
        self.metrics = metrics
        self._reserved = 0
        self._taken = None if asker is None else quotas.begin_turn(asker)
        metrics.turns_running.inc()
        self._place = Place(self._leave)

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are limited for this turn."""
        return self._asker is not None and self._quotas.counts_tokens

    def reserve(self, tokens: int) -> None:
        """Count tokens before they are used: an answer that is dropped has cost its prompt all the same."""
        self._spend(tokens - self._reserved)
        self._reserved = tokens

    def reserve_more(self, tokens: int) -> None:
        """Count tokens of an answer whose end nobody will know."""
        self.reserve(self._reserved + tokens)

    def settle(self, usage: Usage) -> None:
        """The end is known: count what was used, no more and no less."""
        self.reserve(usage.input_tokens + usage.output_tokens)
        tokens = self.metrics.tokens
        for kind in ("input", "cached", "image", "output"):
            tokens.labels(kind).inc(getattr(usage, f"{kind}_tokens"))

    def withdraw(self, error: BaseException) -> None:
        """It was not begun, for this reason. What a busy engine refused is not counted among the turns of the minute
        either: its asker was told to ask again."""
        self.reserve(0)
        if self._taken is not None and isinstance(error, EngineBusy):
            self._taken.take_back()
        self.leave()

    def leave(self) -> None:
        """Give the place back. Idempotent."""
        self._place.give_back()

    def _leave(self) -> None:
        self.metrics.turns_running.dec()
        if self._taken is not None:
            self._taken.give_back()

    def _spend(self, tokens: int) -> None:
        if self.counts_tokens and self._asker is not None and tokens:
            self._quotas.spend_tokens(self._asker, tokens)


class MeteredGeneration:
    """Keeps the interface `Generation`. One reader only, as the engine's."""

    def __init__(
        self, generation: Generation, meter: TurnMeter, clock: Callable[[], float], started: float, span: SpanNote
    ) -> None:
        self._generation = generation
        self._meter = meter
        self._clock = clock
        self._started = started
        self._span = span

    def cancel(self) -> None:
        """Ask for the end. The place is free at once, also where nobody reads on."""
        self._generation.cancel()
        self._meter.leave()

    async def __aiter__(self) -> AsyncIterator[TextDelta | GenerationResult]:
        pace = Pace(self._started)
        end = ABANDONED
        try:
            async for piece in self._generation:
                if isinstance(piece, TextDelta):
                    pace.text(self._clock())
                    yield piece
                    continue
                end = piece.finish_reason
                self._meter.settle(piece.usage)
                self._ended(end, pace, piece.usage)
                yield piece
        except InferenceError as error:
            end = error.code
            raise
        finally:
            if not pace.told:
                self._ended(end, pace, None)

    def _ended(self, end: str, pace: "Pace", usage: Usage | None) -> None:
        pace.told = True
        self._meter.leave()
        metrics = self._meter.metrics
        metrics.turns.labels(end).inc()
        if usage is None:
            self._meter.reserve_more(pace.pieces)
        fields: dict[str, str | int | float] = {"end": end, "seconds": round(self._clock() - self._started, 3)}
        if pace.first is not None:
            metrics.first_token_seconds.observe(pace.first - self._started)
            fields["first_text_seconds"] = round(pace.first - self._started, 3)
        if usage is not None:
            fields |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
            if (rate := pace.rate(usage.output_tokens)) is not None:
                metrics.tokens_per_second.observe(rate)
        _log.info("a turn ended", extra={"fields": fields})
        self._span.end(fields)


class Pace:
    """When an answer's text came. Seconds of the same clock as `started`."""

    __slots__ = ("first", "last", "pieces", "started", "told")

    def __init__(self, started: float) -> None:
        self.started = started
        self.first: float | None = None
        self.last = started
        self.pieces = 0
        self.told = False

    def text(self, now: float) -> None:
        """A piece came."""
        self.last = now
        self.pieces += 1
        if self.first is None:
            self.first = now

    def rate(self, tokens: int) -> float | None:
        """Tokens a second after the first; None where there were too few to say."""
        if self.first is None or tokens < 2 or self.last <= self.first:
            return None
        return (tokens - 1) / (self.last - self.first)
