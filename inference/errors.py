"""The errors of the inference package.

    InferenceError
    ├── ModelLoadError          a checkpoint that cannot be loaded, or cannot hold a conversation
    ├── InvalidSampling         a value of a request out of its range (`param` names it)
    ├── PromptTooLong           a prompt that leaves no room for an answer
    ├── EngineBusy              no place in the queue; `retry_after_s` says when to try again
    ├── EngineStopped           a request to an engine that is stopping
    └── GenerationFailed        the model failed in this request; others go on

Each has a stable `code`; `str()` is a sentence that says what to do.
"""

from typing import ClassVar


class InferenceError(Exception):
    """Base of all errors of this package."""

    code: ClassVar[str] = "server_error"
    param: str | None = None


class ModelLoadError(InferenceError):
    """A checkpoint that cannot be loaded, or that cannot hold a conversation. The message is for the operator."""

    code = "model_not_loaded"


class InvalidSampling(InferenceError):
    """A value of a request out of its range: of its sampling, its stop strings, its bad words, its bounds."""

    code = "invalid_value"

    def __init__(self, param: str, problem: str) -> None:
        super().__init__(param, problem)
        self.param = param
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.param} {self.problem}"


class PromptTooLong(InferenceError):
    """A prompt that leaves no room for an answer. Lengths are in tokens."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, limit_tokens: int) -> None:
        super().__init__(prompt_tokens, limit_tokens)
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens

    def __str__(self) -> str:
        return (
            f"The prompt has {self.prompt_tokens} tokens and the model's context is {self.limit_tokens}; "
            "shorten it or drop older turns."
        )


class EngineBusy(InferenceError):
    """No place in the queue."""

    code = "server_busy"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"The server has as many turns waiting as it takes; try again in {self.retry_after_s:.0f} s."


class EngineStopped(InferenceError):
    """A request to an engine that is stopping."""

    code = "server_stopping"

    def __str__(self) -> str:
        return "The server is stopping; connect again in a moment and repeat the request."


class GenerationFailed(InferenceError):
    """The model failed in this request. The cause is in the server's log, not in the message."""

    code = "server_error"

    def __str__(self) -> str:
        return "The model failed on this request and it was ended; try again, and tell the operator if it recurs."
