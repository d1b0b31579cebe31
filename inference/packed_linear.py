"""Linear layers on a CPU whose weights lie in memory as oneDNN reads them fastest.

torch multiplies by a weight as it is stored, and where a step has few rows, as in decoding, putting it in order costs
more than the product: with 16 rows a packed layer took half of the time, with 600 still 0.7 to 0.9 of it (x86 with
AVX-512, torch 2.13). For one row or two, where the product only reads the weight once, float32 is read faster as it is
stored: a packed model said 0.88 of what the stock one did alone on one Xeon, and 1.3 times as much from four on. So
both are kept where memory allows. bfloat16 is faster packed for any number of rows.

The operators are those that torch's own compiler puts in when it freezes a model; they are not public, so a torch
without them runs as it is. Sums are added up in another order than stock torch's, within the dtype.
"""

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST_ELEMENTS = 2**16
"""Smaller weights are not worth it: the call costs more than it saves."""

DTYPES = (torch.float32, torch.bfloat16)
ROWS = 128
"""For about so many rows the order is chosen; it was as good for 1 and for 512."""


FEW_ROWS = 4
"""Fewer than these go through the weight as it is stored, where that is kept."""


class PackedLinear(nn.Module):
    """What a linear layer computes, for inference alone: nothing of it can be trained.

    With `keep_plain` the weight stays in memory as it was too, for few rows. The layer's `weight` is that one then, and
    the packed one otherwise.
    """

    def __init__(self, inner: nn.Linear, keep_plain: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(inner.weight.detach(), ROWS)
        self._few_rows = FEW_ROWS if keep_plain else 0
        self.weight: Tensor = inner.weight if keep_plain else self._packed
        self.bias = inner.bias

    def forward(self, features: Tensor) -> Tensor:
        """`(..., width in)` to `(..., width out)`."""
        if features.numel() < self._few_rows * self.in_features:
            return functional.linear(features, self.weight, self.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(features, self._packed, self.bias, "none", [], "")
        return result

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """The weight goes into a checkpoint, and a fingerprint, as any other's."""
        if self.weight is self._packed:
            destination[f"{prefix}weight"] = self._packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)


def pack_linears(model: nn.Module, spare_bytes: float = math.inf, least_elements: int = LEAST_ELEMENTS) -> int:
    """Pack the weights of a model's plain linear layers on the CPU, in place and one by one; how many were packed.

    Those in float32 are kept beside the packed ones if together they take at most `spare_bytes`. A weight that another
    layer shares stays in memory in any case. Layers that are quantized, or more than a product and a sum, are left
    alone.
    """
    if not can_pack():
        return 0
    found = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if type(module) is nn.Linear and _is_worth_it(module.weight, least_elements)
    ]
    copied = [module.weight.nbytes for *_, module in found if module.weight.dtype == torch.float32]
    keep_plain = sum(copied) <= spare_bytes
    packed = len(found)
    while found:  # a layer that is packed is let go of at once, or there would be two of all of them for a while
        parent, name, module = found.pop()
        setattr(parent, name, PackedLinear(module, keep_plain and module.weight.dtype == torch.float32))
    return packed


def can_pack() -> bool:
    """Whether this torch on this machine can."""
    is_known = platform.machine().lower() in ("x86_64", "amd64")
    has_operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return is_known and has_operators


def _is_worth_it(weight: Tensor, least_elements: int) -> bool:
    return weight.device.type == "cpu" and weight.dtype in DTYPES and weight.numel() >= least_elements
