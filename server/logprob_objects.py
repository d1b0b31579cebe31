"""Log-probabilities as clients see them. Pure.

Source: the types of the `openai` package (`openai.types.responses.ResponseTextDeltaEvent`, `.ResponseOutputText`,
`openai.types.chat.ChatCompletionTokenLogprob`). Pieces of a stream carry tokens without their bytes, whole texts with.
"""

from collections.abc import Sequence
from typing import Any

from idefics_chat.inference.requests import TokenLogprob

Json = dict[str, Any]


def streamed_logprobs(tokens: Sequence[TokenLogprob]) -> list[Json]:
    """Those of a piece."""
    return [{**_token(token), "top_logprobs": [_token(likely) for likely in token.top]} for token in tokens]


def whole_logprobs(tokens: Sequence[TokenLogprob]) -> list[Json]:
    """Those of a whole text, and of every piece of a chat completion."""
    return [
        {**_token_with_bytes(token), "top_logprobs": [_token_with_bytes(likely) for likely in token.top]}
        for token in tokens
    ]


def without_logprobs(value: Any) -> Any:
    """A JSON value with every list of log-probabilities in it empty."""
    if isinstance(value, list):
        return [without_logprobs(item) for item in value]
    if isinstance(value, dict):
        return {
            name: [] if name == "logprobs" and isinstance(item, list) else without_logprobs(item)
            for name, item in value.items()
        }
    return value


def _token(token: TokenLogprob) -> Json:
    return {"token": token.text, "logprob": token.logprob}


def _token_with_bytes(token: TokenLogprob) -> Json:
    return {**_token(token), "bytes": list(token.data)}
