"""The events of the Realtime protocol, made of those of a response. Pure: events in, events out.

Source: the types of the `openai` package (`openai.types.realtime`). A part of a streamed text is of type `text`, the
same text in an item of type `output_text`. What is optional is left out rather than null: some clients drop an event
for a null.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart
from idefics_chat.server.errors import ApiError
from idefics_chat.server.uploads import image_file_id

Json = dict[str, Any]

MAX_EVENT_ID = 512
"""Characters of a client's event id that are given back."""

STATUSES = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}


def session_object(session_id: str, model: str, instructions: str, max_output_tokens: int | Literal["inf"]) -> Json:
    """The session, whole."""
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "output_modalities": ["text"],
        "instructions": instructions,
        "max_output_tokens": max_output_tokens,
        "tools": [],
        "tool_choice": "none",
        "truncation": "auto",
    }


def error_event(error: ApiError, client_event_id: object) -> Json:
    """What tells a client of an error, and of which of its events it is."""
    is_named = isinstance(client_event_id, str) and len(client_event_id) <= MAX_EVENT_ID
    named = {"event_id": client_event_id} if is_named else {}
    return {"type": "error", "error": {**error.body(), **named}}


def realtime_item(message: Message, item_id: str, image_urls: Mapping[str, str]) -> Json:
    """A stored message under the id that the client knows it by, with those images' data that are given."""
    content = [_part(part, message.role, image_urls) for part in message.parts]
    return _item(item_id, message.role, message.status, content)


class RealtimeResponse:
    """Translates one response. `previous_item_id` is the item that the answer follows; `out_of_band`: it is in no
    conversation."""

    def __init__(self, previous_item_id: str | None, metadata: Mapping[str, str], *, out_of_band: bool) -> None:
        self._previous_item_id = previous_item_id
        self._metadata = dict(metadata)
        self._out_of_band = out_of_band
        self._response_id = ""

    def events(self, event: Json) -> Iterator[Json]:
        """The Realtime events that one event of the response becomes: none, one or two."""
        kind: str = event["type"]
        match kind:
            case "response.created":
                self._response_id = event["response"]["id"]
                yield {"type": kind, "response": self._object(event["response"], "in_progress")}
            case "response.output_item.added":
                item = _item(event["item"]["id"], "assistant", "in_progress", [])
                yield {"type": kind, "response_id": self._response_id, "output_index": 0, "item": item}
                yield from self._in_conversation("conversation.item.added", item)
            case "response.content_part.added":
                yield self._of_part(event, part={"type": "text", "text": ""})
            case "response.output_text.delta":
                yield self._of_part(event, delta=event["delta"])
            case "response.output_text.done":
                yield self._of_part(event, text=event["text"])
            case "response.content_part.done":
                yield self._of_part(event, part={"type": "text", "text": event["part"]["text"]})
            case "response.output_item.done":
                item = _answer(event["item"])
                yield from self._in_conversation("conversation.item.done", item)
                yield {"type": kind, "response_id": self._response_id, "output_index": 0, "item": item}
            case _ if kind in STATUSES:
                response = event["response"]
                status = "cancelled" if response["status"] == "cancelled" else STATUSES[kind]
                yield {"type": "response.done", "response": self._object(response, status)}

    def _in_conversation(self, kind: str, item: Json) -> Iterator[Json]:
        if not self._out_of_band:
            yield {"type": kind, "previous_item_id": self._previous_item_id, "item": item}

    def _of_part(self, event: Json, **fields: Any) -> Json:
        return {
            "type": event["type"],
            "response_id": self._response_id,
            "item_id": event["item_id"],
            "output_index": 0,
            "content_index": 0,
            **fields,
        }

    def _object(self, response: Json, status: str) -> Json:
        made: Json = {
            "object": "realtime.response",
            "id": response["id"],
            "status": status,
            "output": [_answer(item) for item in response["output"]],
            "output_modalities": ["text"],
            "metadata": self._metadata,
            "max_output_tokens": response["max_output_tokens"] or "inf",
        }
        if not self._out_of_band:
            made["conversation_id"] = response["conversation"]["id"]
        if status != "in_progress":
            made["status_details"] = _details(response, status)
        if response["usage"] is not None:
            made["usage"] = _usage(response["usage"])
        return made


def _item(item_id: str, role: str, status: str, content: list[Json]) -> Json:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "role": role,
        "status": status,
        "content": content,
    }


def _answer(item: Json) -> Json:
    content = [{"type": "output_text", "text": part["text"]} for part in item["content"]]
    return _item(item["id"], "assistant", item["status"], content)


def _part(part: Part, role: str, image_urls: Mapping[str, str]) -> Json:
    match part:
        case TextPart(text):
            return {"type": "output_text" if role == "assistant" else "input_text", "text": text}
        case ImagePart(digest):
            shown = {"image_url": image_urls[digest]} if digest in image_urls else {}
            return {"type": "input_image", "detail": "auto", "file_id": image_file_id(digest), **shown}


def _details(response: Json, status: str) -> Json:
    if status == "failed":
        error = response["error"]
        told = {"type": "server_error", "code": error["cause"], "message": error["message"]}
        return {"type": status, "error": told}
    if status == "cancelled":
        return {"type": status, "reason": "client_cancelled"}
    reason = (response["incomplete_details"] or {}).get("reason")
    return {"type": status, "reason": reason} if reason else {"type": status}


def _usage(usage: Json) -> Json:
    image_tokens = usage["input_tokens_details"]["image_tokens"]
    return {
        "total_tokens": usage["total_tokens"],
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        "input_token_details": {
            "text_tokens": usage["input_tokens"] - image_tokens,
            "image_tokens": image_tokens,
            "audio_tokens": 0,
            "cached_tokens": usage["input_tokens_details"]["cached_tokens"],
        },
        "output_token_details": {"text_tokens": usage["output_tokens"], "audio_tokens": 0},
    }
