"""Tasks and batches as clients see them. Pure."""

from typing import Any, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from idefics_chat.conversation.tasks import TaskName
from idefics_chat.inference.requests import FinishReason, Usage
from idefics_chat.inference.task_runner import TaskResult
from idefics_chat.storage.values import BatchStatus


class TaskUsage(BaseModel):
    """Token counts. `cached_tokens` of the `input_tokens` were not computed again, `image_tokens` stand for images."""

    input_tokens: int
    cached_tokens: int
    image_tokens: int
    output_tokens: int
    total_tokens: int


class TaskObject(BaseModel):
    """What came of a task. `category`, `scores` and `log_likelihoods` stand on classifications only: the category that
    was meant, null where the text names none of them, and where they were ranked probabilities that add up to 1, and
    what they were made of."""

    object: Literal["task.result"] = "task.result"
    task: TaskName
    model: str
    text: str
    finish_reason: FinishReason
    usage: TaskUsage
    category: str | None = None
    scores: dict[str, float] | None = None
    log_likelihoods: dict[str, float] | None = None

    # With a return type its JSON schema would be that of any object.
    @model_serializer(mode="wrap")
    def _with_category(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        """Of a classification null is an answer, and stands also where what is null is left out."""
        fields = handler(self)
        return fields | {"category": self.category} if self.task == "classify" else fields


class ErrorBody(BaseModel):
    """What went wrong: a sentence that says what to do, and a stable code."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorObject(BaseModel):
    """The body of every answer that is none."""

    error: ErrorBody


class BatchCounts(BaseModel):
    """How many of a batch's tasks there are, are done, and came to nothing."""

    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    """A batch of tasks. `completed` counts those that gave a result, `failed` those that gave an error."""

    id: str
    object: Literal["task.batch"] = "task.batch"
    status: BatchStatus
    created_at: int = Field(description="Seconds since the epoch.")
    finished_at: int | None = Field(None, description="Seconds since the epoch; null while it runs.")
    request_counts: BatchCounts


class BatchEntry(BaseModel):
    """What came of one task of a batch. `sequence_number` counts entries as they were done, from 0; `index` is the
    task's place in the request, `custom_id` what the client called it."""

    object: Literal["task.batch.result"] = "task.batch.result"
    sequence_number: int
    index: int
    custom_id: str | None = None
    result: TaskObject | None = None
    error: ErrorBody | None = None


class BatchEntries(BaseModel):
    """A page of a batch's results, in the order in which they were done."""

    object: Literal["list"] = "list"
    data: list[BatchEntry]
    has_more: bool


class BatchList(BaseModel):
    """The batches of the caller, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    has_more: bool = False


def task_object(result: TaskResult, task: TaskName, model: str) -> TaskObject:
    """A result as clients see it."""
    return TaskObject(
        task=task,
        model=model,
        text=result.text,
        finish_reason=result.finish_reason,
        usage=TaskUsage(**usage_fields(result.usage)),
        category=result.category,
        scores=result.scores,
        log_likelihoods=result.log_likelihoods,
    )


def result_of(answer: TaskObject) -> TaskResult:
    """The other way round."""
    usage = Usage(**answer.usage.model_dump(exclude={"total_tokens"}))
    return TaskResult(answer.text, answer.finish_reason, usage, answer.category, answer.scores, answer.log_likelihoods)


def usage_fields(usage: Usage) -> dict[str, int]:
    """Token counts, with their sum."""
    return {
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "image_tokens": usage.image_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def request_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a body, whole in itself: what it names is put in the place of the name."""
    schema = model.model_json_schema()
    resolved: dict[str, Any] = _resolved(schema, schema.pop("$defs", {}))
    return resolved


def _resolved(value: Any, known: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_resolved(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    if (name := value.get("$ref")) is not None:
        return _resolved(known[name.rsplit("/", 1)[1]], known)
    return {key: _resolved(item, known) for key, item in value.items() if key != "discriminator"}
