"""Chat completions as clients see them: the whole, and the chunks of a stream. Pure.

Source: the types of the `openai` package (`openai.types.chat`). A field of ours, which those types let pass:
`usage.prompt_tokens_details.image_tokens`.
"""

from dataclasses import dataclass
from typing import Any

from idefics_chat.inference.requests import GenerationResult, Usage
from idefics_chat.server.errors import ApiError

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


def completion_object(head: CompletionHead, result: GenerationResult) -> Json:
    """The whole answer. Raises ApiError `server_stopping`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text, "refusal": None},
        "finish_reason": finish_reason(result),
        "logprobs": None,
    }
    return {**head.object("chat.completion", [choice]), "usage": usage_object(result.usage)}


def chunk_object(head: CompletionHead, delta: Json, reason: str | None = None) -> Json:
    """A piece of the answer; the last one carries the reason for the end."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    return head.object("chat.completion.chunk", [choice])


def usage_chunk(head: CompletionHead, usage: Usage) -> Json:
    """The chunk after the last piece, where usage is asked for."""
    return {**head.object("chat.completion.chunk", []), "usage": usage_object(usage)}


def finish_reason(result: GenerationResult) -> str:
    """Why the answer ended. Raises ApiError `server_stopping`: it was broken off, and nothing of it is kept."""
    if result.finish_reason == "stopped":
        raise ApiError("server_stopping", "The server is going down; ask again in a moment.")
    return "length" if result.finish_reason == "length" else "stop"


def usage_object(usage: Usage) -> Json:
    """Tokens of the prompt (images counted), of those the reused and the images', and of the answer."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
