"""Reading prompts (prefill): several at a time in one forward, in parts where they are long.

Whoever is admitted to a row is read in every forward from then on. Others join, first come first served, if all can be
read to the end together within the pace, and if little is lost by filling the short ones up to the longest.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from idefics_chat.inference.decoding import Decoding
from idefics_chat.inference.family import Family
from idefics_chat.inference.image_encoding import ImageEncoding
from idefics_chat.inference.job import Job
from idefics_chat.inference.kv_slots import Chunk
from idefics_chat.inference.pace import Pace
from idefics_chat.inference.prefix_store import common_length
from idefics_chat.inference.running_jobs import RunningJobs
from idefics_chat.inference.sampling import checked

logger = logging.getLogger(__name__)

LOST_SHARE = 4
"""Of what is read together at most one part in so many may be tokens that are run in vain."""

LOST_TOKENS = 32
"""So many may be in any case: to read them costs less than a forward of its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens `start` to `end` of a job's prompt, which one forward reads."""

    job: Job
    start: int
    end: int

    @property
    def kept(self) -> int:
        """Of how many tokens, from the last one back, the logits are wanted: of the last, and of all that stand right
        before one that is scored."""
        if self.job.scored_from is None or self.end < self.job.scored_from:
            return 1
        return self.end - max(self.start, self.job.scored_from - 1)


class PromptReading:
    """Admits jobs and reads their prompts; the last part of one gives the first token of the answer."""

    def __init__(
        self, family: Family, jobs: RunningJobs, images: ImageEncoding, decoding: Decoding, pace: Pace
    ) -> None:
        self._family = family
        self._jobs = jobs
        self._images = images
        self._decoding = decoding
        self._pace = pace

    def step(self) -> None:
        """Read as much of the prompts in one forward as the pace allows. Where images have to be encoded first, only
        that is done: it takes long, and others may be waiting for their next token."""
        jobs = self._jobs
        decoding = len(jobs.rows.decoding)
        joining = max(0, min(jobs.rows.max_rows - decoding, len(jobs.waiting) + len(jobs.rows.reading)))
        limit = self._pace.prefill_tokens(decoding, joining)
        self._admit(limit)
        if not jobs.rows.reading:
            return
        started = jobs.clock()
        read = self._read(limit)
        seconds = jobs.clock() - started
        self._pace.prefilled(read, seconds)
        jobs.counters.prefill_seconds += seconds

    def _admit(self, limit: int) -> None:
        """Give rows to those at the head of the queue that can be read together with what is being read."""
        jobs = self._jobs
        while jobs.waiting and self._joins(jobs.waiting[0], limit):
            job = jobs.waiting[0]
            try:
                admitted = jobs.with_memory(partial(jobs.rows.admit, job))
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                jobs.waiting.popleft()
                jobs.fail(job, error)
                continue
            if not admitted:
                jobs.counters.memory_refusals += jobs.rows.reserved < jobs.rows.max_rows
                return
            jobs.waiting.popleft()
            jobs.counters.tokens_reused += job.cached_tokens

    def _joins(self, job: Job, limit: int) -> bool:
        rows = self._jobs.rows
        if not rows.reading:
            return True
        start = rows.start_of(job)
        if any(_leaves_more(one, job, start) for one in rows.reading):
            return False
        lengths = [*(len(one.prompt) - one.lead.filled for one in rows.reading), len(job.prompt) - start]
        padded = len(lengths) * max(lengths)
        lost = padded - sum(lengths)
        return padded <= limit and lost <= max(LOST_TOKENS, padded // LOST_SHARE)

    def _read(self, limit: int) -> int:
        """Read a part of every prompt that has a row. Where an image has to be encoded first, only that is done.
        Returns how many tokens were run."""
        reading = self._jobs.rows.reading
        most = max(1, limit // len(reading))
        parts = [self._part(job, most) for job in reading]
        for part in parts:
            try:
                digests = part.job.digests_from(part.start, part.end)
                if self._jobs.with_memory(partial(self._images.encode, part.job, digests)):
                    return 0
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._jobs.fail(part.job, error)
                return 0
        return self._read_parts(parts)

    def _part(self, job: Job, most: int) -> Part:
        start = job.lead.filled
        return Part(job, start, min(len(job.prompt), start + most))

    def _read_parts(self, parts: Sequence[Part]) -> int:
        """Read parts that stand in neighbouring rows; where that fails, each by itself, so that only those requests end
        in which the failure is. Returns how many tokens were run."""
        try:
            found = self._jobs.with_memory(partial(self._logits, parts))
        except Exception as error:
            if len(parts) == 1:
                self._jobs.fail(parts[0].job, error)
                return 0
            logger.warning("%d prompts could not be read together; trying each by itself", len(parts), exc_info=error)
            return sum(self._read_parts([part]) for part in parts if part.job.lead.row >= 0)
        # Before anyone begins or ends: rows may change places then.
        for part in parts:
            part.job.lead.filled = part.end
        greedy = self._first_tokens(parts, found)
        for part, logits in zip(parts, found, strict=True):
            if part.job.lead.row < 0:
                continue  # it ended with another whose failure cost it its row
            try:
                self._take(part, logits, greedy.get(part.job))
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._jobs.fail(part.job, error)
        return len(parts) * max(part.end - part.start for part in parts)

    def _first_tokens(self, parts: Sequence[Part], found: Sequence[Tensor]) -> dict[Job, int | None]:
        """Of the prompts that are read to their ends now, the likeliest next token where that is all that is asked."""
        ends = [(part.job, logits[-1]) for part, logits in zip(parts, found, strict=True) if part.job.is_read]
        asking = [(job, logits) for job, logits in ends if job.is_greedy and not job.is_over]
        if not asking:
            return {}
        jobs = [job for job, _ in asking]
        return dict(zip(jobs, self._decoding.greedy(jobs, torch.stack([row for _, row in asking])), strict=True))

    def _logits(self, parts: Sequence[Part]) -> list[Tensor]:
        """Of each part the logits that are wanted, `(tokens, vocabulary)`. May be run again after a failure."""
        step = Chunk(parts[0].job.lead.row, tuple(part.start for part in parts), tuple(part.end for part in parts))
        images = {digest: image for part in parts for digest, image in part.job.encoded_images().items()}
        found = self._family.prefill(
            [part.job.lead.ids[part.start : part.end] for part in parts],
            [part.job.places[part.start : part.end] for part in parts],
            images,
            self._jobs.rows.tensors,
            step,
            max(part.kept for part in parts),
        )
        return [logits[-part.kept :] for logits, part in zip(found, parts, strict=True)]

    def _take(self, part: Part, logits: Tensor, greedy: int | None) -> None:
        """Note that a part was read; a prompt that is read to its end decodes from now on. `greedy`, the likeliest next
        token where that is all that is asked for. Raises as sampling does."""
        job, end = part.job, part.end
        if job.scored_from is not None and end >= job.scored_from:
            job.score += _log_likelihood(logits, job.lead.ids[end - part.kept + 1 : end + 1])
        self._jobs.counters.tokens_prefilled += end - part.start
        # Whatever becomes of it, what stands in the cache is kept for later.
        if greedy is None:
            checked(logits[-1])
        if job.is_read:
            self._begin(job, logits[-1], greedy)

    def _begin(self, job: Job, logits: Tensor, greedy: int | None) -> None:
        """Choose the first token, in as many rows as the job has sequences."""
        last = job.places[-1]
        image = None if last is None else job.encoded_images()[last[0]]
        job.images = {} if last is None or image is None else {last[0]: image}
        if job.is_over:
            self._jobs.end(job)
            return
        self._jobs.rows.begin_decoding(job)
        for branch in job.branches:
            self._family.set_row(branch.row, image)
        self._decoding.advance(job, logits.expand(job.width, -1), greedy)
        self._jobs.counters.first_tokens += 1
        self._jobs.counters.first_token_seconds += self._jobs.clock() - job.arrived_s


def _leaves_more(one: Job, other: Job, start: int) -> bool:
    """Whether a job that is over once it is read leaves a cache that spares another more than its first `start`
    tokens, so that the other had better wait."""
    if one.max_tokens > 0 or one.group is None or one.group != other.group:
        return False
    kept = len(one.prompt) if one.kept_tokens is None else one.kept_tokens
    return min(common_length(one.lead.keys, other.lead.keys), other.reusable_tokens, kept) > start


def _log_likelihood(logits: Tensor, following: list[int]) -> float:
    """Log-likelihood of the tokens that follow those of `logits` `(tokens, vocabulary)`; the last may have none."""
    chances = logits[: len(following)].float().log_softmax(dim=-1)
    targets = torch.tensor(following, device=logits.device)
    return float(chances.gather(1, targets[:, None]).sum())
