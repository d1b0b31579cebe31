"""One answer in the making: from the ids that are chosen to the text that is streamed, and when it ends.

Knows nothing of the model: ids go in, text comes out.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

from idefics_chat.inference.detokenizer import Detokenizer
from idefics_chat.inference.requests import FinishReason
from idefics_chat.inference.stop_strings import StopStrings


class Answer:
    """The text and ids of one answer.

    `prefix` is taken off the start of the text once, if it is there. `max_tokens` bounds the ids, the end token not
    counted.
    """

    def __init__(
        self, backend: Tokenizer, end_ids: frozenset[int], max_tokens: int, stops: Sequence[str] = (), prefix: str = ""
    ) -> None:
        self._backend = backend
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self._detokenizer = Detokenizer(backend)
        self._stops = StopStrings(stops)
        self._prefix = prefix
        self._unstarted: str | None = ""  # the start of the text, while it may still be the prefix
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self.output_tokens = 0
        self.finish_reason: FinishReason | None = "length" if max_tokens <= 0 else None

    def push(self, token_id: int) -> str:
        """Take the id that was chosen; return the text to stream. `finish_reason` is set when it was the last."""
        self.output_tokens += 1
        if token_id in self._end_ids:
            self.finish_reason = "stop"
            return ""
        self._ids.append(token_id)
        piece = self._keep(self._stops.push(self._unprefixed(self._detokenizer.push(token_id))))
        if self._stops.found:
            self.finish_reason = "stop"
        elif len(self._ids) >= self._max_tokens:
            self.finish_reason = "length"
        return piece

    def finish(self, reason: FinishReason | None = None) -> str:
        """End the answer, for `reason` unless it has ended of itself; return the text that was held back."""
        self.finish_reason = self.finish_reason or reason or "stop"
        rest = self._stops.push(self._unprefixed(self._detokenizer.finish(), last=True))
        if self._stops.found:
            self.finish_reason = "stop"
        return self._keep(rest + self._stops.finish())

    @property
    def text(self) -> str:
        """All that was streamed."""
        return "".join(self._pieces)

    def token_ids(self) -> tuple[int, ...]:
        """The ids of record: exactly those that `text` is the decode of.

        A stop string cuts the text, so the ids behind the cut are left out; where the cut goes through a token there
        are no ids for the text, and the record is empty.
        """
        if not self._stops.found:
            return tuple(self._ids)
        for count in range(len(self._ids), 0, -1):
            text = self._backend.decode(self._ids[:count], skip_special_tokens=True).removeprefix(self._prefix)
            if text == self.text:
                return tuple(self._ids[:count])
            if len(text) < len(self.text):
                break
        return ()

    def _keep(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece

    def _unprefixed(self, piece: str, last: bool = False) -> str:
        if self._unstarted is None:
            return piece
        text = self._unstarted + piece
        if not last and len(text) < len(self._prefix) and self._prefix.startswith(text):
            self._unstarted = text
            return ""
        self._unstarted = None
        return text.removeprefix(self._prefix)
