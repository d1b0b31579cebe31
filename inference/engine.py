"""The engine: requests from an event loop, answered by one worker thread that owns the model.

Requests are answered first come first served. What belongs to the event loop (encoding a prompt, fetching an image's
bytes, preparing its pixels) is done before a request is queued; results come back with `call_soon_threadsafe`. A
failure in one request ends that request and no other.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from torch import Tensor
from transformers import DynamicCache

from idefics_chat.conversation.images import decode_image
from idefics_chat.conversation.prompt import Prompt
from idefics_chat.inference.answer import Answer
from idefics_chat.inference.errors import EngineBusy, EngineStopped, GenerationFailed, InferenceError, PromptTooLong
from idefics_chat.inference.idefics_model import BANNED_TOKENS, IMAGE_TOKEN, IdeficsRunner, seen_images
from idefics_chat.inference.loader import LoadedModel
from idefics_chat.inference.lru_bytes import LruBytes
from idefics_chat.inference.prompt_encoder import EncodedPrompt, PromptEncoder
from idefics_chat.inference.requests import (
    FinishReason,
    GenerationRequest,
    GenerationResult,
    ImageLoader,
    ModelInfo,
    TextDelta,
    Usage,
)
from idefics_chat.inference.sampling import Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine may use: requests waiting beside the one that runs, bytes of image features kept, tokens run at
    once while a prompt is read."""

    max_waiting: int = 64
    feature_bytes: int = 256 * 1024 * 1024
    prefill_tokens: int = 512


def create_engine(
    loaded: LoadedModel, *, model_id: str | None = None, limits: EngineLimits | None = None
) -> "LocalEngine":
    """An engine for a loaded model, its worker thread running; `model_id` is its name in the API (its source)."""
    return LocalEngine(loaded, model_id or loaded.source, limits or EngineLimits())


@dataclass(slots=True)
class _Job:
    """A request on its way through the worker. `images` holds features, or pixels that are still to be encoded."""

    request: GenerationRequest
    prompt: EncodedPrompt
    images: dict[str, "Tensor | _Pixels"]
    generation: "LocalGeneration"
    end: FinishReason | None = None
    answer: Answer = field(init=False)


@dataclass(frozen=True, slots=True)
class _Pixels:
    """An image made ready for the model, not yet encoded."""

    values: Tensor


class LocalGeneration:
    """A running request of a `LocalEngine`. One reader only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: asyncio.Queue[TextDelta | GenerationResult | InferenceError] = asyncio.Queue()
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask for the end between two tokens. The result follows, with what was said."""
        self.cancelled.set()

    def put(self, item: TextDelta | GenerationResult | InferenceError) -> None:
        """Hand an item over to the reader; from any thread. Dropped where the reader's event loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            logger.debug("the event loop of a request is closed; its answer is dropped")

    async def __aiter__(self) -> AsyncIterator[TextDelta | GenerationResult]:
        while True:
            item = await self._items.get()
            if isinstance(item, InferenceError):
                raise item
            yield item
            if isinstance(item, GenerationResult):
                return


class LocalEngine:
    """Answers requests with a model in this process. Keeps the interface `Engine` of `requests`."""

    def __init__(self, loaded: LoadedModel, model_id: str, limits: EngineLimits) -> None:
        facts = loaded.facts
        self._info = ModelInfo(model_id, loaded.family, loaded.layout, facts.fingerprint, loaded.context_tokens)
        self._loaded = loaded
        self._limits = limits
        self._encoder = PromptEncoder(facts, IMAGE_TOKEN)
        self._image_ids = (facts.control_ids[IMAGE_TOKEN],)
        self._banned = frozenset(facts.control_ids[token] for token in BANNED_TOKENS)
        self._runner = IdeficsRunner(loaded.model, loaded.image_processor)
        self._features: LruBytes[str, Tensor] = LruBytes(limits.feature_bytes, lambda item: item.nbytes)
        self._waiting: deque[_Job] = deque()
        self._arriving = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._last_job_s = 1.0
        self._thread = threading.Thread(target=self._work, name="idefics-chat engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    async def count_tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of each run of the prompt, images included, in the order of `prompt.runs`."""
        return (await self._encode(prompt)).run_lengths

    async def submit(self, request: GenerationRequest) -> LocalGeneration:
        """Queue a request.

        Raises:
            PromptTooLong, EngineBusy, EngineStopped: nothing was queued. What `load_image` raises comes through.
        """
        self._reserve()
        try:
            prompt = await self._encode(request.prompt)
            if len(prompt) + 1 > self._info.context_tokens:
                raise PromptTooLong(len(prompt), self._info.context_tokens - 1)
            images = {digest: await self._image(digest, request.load_image) for digest in set(request.prompt.digests)}
            job = _Job(request, prompt, images, LocalGeneration(asyncio.get_running_loop()))
            job.answer = self._new_answer(job)
        finally:
            with self._wake:
                self._arriving -= 1
        with self._wake:
            if self._stopping:
                raise EngineStopped
            self._waiting.append(job)
            self._wake.notify_all()
        return job.generation

    async def aclose(self) -> None:
        """Stop: running and waiting requests end with finish_reason "stopped" and what they had said. Idempotent."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        await asyncio.to_thread(self._thread.join)

    # -- on the event loop

    def _reserve(self) -> None:
        with self._wake:
            if self._stopping:
                raise EngineStopped
            ahead = len(self._waiting) + self._arriving
            if ahead >= self._limits.max_waiting:
                raise EngineBusy(max(1.0, self._last_job_s * ahead))
            self._arriving += 1

    async def _encode(self, prompt: Prompt) -> EncodedPrompt:
        return await asyncio.to_thread(self._encoder.encode, prompt, lambda digest: self._image_ids)

    async def _image(self, digest: str, load: ImageLoader) -> "Tensor | _Pixels":
        with self._wake:
            features = self._features.get(digest)
        if features is not None:
            return features
        data = await load(digest)
        return _Pixels(await asyncio.to_thread(lambda: self._runner.prepare(decode_image(data))))

    def _new_answer(self, job: _Job) -> Answer:
        room = self._info.context_tokens - len(job.prompt)
        wanted = job.request.max_output_tokens
        return Answer(
            self._loaded.facts.backend,
            self._loaded.end_ids,
            room if wanted is None else min(wanted, room),
            job.request.stop,
            job.request.prompt.answer_prefix,
        )

    # -- in the worker thread

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            started = time.monotonic()
            try:
                self._run(job)
            except Exception:
                logger.exception("a request failed in the model")
                job.generation.put(GenerationFailed())
            self._last_job_s = time.monotonic() - started

    def _next_job(self) -> _Job | None:
        """The next request; a cancelled one is taken first, since it is ended at once. None when all is over."""
        with self._wake:
            while not self._waiting and not self._stopping:
                self._wake.wait()
            return self._waiting.popleft() if self._waiting else None

    def _run(self, job: _Job) -> None:
        """Answer one request to its end."""
        cache, seen = DynamicCache(config=self._loaded.model.config), seen_images(job.prompt.images)
        logits = None if self._interrupted(job) else self._prefill(job, seen, cache)
        sampler = Sampler(job.request.sampling, job.prompt.ids, self._banned)
        while logits is not None and job.answer.finish_reason is None and not self._interrupted(job):
            token_id = sampler.choose(logits)
            self._stream(job, job.answer.push(token_id))
            if job.answer.finish_reason is None:
                logits = self._runner.forward([token_id], seen[-1:], self._ready(job), cache)
        self._stream(job, job.answer.finish(job.end))
        job.generation.put(self._result(job))

    def _prefill(self, job: _Job, seen: list[str | None], cache: DynamicCache) -> Tensor | None:
        """Read the prompt; the last token's logits, or None if the request was interrupted."""
        features, step = self._ready(job), self._limits.prefill_tokens
        logits = None
        for start in range(0, len(job.prompt), step):
            if self._interrupted(job):
                return None
            end = start + step
            logits = self._runner.forward(job.prompt.ids[start:end], seen[start:end], features, cache)
        return logits

    def _ready(self, job: _Job) -> dict[str, Tensor]:
        """Features of the request's images; those that are still pixels are encoded, and kept for others."""
        ready = {digest: self._encoded(digest, image) for digest, image in job.images.items()}
        job.images.update(ready)
        return ready

    def _encoded(self, digest: str, image: "Tensor | _Pixels") -> Tensor:
        if isinstance(image, Tensor):
            return image
        with self._wake:
            features = self._features.get(digest)
        if features is None:
            features = self._runner.encode(image.values)
            with self._wake:
                self._features.put(digest, features)
        return features

    def _interrupted(self, job: _Job) -> bool:
        if self._stopping:
            job.end = "stopped"
        elif job.generation.cancelled.is_set():
            job.end = "cancelled"
        return job.end is not None

    def _stream(self, job: _Job, piece: str) -> None:
        if piece:
            job.generation.put(TextDelta(piece))

    def _result(self, job: _Job) -> GenerationResult:
        usage = Usage(
            input_tokens=len(job.prompt),
            image_tokens=sum(digest is not None for digest in job.prompt.images),
            output_tokens=job.answer.output_tokens,
        )
        assert job.answer.finish_reason is not None
        return GenerationResult(job.answer.text, job.answer.token_ids(), job.answer.finish_reason, usage)
