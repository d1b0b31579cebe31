"""The errors of the conversation package.

    ConversationError
    ├── ImageError
    │   ├── InvalidImage            bytes that are no image of an allowed format
    │   └── ImageTooLarge           more bytes or pixels than allowed
    ├── InvalidMessage              a message that cannot stand in a conversation
    ├── InvalidTask                 a task with nothing to do (`param` names what is wrong)
    ├── UnknownMessage              an id that is not in the tree
    └── ContextLengthExceeded       a prompt that does not fit however much history is dropped

Each has a stable `code`; `str()` is a sentence that says what to do.
"""

from typing import ClassVar


class ConversationError(Exception):
    """Base of all errors of this package."""

    code: ClassVar[str] = "invalid_value"


class InvalidMessage(ConversationError):
    """A message that cannot stand in a conversation: no parts, or parts that its role cannot have."""

    code = "invalid_value"


class InvalidTask(ConversationError):
    """A task that asks for nothing. `param` is the part of it that is wrong."""

    code = "invalid_value"

    def __init__(self, sentence: str, param: str) -> None:
        super().__init__(sentence)
        self.param = param


class UnknownMessage(ConversationError):
    """An id that is not in the tree."""

    code = "item_not_found"

    def __init__(self, message_id: str) -> None:
        super().__init__(message_id)
        self.message_id = message_id

    def __str__(self) -> str:
        return f"There is no item {self.message_id!r} in this conversation; use an id that its items list gives."


class ContextLengthExceeded(ConversationError):
    """The newest turn alone, with the system text, is longer than the model's context.

    Lengths are in tokens.
    """

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, limit_tokens: int) -> None:
        super().__init__(prompt_tokens, limit_tokens)
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens

    def __str__(self) -> str:
        return (
            f"This turn needs {self.prompt_tokens} tokens of prompt and the model has room for {self.limit_tokens}; "
            "shorten the text, send fewer images or lower max_output_tokens."
        )


class ImageError(ConversationError):
    """An image that is refused."""

    code = "invalid_image"


class InvalidImage(ImageError):
    """Bytes that are no whole image of an allowed format."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"This is not an image that can be used: {self.reason}. Send a whole PNG, JPEG, WebP, GIF or BMP file."


class ImageTooLarge(ImageError):
    """More of `unit` ("bytes" or "pixels") than allowed."""

    code = "image_too_large"

    def __init__(self, actual: int, limit: int, unit: str) -> None:
        super().__init__(actual, limit, unit)
        self.actual = actual
        self.limit = limit
        self.unit = unit

    def __str__(self) -> str:
        return f"This image has {self.actual} {self.unit} and at most {self.limit} are allowed; make it smaller."
