"""A cache that forgets what was used longest ago once it holds more bytes than its budget."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruBytes(Generic[Key, Value]):
    """Values by key under `budget_bytes`; `size_of(value)` is in bytes. A value larger than the budget is not kept.

    Not safe to share between threads without a lock.
    """

    def __init__(self, budget_bytes: int, size_of: Callable[[Value], int]) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._size_of = size_of
        self._items: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def get(self, key: Key) -> Value | None:
        """The value, now the last to be forgotten, or None."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def peek(self, key: Key) -> Value | None:
        """The value or None; its age stays what it was."""
        item = self._items.get(key)
        return None if item is None else item[0]

    def set_budget(self, budget_bytes: int) -> list[tuple[Key, Value]]:
        """Change the budget; return what had to go for it, oldest first."""
        self.budget_bytes = budget_bytes
        return self._shrink()

    def make_room(self, size_bytes: int) -> list[tuple[Key, Value]]:
        """Have so many bytes free; return what had to go for it, oldest first. Nothing goes for more than the budget,
        since that is not kept."""
        return [] if size_bytes > self.budget_bytes else self._shrink(size_bytes)

    def put(self, key: Key, value: Value) -> list[tuple[Key, Value]]:
        """Keep a value; return what had to go for it, oldest first (the value itself if it is too large)."""
        self.pop(key)
        size = self._size_of(value)
        if size > self.budget_bytes:
            return [(key, value)]
        self._items[key] = (value, size)
        self.used_bytes += size
        return self._shrink()

    def pop(self, key: Key) -> Value | None:
        """Forget a value and return it, or None."""
        item = self._items.pop(key, None)
        if item is None:
            return None
        self.used_bytes -= item[1]
        return item[0]

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self.used_bytes = 0

    def _shrink(self, free_bytes: int = 0) -> list[tuple[Key, Value]]:
        gone = []
        while self.used_bytes + free_bytes > self.budget_bytes:
            key, (value, size) = self._items.popitem(last=False)
            self.used_bytes -= size
            gone.append((key, value))
        return gone
