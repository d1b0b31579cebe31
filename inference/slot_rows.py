"""Which running request has which row, and how much memory the rows and the parked prefixes may take together.

Decoding requests hold the first rows, so that a decode step reads them without copying; those whose prompts are being
read have the rows behind them, so that one forward reads them all. When one leaves, another moves into its row.
"""

import logging
from collections.abc import Iterable, Sequence

import torch

from idefics_chat.inference.family import Family
from idefics_chat.inference.job import Branch, Job
from idefics_chat.inference.kv_slots import RowsMixedUp, SlotTensors
from idefics_chat.inference.prefix_store import Prefix, PrefixStore, TokenKey

logger = logging.getLogger(__name__)

TOKEN_STEP = 256
"""Rows grow by this many tokens at a time."""

HOST = torch.device("cpu")


class RowsLost(Exception):
    """What stood in the rows of `jobs` is lost: they were to move, and that broke off on its way."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(jobs)
        self.jobs = jobs

    def __str__(self) -> str:
        return f"the rows of {len(self.jobs)} requests were lost while they moved"


class SlotRows:
    """Rows of running jobs. `budget_bytes` bounds the rows and the prefixes parked on the device together."""

    def __init__(self, family: Family, max_rows: int, max_tokens: int, budget_bytes: int, host_bytes: int) -> None:
        self._family = family
        self.max_rows = max_rows
        self._max_tokens = max_tokens
        self._budget_bytes = budget_bytes
        self.tensors = SlotTensors(family.cache_shape)
        self.parked = PrefixStore(budget_bytes, host_bytes)
        self.decoding: list[Branch] = []
        self.reading: list[Job] = []
        # Rows that fell free and still hold the parked prefix of that number: whoever goes on from it where it lies,
        # as a conversation does that is alone, need not have it copied.
        self._still_holds: dict[int, int] = {}

    @property
    def running(self) -> list[Job]:
        """All jobs that hold a row, in the order of their first rows."""
        return list(dict.fromkeys([*(branch.job for branch in self.decoding), *self.reading]))

    @property
    def reserved(self) -> int:
        """Rows that are in use or will be: a job takes one while it is read, and then one for each of its sequences."""
        return len(self.decoding) + sum(job.width for job in self.reading)

    def admit(self, job: Job) -> bool:
        """Give a job the row behind all others, with whatever prefix of its prompt was parked, and keep as many rows
        as it is wide free for it; False if there is no room for it now."""
        rows = self.reserved + job.width
        if rows > self.max_rows or not self._make_room(rows, job.needed_tokens):
            return False
        lead, row = job.lead, len(self.decoding) + len(self.reading)
        number, common = (None, 0) if job.group is None else self.parked.longest(job.group, lead.keys)
        filled = min(common, job.reusable_tokens)
        held = self._still_holds.pop(row, None)
        if number is not None and filled:
            prefix = self.parked.take(number)
            if held != number:
                self.tensors.fill(row, prefix.key_values, filled)
        # Last, so that all of it can be done again where memory ran out.
        lead.row, lead.filled, job.cached_tokens = row, filled, filled
        self.reading.append(job)
        return True

    def start_of(self, job: Job) -> int:
        """How many tokens of a job's prompt need not be read: those in its row, or those that are parked for one that
        has none. Nothing is changed by asking."""
        if job.lead.row >= 0:
            return job.lead.filled
        common = 0 if job.group is None else self.parked.longest(job.group, job.lead.keys)[1]
        return min(common, job.reusable_tokens)

    def begin_decoding(self, job: Job) -> None:
        """A job whose prompt was being read decodes from now on, in the first rows behind those that do; each of its
        sequences begins with a copy of what was read. Others that are being read move out of these rows.

        Raises:
            RowsLost: the job must end, and so must the others that were to move. Whatever else is raised, nothing has
                changed for them.
        """
        source, filled, first = job.lead.row, job.lead.filled, len(self.decoding)
        others = [other for other in self.reading if other is not job]
        behind = first + job.width
        pairs = [(row, source) for row in range(first, behind) if row != source]
        taken = {other.lead.row for other in others}
        free = (row for row in range(behind, behind + len(taken)) if row not in taken)
        moved = {other: next(free) for other in others if other.lead.row < behind}
        pairs += [(row, other.lead.row) for other, row in moved.items()]
        if pairs:
            self._forget(row for row, _ in pairs)
            try:
                self.tensors.rearrange(pairs, 0, max(filled, *(other.lead.filled for other in (job, *others))))
            except RowsMixedUp as error:
                raise RowsLost([job, *moved]) from error
        # Only now, so that everyone still has the old row where that failed.
        for other, row in moved.items():
            other.lead.row = row
        for row, branch in enumerate(job.branches, first):
            branch.row, branch.filled = row, filled
        self.decoding += job.branches
        self.reading = sorted(others, key=lambda other: other.lead.row)

    def reorder(self, job: Job, sources: list[int]) -> None:
        """Each branch goes on from what stands in the row of branch `sources[i]`; what stands behind the prompt is
        copied, the prompt is the same in all. Where it raises, the job must end: its rows are lost, and no others."""
        rows = [branch.row for branch in job.branches]
        pairs = [(row, rows[source]) for row, source in zip(rows, sources, strict=True) if row != rows[source]]
        if pairs:
            self.tensors.rearrange(pairs, len(job.prompt), job.lead.filled)

    def leave(self, job: Job, park: bool) -> None:
        """Take all of a job's rows away; the cache of one is parked for its group, or all are wiped where they cannot
        be trusted."""
        kept = job.most_alike() if park else None
        for branch in sorted(job.branches, key=lambda branch: -branch.row):
            if branch.row >= 0:
                if not park:
                    self.tensors.wipe(branch.row, branch.row + 1)
                self.leave_row(branch, park=branch is kept)
        if not park:
            self._still_holds.clear()
            # The rows that are free now may hold a copy of it, where it had moved before it was looked at.
            self.tensors.wipe(len(self.decoding) + len(self.reading))

    def leave_row(self, branch: Branch, park: bool) -> None:
        """Take the row of one branch away; its cache is parked for its group if that is wanted and can be done."""
        if park:
            try:
                self._park(branch)
            except Exception:
                logger.warning("what was computed for a request could not be parked; it is dropped", exc_info=True)
        self._close_gap(branch)
        branch.row = -1

    def check(self) -> None:
        """Raise AssertionError where rows or bytes do not add up."""
        assert [branch.row for branch in self.decoding] == list(range(len(self.decoding)))
        behind = range(len(self.decoding), len(self.decoding) + len(self.reading))
        assert [job.lead.row for job in self.reading] == list(behind)
        assert self.reserved <= self.tensors.rows <= self.max_rows or not self.running
        assert all(job.needed_tokens <= self.tensors.tokens for job in self.running)
        for row, number in self._still_holds.items():
            assert row >= len(self.decoding) + len(self.reading)
            assert number not in self.parked or self.tensors.holds(row, self.parked[number].key_values)
        assert self.tensors.used_bytes + self.parked.device_bytes <= self._budget_bytes
        self.parked.check()

    def _park(self, branch: Branch) -> None:
        """Park the cache of a branch for its job's group, if there is anything new in it that is to be kept. There is
        room for it before it is copied."""
        job = branch.job
        tokens = branch.filled if job.kept_tokens is None else min(branch.filled, job.kept_tokens)
        keys = branch.keys[:tokens]
        if job.group is None or not tokens or self._is_parked(job, keys):
            return
        tier = self.parked.make_room(job.group, keys, self.tensors.bytes_of(1, tokens))
        if tier is None:
            return
        kept = self.tensors.export(branch.row, tokens, None if tier == "device" else HOST)
        number = self.parked.park(job.group, Prefix(keys, kept))
        if tokens < self.tensors.tokens:  # a row that is there for its shape alone writes the last place
            self._still_holds[branch.row] = number

    def _is_parked(self, job: Job, keys: list[TokenKey]) -> bool:
        """Whether all of it came from what is parked, and is there still."""
        return len(keys) <= job.cached_tokens and self.parked.longest(job.group, keys)[1] == len(keys)

    def _close_gap(self, branch: Branch) -> None:
        """The last decoding sequence moves into a row that falls free among those, and the last job that is being read
        into the row that is free then."""
        gap = branch.row
        if branch.job in self.reading:
            self.reading.remove(branch.job)
        else:
            last = self.decoding.pop()
            if last is not branch:
                self.decoding[gap] = last
                self._move(last, gap)
            gap = len(self.decoding)
        if self.reading and self.reading[-1].lead.row > gap:
            self._move(self.reading[-1].lead, gap)
            self.reading.sort(key=lambda job: job.lead.row)

    def _move(self, branch: Branch, row: int) -> None:
        if branch.row != row:
            self._forget([row])
            self.tensors.move(branch.row, row, branch.filled)
            self._family.move_row(branch.row, row)
            branch.row = row

    def _forget(self, rows: Iterable[int]) -> None:
        """Those rows are about to be written."""
        for row in rows:
            self._still_holds.pop(row, None)

    def _make_room(self, rows: int, tokens: int) -> bool:
        """Have so many rows of so many tokens, within the budget; parked prefixes give way."""
        for shape in self._shapes(rows, min(tokens, self._max_tokens)):
            if (need := self.tensors.bytes_of(*shape)) <= self._budget_bytes:
                if shape != (self.tensors.rows, self.tensors.tokens):
                    self.parked.set_device_budget(self._budget_bytes - need)
                    self._still_holds.clear()
                    self.tensors.resize(*shape, keep=len(self.decoding) + len(self.reading))
                # Whether or not the tensors had this shape already: memory may have run out in between.
                self._family.reserve_rows(shape[0])
                return True
        return False

    def _shapes(self, rows: int, tokens: int) -> list[tuple[int, int]]:
        """Shapes that would do: the largest of all where that leaves half of the budget to parked prefixes, so that
        nothing is ever moved; else the present one, one with room to grow, or exactly what is needed."""
        largest = (self.max_rows, self._max_tokens)
        if 2 * self.tensors.bytes_of(*largest) <= self._budget_bytes:
            return [largest]
        tokens = max([tokens, *(job.needed_tokens for job in self.running)])
        roomy = min(self._max_tokens, -(-tokens // TOKEN_STEP) * TOKEN_STEP)
        fitting = [(min(self.max_rows, 1 << (rows - 1).bit_length()), roomy), (rows, tokens)]
        present = (self.tensors.rows, self.tensors.tokens)
        # Rows left wide by a long prompt are given back once nothing runs in them.
        keeps = present[0] >= rows and present[1] >= tokens and (self.running or present[1] <= 2 * roomy)
        return [present, *fitting] if keeps else fitting
