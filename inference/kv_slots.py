"""The KV cache of the requests that are running: one row each, in tensors that all layers' steps read as views.

Rows of running requests are kept together at the front, so that a decode step reads the first rows of each tensor
without copying. Knows nothing of requests; what a row holds beyond its request's length is old and must be masked.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from idefics_chat.inference.compiled_step import LEAST_REACH, padded

Item = TypeVar("Item")

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, `(heads, tokens, head_dim)`."""


class RowsMixedUp(Exception):
    """Rows were to change places and did so in some layers only: all that was in them is lost."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows

    def __str__(self) -> str:
        return f"{self.rows} rows of the cache were rearranged in some layers and not in others"


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a model's KV cache is made of. `devices` has one entry a layer; `window` is the number of positions that a
    token can look back on (itself included), or None for all."""

    heads: int
    head_dim: int
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    window: int | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers."""
        return 2 * len(self.devices) * self.heads * self.head_dim * self.dtype.itemsize


class SlotTensors:
    """Keys and values of all layers, `(rows, heads, tokens, head_dim)` each. Grows on request, never by itself."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.rows = 0
        self.tokens = 0
        self.layers: list[tuple[Tensor, Tensor]] = [self._empty(index, 0, 0) for index in range(len(shape.devices))]

    @property
    def used_bytes(self) -> int:
        """Bytes of all tensors, filled or not."""
        return self.bytes_of(self.rows, self.tokens)

    def bytes_of(self, rows: int, tokens: int) -> int:
        """Bytes that so many rows of so many tokens take."""
        return rows * tokens * self.shape.token_bytes

    def resize(self, rows: int, tokens: int, keep: int) -> None:
        """Have so many rows and tokens, the contents of the first `keep` rows kept; one layer at a time.

        Where memory runs out on the way, rows that are kept stay whole: some layers are then larger than the others,
        and where nothing is kept all are empty.
        """
        if keep == 0:
            self.rows = self.tokens = 0
            self.layers = [self._empty(index, 0, 0) for index in range(len(self.layers))]
        common = min(tokens, self.tokens)
        for index, (keys, values) in enumerate(self.layers):
            new_keys, new_values = self._empty(index, rows, tokens)
            new_keys[:keep, :, :common] = keys[:keep, :, :common]
            new_values[:keep, :, :common] = values[:keep, :, :common]
            self.layers[index] = (new_keys, new_values)
        self.rows, self.tokens = rows, tokens

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of a row over another."""
        for keys, values in self.layers:
            keys[target, :, :tokens] = keys[source, :, :tokens]
            values[target, :, :tokens] = values[source, :, :tokens]

    def rearrange(self, pairs: Sequence[tuple[int, int]], start: int, end: int) -> None:
        """For each pair of a target row and a source row: copy the tokens `start` to `end`, all rows at once, so that
        rows may change places; one layer at a time, since there may be little memory.

        Raises:
            RowsMixedUp: it broke off on its way. Whatever else is raised, nothing has changed.
        """
        targets, sources = [target for target, _ in pairs], [source for _, source in pairs]
        has_changed = False
        try:
            for stored in chain.from_iterable(self.layers):
                moved = stored[sources, :, start:end]
                has_changed = True
                stored[targets, :, start:end] = moved
        except Exception as error:
            if not has_changed:
                raise
            raise RowsMixedUp(len(pairs)) from error

    def export(self, row: int, tokens: int, device: torch.device | None = None) -> KeyValues:
        """A copy of the first `tokens` of a row, on the layers' own devices or all on `device`."""

        def copied(stored: Tensor) -> Tensor:
            return stored[row, :, :tokens].to(device or stored.device, copy=True)

        return [(copied(keys), copied(values)) for keys, values in self.layers]

    def fill(self, row: int, parked: KeyValues, tokens: int) -> None:
        """Copy the first `tokens` of what was exported into a row."""
        for (keys, values), (old_keys, old_values) in zip(self.layers, parked, strict=True):
            keys[row, :, :tokens] = old_keys[:, :tokens]
            values[row, :, :tokens] = old_values[:, :tokens]

    def holds(self, row: int, parked: KeyValues) -> bool:
        """Whether what was exported stands in a row, number for number."""
        return all(
            torch.equal(here[row, :, : old.shape[1]], old.to(here.device))
            for layer, exported in zip(self.layers, parked, strict=True)
            for here, old in zip(layer, exported, strict=True)
        )

    def wipe(self, first: int, end: int | None = None) -> None:
        """Zero the rows from `first` on: numbers that are not finite would reach other requests even through a mask."""
        for keys, values in self.layers:
            keys[first:end].zero_()
            values[first:end].zero_()

    def _empty(self, layer: int, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        size = (rows, self.shape.heads, tokens, self.shape.head_dim)
        place, dtype = self.shape.devices[layer], self.shape.dtype
        return zeros(size, dtype, place), zeros(size, dtype, place)


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.zeros`. On a CPU the system is asked for memory, which is zero and takes none until it is used: to
    write all of it took the first request seconds. Raises torch.OutOfMemoryError where there is none."""
    if device.type != "cpu" or 0 in size or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(size, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, math.prod(size) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise torch.OutOfMemoryError(f"no memory for {size} of {dtype}") from error
    return torch.frombuffer(memory, dtype=dtype).view(size)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A step of neighbouring rows, several tokens each: row `first + i` runs its tokens `starts[i]` to `ends[i]`.

    The longest row says how wide the step is. In the others the first token is repeated on the left, so that all end
    in the same column; what is computed there is not kept.
    """

    first: int
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def width(self) -> int:
        """Columns of the step, repeated tokens included."""
        return max(end - start for start, end in zip(self.starts, self.ends, strict=True))

    @property
    def kv_tokens(self) -> int:
        """How far back and up to the step's last token the cache is read."""
        return max(self.ends)

    def filled_up(self, tokens: Sequence[Item]) -> list[Item]:
        """What belongs to a row's tokens, one for each column of the step."""
        return [*[tokens[0]] * (self.width - len(tokens)), *tokens]


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A step of the first rows, one token each: row `i` runs its token at `positions[i]`."""

    positions: tuple[int, ...]
    kv_tokens: int


def fixed_step(positions: Sequence[int], rows: int, capacity: int) -> DecodeStep:
    """A decode step of one of few shapes, where there are `rows` rows of `capacity` tokens: rows and reach are the next
    powers of two. A row that is there for its shape alone runs some token at the last position: in a row whose prompt
    is being read nothing stands there before the prompt is read and the request over."""
    wide = padded(len(positions), 1, rows)
    reach = padded(max(positions) + 1, LEAST_REACH, capacity)
    return DecodeStep((*positions, *[capacity - 1] * (wide - len(positions))), reach)


Step = Chunk | DecodeStep


def decode_step(positions: Sequence[int], capacity: int, bucket: int = 32) -> DecodeStep:
    """A decode step whose reach is rounded up to a multiple of `bucket` tokens, so that shapes repeat."""
    reach = -(-(max(positions) + 1) // bucket) * bucket
    return DecodeStep(tuple(positions), min(capacity, reach))


class SlotCache(Cache):
    """The view of the slot tensors that one step of a transformers model reads and writes."""

    def __init__(self, tensors: SlotTensors, step: Step) -> None:
        targets = {device: _Targets.of(step, device) for device in set(tensors.shape.devices)}
        super().__init__(
            layers=[
                _SlotLayer(tensors.layers[index], step, targets[device])
                for index, device in enumerate(tensors.shape.devices)
            ]
        )


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    is_sliding = False
    is_compileable = False

    def __init__(self, stored: tuple[Tensor, Tensor], step: Step, targets: "_Targets") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._step = step
        self._stored_keys, self._stored_values = stored
        self._targets = targets
        self.is_initialized = True

    def lazy_initialization(self, *states: Tensor) -> None:
        """Nothing: the tensors are there already."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values `(rows, heads, tokens, head_dim)`; return all that the step may look at."""
        step, targets = self._step, self._targets
        for stored, states in ((self._stored_keys, key_states), (self._stored_values, value_states)):
            stored[targets.rows, :, targets.positions] = states[targets.step_rows, :, targets.columns]
        reach = step.kv_tokens
        return self._stored_keys[targets.view, :, :reach], self._stored_values[targets.view, :, :reach]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._step.kv_tokens, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._stored_keys.shape[2]


Index = Tensor | slice | int


@dataclass(frozen=True, slots=True)
class _Targets:
    """Where a step's keys and values go: what stands in rows `step_rows` and columns `columns` of the step goes to rows
    `rows` and places `positions` of the cache. `view` are the rows of the cache that the step reads."""

    rows: Index
    positions: Index
    step_rows: Index
    columns: Index
    view: slice

    @classmethod
    def of(cls, step: Step, device: torch.device) -> "_Targets":
        if isinstance(step, DecodeStep):
            count = len(step.positions)
            positions = torch.tensor(step.positions, device=device)
            return cls(torch.arange(count, device=device), positions, slice(None), 0, slice(0, count))
        view = slice(step.first, step.first + len(step.starts))
        if len(step.starts) == 1:
            return cls(step.first, slice(step.starts[0], step.ends[0]), 0, slice(None), view)
        if len(set(step.starts)) == len(set(step.ends)) == 1:
            return cls(view, slice(step.starts[0], step.ends[0]), slice(None), slice(None), view)
        kept = [
            (step.first + row, place, row, step.width - end + place)
            for row, (start, end) in enumerate(zip(step.starts, step.ends, strict=True))
            for place in range(start, end)
        ]
        rows, positions, step_rows, columns = torch.tensor(kept).T.to(device)
        return cls(rows, positions, step_rows, columns, view)


def position_ids(step: Step, device: torch.device) -> Tensor:
    """Positions `(rows, tokens)` of the step's tokens."""
    if isinstance(step, DecodeStep):
        return torch.tensor(step.positions, device=device)[:, None]
    starts, ends = torch.tensor(step.starts, device=device), torch.tensor(step.ends, device=device)
    columns = torch.arange(-step.width, 0, device=device)
    return (ends[:, None] + columns).clamp_(min=starts[:, None])


def attention_mask(step: Step, shape: CacheShape, implementation: str, device: torch.device) -> Tensor:
    """Which cached positions each token sees, `(rows, 1, tokens, kv_tokens)`.

    Boolean for implementations that select by it. Eager attention adds its mask, and would take a boolean one for
    zeros and ones without complaint, so it gets zeros and the lowest number.
    """
    queries = position_ids(step, device)[:, None, :, None]
    places = torch.arange(step.kv_tokens, device=device)
    seen = places <= queries
    if shape.window is not None:
        # A row that is there for its shape alone stands behind all that is read; it must see something, or its numbers
        # are none.
        seen = seen & (places > queries.clamp(max=step.kv_tokens - 1) - shape.window)
    if implementation == "eager":
        return torch.zeros(seen.shape, dtype=shape.dtype, device=device).masked_fill_(
            ~seen, torch.finfo(shape.dtype).min
        )
    return seen
