"""What is true of a tokenizer whatever it is asked: its fingerprint, its control tokens, its end tokens."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

_UNKNOWN_PROBE = "\U0010fffd"
"""A code point that no vocabulary has a token for."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A loaded tokenizer, looked at once.

    `control` holds every added token by its text, but for those that are only whitespace (some tokenizers keep runs of
    spaces there), which are text. `unknown_id` is set where text may yield it: in a vocabulary without byte tokens.
    `vocabulary_size` is the highest id plus one.
    """

    backend: Tokenizer
    fingerprint: str
    control: dict[str, AddedToken]
    control_ids: dict[str, int]
    unknown_id: int | None
    bos_id: int | None
    eos_id: int | None
    vocabulary_size: int


def describe_tokenizer(tokenizer: Any) -> TokenizerFacts:
    """Look at a tokenizer of transformers that has a `tokenizers` backend."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    control = {token.content: (index, token) for index, token in added.items() if token.content.strip()}
    return TokenizerFacts(
        backend=backend,
        fingerprint=fingerprint(backend),
        control={text: token for text, (_, token) in control.items()},
        control_ids={text: index for text, (index, _) in control.items()},
        unknown_id=_unknown_id(backend, tokenizer.unk_token_id),
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        vocabulary_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
    )


def fingerprint(backend: Tokenizer) -> str:
    """Hex sha256 of all that decides how the tokenizer splits and joins, truncation and padding left out."""
    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None
    canonical = json.dumps(state, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def missing_tokens(facts: TokenizerFacts, wanted: Iterable[str]) -> list[str]:
    """Those of `wanted` that are no control token here."""
    return [token for token in wanted if token not in facts.control_ids]


def _unknown_id(backend: Tokenizer, unknown_id: int | None) -> int | None:
    if unknown_id is None:
        return None
    return unknown_id if unknown_id in backend.encode(_UNKNOWN_PROBE, add_special_tokens=False).ids else None
