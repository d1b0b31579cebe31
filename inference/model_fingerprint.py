"""What decides an image's features: the model, how it reads images, and how precisely it computes."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from idefics_chat.inference.loader import LoadedModel
from idefics_chat.inference.packed_linear import PackedLinear

SAMPLED = 64
"""Elements of each parameter that go into a fingerprint, first and last included. Training moves all elements of what
it trains, so a sample tells one set of weights from another without reading gigabytes."""


def features_fingerprint(loaded: LoadedModel) -> str:
    """Hex sha256 that two models share only if they give the same features and tokens for an image."""
    model: Any = loaded.model
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    parts = [
        transformers.__version__,
        torch.__version__,
        loaded.family,
        loaded.facts.fingerprint,
        loaded.device.type,
        str(model.dtype),
        str(model.config._attn_implementation),
        str(sum(isinstance(module, PackedLinear) for module in model.modules())),
        repr(sorted(config.items(), key=lambda item: item[0])),
        repr(sorted(loaded.image_processor.to_dict().items(), key=lambda item: item[0])),
    ]
    checksum = hashlib.sha256("\n".join(parts).encode())
    for name, tensor in _weights(model):
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        checksum.update(_sample(tensor))
    return checksum.hexdigest()


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What `state_dict` holds, a module at a time: a packed one is copied for it."""
    for name, module in model.named_modules(remove_duplicate=False):
        own: dict[str, torch.Tensor] = {}
        module._save_to_state_dict(own, f"{name}." if name else "", False)
        yield from own.items()


def _sample(tensor: torch.Tensor) -> bytes:
    if tensor.is_meta or tensor.numel() == 0:
        return b""
    places = torch.linspace(0, tensor.numel() - 1, SAMPLED, dtype=torch.float64).long().to(tensor.device)
    sample = tensor.detach().reshape(-1)[places].cpu().contiguous()
    return sample.view(torch.uint8).numpy().tobytes()
