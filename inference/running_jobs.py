"""The jobs of one scheduler, waiting and running, with what they share: rows of the cache, image features, counters.

What reads prompts, encodes images and decodes meets here. However a job ends, it ends here, once.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from idefics_chat.inference.counters import Counters
from idefics_chat.inference.errors import GenerationFailed, InferenceError
from idefics_chat.inference.family import EncodedImage
from idefics_chat.inference.job import Job
from idefics_chat.inference.lru_bytes import LruBytes
from idefics_chat.inference.requests import FinishReason
from idefics_chat.inference.slot_rows import RowsLost, SlotRows

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class RunningJobs:
    """Jobs by what they wait for: for a row (`waiting`, first come first served), or for their next step (`rows`)."""

    def __init__(
        self,
        new_rows: Callable[[], SlotRows],
        features: LruBytes[str, EncodedImage],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_rows = new_rows
        self.rows = new_rows()
        self.features = features
        self.clock = clock
        self.waiting: deque[Job] = deque()
        self.counters = Counters()

    def __iter__(self) -> Iterator[Job]:
        """All that are not over."""
        return iter([*self.rows.running, *self.waiting])

    def end(self, job: Job, reason: FinishReason | None = None) -> None:
        """Give out a job's result; its row is free, what stood in it is kept for the next turn."""
        self.rows.leave(job, park=True)
        job.finish(reason)
        self.counters.requests_finished += 1

    def fail(self, job: Job, error: Exception) -> None:
        """End a job with an error, and with it those whose rows were lost with its own; their rows are free, what stood
        in them is not trusted."""
        logger.error("a request failed in the model", exc_info=error)
        for failed in error.jobs if isinstance(error, RowsLost) else [job]:
            self.rows.leave(failed, park=False)
            failed.sink.put(GenerationFailed())
            self.counters.requests_failed += 1

    def end_those(self, is_over: Callable[[Job], bool], reason: FinishReason) -> None:
        """End all jobs of which that is true, waiting or running. A failure ends its own job alone."""
        over = [job for job in self if is_over(job)]
        self.waiting = deque(job for job in self.waiting if job not in over)
        for job in over:
            try:
                self.end(job, reason)
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                self.fail(job, error)

    def abandon(self, error: InferenceError) -> None:
        """End everything with an error, and trust no row."""
        over = list(self)
        self.rows = self._new_rows()
        self.waiting.clear()
        for job in over:
            job.sink.put(error)
        self.counters.requests_failed += len(over)

    def with_memory(self, run: Callable[[], Result]) -> Result:
        """Run; when the device is out of memory, give up all that is kept for later and run once more."""
        try:
            return run()
        except torch.OutOfMemoryError:
            logger.warning("out of memory on the device; dropping parked caches and image features")
        self.rows.parked.clear()
        self.features.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return run()

    def count(self) -> None:
        """Note what there is now."""
        counters, rows = self.counters, self.rows
        counters.waiting_now, counters.running_now = len(self.waiting), len(rows.running)
        counters.slot_bytes_now = rows.tensors.used_bytes
        counters.parked_device_bytes_now = rows.parked.device_bytes
        counters.parked_host_bytes_now = rows.parked.host_bytes
        counters.feature_bytes_now = self.features.used_bytes

    def check(self) -> None:
        """Raise AssertionError where the books do not balance: rows, budgets, jobs."""
        running = self.rows.running
        assert not set(map(id, running)) & set(map(id, self.waiting))
        branches = [branch for job in running for branch in job.branches]
        assert all(branch.filled <= len(branch.ids) <= branch.job.needed_tokens for branch in branches)
        self.rows.check()
        assert self.features.used_bytes <= self.features.budget_bytes
