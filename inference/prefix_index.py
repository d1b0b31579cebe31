"""Finds which of many sequences begin as a given one does, without comparing it with all of them.

Each sequence is marked at the end of each block of tokens by a hash of all that stands before. Two sequences that have
a mark in common begin alike up to there, but for a collision of hashes: what is found is to be compared in full.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice

BLOCK = 32
"""Tokens between two marks."""

MOST_FOUND = 64
"""Of sequences that begin equally well, the newest so many are looked at; they differ by less than a block."""


class PrefixIndex:
    """Sequences by number, each in a group."""

    def __init__(self) -> None:
        self._marks: dict[int, list[Hashable]] = {}
        self._marked: dict[Hashable, dict[int, None]] = {}
        self._ending: dict[Hashable, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def __iter__(self) -> Iterator[int]:
        return iter(self._marks)

    def add(self, number: int, group: Hashable, keys: Sequence[Hashable]) -> None:
        """Take in a sequence under a number that is new."""
        self._marks[number] = marks = _marks(group, keys)
        for mark in marks:
            self._marked.setdefault(mark, {})[number] = None
        self._ending.setdefault(marks[-1], {})[number] = None

    def remove(self, number: int) -> None:
        """Forget a sequence."""
        marks = self._marks.pop(number)
        for places, mark in [(self._ending, marks[-1]), *((self._marked, mark) for mark in marks)]:
            del places[mark][number]
            if not places[mark]:
                del places[mark]

    def of(self, group: Hashable) -> list[int]:
        """All of a group."""
        return list(self._marked.get(_start(group), {}))

    def alike(self, group: Hashable, keys: Sequence[Hashable]) -> list[int]:
        """Those of the group that begin as `keys` does for the most blocks, newest first."""
        for mark in reversed(_marks(group, keys)):
            if mark in self._marked:
                return list(islice(reversed(self._marked[mark]), MOST_FOUND))
        return []

    def beginnings(self, group: Hashable, keys: Sequence[Hashable]) -> list[int]:
        """Those of the group that may be beginnings of `keys`: they end where `keys` has a mark, or less than a block
        behind."""
        found = (self._ending.get(mark, {}) for mark in _marks(group, keys))
        return [number for numbers in found for number in islice(reversed(numbers), MOST_FOUND)]


def _start(group: Hashable) -> Hashable:
    return ("start of", group)


def _marks(group: Hashable, keys: Sequence[Hashable]) -> list[Hashable]:
    marks: list[Hashable] = [_start(group)]
    for end in range(BLOCK, len(keys) + 1, BLOCK):
        marks.append(hash((marks[-1], *keys[end - BLOCK : end])))
    return marks
