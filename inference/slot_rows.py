"""Which running request has which row, and how much memory the rows and the parked prefixes may take together.

Decoding requests hold the first rows, so that a decode step reads them without copying; the one whose prompt is being
read, if there is one, has the row behind them. When one leaves, another moves into its row.
"""

from idefics_chat.inference.family import Family
from idefics_chat.inference.job import Job
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
        self.decoding: list[Job] = []
        self.reading: Job | None = None

    @property
    def running(self) -> list[Job]:
        """All jobs that hold a row, in the order of their rows."""
        return [*self.decoding, *([] if self.reading is None else [self.reading])]

    def admit(self, job: Job) -> bool:
        """Give a job the row behind all others, with whatever prefix of its prompt was parked; False if there is no
        room for it now. No job may be being read."""
        assert self.reading is None
        row = len(self.decoding)
        if row >= self._max_rows or not self._make_room(row + 1, job.needed_tokens):
            return False
        job.row, job.filled = row, 0
        self.reading = job
        prefix, common = (None, 0) if job.group is None else self.parked.find(job.group, job.keys)
        job.filled = job.cached_tokens = min(common, job.reusable_tokens)
        if prefix is not None and job.filled:
            self.tensors.fill(row, prefix.key_values, job.filled)
        return True

    def begin_decoding(self) -> None:
        """The job whose prompt was being read decodes from now on, in the same row."""
        assert self.reading is not None
        self.decoding.append(self.reading)
        self.reading = None

    def leave(self, job: Job, park: bool) -> None:
        """Take a job's row away; its cache is parked for its group, or wiped where it cannot be trusted."""
        if not park:
            self.tensors.wipe(job.row)
        elif job.group is not None and job.filled:
            self.parked.park(job.group, Prefix(job.keys[: job.filled], self.tensors.export(job.row, job.filled)))
        if job is self.reading:
            self.reading = None
        else:
            self._close_gap(job)
        job.row = -1

    def check(self) -> None:
        """Raise AssertionError where rows or bytes do not add up."""
        assert [job.row for job in self.running] == list(range(len(self.running)))
        assert len(self.running) <= self.tensors.rows <= self._max_rows
        assert all(job.needed_tokens <= self.tensors.tokens for job in self.running)
        assert self.tensors.used_bytes + self.parked.device_bytes <= self._budget_bytes
        self.parked.check()

    def _close_gap(self, job: Job) -> None:
        """The last decoding job moves into the row that is free, and the one being read behind it."""
        last = self.decoding.pop()
        if last is not job:
            self.decoding[job.row] = last
            self._move(last, job.row)
        if self.reading is not None:
            self._move(self.reading, len(self.decoding))

    def _move(self, job: Job, row: int) -> None:
        if job.row != row:
            self.tensors.move(job.row, row, job.filled)
            self._family.move_row(job.row, row)
            job.row = row

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
        tokens = max([tokens, *(job.needed_tokens for job in self.decoding)])
        roomy = min(self._max_tokens, -(-tokens // TOKEN_STEP) * TOKEN_STEP)
        fitting = [(min(self._max_rows, 1 << (rows - 1).bit_length()), roomy), (rows, tokens)]
        present = (self.tensors.rows, self.tensors.tokens)
        # Rows left wide by a long prompt are given back once nothing runs in them.
        keeps = present[0] >= rows and present[1] >= tokens and (self.decoding or present[1] <= 2 * roomy)
        return [present, *fitting] if keeps else fitting
