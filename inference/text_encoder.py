"""Text to token ids, with no way from text to a control token.

A tokenizer splits special tokens off wherever they stand in its input, so text from a user must never be seen by it as
it is. Here text goes through a private copy of the tokenizer that has no added tokens (but those that are only
whitespace: they are text), behind one sentinel token of our own: text is always "what follows a special token", never
the start of a string, which SentencePiece-like tokenizers treat differently. The sentinel's id is dropped. A last
guard looks for control ids all the same, since a vocabulary may hold them as ordinary pieces too.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from idefics_chat.inference.tokenizer_facts import TokenizerFacts

SENTINEL = "\ue000\ue0ff\ue001"
"""Private-use code points: no normalizer changes them and no vocabulary has them."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids, and for each the offset in the text (in characters) at which it starts."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]


class TextEncoder:
    """Encodes text as one tokenizer would behind a special token. Safe to share between threads."""

    def __init__(self, facts: TokenizerFacts) -> None:
        self._forbidden = frozenset(facts.control_ids.values()) - {facts.unknown_id}
        self._copies = {normalized: _Copy(facts, normalized) for normalized in (False, True)}

    def encode(self, text: str, after: AddedToken | None = None) -> EncodedText:
        """Ids of `text` as it stands behind the control token `after` (None: one that is taken from the raw text).

        Lone surrogates, which no tokenizer takes, count as U+FFFD.
        """
        clean = _without_lone_surrogates(text)
        copy = self._copies[bool(after is not None and after.normalized)]
        ids, starts = self._guarded(copy, clean, 0)
        return EncodedText(tuple(ids), tuple(starts))

    def _guarded(self, copy: "_Copy", text: str, offset: int) -> tuple[list[int], list[int]]:
        """Split a text that yields a control id, and try again: a control token needs all of its characters. One
        character that is a control token by itself yields nothing."""
        if not text:
            return [], []
        ids, starts = copy.encode(text)
        if not (self._forbidden.intersection(ids) or copy.sentinel_id in ids):
            return ids, [offset + start for start in starts]
        if len(text) == 1:
            return [], []
        middle = len(text) // 2
        left, left_starts = self._guarded(copy, text[:middle], offset)
        right, right_starts = self._guarded(copy, text[middle:], offset + middle)
        return left + right, left_starts + right_starts


class _Copy:
    """The tokenizer without its added tokens, with a sentinel in front of every text.

    `normalized` is that of the control token which the sentinel stands for: a token that is found in the normalized
    text leaves the text behind it without the prefix that the normalizer may put before a text.
    """

    def __init__(self, facts: TokenizerFacts, normalized: bool) -> None:
        state = json.loads(facts.backend.to_str())
        kept = [token for token in state["added_tokens"] if not token["content"].strip()]
        state.update(added_tokens=[], truncation=None, padding=None, post_processor=None)
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        self._tokenizer.add_tokens([_added_token(token) for token in kept])
        self._tokenizer.add_special_tokens([AddedToken(SENTINEL, normalized=normalized, special=True)])
        self._real_ids = {self._tokenizer.token_to_id(token["content"]): token["id"] for token in kept}
        self.sentinel_id = self._tokenizer.token_to_id(SENTINEL)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids and starts. The sentinel's own id stays in only where the text itself holds the sentinel."""
        encoding = self._tokenizer.encode(SENTINEL + text, add_special_tokens=False)
        first = encoding.ids.index(self.sentinel_id) + 1
        ids = [self._real_ids.get(index, index) for index in encoding.ids[first:]]
        if self.sentinel_id in encoding.ids[first:]:
            ids = list(encoding.ids[first:])
        return ids, [max(0, start - len(SENTINEL)) for start, _ in encoding.offsets[first:]]


def run_lengths(starts: tuple[int, ...], ends: list[int]) -> list[int]:
    """How many tokens each of several neighbouring texts has, given where each ends in the joined text.

    A token belongs to the text it starts in.
    """
    cuts = [0, *(bisect_left(starts, end) for end in ends[:-1]), len(starts)]
    return [later - earlier for earlier, later in zip(cuts, cuts[1:], strict=False)]


def _added_token(state: dict[str, object]) -> AddedToken:
    flags = {name: bool(state[name]) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return AddedToken(str(state["content"]), **flags)


def _without_lone_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
