"""Token ids to text, piece by piece.

The contract: the pieces add up to the decode of all ids at once, whatever the ids are. A piece can be given out only
when nothing that comes later can change it:

- a decoder with byte tokens (`<0xF0>`) joins a whole run of them, and makes all of it U+FFFD if any of it is no
  UTF-8: a run at the end is held back;
- a byte-level decoder shows a character that is not whole yet as U+FFFD: those at the end are held back.

Decoding everything anew at each token would be quadratic, so only a short tail is decoded. It starts at a clean
point, where the text before is settled, one clean stretch before what is new: decoders treat the first token of all
in a way of their own (they take a space off), and so the new part is never the first.
"""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

UNSETTLED = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer:
    """Decodes one answer; special tokens give no text. `before` are ids that the answer goes on behind, whose text was
    given out already.

    `push` and `finish` return pieces; after `finish` nothing more may be pushed.
    """

    def __init__(self, backend: Tokenizer, before: Sequence[int] = ()) -> None:
        self._backend = backend
        self._special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
        self._tail = list(before)
        self._settled_ids = len(self._tail)  # of `_tail`: the clean stretch before what is new
        # What was given out of the text of `_tail`. Where `before` ends within a character, that comes whole.
        self._given = self._decode(self._tail).rstrip(UNSETTLED)

    def push(self, token_id: int) -> str:
        """Take one more id; return the text that is settled by it, which may be empty."""
        self._tail.append(token_id)
        if token_id in self._special or self._is_byte(token_id):
            return ""
        text = self._decode(self._tail)
        piece = self._give(text.rstrip(UNSETTLED))
        if not text.endswith(UNSETTLED):
            self._move_on()
        return piece

    def finish(self) -> str:
        """Return what was held back."""
        return self._give(self._decode(self._tail))

    def _give(self, text: str) -> str:
        piece = text[len(self._given) :]
        self._given += piece
        return piece

    def _move_on(self) -> None:
        """Keep of the tail only the stretch that has just become clean, if it is text at all."""
        stretch = self._tail[self._settled_ids :]
        text = self._decode(stretch)
        if text:
            self._tail, self._settled_ids, self._given = stretch, len(stretch), text

    def _is_byte(self, token_id: int) -> bool:
        token = self._backend.id_to_token(token_id)
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None

    def _decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=True))
