"""Errors as clients see them: one shape everywhere, and a closed list of codes.

`CODES` is that list: the HTTP status and the error type of each code. An error of another package becomes an
`ApiError` by its own `code` (`as_api_error`); anything else becomes `server_error` and its cause stays in our log.
"""

from collections.abc import Mapping
from types import MappingProxyType

from idefics_chat.conversation.errors import ConversationError
from idefics_chat.inference.errors import InferenceError
from idefics_chat.storage.errors import StorageError

INVALID, MISSING, CONFLICT, LIMIT, AUTH, FAULT = (
    "invalid_request_error",
    "not_found_error",
    "conflict_error",
    "rate_limit_error",
    "authentication_error",
    "server_error",
)

CODES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "invalid_json": (400, INVALID),
        "invalid_value": (400, INVALID),
        "missing_required_parameter": (400, INVALID),
        "unknown_event": (400, INVALID),
        "unknown_url": (404, INVALID),
        "request_timeout": (408, INVALID),
        "unsupported_value": (400, INVALID),
        "empty_input": (400, INVALID),
        "invalid_base64_image": (400, INVALID),
        "invalid_image": (400, INVALID),
        "invalid_image_url": (400, INVALID),
        "image_too_large": (413, INVALID),
        "image_fetch_failed": (400, INVALID),
        "frame_too_large": (413, INVALID),
        "context_length_exceeded": (400, INVALID),
        "invalid_api_key": (401, AUTH),
        "forbidden_origin": (403, AUTH),
        "insufficient_scope": (403, AUTH),
        "model_not_found": (404, MISSING),
        "conversation_not_found": (404, MISSING),
        "previous_response_not_found": (404, MISSING),
        "response_not_found": (404, MISSING),
        "item_not_found": (404, MISSING),
        "file_not_found": (404, MISSING),
        "batch_not_found": (404, MISSING),
        "conversation_busy": (409, CONFLICT),
        "idempotency_key_reused": (409, CONFLICT),
        "response_not_active": (409, CONFLICT),
        "conversation_already_has_active_response": (409, CONFLICT),
        "response_cancel_not_active": (409, CONFLICT),
        "already_exists": (409, CONFLICT),
        "invalid_archive": (400, INVALID),
        "key_not_found": (404, MISSING),
        "quota_exceeded": (429, LIMIT),
        "too_many_batches": (429, LIMIT),
        "rate_limit_exceeded": (429, LIMIT),
        "server_error": (500, FAULT),
        "server_busy": (503, FAULT),
        "server_stopping": (503, FAULT),
        "model_not_loaded": (503, FAULT),
        "storage_unavailable": (503, FAULT),
    }
)
"""Every code that a client can meet, with its HTTP status and error type."""


class ApiError(Exception):
    """An error for a client: a code of `CODES`, a sentence that says what to do, and the parameter it is about.

    `retry_after_s` is when the same request may be served, where that is known."""

    def __init__(
        self, code: str, message: str, param: str | None = None, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.status, self.type = CODES[code]

    def body(self) -> dict[str, str | None]:
        """The `error` object of HTTP bodies and websocket frames."""
        return {"message": self.message, "type": self.type, "code": self.code, "param": self.param}

    def frame(self) -> dict[str, object]:
        """The websocket error event: nested for newer clients, flat for older ones."""
        return {
            "type": "error",
            "status": self.status,
            "error": self.body(),
            "message": self.message,
            "code": self.code,
            "param": self.param,
            "sequence_number": 0,
        }


def as_api_error(error: Exception) -> ApiError:
    """What to tell a client of any exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConversationError | InferenceError | StorageError) and error.code in CODES:
        retry_after_s = getattr(error, "retry_after_s", None)
        return ApiError(error.code, str(error), getattr(error, "param", None), retry_after_s=retry_after_s)
    return ApiError("server_error", "The server failed on this request; try again, and tell the operator if it recurs.")
