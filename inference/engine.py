"""The engine: requests from an event loop, answered by one worker thread that owns the model.

What does not need the model (encoding a prompt, fetching an image's bytes, preparing its pixels) is done before a
request is queued, beside the event loop; the worker thread does the rest, all requests at once, and hands results back
with `call_soon_threadsafe`.

A thread and not a process: with 1,000 idle websockets and 16 streams an engine in a process of its own made neither
timers nor pings of the event loop more punctual (`benchmarks/engine_thread.py`, figures in `benchmarks/RESULTS.md`),
since torch gives the interpreter's lock up while it computes. Requests and results are plain data behind an awaitable
interface, so that the engine may still move.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from idefics_chat.conversation.images import ImageLimits
from idefics_chat.conversation.prompt import Prompt
from idefics_chat.inference.devices import main_memory
from idefics_chat.inference.errors import (
    EngineStopped,
    GenerationFailed,
    InferenceError,
    ModelLoadError,
    PromptTooLong,
)
from idefics_chat.inference.families import family_of
from idefics_chat.inference.family import Family
from idefics_chat.inference.feature_files import FeatureFiles, FeatureStore
from idefics_chat.inference.generation import LocalGeneration, Outbox
from idefics_chat.inference.image_preparation import ImagePreparation
from idefics_chat.inference.job import Job
from idefics_chat.inference.job_maker import JobMaker
from idefics_chat.inference.loader import LoadedModel
from idefics_chat.inference.model_fingerprint import features_fingerprint
from idefics_chat.inference.packed_linear import pack_linears
from idefics_chat.inference.prompt_encoder import EncodedPrompt, PromptEncoder
from idefics_chat.inference.request_checks import check_request
from idefics_chat.inference.request_queue import RequestQueue
from idefics_chat.inference.requests import GenerationRequest, ImageLoader, ModelInfo
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits
from idefics_chat.inference.scoring import Scoring

logger = logging.getLogger(__name__)

FREE_SHARE = 0.7
"""Of the memory that is free once the weights are loaded, what keys and values may take; the rest is for the steps."""

COPIES_SHARE = 0.25
"""Of the main memory that is free once the weights are loaded, what a second copy of those that are packed may take."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine may use: requests waiting beside those that run, and what the scheduler may use. Where there is a
    `feature_folder`, image features outlive the process there, in at most `feature_disk_bytes`; it must not be another
    engine's at the same time. Images of more than `max_image_pixels` are refused with ImageTooLarge."""

    max_waiting: int = 64
    scheduler: SchedulerLimits = field(default_factory=SchedulerLimits)
    feature_folder: Path | None = None
    feature_disk_bytes: int = 1024**3
    max_image_pixels: int = ImageLimits().max_pixels


def create_engine(
    loaded: LoadedModel,
    *,
    model_id: str | None = None,
    limits: EngineLimits | None = None,
    compile_steps: bool = False,
) -> "LocalEngine":
    """An engine for a loaded model, its worker thread running; `model_id` is its name in the API (its source).

    Without `limits` it may use most of the memory that is free on an accelerator; on a CPU, what `SchedulerLimits`
    says, or as much as one whole context takes if that is more. `compile_steps`: decode steps are compiled by torch
    when their shape is first met, which may take minutes; what it saves depends on the device. Without it, large linear
    layers on an x86 CPU are packed in place: what else uses the model then rounds as they do. Where memory is
    plenty, float32 weights are kept as they were too, since one stream alone is faster with them.
    """
    family = family_of(loaded)
    if compile_steps:
        family.compile_decode()
    else:
        _, free_bytes = main_memory()
        pack_linears(loaded.model, COPIES_SHARE * (free_bytes or 0))
    return LocalEngine(loaded, family, model_id or loaded.source, limits or fitting_limits(loaded))


def fitting_limits(loaded: LoadedModel) -> EngineLimits:
    """What `create_engine` takes where it is given no limits."""
    family = family_of(loaded)
    limits = SchedulerLimits()
    one_context = loaded.context_tokens * family.cache_shape.token_bytes
    if loaded.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(loaded.device)
        kv_bytes = int(FREE_SHARE * free_bytes)
    else:
        kv_bytes = max(limits.kv_bytes, one_context)
    if kv_bytes < one_context:
        logger.warning(
            "the memory that is free holds %d of the model's %d tokens of context",
            kv_bytes // family.cache_shape.token_bytes,
            loaded.context_tokens,
        )
    return EngineLimits(scheduler=replace(limits, kv_bytes=kv_bytes))


class LocalEngine:
    """Answers requests with a model in this process. Keeps the interface `Engine` of `requests`."""

    def __init__(self, loaded: LoadedModel, family: Family, model_id: str, limits: EngineLimits) -> None:
        facts = loaded.facts
        self._family = family
        context = min(loaded.context_tokens, limits.scheduler.kv_bytes // self._family.cache_shape.token_bytes)
        self._info = ModelInfo(model_id, loaded.family, loaded.layout, facts.fingerprint, context)
        self._loaded = loaded
        self._kv_tokens = limits.scheduler.kv_bytes // self._family.cache_shape.token_bytes
        self._max_sequences = limits.scheduler.max_running
        self._encoder = PromptEncoder(facts, self._family.image_token, self._family.shared_boundary)
        self._jobs = JobMaker(loaded, family)
        self._stored = _feature_store(loaded, family, limits)
        keep = None if self._stored is None else self._stored.keep
        self._scheduler = Scheduler(
            self._family, limits.scheduler, context, keep_features=keep, fixed_shapes=family.is_compiled
        )
        self._images = ImagePreparation(family, self._stored, self._scheduler.features_of, limits.max_image_pixels)
        self._outbox = Outbox()
        self._queue = RequestQueue(self._scheduler, limits.max_waiting)
        self._scoring = Scoring(self._queue, partial(self._enqueue, scored=True))
        self._thread = threading.Thread(target=self._work, name="idefics-chat engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def counters(self) -> dict[str, float]:
        """What the engine counted, by name; see `Counters`."""
        counters = self._scheduler.counters
        if self._stored is not None:
            files = self._stored.files
            counters.features_read, counters.features_stored = files.read, files.stored
            counters.feature_disk_bytes_now = files.used_bytes
        return counters.snapshot()

    async def count_tokens(self, prompt: Prompt, load_image: ImageLoader | None = None) -> tuple[int, ...]:
        """Tokens of each run of the prompt, images included, in the order of `prompt.runs`.

        Where a family's images differ in length, `load_image` is asked for those that were never seen.
        """
        await self._images.made_countable(prompt, load_image)
        return (await self._encode(prompt)).run_lengths

    async def submit(self, request: GenerationRequest) -> LocalGeneration:
        """Queue a request.

        Raises:
            InvalidSampling, PromptTooLong, EngineBusy, EngineStopped: nothing was queued. What `load_image` raises
                comes through.
        """
        check_request(request, self._max_sequences)
        self._queue.reserve()
        return (await self._enqueue([request]))[0][1]

    async def score(self, prompt: Prompt, continuations: Sequence[str], load_image: ImageLoader) -> tuple[float, ...]:
        """Log-likelihood (natural, summed over its tokens) of each text as what comes next after the prompt.

        The prompt is computed once. A few continuations at a time take places in the queue, so that others get in
        between; where it is full later on, they wait. Nothing runs on when this ends, however it ends.

        Raises:
            As `submit`; EngineStopped, GenerationFailed, PromptTooLong: it was under way.
        """
        return await self._scoring.score(prompt, continuations, load_image)

    async def aclose(self) -> None:
        """Stop: running and waiting requests end with finish_reason "stopped" and what they had said. Idempotent."""
        self._queue.stop()
        await asyncio.to_thread(self._thread.join)
        if self._stored is not None:
            await asyncio.to_thread(self._stored.files.close)
        self._images.close()

    # -- before a request is queued

    async def _enqueue(
        self, requests: Sequence[GenerationRequest], scored: bool = False
    ) -> list[tuple[Job, LocalGeneration]]:
        """Queue requests together, in the places of the queue that were reserved for them."""
        try:
            queued = [await self._job(request, scored) for request in requests]
            self._queue.put([job for job, _ in queued])
        finally:
            self._queue.give_back(len(requests))
        return queued

    async def _job(self, request: GenerationRequest, scored: bool) -> tuple[Job, LocalGeneration]:
        """A job for a request; `scored`: the last run of its prompt is to be scored."""
        arrived_s = time.monotonic()
        ready = await self._images.made_countable(request.prompt, request.load_image)
        prompt = await self._encode(request.prompt)
        # Sequences that decode side by side share the memory.
        context = min(self._info.context_tokens, self._kv_tokens // request.sampling.sequences)
        room = context - len(prompt)
        if room < 1:
            raise PromptTooLong(len(prompt), context - 1)
        images = await self._images.images(request.prompt, request.load_image, ready)
        max_tokens = room if request.max_output_tokens is None else min(request.max_output_tokens, room)
        generation = LocalGeneration(asyncio.get_running_loop(), self._queue.wake, self._outbox)
        return self._jobs.make(request, prompt, images, generation, max_tokens, arrived_s, scored), generation

    async def _encode(self, prompt: Prompt) -> EncodedPrompt:
        return await asyncio.to_thread(self._encoder.encode, prompt, self._images.token_ids)

    # -- the worker thread

    def _work(self) -> None:
        """Step while there is work; end everything when told to stop, or when a step fails as a whole."""
        while self._queue.hand_over():
            self._do(self._scheduler.step, GenerationFailed())
        self._do(self._scheduler.stop, EngineStopped())

    def _do(self, work: Callable[[], None], error: InferenceError) -> None:
        """Do a part of the work and hand over what came of it; where it fails as a whole, end everything with an
        error."""
        try:
            work()
        except Exception:
            logger.exception("a step of the engine failed; its requests are ended")
            self._scheduler.abandon(error)
        finally:
            self._outbox.flush()


def _feature_store(loaded: LoadedModel, family: Family, limits: EngineLimits) -> FeatureStore | None:
    """Raises ModelLoadError: the folder cannot be used."""
    if limits.feature_folder is None:
        return None
    fingerprint = features_fingerprint(loaded)
    try:
        return FeatureStore(family, FeatureFiles(limits.feature_folder, limits.feature_disk_bytes, fingerprint))
    except OSError as error:
        raise ModelLoadError(
            f"Image features cannot be kept in {limits.feature_folder} ({error.strerror}); choose a folder that can be "
            "written, or keep none."
        ) from error
