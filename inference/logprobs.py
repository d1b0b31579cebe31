"""How likely the model held the tokens that were chosen, and what each token is as bytes.

A token may be a part of a character, so its text alone would not do: clients put characters together from the bytes.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache

import torch
from tokenizers import Tokenizer
from torch import Tensor

from idefics_chat.inference.requests import TokenLogprob

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


class LogprobRecorder:
    """Notes log-probabilities for one request: `top` of the likeliest tokens beside the chosen one."""

    def __init__(self, backend: Tokenizer, top: int) -> None:
        self._top = top
        self._data_of = token_bytes(backend)

    def note(self, chances: Tensor, token_id: int) -> TokenLogprob:
        """What is to be known of a token, from the log-probabilities `(vocabulary,)` at its place."""
        likeliest = chances.topk(min(self._top, len(chances)))
        top = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        beside = tuple(TokenLogprob(index, self._data_of(index), value) for index, value in top)
        return TokenLogprob(token_id, self._data_of(token_id), float(chances[token_id]), beside)


def log_probabilities(logits: Tensor) -> Tensor:
    """The model's own, in float on the CPU, of logits `(..., vocabulary)`."""
    return torch.log_softmax(logits.to("cpu", torch.float32), dim=-1)


def token_bytes(backend: Tokenizer) -> Callable[[int], bytes]:
    """A function from ids to the bytes that they stand for in the middle of a text."""
    table = _byte_level_table() if '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"]) else None
    added = backend.get_added_tokens_decoder()

    def data_of(token_id: int) -> bytes:
        token = backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in added:
            return token.encode()
        if table is not None and all(character in table for character in token):
            return bytes(table[character] for character in token)
        if (found := _BYTE_TOKEN.fullmatch(token)) is not None:
            return bytes([int(found[1], 16)])
        return token.replace(_SPACE, " ").encode()

    return data_of


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """The bytes of byte-level BPE's alphabet: printable ones stand for themselves, the others for 256 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
