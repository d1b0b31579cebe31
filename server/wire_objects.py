"""The objects that the server sends, as models: what the documents of the API are made of. Pure.

The objects themselves are built as JSON where they belong; the tests hold every one that is sent against these models
and against those of the `openai` package, whose shapes they are. A field that stands here and not there is ours.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Json = dict[str, Any]


class WireObject(BaseModel):
    """Base of what the server sends."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(WireObject):
    """What is wrong: a sentence that says what to do, and a code of the closed list."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorAnswer(WireObject):
    """The body of every HTTP answer that is an error."""

    error: ErrorBody


class TopLogprob(WireObject):
    """A likely token at a place of a piece of text."""

    token: str
    logprob: float


class Logprob(TopLogprob):
    """A token of a piece of text."""

    top_logprobs: list[TopLogprob]


class TopLogprobWithBytes(TopLogprob):
    """A likely token at a place of a whole text; `bytes` is its UTF-8."""

    bytes: list[int]


class LogprobWithBytes(TopLogprobWithBytes):
    """A token of a whole text."""

    top_logprobs: list[TopLogprobWithBytes]


class OutputText(WireObject):
    """The text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Json]
    logprobs: list[LogprobWithBytes]


class OutputMessage(WireObject):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputText(WireObject):
    """A text that was said."""

    type: Literal["input_text"]
    text: str


class InputImagePart(WireObject):
    """An image that was shown. `file_id` gets it from `/v1/files`; `image_url` stands where it was asked for."""

    type: Literal["input_image"]
    detail: Literal["auto"]
    file_id: str
    image_url: str | None


class Item(WireObject):
    """A message of a conversation. `previous_item_id` stands in a tree."""

    id: str
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[InputText | InputImagePart | OutputText]
    previous_item_id: str | None = None


class InputTokensDetails(WireObject):
    """Of the tokens of the prompt."""

    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int


class OutputTokensDetails(WireObject):
    """Of the tokens of the answer."""

    reasoning_tokens: int


class UsageObject(WireObject):
    """Tokens that were read and made."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(WireObject):
    """Why an answer was cut short. `cause` is ours, and exact."""

    reason: Literal["max_output_tokens"] | None
    cause: Literal[
        "max_output_tokens", "cancelled", "disconnected", "server_stopping", "server_restart", "end_not_stored"
    ]


class ResponseFailure(WireObject):
    """Why there is no answer. `cause` is one of our error codes."""

    code: Literal["server_error"]
    message: str
    cause: str


class ContextReport(WireObject):
    """What the model's context held, how many items had no place in it, and the newest of these (at most 100)."""

    max_tokens: int
    dropped_items: int
    dropped_item_ids: list[str]


class ConversationRefObject(WireObject):
    """The conversation that a response is in."""

    id: str


class TextFormat(WireObject):
    """The format of a text."""

    type: Literal["text"]


class TextSettings(WireObject):
    """How text is given."""

    format: TextFormat


class ResponseObject(WireObject):
    """An answer and how it came about. Times are in whole seconds since the epoch."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: ConversationRefObject | None
    store: bool
    temperature: float | None
    text: TextSettings
    tool_choice: Literal["none"]
    tools: list[Json]
    top_logprobs: int | None
    top_p: float | None
    truncation: Literal["auto", "disabled"] | None
    usage: UsageObject | None
    context: ContextReport | None
    continuation_of: str | None


class DeletedResponse(WireObject):
    """A response that was deleted."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputTokens(WireObject):
    """How many tokens a prompt has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class Health(WireObject):
    """The process answers."""

    status: Literal["ok"]


class Readiness(WireObject):
    """The model is loaded and the database can be written."""

    status: Literal["ready"]
