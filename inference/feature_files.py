"""Image features on disk, so that a restart encodes no image again: a cache under a budget in bytes.

One file an image and model, in the safetensors format (never pickle). A file is believed only if it says that it is of
this model and this image and its checksum is right; any other is removed and the image encoded again. The checksum is
against damage, not against someone who may write in the folder: it belongs to one server. Files come into being whole,
by renaming; they are not synced, since what a power cut damages the checksum finds.
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import load, save
from torch import Tensor

from idefics_chat.inference.family import EncodedImage, Family, PreparedImage
from idefics_chat.inference.lru_bytes import LruBytes

logger = logging.getLogger(__name__)

MOST_PENDING = 64
"""Images that may wait for the disk; more are not stored."""

_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.safetensors\.[0-9a-f]{32}\.tmp")
_TOKEN_IDS = "token_ids"


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """What is kept of an image: the ids that stand for it in a prompt, and the family's tensors, on the CPU."""

    token_ids: tuple[int, ...]
    tensors: tuple[Tensor, ...] = field(repr=False)


class FeatureFiles:
    """Features of one model in one folder, which it makes.

    Other models' files there count towards the same budget, and files of other names are left alone. Safe to share
    between threads; one process a folder. `stored` and `read` count images.

    A failing disk is logged and otherwise like an empty folder.

    Raises:
        OSError: on construction, for a folder that cannot be made or read.
    """

    def __init__(self, folder: Path, budget_bytes: int, fingerprint: str) -> None:
        self.stored = 0
        self.read = 0
        self._folder = folder
        self._fingerprint = fingerprint
        self._sizes: LruBytes[str, int] = LruBytes(budget_bytes, lambda size: size)
        self._unwritten: set[str] = set()
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="idefics-chat features")
        self._pending = threading.Semaphore(MOST_PENDING)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._find_files()

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return self._sizes.used_bytes

    @property
    def budget_bytes(self) -> int:
        """What `used_bytes` never exceeds."""
        return self._sizes.budget_bytes

    def get(self, digest: str) -> StoredFeatures | None:
        """What is stored of an image, now the last to be removed; None where there is nothing to be believed."""
        name = self._name(digest)
        with self._lock:
            size = None if name in self._unwritten else self._sizes.get(name)
        if size is None:
            return None
        path = self._folder / name
        try:
            if path.stat().st_size != size:
                raise ValueError("it is not as long as it was")
            found = _read(path.read_bytes(), self._about(digest))
            os.utime(path)
        except (OSError, ValueError) as error:
            logger.warning("the image features in %s cannot be used and are removed: %s", path, error)
            self._remove(name)
            return None
        self.read += 1
        return found

    def put(self, digest: str, features: StoredFeatures) -> None:
        """Store an image's features; those used longest ago make room. What is larger than the budget is not kept."""
        name = self._name(digest)
        data = _written(features, self._about(digest))
        if len(data) > self.budget_bytes:
            return
        with self._lock:
            gone = [old for old, _ in self._sizes.put(name, len(data))]
            self._unwritten.add(name)
        for old in gone:
            self._unlink(old)
        self._write(name, data)
        with self._lock:
            self._unwritten.discard(name)

    def _write(self, name: str, data: bytes) -> None:
        unfinished = self._folder / f"{name}.{uuid4().hex}.tmp"
        try:
            unfinished.write_bytes(data)
            unfinished.replace(self._folder / name)
            self.stored += 1
        except OSError as error:
            logger.warning("image features cannot be stored in %s: %s", self._folder, error)
            unfinished.unlink(missing_ok=True)
            self._remove(name)

    def close(self) -> None:
        """Wait for what is being stored."""
        self._writer.shutdown()

    def put_later(self, digest: str, features: StoredFeatures) -> None:
        """As `put`, in a thread of its own; not done where many are waiting for the disk already."""
        if self._pending.acquire(blocking=False):
            self._writer.submit(self._put_pending, digest, features)

    def _put_pending(self, digest: str, features: StoredFeatures) -> None:
        try:
            self.put(digest, features)
        finally:
            self._pending.release()

    def _about(self, digest: str) -> dict[str, str]:
        return {"model": self._fingerprint, "image": digest}

    def _name(self, digest: str) -> str:
        return hashlib.sha256(f"{self._fingerprint}\n{digest}".encode()).hexdigest() + ".safetensors"

    def _find_files(self) -> None:
        """Take in what was stored before, oldest first; remove what a crash left unfinished."""
        found = []
        for path in self._folder.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)
            elif _NAME.fullmatch(path.name) and path.is_file():
                status = path.stat()
                found.append((status.st_mtime, path.name, status.st_size))
        for _, name, size in sorted(found):
            for gone, _ in self._sizes.put(name, size):
                self._unlink(gone)

    def _remove(self, name: str) -> None:
        with self._lock:
            self._sizes.pop(name)
        self._unlink(name)

    def _unlink(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("image features in %s cannot be removed: %s", self._folder, error)


class FeatureStore:
    """A family's features in files."""

    def __init__(self, family: Family, files: FeatureFiles) -> None:
        self._family = family
        self.files = files

    def keep(self, digest: str, prepared: PreparedImage, encoded: EncodedImage) -> None:
        """Store what was made of an image, soon."""
        tensors = tuple(tensor.cpu() for tensor in encoded.tensors)
        self.files.put_later(digest, StoredFeatures(prepared.token_ids, tensors))

    def find(self, digest: str) -> tuple[tuple[int, ...], EncodedImage] | None:
        """The ids that stand for an image and its features on the model's devices, if they are stored."""
        stored = self.files.get(digest)
        image = None if stored is None else self._family.restore(stored.tensors)
        return None if stored is None or image is None else (stored.token_ids, image)


def _written(features: StoredFeatures, about: dict[str, str]) -> bytes:
    tensors = {str(index): tensor.detach().cpu().contiguous() for index, tensor in enumerate(features.tensors)}
    tensors[_TOKEN_IDS] = torch.tensor(features.token_ids, dtype=torch.long)
    return save(tensors, {**about, "sha256": _checksum(tensors)})


def _read(data: bytes, about: dict[str, str]) -> StoredFeatures:
    """Raises ValueError: the file is damaged, or about something else."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        said = header["__metadata__"]
        tensors = load(data)
    except Exception as error:
        raise ValueError("it is no safetensors file") from error
    if {**about, "sha256": _checksum(tensors)} != said:
        raise ValueError("it is damaged, or of another image or model")
    ids = tuple(tensors.pop(_TOKEN_IDS).tolist())
    return StoredFeatures(ids, tuple(tensors[str(index)] for index in range(len(tensors))))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of all tensors with their names, types and shapes."""
    checksum = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        checksum.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()
