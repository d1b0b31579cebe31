"""Continuous batching: requests join and leave between two decode steps, prompts are read in chunks in between.

One call of `step` ends what is to end, reads a bounded part of a prompt, and decodes one token for everyone. Waiting
requests are admitted first come first served. For one thread; knows no event loop. A failure in one request's part
ends that request and no other.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from idefics_chat.inference.counters import Counters
from idefics_chat.inference.errors import GenerationFailed, InferenceError
from idefics_chat.inference.family import EncodedImage, Family, PreparedImage
from idefics_chat.inference.job import Branch, Job
from idefics_chat.inference.kv_slots import Chunk, decode_step, fixed_step
from idefics_chat.inference.lru_bytes import LruBytes
from idefics_chat.inference.pace import Pace
from idefics_chat.inference.requests import FinishReason
from idefics_chat.inference.slot_rows import SlotRows

logger = logging.getLogger(__name__)

MOST_TOGETHER = 16
"""Images that are encoded in one go."""

Result = TypeVar("Result")

KeepFeatures = Callable[[str, PreparedImage, EncodedImage], None]
"""Takes what was made of an image, by digest, to keep it elsewhere; must not wait."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What a scheduler may use. `kv_bytes` bounds running and parked caches on the device together, `host_bytes` those
    parked in host memory, `feature_bytes` encoded images that are kept for later. `prefill_tokens` bounds the part of
    a prompt that is read in one step."""

    max_running: int = 16
    kv_bytes: int = 4 * 1024**3
    host_bytes: int = 4 * 1024**3
    feature_bytes: int = 512 * 1024**2
    prefill_tokens: int = 512


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
        self._family = family
        self._limits = limits
        self._clock = clock
        self._keep_features = keep_features
        self._fixed_shapes = fixed_shapes
        self._max_tokens = max_tokens
        self._rows = self._new_rows()
        self._features: LruBytes[str, EncodedImage] = LruBytes(limits.feature_bytes, lambda image: image.nbytes)
        self._waiting: deque[Job] = deque()
        self._pace = Pace(limits.prefill_tokens)
        self.counters = Counters()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._rows.running

    @property
    def is_reading(self) -> bool:
        """Whether a prompt is being read just now."""
        return self._rows.reading is not None

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._waiting)

    def expected_wait_s(self, ahead: int) -> float:
        """About how long a request behind `ahead` others would wait, at least a second."""
        finished = max(1, self.counters.requests_finished)
        busy_s = self.counters.decode_seconds + self.counters.prefill_seconds
        return max(1.0, ahead * busy_s / finished)

    def features_of(self, digest: str) -> EncodedImage | None:
        """An image that is encoded already. May be called from any thread."""
        return self._features.peek(digest)

    def submit(self, job: Job) -> None:
        """Queue a job; its sink will get exactly one result or error."""
        for digest, image in job.encoded_images().items():
            self.counters.encodes_saved += 1
            if self._features.get(digest) is None:
                self._features.put(digest, image)
        self._waiting.append(job)

    @torch.inference_mode()
    def step(self) -> None:
        """Do a bounded part of the work there is."""
        self._reap()
        self._read_prompts()
        self._decode()
        self._count()

    @torch.inference_mode()
    def stop(self, reason: FinishReason = "stopped") -> None:
        """End everything, with what was said."""
        over = [*self._rows.running, *self._waiting]
        self._waiting.clear()
        for job in over:
            self._end(job, reason)
        self._count()

    def abandon(self, error: InferenceError) -> None:
        """End everything with an error, after a failure that is no single request's."""
        over = [*self._rows.running, *self._waiting]
        self._rows = self._new_rows()
        self._waiting.clear()
        for job in over:
            job.sink.put(error)
        self.counters.requests_failed += len(over)

    def check(self) -> None:
        """Raise AssertionError where the books do not balance: rows, budgets, jobs."""
        running = self._rows.running
        assert not set(map(id, running)) & set(map(id, self._waiting))
        branches = [branch for job in running for branch in job.branches]
        assert all(branch.filled <= len(branch.ids) <= branch.job.needed_tokens for branch in branches)
        self._rows.check()
        assert self._features.used_bytes <= self._features.budget_bytes

    def _new_rows(self) -> SlotRows:
        limits = self._limits
        return SlotRows(self._family, limits.max_running, self._max_tokens, limits.kv_bytes, limits.host_bytes)

    # -- ending

    def _reap(self) -> None:
        """End what was cancelled or is past its deadline, waiting or running."""
        now = self._clock()
        over = [job for job in [*self._rows.running, *self._waiting] if self._is_over(job, now)]
        self._waiting = deque(job for job in self._waiting if job not in over)
        for job in over:
            self._end(job, "cancelled")

    def _is_over(self, job: Job, now_s: float) -> bool:
        return job.sink.is_cancelled or (job.deadline_s is not None and now_s >= job.deadline_s)

    def _end(self, job: Job, reason: FinishReason | None = None) -> None:
        self._rows.leave(job, park=True)
        job.finish(reason)
        self.counters.requests_finished += 1

    def _fail(self, job: Job, error: Exception) -> None:
        logger.error("a request failed in the model", exc_info=error)
        self._rows.leave(job, park=False)
        job.sink.put(GenerationFailed())
        self.counters.requests_failed += 1

    # -- reading prompts

    def _read_prompts(self) -> None:
        """Read as much of the prompts as the pace allows in one step."""
        decoding = len(self._rows.decoding)
        joining = max(0, min(self._limits.max_running - decoding, len(self._waiting) + self.is_reading))
        left = self._pace.prefill_tokens(decoding, joining)
        while left > 0 and (job := self._next_to_read()) is not None:
            started = self._clock()
            try:
                read = self._with_memory(partial(self._read_chunk, job, left))
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._fail(job, error)
                continue
            seconds = self._clock() - started
            self._pace.prefilled(read, seconds)
            self.counters.tokens_prefilled += read
            self.counters.prefill_seconds += seconds
            # Images were encoded: that takes long, and others may be waiting for their next token.
            left -= left if read == 0 and self._rows.decoding else read

    def _next_to_read(self) -> Job | None:
        """The job whose prompt is being read, or the first in the queue if there is a row for it."""
        while self._rows.reading is None and self._waiting:
            job = self._waiting[0]
            try:
                admitted = self._with_memory(partial(self._rows.admit, job))
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._waiting.popleft()
                self._fail(job, error)
                continue
            if not admitted:
                self.counters.memory_refusals += len(self._rows.decoding) < self._limits.max_running
                return None
            self._waiting.popleft()
            self.counters.tokens_reused += job.cached_tokens
        return self._rows.reading

    def _read_chunk(self, job: Job, limit: int) -> int:
        """Read one chunk, at most `limit` tokens; the last one gives the answer's first token. Where an image has to
        be encoded first, only that is done. Returns how many tokens were read."""
        lead = job.lead
        end = min(len(job.prompt), lead.filled + limit)
        places = job.places[lead.filled : end]
        if self._encode_images(job, {place[0] for place in places if place is not None}):
            return 0
        step = Chunk(lead.row, lead.filled, end)
        images = job.encoded_images()
        keep = _scored_tokens(job, end)
        logits = self._family.prefill(lead.ids[lead.filled : end], places, images, self._rows.tensors, step, keep)
        if job.scored_from is not None and end >= job.scored_from:
            job.score += _log_likelihood(logits, lead.ids[end - keep + 1 : end + 1])
        read, lead.filled = end - lead.filled, end
        if job.is_read:
            last = job.places[-1]
            job.images = {last[0]: images[last[0]]} if last is not None else {}
            self._family.set_row(lead.row, images[last[0]] if last is not None else None)
            self._begin(job, logits[-1])
        return read

    def _begin(self, job: Job, logits: Tensor) -> None:
        if job.is_over:
            self._end(job)
            return
        self._rows.begin_decoding()
        self._advance(job, logits.expand(job.width, -1))
        self.counters.first_tokens += 1
        self.counters.first_token_seconds += self._clock() - job.arrived_s

    def _encode_images(self, job: Job, digests: set[str]) -> bool:
        """Encode those images, unless all are encoded or known, and others that are waited for; whether any was."""
        missing = self._missing(job, digests)
        if not missing:
            return False
        together = self._with_others(job, missing)
        try:
            encoded = self._family.encode([image for _, image in together])
        except Exception:
            if len(together) == 1:
                raise
            logger.warning("images could not be encoded together; trying one by itself", exc_info=True)
            together = together[:1]
            encoded = self._family.encode([together[0][1]])
        for (digest, prepared), image in zip(together, encoded, strict=True):
            self._take_encoded(digest, prepared, image)
        return True

    def _missing(self, job: Job, digests: set[str]) -> list[tuple[str, PreparedImage]]:
        """Those of a job's images that are to be encoded; what is known of the others is given to the job."""
        missing = []
        for digest, image in list(job.images.items()):
            if digest not in digests or not isinstance(image, PreparedImage):
                continue
            if (known := self._features.get(digest)) is not None:
                job.images[digest] = known
                self.counters.encodes_saved += 1
            else:
                missing.append((digest, image))
        return missing

    def _with_others(self, job: Job, missing: list[tuple[str, PreparedImage]]) -> list[tuple[str, PreparedImage]]:
        """Images to encode in one go, the first of the missing ones first: more than it only if that holds up fewer
        requests than it serves, and only of the same shape."""
        joining = 1 + len(self._waiting)
        most = min(MOST_TOGETHER, max(1, joining // max(1, len(self._rows.decoding))))
        wanted = dict(missing)
        for other in islice(self._waiting, self._limits.max_running):
            start = min(self._rows.cached_tokens(other), other.reusable_tokens)
            digests = {place[0] for place in other.places[start:] if place is not None}
            wanted |= dict(self._missing(other, digests))
        first = missing[0][1]
        return [(digest, image) for digest, image in wanted.items() if image.shape == first.shape][:most]

    def _take_encoded(self, digest: str, prepared: PreparedImage, image: EncodedImage) -> None:
        """Give an image that was encoded to those that wait for it, and keep it for later."""
        self._features.put(digest, image)
        self.counters.images_encoded += 1
        if self._keep_features is not None:
            self._keep_features(digest, prepared, image)
        for job in [*self._rows.running, *self._waiting]:
            if digest in job.images:
                job.images[digest] = image

    # -- decoding

    def _decode(self) -> None:
        """One token for everyone whose prompt is read."""
        branches = list(self._rows.decoding)
        if not branches:
            return
        started = self._clock()
        try:
            logits = self._with_memory(partial(self._decode_logits, branches))
        except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
            self._decode_one_by_one(branches, error)
            return
        for branch in branches:
            branch.filled += 1
        greedy = self._greedy(branches, logits)
        for job, rows in _rows_by_job(branches).items():
            own, choice = (logits[rows], None) if len(rows) > 1 else (logits[rows[0]][None], greedy[rows[0]])
            try:
                self._advance(job, own, choice)
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._fail(job, error)
        self._pace.decoded(self._clock() - started)
        self.counters.decode_steps += 1
        self.counters.decode_seconds += self._clock() - started

    def _decode_logits(self, branches: list[Branch]) -> Tensor:
        slots, positions = self._rows.tensors, [branch.filled for branch in branches]
        ids = [branch.ids[branch.filled] for branch in branches]
        if not self._fixed_shapes:
            return self._family.decode(ids, slots, decode_step(positions, slots.tokens))
        step = fixed_step(positions, slots.rows, slots.tokens)
        more = len(step.positions) - len(ids)
        return self._family.decode([*ids, *ids[:1] * more], slots, step)[: len(ids)]

    def _decode_one_by_one(self, branches: list[Branch], error: Exception) -> None:
        """After a failed step: each request by itself, so that only those end in which the failure is."""
        logger.warning("a decode step of %d sequences failed; trying each by itself", len(branches), exc_info=error)
        for job, rows in _rows_by_job(branches).items():
            try:
                logits = torch.stack([self._decode_alone(branches[row]) for row in rows])
                for row in rows:
                    branches[row].filled += 1
                self._advance(job, logits)
            except Exception as own_error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._fail(job, own_error)

    def _decode_alone(self, branch: Branch) -> Tensor:
        job = branch.job
        step = Chunk(branch.row, branch.filled, branch.filled + 1)
        places = [self._family.place_after(job.places[-1])]
        ids = [branch.ids[branch.filled]]
        return self._family.prefill(ids, places, job.encoded_images(), self._rows.tensors, step)[0]

    def _greedy(self, branches: list[Branch], logits: Tensor) -> list[int | None]:
        """The likeliest allowed token of each row that asks for no more than that; None for the others. They come from
        the device in one transfer."""
        if not any(branch.job.is_greedy for branch in branches):
            return [None] * len(branches)
        ready = logits.index_fill(1, branches[0].job.banned.to(logits.device), -torch.inf)
        # A row that is not finite is looked at by itself, and fails by itself.
        choices = torch.where(logits.isnan().any(dim=-1), -1, ready.argmax(dim=-1)).tolist()
        return [
            choice if branch.job.is_greedy and choice >= 0 else None
            for branch, choice in zip(branches, choices, strict=True)
        ]

    def _advance(self, job: Job, logits: Tensor, greedy: int | None = None) -> None:
        """The next token of each of a job's sequences that go on, from logits `(sequences, vocabulary)`."""
        going_on = [branch for branch in job.branches if branch.row >= 0]
        self.counters.tokens_generated += len(going_on)
        if job.beams is not None:
            self._rows.reorder(job, job.choose_beams(logits))
        elif greedy is not None:
            job.take(going_on[0], greedy)
        else:
            for branch, row in zip(going_on, logits, strict=True):
                job.choose(branch, row)
        if job.is_over:
            self._end(job)
            return
        for branch in going_on:
            if job.is_done(branch):
                self._rows.leave_row(branch, park=branch is job.lead)

    # -- memory

    def _with_memory(self, run: Callable[[], Result]) -> Result:
        """Run; when the device is out of memory, give up all that is kept for later and run once more."""
        try:
            return run()
        except torch.OutOfMemoryError:
            logger.warning("out of memory on the device; dropping parked caches and image features")
        self._rows.parked.clear()
        self._features.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return run()

    def _count(self) -> None:
        counters, rows = self.counters, self._rows
        counters.waiting_now, counters.running_now = len(self._waiting), len(rows.running)
        counters.slot_bytes_now = rows.tensors.used_bytes
        counters.parked_device_bytes_now = rows.parked.device_bytes
        counters.parked_host_bytes_now = rows.parked.host_bytes
        counters.feature_bytes_now = self._features.used_bytes


def _rows_by_job(branches: list[Branch]) -> dict[Job, list[int]]:
    """Which rows each job has, in the order of its sequences."""
    rows: dict[Job, list[int]] = {}
    for branch in sorted(branches, key=lambda branch: branch.index):
        rows.setdefault(branch.job, []).append(branch.row)
    return rows


def _scored_tokens(job: Job, end: int) -> int:
    """Of how many tokens of a chunk that ends at `end` the logits are wanted: of the last, and of all that stand
    right before one that is scored."""
    if job.scored_from is None or end < job.scored_from:
        return 1
    return end - max(job.lead.filled, job.scored_from - 1)


def _log_likelihood(logits: Tensor, following: list[int]) -> float:
    """Log-likelihood of the tokens that follow those of `logits` `(tokens, vocabulary)`; the last may have none."""
    chances = logits[: len(following)].float().log_softmax(dim=-1)
    targets = torch.tensor(following, device=logits.device)
    return float(chances.gather(1, targets[:, None]).sum())
