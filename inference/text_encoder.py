"""Text to token ids, with no way from text to a control token.

A tokenizer splits special tokens off wherever they stand in its input, so text from a user must never be seen by it as
it is. Here text goes through a private copy of the tokenizer that has no added tokens (but those that are only
whitespace: they are text), between two sentinel tokens of our own: text is always "what follows a special token",
never the start of a string, which SentencePiece-like tokenizers treat differently. The sentinels' ids are dropped. A
last guard looks for control ids all the same, since a vocabulary may hold them as ordinary pieces too.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer

from idefics_chat.inference.tokenizer_facts import TokenizerFacts

BEFORE, AFTER = "\ue000\ue0ff\ue001", "\ue000\ue0fe\ue001"
"""The sentinels. Private-use code points: no normalizer changes them and no vocabulary has them."""

REMEMBERED, SHORT = 2048, 256
"""How many texts are remembered, of at most so many characters each: the turns of a conversation come again with the
next one. A few megabytes, and at the worst, where every byte is a token, 150."""

Flags = tuple[bool, bool, bool]
"""Of a control token, what matters to text beside it: `lstrip`, `rstrip`, `normalized`."""

PLAIN: Flags = (False, False, False)


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids, and for each the offset in the text (in characters) at which it starts."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]


class TextEncoder:
    """Encodes text as one tokenizer would between special tokens. Safe to share between threads."""

    def __init__(self, facts: TokenizerFacts) -> None:
        self._facts = facts
        self._forbidden = frozenset(facts.control_ids.values()) - {facts.unknown_id}
        self._copies: dict[tuple[Flags, Flags], _Copy] = {}
        self._remembered = lru_cache(REMEMBERED)(self._encoded)

    def encode(self, text: str, before: AddedToken | None = None, after: AddedToken | None = None) -> EncodedText:
        """Ids of `text` as it stands between the control tokens `before` and `after` (None: any plain one).

        Lone surrogates, which no tokenizer takes, count as U+FFFD.
        """
        encoded = self._remembered if len(text) <= SHORT else self._encoded
        return encoded(text, _flags(before), _flags(after))

    def _encoded(self, text: str, before: Flags, after: Flags) -> EncodedText:
        ids, starts = self._guarded(_without_lone_surrogates(text), 0, before, after)
        return EncodedText(tuple(ids), tuple(starts))

    def _guarded(self, text: str, offset: int, before: Flags, after: Flags) -> tuple[list[int], list[int]]:
        """Split a text that yields a control id, and try again: a control token needs all of its characters. One
        character that is a control token by itself yields nothing."""
        if not text:
            return [], []
        ids, starts = self._copy(before, after).encode(text)
        if not (self._forbidden.intersection(ids) or FOREIGN in ids):
            return ids, [offset + start for start in starts]
        if len(text) == 1:
            return [], []
        middle = len(text) // 2
        left, left_starts = self._guarded(text[:middle], offset, before, PLAIN)
        right, right_starts = self._guarded(text[middle:], offset + middle, PLAIN, after)
        return left + right, left_starts + right_starts

    def _copy(self, before: Flags, after: Flags) -> "_Copy":
        if (before, after) not in self._copies:
            self._copies[before, after] = _Copy(self._facts, before, after)
        return self._copies[before, after]


FOREIGN = -1
"""Stands among the ids of a text for a sentinel that the text itself holds."""


class _Copy:
    """The tokenizer without its added tokens, with a sentinel on each side of every text.

    The sentinels have the flags of the control tokens they stand for, since these decide what becomes of whitespace
    beside them, and whether the text counts as one piece with them when it is normalized.
    """

    def __init__(self, facts: TokenizerFacts, before: Flags, after: Flags) -> None:
        state = json.loads(facts.backend.to_str())
        kept = [token for token in state["added_tokens"] if not token["content"].strip()]
        state.update(added_tokens=[], truncation=None, padding=None, post_processor=None)
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        self._tokenizer.add_tokens([_added_token(token) for token in kept])
        self._tokenizer.add_special_tokens([_sentinel(BEFORE, before), _sentinel(AFTER, after)])
        vocabulary = self._tokenizer.get_vocab()
        self._real_ids = {vocabulary[token["content"]]: token["id"] for token in kept}
        self._sentinels = (vocabulary[BEFORE], vocabulary[AFTER])

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and the offset of each in the text."""
        encoding = self._tokenizer.encode(BEFORE + text + AFTER, add_special_tokens=False)
        inside = slice(encoding.ids.index(self._sentinels[0]) + 1, -1)
        starts = [start - len(BEFORE) for start, _ in encoding.offsets[inside]]
        return [self._real_id(index) for index in encoding.ids[inside]], starts

    def _real_id(self, index: int) -> int:
        return FOREIGN if index in self._sentinels else self._real_ids.get(index, index)


def run_lengths(starts: tuple[int, ...], ends: list[int]) -> list[int]:
    """How many tokens each of several neighbouring texts has, given where each ends in the joined text.

    A token belongs to the text it starts in.
    """
    cuts = [0, *(bisect_left(starts, end) for end in ends[:-1]), len(starts)]
    return [later - earlier for earlier, later in pairwise(cuts)]


def _flags(token: AddedToken | None) -> Flags:
    return PLAIN if token is None else (token.lstrip, token.rstrip, token.normalized)


def _sentinel(content: str, flags: Flags) -> AddedToken:
    lstrip, rstrip, normalized = flags
    return AddedToken(content, lstrip=lstrip, rstrip=rstrip, normalized=normalized, special=True)


def _added_token(state: dict[str, object]) -> AddedToken:
    flags = {name: bool(state[name]) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return AddedToken(str(state["content"]), **flags)


def _without_lone_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
