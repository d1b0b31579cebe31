"""KV caches of requests that are over, kept so that the next turn computes only what is new.

A prefix is compared by what its tokens are AND which images they stand for: all images have the same token id, and
reuse by ids alone would answer about the wrong picture. Prefixes lie on the model's device first; what was used
longest ago moves to host memory, and from there is dropped. Whatever is dropped is computed again, to the same result.

A prefix is found whatever request it comes from, but only within its group: how long an answer takes tells whether its
beginning was known, so that what one owner wrote must not be found by another.
"""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from idefics_chat.inference.kv_slots import KeyValues
from idefics_chat.inference.lru_bytes import LruBytes
from idefics_chat.inference.prefix_index import PrefixIndex

logger = logging.getLogger(__name__)

Tier = Literal["device", "host"]
"""Where a prefix lies."""

TokenKey = int | tuple[int, str]
"""A token's id, with the digest of the image it stands for if there is one."""


def token_keys(ids: Sequence[int], images: Sequence[str | None]) -> list[TokenKey]:
    """What makes two prompts' beginnings the same."""
    return [index if image is None else (index, image) for index, image in zip(ids, images, strict=True)]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A parked cache: `keys[i]` names the token whose keys and values stand at `i`."""

    keys: list[TokenKey] = field(repr=False)
    key_values: KeyValues = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.key_values)


class PrefixStore:
    """Parked prefixes in two tiers, each with a budget in bytes. For one thread."""

    def __init__(self, device_bytes: int, host_bytes: int) -> None:
        self._device: LruBytes[int, Prefix] = LruBytes(device_bytes, lambda prefix: prefix.nbytes)
        self._host: LruBytes[int, Prefix] = LruBytes(host_bytes, lambda prefix: prefix.nbytes)
        self._index = PrefixIndex()
        self._next_number = 0

    @property
    def device_bytes(self) -> int:
        """Bytes in use on the device."""
        return self._device.used_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes in use in host memory."""
        return self._host.used_bytes

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, number: int) -> bool:
        return number in self._device or number in self._host

    def __getitem__(self, number: int) -> Prefix:
        """The prefix of that number; its age stays what it was."""
        prefix = self._device.peek(number) or self._host.peek(number)
        assert prefix is not None
        return prefix

    def longest(self, group: Hashable, keys: Sequence[TokenKey]) -> tuple[int | None, int]:
        """The number of the prefix of that group with the most tokens in common with `keys`, and how many those are.
        Its age stays what it was."""
        best, best_length = None, 0
        for number in self._index.alike(group, keys):
            length = common_length(self[number].keys, keys)
            if length > best_length:
                best, best_length = number, length
        return best, best_length

    def take(self, number: int) -> Prefix:
        """The prefix of a number that was found; it counts as used just now."""
        prefix = self._device.get(number) or self._host.get(number)
        assert prefix is not None
        return prefix

    def make_room(self, group: Hashable, keys: Sequence[TokenKey], size_bytes: int) -> Tier | None:
        """Have room for a prefix of that size before it is there, and say where; None where it is larger than either
        budget. Those of its group that it begins with are forgotten, since it will hold all of them."""
        if size_bytes > max(self._device.budget_bytes, self._host.budget_bytes):
            return None
        for number in self._index.beginnings(group, keys):
            old = self[number].keys
            if common_length(old, keys) == len(old):
                self._forget(number)
        if size_bytes <= self._device.budget_bytes:
            self._to_host(self._device.make_room(size_bytes))
            return "device"
        self._room_in_host(size_bytes)
        return "host"

    def park(self, group: Hashable, prefix: Prefix) -> int:
        """Keep a prefix, in the room that is made for it. Its number, which no other ever gets."""
        self.make_room(group, prefix.keys, prefix.nbytes)
        number, self._next_number = self._next_number, self._next_number + 1
        self._index.add(number, group, prefix.keys)
        self._to_host(self._device.put(number, prefix))
        return number

    def forget_group(self, group: Hashable) -> None:
        """Forget all prefixes of a group."""
        for number in self._index.of(group):
            self._forget(number)

    def set_device_budget(self, budget_bytes: int) -> None:
        """Change the device's budget; what is over it moves to host memory."""
        self._to_host(self._device.set_budget(budget_bytes))

    def check(self) -> None:
        """Raise AssertionError where a tier is over its budget or a prefix is lost between them."""
        assert self._device.used_bytes <= self._device.budget_bytes
        assert self._host.used_bytes <= self._host.budget_bytes
        assert all((number in self._device) != (number in self._host) for number in self._index)
        assert len(self._device) + len(self._host) == len(self._index)

    def clear(self) -> None:
        """Forget everything."""
        for number in list(self._index):
            self._forget(number)

    def _to_host(self, evicted: Sequence[tuple[int, Prefix]]) -> None:
        for number, prefix in evicted:
            if not self._room_in_host(prefix.nbytes):
                self._forget(number)
                continue
            try:
                moved = Prefix(prefix.keys, [(keys.cpu(), values.cpu()) for keys, values in prefix.key_values])
            except Exception:
                logger.warning("a parked cache could not be moved to host memory; it is dropped", exc_info=True)
                self._forget(number)
            else:
                self._host.put(number, moved)

    def _room_in_host(self, size_bytes: int) -> bool:
        """Have so many bytes free in host memory; False where that is more than may be used there."""
        for gone, _ in self._host.make_room(size_bytes):
            self._forget(gone)
        return size_bytes <= self._host.budget_bytes

    def _forget(self, number: int) -> None:
        self._device.pop(number)
        self._host.pop(number)
        self._index.remove(number)


def common_length(one: Sequence[TokenKey], other: Sequence[TokenKey]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)
