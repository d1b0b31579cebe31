"""Continuous batching: requests join and leave between two decode steps, prompts are read in parts in between.

One call of `step` ends what is to end, reads a bounded part of the prompts, and decodes one token for everyone. Waiting
requests are admitted first come first served. For one thread; knows no event loop. A failure in one request's part
ends that request and no other.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from idefics_chat.inference.counters import Counters
from idefics_chat.inference.decoding import Decoding
from idefics_chat.inference.errors import InferenceError
from idefics_chat.inference.family import EncodedImage, Family
from idefics_chat.inference.image_encoding import ImageEncoding, KeepFeatures
from idefics_chat.inference.job import Job
from idefics_chat.inference.lru_bytes import LruBytes
from idefics_chat.inference.pace import Pace
from idefics_chat.inference.prompt_reading import PromptReading
from idefics_chat.inference.requests import FinishReason
from idefics_chat.inference.running_jobs import RunningJobs
from idefics_chat.inference.slot_rows import SlotRows


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What a scheduler may use. `kv_bytes` bounds running and parked caches on the device together, `host_bytes` those
    parked in host memory, `feature_bytes` encoded images that are kept for later. `prefill_tokens` bounds what is read
    of prompts in one step, tokens that are run in vain included."""

    max_running: int = 16
    kv_bytes: int = 4 * 1024**3
    host_bytes: int = 4 * 1024**3
    feature_bytes: int = 512 * 1024**2
    prefill_tokens: int = 1024


class Scheduler:
    """Runs jobs on one model, all at once."""

    def __init__(
        self,
        family: Family,
        limits: SchedulerLimits,
        max_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        keep_features: KeepFeatures | None = None,
        fixed_shapes: bool = False,
    ) -> None:
        def new_rows() -> SlotRows:
            return SlotRows(family, limits.max_running, max_tokens, limits.kv_bytes, limits.host_bytes)

        features: LruBytes[str, EncodedImage] = LruBytes(limits.feature_bytes, lambda image: image.nbytes)
        pace = Pace(limits.prefill_tokens)
        self._jobs = RunningJobs(new_rows, features, clock)
        self._images = ImageEncoding(family, self._jobs, keep_features)
        self._decoding = Decoding(family, self._jobs, pace, fixed_shapes)
        self._reading = PromptReading(family, self._jobs, self._images, self._decoding, pace)

    @property
    def counters(self) -> Counters:
        """What was counted so far."""
        return self._jobs.counters

    @property
    def rows(self) -> SlotRows:
        """Who has which row just now."""
        return self._jobs.rows

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._jobs.waiting and not self._jobs.rows.running

    @property
    def is_reading(self) -> bool:
        """Whether a prompt is being read just now."""
        return bool(self._jobs.rows.reading)

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._jobs.waiting)

    def expected_wait_s(self, ahead: int) -> float:
        """About how long a request behind `ahead` others would wait, at least a second."""
        finished = max(1, self.counters.requests_finished)
        busy_s = self.counters.decode_seconds + self.counters.prefill_seconds
        return max(1.0, ahead * busy_s / finished)

    def features_of(self, digest: str) -> EncodedImage | None:
        """An image that is encoded already. May be called from any thread."""
        return self._jobs.features.peek(digest)

    def forget(self, group: Hashable) -> None:
        """Drop what is kept for a group; what runs or waits for it goes on, and leaves nothing."""
        for job in self._jobs:
            if job.group == group:
                job.group = None
        self._jobs.rows.parked.forget_group(group)

    def submit(self, job: Job) -> None:
        """Queue a job; its sink will get exactly one result or error."""
        self._images.take_known(job)
        self._jobs.waiting.append(job)

    @torch.inference_mode()
    def step(self) -> None:
        """Do a bounded part of the work there is."""
        now_s = self._jobs.clock()
        self._jobs.end_those(lambda job: job.is_given_up(now_s), "cancelled")
        self._reading.step()
        self._decoding.step()
        self._jobs.count()

    @torch.inference_mode()
    def stop(self, reason: FinishReason = "stopped") -> None:
        """End everything, with what was said."""
        self._jobs.end_those(lambda job: True, reason)
        self._jobs.count()

    def abandon(self, error: InferenceError) -> None:
        """End everything with an error, after a failure that is no single request's."""
        self._jobs.abandon(error)

    def check(self) -> None:
        """Raise AssertionError where the books do not balance: rows, budgets, jobs."""
        self._jobs.check()
