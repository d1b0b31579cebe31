"""Chat completions as clients see them: the whole, and the chunks of a stream. Pure.

Source: the types of the `openai` package (`openai.types.chat`). A field of ours, which those types let pass:
`usage.prompt_tokens_details.image_tokens`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from idefics_chat.inference.requests import Choice, GenerationResult, TokenLogprob, Usage
from idefics_chat.server.errors import ApiError
from idefics_chat.server.logprob_objects import whole_logprobs

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CompletionHead:
    """What every chunk of a completion repeats; `created_at` is in seconds since the epoch."""

    id: str
    model: str
    created_at: float

    def object(self, kind: str, choices: list[Json]) -> Json:
        """An object of this completion."""
        return {
            "id": self.id,
            "object": kind,
            "created": int(self.created_at),
            "model": self.model,
            "choices": choices,
        }


def choices_of(result: GenerationResult) -> tuple[Choice, ...]:
    """All answers of a result."""
    return result.choices or (Choice(result.text, result.token_ids, result.finish_reason),)


def completion_object(head: CompletionHead, result: GenerationResult, *, with_logprobs: bool = False) -> Json:
    """The whole answers. Raises ApiError `server_stopping`."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "finish_reason": finish_reason(choice),
            "logprobs": _logprobs(choice.logprobs if with_logprobs else None),
        }
        for index, choice in enumerate(choices_of(result))
    ]
    return {**head.object("chat.completion", choices), "usage": usage_object(result.usage)}


def chunk_object(
    head: CompletionHead,
    delta: Json,
    reason: str | None = None,
    *,
    index: int = 0,
    logprobs: Sequence[TokenLogprob] | None = None,
) -> Json:
    """A piece of answer number `index`; the last one carries the reason for its end."""
    choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": _logprobs(logprobs)}
    return head.object("chat.completion.chunk", [choice])


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> Json | None:
    return None if tokens is None else {"content": whole_logprobs(tokens), "refusal": None}


def usage_chunk(head: CompletionHead, usage: Usage) -> Json:
    """The chunk after the last piece, where usage is asked for."""
    return {**head.object("chat.completion.chunk", []), "usage": usage_object(usage)}


def finish_reason(choice: Choice) -> str:
    """Why an answer ended. Raises ApiError `server_stopping`: it was broken off, and nothing of it is kept."""
    if choice.finish_reason == "stopped":
        raise ApiError("server_stopping", "The server is going down; ask again in a moment.")
    return "length" if choice.finish_reason == "length" else "stop"


def usage_object(usage: Usage) -> Json:
    """Tokens of the prompt (images counted), of those the reused and the images', and of the answer."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
