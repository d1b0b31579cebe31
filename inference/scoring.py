"""Log-likelihoods of continuations, as requests that generate nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from idefics_chat.conversation.prompt import Prompt, TextRun
from idefics_chat.inference.errors import EngineBusy, EngineStopped
from idefics_chat.inference.generation import LocalGeneration
from idefics_chat.inference.job import Job
from idefics_chat.inference.request_queue import RequestQueue
from idefics_chat.inference.requests import GenerationRequest, GenerationResult, ImageLoader

SCORED_AT_ONCE = 8
"""Continuations of one prompt that are in the queue together: enough to be read together, few enough for others to get
in between."""

FULL_QUEUE_PAUSE_S = 0.05
"""How long a scoring that has begun waits before it asks a full queue again."""

Enqueue = Callable[[Sequence[GenerationRequest]], Awaitable[list[tuple[Job, LocalGeneration]]]]


class Scoring:
    """Scores continuations of one prompt, which is computed once. `enqueue` queues requests in places that were
    reserved; the last run of each one's prompt is to be scored."""

    def __init__(self, queue: RequestQueue, enqueue: Enqueue) -> None:
        self._queue = queue
        self._enqueue = enqueue

    async def score(self, prompt: Prompt, continuations: Sequence[str], load_image: ImageLoader) -> tuple[float, ...]:
        """As `Engine.score` of `requests`: a few at a time, and nothing runs on when this ends."""
        shared = f"score {uuid4()}"
        requests = [
            GenerationRequest(
                Prompt((*prompt.runs, TextRun(text)), (*prompt.owners, None)),
                load_image,
                max_output_tokens=0,
                cache_key=shared,
            )
            for text in continuations
        ]
        scores: list[float] = []
        try:
            while left := requests[len(scores) :]:
                places = await self._places(len(left), patient=bool(scores))
                scores += await self._scored(left[:places])
            return tuple(scores)
        finally:
            self._queue.forget(shared)

    async def _places(self, wanted: int, patient: bool) -> int:
        """Places in the queue, at least one; `patient` waits for it."""
        while True:
            try:
                return self._queue.reserve(min(wanted, SCORED_AT_ONCE))
            except EngineBusy:
                if not patient:
                    raise
            await asyncio.sleep(FULL_QUEUE_PAUSE_S)

    async def _scored(self, requests: Sequence[GenerationRequest]) -> list[float]:
        """The scores of requests that have places in the queue. None of them runs on behind it."""
        queued = await self._enqueue(requests)
        try:
            for _, generation in queued:
                results = [item async for item in generation if isinstance(item, GenerationResult)]
                if results[-1].finish_reason != "length":
                    raise EngineStopped
        finally:
            for _, generation in queued:
                generation.cancel()  # past its end this does nothing
        return [job.score for job, _ in queued]
