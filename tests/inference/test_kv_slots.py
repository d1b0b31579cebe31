"""The memory under the cache."""

import sys
from pathlib import Path

import pytest
import torch

from idefics_chat.inference.kv_slots import CacheShape, RowsMixedUp, SlotTensors, zeros

CPU = torch.device("cpu")
GIB = 2**30


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(2, 3, 5, 4), (1, 1, 1, 1), (0, 3, 0, 4), (2, 3, 0, 4)])
def test_memory_is_zero_and_its_owners_alone(size: tuple[int, ...], dtype: torch.dtype) -> None:
    one, other = zeros(size, dtype, CPU), zeros(size, dtype, CPU)
    one += 1
    assert torch.equal(one, torch.ones(size, dtype=dtype))
    assert torch.equal(other, torch.zeros(size, dtype=dtype))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_taken_when_it_is_used_and_given_back_with_the_tensor() -> None:
    before = resident_bytes()
    tensor = zeros((4, GIB // 4), torch.uint8, CPU)
    asked = resident_bytes()
    tensor[1] = 1
    used = resident_bytes()
    del tensor
    assert asked - before < GIB / 16
    assert GIB / 8 < used - asked < GIB / 2
    assert used - resident_bytes() > GIB / 8


def test_memory_that_there_is_not_is_an_error_of_its_own() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        zeros((2**30, 2**30), torch.float32, CPU)


def filled_slots(layers: int, rows: int) -> SlotTensors:
    """Rows of four tokens that hold their own numbers."""
    slots = SlotTensors(CacheShape(1, 2, torch.float32, (CPU,) * layers))
    slots.resize(rows, 4, keep=0)
    for keys, values in slots.layers:
        for row in range(rows):
            keys[row], values[row] = row, -row
    return slots


def numbers(slots: SlotTensors) -> list[list[int]]:
    """The number in each row, of the keys of each layer."""
    return [[int(row[0, 0, 0]) for row in keys] for keys, _ in slots.layers]


def test_rows_change_places_in_all_layers() -> None:
    slots = filled_slots(layers=2, rows=3)
    slots.rearrange([(0, 2), (2, 0)], 0, 4)
    assert numbers(slots) == [[2, 1, 0], [2, 1, 0]]


def test_a_rearrangement_that_breaks_off_says_whether_anything_has_changed() -> None:
    slots = filled_slots(layers=2, rows=3)
    right = slots.layers
    slots.layers = [None, right[1]]  # type: ignore[list-item]
    with pytest.raises(TypeError):
        slots.rearrange([(0, 2), (2, 0)], 0, 4)
    slots.layers = [right[0], None]  # type: ignore[list-item]
    with pytest.raises(RowsMixedUp) as caught:
        slots.rearrange([(0, 2), (2, 0)], 0, 4)
    assert str(caught.value).startswith("2 rows")
    slots.layers = right
    assert numbers(slots) == [[2, 1, 0], [0, 1, 2]]


def test_a_row_is_copied_to_the_device_that_is_asked_for() -> None:
    slots = filled_slots(layers=1, rows=2)
    ((keys, values),) = slots.export(1, 3, CPU)
    slots.layers[0][0].zero_()
    assert keys.tolist() == [[[1.0, 1.0]] * 3]
    assert values.tolist() == [[[-1.0, -1.0]] * 3]
