"""The Response object of the Responses protocol, made of a stored response.

Source: the types of the `openai` package (`openai.types.responses.Response`). Fields of ours, which those types let
pass: `context`, which reports what the context window left out, `continuation_of`, `image_tokens` in
`usage.input_tokens_details`, and `cause` in `incomplete_details` and `error`: those types know few reasons (of ours
only `max_output_tokens`) and few error codes, so the standard field keeps to them and `cause` says exactly what
happened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idefics_chat.inference.requests import Usage

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseDraft:
    """What is known of a response when its turn begins.

    `request` holds the fields of the request that the object gives back; times are in seconds since the epoch.
    """

    id: str
    conversation_id: str
    output_id: str
    created_at: float
    request: Mapping[str, Any]
    previous_response_id: str | None = None


def usage_object(usage: Usage) -> Json:
    """Usage as clients know it: tokens of the prompt (images counted), of those the reused, and of the answer."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def message_item(item_id: str, status: str, text: str | None, logprobs: Sequence[Json] = ()) -> Json:
    """An answer as an item; `text` None before its content part was added."""
    content = [] if text is None else [text_part(text, logprobs)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    """A content part of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def incomplete_details(cause: str | None) -> Json | None:
    """Why a response is incomplete: `max_output_tokens`, `cancelled`, `disconnected` (nobody read it any more),
    `server_stopping`, `server_restart` or `end_not_stored` (the server went on, and could not store how it ended)."""
    if cause is None:
        return None
    return {"reason": cause if cause == "max_output_tokens" else None, "cause": cause}


def error_object(code: str, message: str) -> Json:
    """The `error` of a failed response; `code` is one of our own codes."""
    return {"code": "server_error", "message": message, "cause": code}


def response_object(
    draft: ResponseDraft,
    status: str,
    *,
    output: Sequence[Json] = (),
    usage: Json | None = None,
    error: Json | None = None,
    incomplete_reason: str | None = None,
    completed_at: float | None = None,
) -> Json:
    """The object as events and HTTP show it."""
    request = draft.request
    stored = bool(request.get("store", True))
    return {
        "id": draft.id,
        "object": "response",
        "created_at": int(draft.created_at),
        "completed_at": None if completed_at is None else int(completed_at),
        "status": status,
        "background": bool(request.get("background")),
        "error": error,
        "incomplete_details": incomplete_details(incomplete_reason),
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "metadata": request.get("metadata") or {},
        "model": request["model"],
        "output": list(output),
        "parallel_tool_calls": False,
        "previous_response_id": draft.previous_response_id,
        "conversation": {"id": draft.conversation_id} if stored else None,
        "store": stored,
        "temperature": request.get("temperature"),
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_logprobs": request.get("top_logprobs"),
        "top_p": request.get("top_p"),
        "truncation": request.get("truncation"),
        "usage": usage,
        "context": request.get("context"),
        "continuation_of": request.get("continuation_of"),
    }
