"""One answer in the making: from the ids that are chosen to the text that is streamed, and when it ends.

Knows nothing of the model: ids go in, text comes out.
"""

from bisect import bisect_left
from collections.abc import Sequence

from tokenizers import Tokenizer

from idefics_chat.inference.detokenizer import UNSETTLED, Detokenizer
from idefics_chat.inference.requests import FinishReason
from idefics_chat.inference.stop_strings import StopStrings


class Answer:
    """The text and ids of one answer.

    `prefix` is taken off the start of the text once, if it is there. `max_tokens` bounds the ids, the end token not
    counted. `before` are the ids of an answer that this one goes on with; they are no part of its text and ids.
    """

    def __init__(
        self,
        backend: Tokenizer,
        end_ids: frozenset[int],
        max_tokens: int,
        stops: Sequence[str] = (),
        prefix: str = "",
        before: Sequence[int] = (),
    ) -> None:
        self._backend = backend
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self._before = tuple(before)
        self._detokenizer = Detokenizer(backend, self._before)
        self._stops = StopStrings(stops)
        self._prefix = prefix
        self._unstarted: str | None = ""  # the start of the text, while it may still be the prefix
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._ends: list[int] = []  # characters of text, stop strings included, up to each id
        self._is_finished = False
        self.output_tokens = 0
        self.finish_reason: FinishReason | None = "length" if max_tokens <= 0 else None

    def push(self, token_id: int) -> str:
        """Take the id that was chosen; return the text to stream. `finish_reason` is set when it was the last; what
        comes behind that is ignored."""
        if self.finish_reason is not None:
            return ""
        self.output_tokens += 1
        if token_id in self._end_ids:
            self.finish_reason = "stop"
            return ""
        self._ids.append(token_id)
        text = self._unprefixed(self._detokenizer.push(token_id))
        self._ends.append(len(text) + (self._ends[-1] if self._ends else 0))
        piece = self._keep(self._stops.push(text))
        if self._stops.found:
            self.finish_reason = "stop"
        elif len(self._ids) >= self._max_tokens:
            self.finish_reason = "length"
        return piece

    def finish(self, reason: FinishReason | None = None) -> str:
        """End the answer, for `reason` unless it has ended of itself; return the text that was held back."""
        self.finish_reason = self.finish_reason or reason or "stop"
        self._is_finished = True
        text = self._unprefixed(self._detokenizer.finish(), last=True)
        self._ends[-1:] = [end + len(text) for end in self._ends[-1:]]
        rest = self._stops.push(text)
        if self._stops.found:
            self.finish_reason = "stop"
        return self._keep(rest + self._stops.finish())

    @property
    def text(self) -> str:
        """All that was streamed."""
        return "".join(self._pieces)

    @property
    def shown_tokens(self) -> int:
        """How many of the ids, from the first on, `text` has something of; all of them where no stop string cut it."""
        if self._is_finished and not self._stops.found:
            return len(self._ids)
        shown = sum(map(len, self._pieces))
        return bisect_left(self._ends, shown) + 1 if shown else 0

    def token_ids(self) -> tuple[int, ...]:
        """The ids of record: exactly those that `text` is the decode of.

        A stop string cuts the text, so the ids behind the cut are left out; where the cut goes through a token there
        are no ids for the text, and the record is empty.
        """
        if not self._stops.found:
            return tuple(self._ids)
        for count in range(len(self._ids), 0, -1):
            text = self._decoded(self._ids[:count])
            if text == self.text:
                return tuple(self._ids[:count])
            if len(text) < len(self.text):
                break
        return ()

    def _keep(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece

    def _decoded(self, ids: list[int]) -> str:
        """The text of the answer's ids, all at once."""
        before = self._backend.decode(self._before, skip_special_tokens=True).rstrip(UNSETTLED)
        text = self._backend.decode([*self._before, *ids], skip_special_tokens=True)
        return str(text[len(before) :]).removeprefix(self._prefix)

    def _unprefixed(self, piece: str, last: bool = False) -> str:
        if self._unstarted is None:
            return piece
        text = self._unstarted + piece
        if not last and len(text) < len(self._prefix) and self._prefix.startswith(text):
            self._unstarted = text
            return ""
        self._unstarted = None
        return text.removeprefix(self._prefix)
