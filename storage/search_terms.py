"""What is asked of the search over messages, and how its texts are cut into words. No database.

The words of scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) cannot be told
apart without a dictionary: every letter of theirs is made a word of its own, and what is asked for in them a phrase.
A query is plain text: words must all occur, "quotes" hold a phrase together, a trailing * asks for words that begin
so. Nothing else in it means anything, so no query is wrong.
"""

import re
import unicodedata
from dataclasses import dataclass

SEPARATOR = "\x1f"
MARK_START, MARK_END = "\x02", "\x03"
MAX_WORDS = 32

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc"
    "\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3\u3099\u309a]*"
)
_TERMS = re.compile(r'"([^"]*)"?(\*)?|([^\s"]+)')


@dataclass(frozen=True, slots=True)
class Term:
    """What must occur: words that follow one another, the last of them only begun when it is a `prefix`."""

    words: str
    prefix: bool


def terms_of(query: str) -> list[Term]:
    """What a query asks for; none for one without words, and at most `MAX_WORDS`."""
    terms = [_term(quoted or plain, bool(star)) for quoted, star, plain in _TERMS.findall(query)]
    return [term for term in terms if term is not None][:MAX_WORDS]


def segmented(text: str) -> str:
    """The text with every letter of an unspaced script made a word. NUL, at which SQLite's text functions end, becomes
    a separator too."""
    return _UNSPACED.sub(lambda found: f"{SEPARATOR}{found[0]}{SEPARATOR}", text.replace("\0", SEPARATOR))


def unmarked(snippet: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The snippet's text, and where in it (start, end) what was asked for stands."""
    text, spans, start = "", [], 0
    for piece in re.split(f"([{MARK_START}{MARK_END}])", snippet.replace(SEPARATOR, "")):
        if piece == MARK_START:
            start = len(text)
        elif piece == MARK_END:
            spans.append((start, len(text)))
        else:
            text += piece
    return text, tuple(spans)


def _term(text: str, starred: bool) -> Term | None:
    prefix = starred or text.endswith("*")
    words = segmented(text.rstrip("*"))
    return Term(words, prefix) if any(_counts(letter) for letter in words) else None


def _counts(letter: str) -> bool:
    """Whether the tokenizer makes words of the letter."""
    category = unicodedata.category(letter)
    return category[0] in "LN" or category in ("So", "Co")
