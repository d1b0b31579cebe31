"""Stop strings in a stream of text pieces: the text before the first of them comes out, and never a part of one."""

from collections.abc import Sequence


class StopStrings:
    """Watches one answer's text. Of several stop strings the one that begins first ends it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Take a piece; return the text that can be part of no stop string. After one was found there is no more."""
        if self.found:
            return ""
        self._held += piece
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if starts:
            self.found = True
            out, self._held = self._held[: min(starts)], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def finish(self) -> str:
        """Return what was held back in case a stop string would come of it."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, the whole of `stop` excluded."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
