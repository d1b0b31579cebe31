"""The object that a chat completion answers with, as a model. Pure.

See wire_objects.py.
"""

from typing import Literal

from idefics_chat.server.wire_objects import LogprobWithBytes, OutputTokensDetails, WireObject


class PromptTokensDetails(WireObject):
    """Of the tokens of a chat completion's prompt."""

    cached_tokens: int
    image_tokens: int


class CompletionUsage(WireObject):
    """Tokens that a chat completion read and made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: OutputTokensDetails


class CompletionMessage(WireObject):
    """An answer of a chat completion."""

    role: Literal["assistant"]
    content: str
    refusal: None


class CompletionLogprobs(WireObject):
    """Log-probabilities of an answer's tokens."""

    content: list[LogprobWithBytes]
    refusal: None


class CompletionChoice(WireObject):
    """One of a chat completion's answers."""

    index: int
    message: CompletionMessage
    finish_reason: Literal["stop", "length"]
    logprobs: CompletionLogprobs | None


class ChatCompletionObject(WireObject):
    """Answers that are not stored."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
