"""The memory under the cache."""

import sys
from pathlib import Path

import pytest
import torch

from idefics_chat.inference.kv_slots import zeros

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
