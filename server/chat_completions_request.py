"""What clients ask of chat completions, as a turn that is all in the request. Pure: no socket, no store.

Source: the types of the `openai` package (`openai.types.chat`). The sampling fields of ours are those of Responses.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from idefics_chat.conversation.messages import Role
from idefics_chat.server.client_json import WireModel, validate
from idefics_chat.server.errors import ApiError
from idefics_chat.server.input_items import ROLES, ContentPart, Detail, read_part
from idefics_chat.server.sampling_fields import AnswerFields
from idefics_chat.server.turns import AnyImage, InputMessage, Turn

_PART_TYPES = {"text": "input_text", "image_url": "input_image"}


class ImageUrl(WireModel):
    """Where an image is."""

    url: str
    detail: Detail | None = None


class ChatPart(WireModel):
    """One part of a message. Some clients write the image's URL without an object around it."""

    type: str
    text: str | None = None
    image_url: str | ImageUrl | None = None


class ChatMessage(WireModel):
    """A message; the content of an answer may be null."""

    role: str
    content: str | list[ChatPart] | None = None


class StreamOptions(WireModel):
    """How to stream."""

    include_usage: bool | None = None


class ChatCompletionCreate(AnswerFields):
    """The body of a request."""

    messages: list[ChatMessage]
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: int | None = None
    logprobs: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """The turn, and how its answer is to be given."""

    turn: Turn
    stream: bool
    include_usage: bool


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """The request that a body stands for.

    Raises:
        ApiError, InvalidSampling: with the parameter that is wrong.
    """
    create = validate(ChatCompletionCreate, body)
    if create.top_logprobs is not None and not create.logprobs:
        raise ApiError("invalid_value", "top_logprobs needs logprobs: true; add it.", "top_logprobs")
    turn = Turn(
        input=_messages(create.messages),
        model=create.model,
        sampling=create.sampling(),
        max_output_tokens=create.max_completion_tokens or create.max_tokens,
        stop=create.stops(),
        truncation="disabled",  # nothing in the answer could say what was left out
        bad_words=tuple(create.bad_words or ()),
        logprobs=(create.top_logprobs or 0) if create.logprobs else None,
    )
    include_usage = bool(create.stream_options and create.stream_options.include_usage)
    return CompletionRequest(turn, bool(create.stream), include_usage)


def _messages(given: list[ChatMessage]) -> tuple[InputMessage, ...]:
    messages = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(given))
    # An answer that was cut off before its first word is history like any other.
    if not messages or any(message.empty and message.role != "assistant" for message in messages):
        raise ApiError("empty_input", "This message says nothing; send text or an image.", "messages")
    return messages


def _message(message: ChatMessage, param: str) -> InputMessage:
    if message.role not in ROLES:
        sentence = f"Messages of role {message.role[:80]!r} are not taken; send user, assistant or system."
        raise ApiError("unsupported_value", sentence, f"{param}.role")
    role = ROLES[message.role]
    if not isinstance(message.content, list):
        return InputMessage(role, (message.content or "",))
    return InputMessage(
        role, tuple(_part(part, role, f"{param}.content[{i}]") for i, part in enumerate(message.content))
    )


def _part(part: ChatPart, role: Role, param: str) -> str | AnyImage:
    if part.type not in _PART_TYPES:
        sentence = f"Content of type {part.type[:80]!r} is not taken; send text or image_url."
        raise ApiError("unsupported_value", sentence, f"{param}.type")
    url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
    return read_part(ContentPart(type=_PART_TYPES[part.type], text=part.text, image_url=url), role, param)
