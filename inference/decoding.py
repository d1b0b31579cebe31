"""Decoding: one more token of every sequence whose prompt is read, all in one forward."""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from idefics_chat.inference.family import Family
from idefics_chat.inference.job import Branch, Job
from idefics_chat.inference.kv_slots import Chunk, decode_step, fixed_step
from idefics_chat.inference.pace import Pace
from idefics_chat.inference.running_jobs import RunningJobs

logger = logging.getLogger(__name__)


class Decoding:
    """Runs decode steps, and gives each job its next tokens. `fixed_shapes`: steps come in few shapes, so that they may
    be compiled."""

    def __init__(self, family: Family, jobs: RunningJobs, pace: Pace, fixed_shapes: bool) -> None:
        self._family = family
        self._jobs = jobs
        self._pace = pace
        self._fixed_shapes = fixed_shapes

    def step(self) -> None:
        """One token for everyone whose prompt is read."""
        branches = list(self._jobs.rows.decoding)
        if not branches:
            return
        started = self._jobs.clock()
        try:
            logits = self._jobs.with_memory(partial(self._logits, branches))
        except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
            self._one_by_one(branches, error)
            return
        for branch in branches:
            branch.filled += 1
        greedy = self.greedy([branch.job for branch in branches], logits)
        for job, rows in _rows_by_job(branches).items():
            own = logits[rows] if len(rows) > 1 else logits[rows[0]][None]
            try:
                self.advance(job, own, greedy[rows[0]])
            except Exception as error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._jobs.fail(job, error)
        taken_s = self._jobs.clock() - started
        self._pace.decoded(taken_s)
        self._jobs.counters.decode_steps += 1
        self._jobs.counters.decode_seconds += taken_s

    def advance(self, job: Job, logits: Tensor, greedy: int | None = None) -> None:
        """The next token of each of a job's sequences that go on, from logits `(sequences, vocabulary)`; `greedy` where
        it was chosen already. Raises what sampling raises."""
        going_on = [branch for branch in job.branches if branch.row >= 0]
        self._jobs.counters.tokens_generated += len(going_on)
        if job.beams is not None:
            self._jobs.rows.reorder(job, job.choose_beams(logits))
        elif greedy is not None:
            job.take(going_on[0], greedy)
        else:
            for branch, row in zip(going_on, logits, strict=True):
                job.choose(branch, row)
        if job.is_over:
            self._jobs.end(job)
            return
        for branch in going_on:
            if job.is_done(branch):
                self._jobs.rows.leave_row(branch, park=branch is job.lead)

    def greedy(self, jobs: Sequence[Job], logits: Tensor) -> list[int | None]:
        """The likeliest allowed token of each row `(jobs, vocabulary)` whose job asks for no more than that; None for
        the others, who choose by themselves, as all do where this fails."""
        try:
            return self._jobs.with_memory(partial(_greedy, jobs, logits))
        except Exception as error:
            logger.warning("tokens could not be chosen together; trying each by itself", exc_info=error)
            return [None] * len(jobs)

    def _logits(self, branches: list[Branch]) -> Tensor:
        slots, positions = self._jobs.rows.tensors, [branch.filled for branch in branches]
        ids = [branch.ids[branch.filled] for branch in branches]
        if not self._fixed_shapes:
            return self._family.decode(ids, slots, decode_step(positions, slots.tokens))
        step = fixed_step(positions, slots.rows, slots.tokens)
        more = len(step.positions) - len(ids)
        return self._family.decode([*ids, *ids[:1] * more], slots, step)[: len(ids)]

    def _one_by_one(self, branches: list[Branch], error: Exception) -> None:
        """After a failed step: each request by itself, so that only those end in which the failure is."""
        logger.warning("a decode step of %d sequences failed; trying each by itself", len(branches), exc_info=error)
        for job, rows in _rows_by_job(branches).items():
            try:
                logits = torch.stack([self._alone(branches[row]) for row in rows])
                for row in rows:
                    branches[row].filled += 1
                self.advance(job, logits)
            except Exception as own_error:  # noqa: BLE001  whatever it is, it ends only its own request
                self._jobs.fail(job, own_error)

    def _alone(self, branch: Branch) -> Tensor:
        job = branch.job
        step = Chunk(branch.row, (branch.filled,), (branch.filled + 1,))
        places = [self._family.place_after(job.places[-1])]
        ids = [branch.ids[branch.filled]]
        return self._family.prefill([ids], [places], job.encoded_images(), self._jobs.rows.tensors, step)[0, 0]


def _greedy(jobs: Sequence[Job], logits: Tensor) -> list[int | None]:
    """As `Decoding.greedy`; the tokens come from the device in one transfer."""
    if not any(job.is_greedy for job in jobs):
        return [None] * len(jobs)
    ready = logits.index_fill(1, jobs[0].banned.to(logits.device), -torch.inf)
    # A row that is not finite is looked at by itself, and fails by itself.
    choices = torch.where(logits.isnan().any(dim=-1), -1, ready.argmax(dim=-1)).tolist()
    return [choice if job.is_greedy and choice >= 0 else None for job, choice in zip(jobs, choices, strict=True)]


def _rows_by_job(branches: list[Branch]) -> dict[Job, list[int]]:
    """Which rows each job has, in the order of its sequences."""
    rows: dict[Job, list[int]] = {}
    for branch in sorted(branches, key=lambda branch: branch.index):
        rows.setdefault(branch.job, []).append(branch.row)
    return rows
