"""Which running request has which row, and how much memory the rows and the parked prefixes may take together.

Decoding requests hold the first rows, so that a decode step reads them without copying; the one whose prompt is being
read, if there is one, has the row behind them. When one leaves, another moves into its row.
"""

from idefics_chat.inference.family import Family
from idefics_chat.inference.job import Branch, Job
from idefics_chat.inference.kv_slots import SlotTensors
from idefics_chat.inference.prefix_store import Prefix, PrefixStore

TOKEN_STEP = 256
"""Rows grow by this many tokens at a time."""


class SlotRows:
    """Rows of running jobs. `budget_bytes` bounds the rows and the prefixes parked on the device together."""

    def __init__(self, family: Family, max_rows: int, max_tokens: int, budget_bytes: int, host_bytes: int) -> None:
        self._family = family
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._budget_bytes = budget_bytes
        self.tensors = SlotTensors(family.cache_shape)
        self.parked = PrefixStore(budget_bytes, host_bytes)
        self.decoding: list[Branch] = []
        self.reading: Job | None = None

    @property
    def running(self) -> list[Job]:
        """All jobs that hold a row, in the order of their first rows."""
        jobs = [branch.job for branch in self.decoding]
        return list(dict.fromkeys([*jobs, *([] if self.reading is None else [self.reading])]))

    def admit(self, job: Job) -> bool:
        """Give a job the row behind all others, with whatever prefix of its prompt was parked, and keep as many rows
        as it is wide free for it; False if there is no room for it now. No job may be being read."""
        assert self.reading is None
        row = len(self.decoding)
        if row + job.width > self._max_rows or not self._make_room(row + job.width, job.needed_tokens):
            return False
        lead = job.lead
        lead.row, lead.filled = row, 0
        self.reading = job
        prefix, common = (None, 0) if job.group is None else self.parked.find(job.group, lead.keys)
        lead.filled = job.cached_tokens = min(common, job.reusable_tokens)
        if prefix is not None and lead.filled:
            self.tensors.fill(row, prefix.key_values, lead.filled)
        return True

    def cached_tokens(self, job: Job) -> int:
        """How many tokens of a job's prompt are parked; nothing is changed by asking."""
        return 0 if job.group is None else self.parked.longest(job.group, job.lead.keys)[1]

    def begin_decoding(self) -> None:
        """The job whose prompt was being read decodes from now on: in the same row, and in copies of it behind it."""
        assert self.reading is not None
        job, self.reading = self.reading, None
        for row, branch in enumerate(job.branches, job.lead.row):
            if branch is not job.lead:
                self.tensors.move(job.lead.row, row, job.lead.filled)
                self._family.move_row(job.lead.row, row)
            branch.row, branch.filled = row, job.lead.filled
        self.decoding += job.branches

    def reorder(self, job: Job, sources: list[int]) -> None:
        """Each branch goes on from what stands in the row of branch `sources[i]`; what stands behind the prompt is
        copied, the prompt is the same in all."""
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
                    self.tensors.wipe(branch.row)
                self.leave_row(branch, park=branch is kept)
        self.reading = None if self.reading is job else self.reading

    def leave_row(self, branch: Branch, park: bool) -> None:
        """Take the row of one branch away; its cache is parked for its group if that is wanted."""
        job = branch.job
        if park and job.group is not None and branch.filled:
            kept = self.tensors.export(branch.row, branch.filled)
            self.parked.park(job.group, Prefix(branch.keys[: branch.filled], kept))
        if job is not self.reading:
            self._close_gap(branch)
        branch.row = -1

    def check(self) -> None:
        """Raise AssertionError where rows or bytes do not add up."""
        assert [branch.row for branch in self.decoding] == list(range(len(self.decoding)))
        reserved = 0 if self.reading is None else self.reading.width
        assert self.reading is None or self.reading.lead.row == len(self.decoding)
        assert len(self.decoding) + reserved <= self.tensors.rows <= self._max_rows
        assert all(job.needed_tokens <= self.tensors.tokens for job in self.running)
        assert self.tensors.used_bytes + self.parked.device_bytes <= self._budget_bytes
        self.parked.check()

    def _close_gap(self, branch: Branch) -> None:
        """The last decoding branch moves into the row that is free, and the job being read behind it."""
        last = self.decoding.pop()
        if last is not branch:
            self.decoding[branch.row] = last
            self._move(last, branch.row)
        if self.reading is not None:
            self._move(self.reading.lead, len(self.decoding))

    def _move(self, branch: Branch, row: int) -> None:
        if branch.row != row:
            self.tensors.move(branch.row, row, branch.filled)
            self._family.move_row(branch.row, row)
            branch.row = row

    def _make_room(self, rows: int, tokens: int) -> bool:
        """Have so many rows of so many tokens, within the budget; parked prefixes give way."""
        for shape in self._shapes(rows, min(tokens, self._max_tokens)):
            if (need := self.tensors.bytes_of(*shape)) <= self._budget_bytes:
                if shape != (self.tensors.rows, self.tensors.tokens):
                    self.parked.set_device_budget(self._budget_bytes - need)
                    self.tensors.resize(*shape, keep=len(self.decoding))
                    self._family.reserve_rows(shape[0])
                return True
        return False

    def _shapes(self, rows: int, tokens: int) -> list[tuple[int, int]]:
        """Shapes that would do: the largest of all where that leaves half of the budget to parked prefixes, so that
        nothing is ever moved; else the present one, one with room to grow, or exactly what is needed."""
        largest = (self._max_rows, self._max_tokens)
        if 2 * self.tensors.bytes_of(*largest) <= self._budget_bytes:
            return [largest]
        tokens = max([tokens, *(branch.job.needed_tokens for branch in self.decoding)])
        roomy = min(self._max_tokens, -(-tokens // TOKEN_STEP) * TOKEN_STEP)
        fitting = [(min(self._max_rows, 1 << (rows - 1).bit_length()), roomy), (rows, tokens)]
        present = (self.tensors.rows, self.tensors.tokens)
        # Rows left wide by a long prompt are given back once nothing runs in them.
        keeps = present[0] >= rows and present[1] >= tokens and (self.decoding or present[1] <= 2 * roomy)
        return [present, *fitting] if keeps else fitting
