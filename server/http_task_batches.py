"""`/v1/tasks/batches`: many tasks as one job, with progress, results as they come, and a cancel."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from idefics_chat.server.client_json import WireModel, validate
from idefics_chat.server.errors import ApiError
from idefics_chat.server.http_access import Admitted, JsonBody, translate
from idefics_chat.server.http_tasks import ERRORS, body_of
from idefics_chat.server.json_text import compact
from idefics_chat.server.sse import DONE, EventStream, data_frame
from idefics_chat.server.task_batches import MAX_TASKS, Batches
from idefics_chat.server.task_objects import BatchEntries, BatchList, BatchObject, ErrorObject
from idefics_chat.server.task_requests import TaskCreate, read_task

router = APIRouter(prefix="/v1/tasks/batches", tags=["tasks"])

MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorObject, "description": "There is no such batch."}}


class BatchCreate(BaseModel):
    """Tasks to run as one job; each may carry a `custom_id` of up to 256 characters. One that is not as it should be
    fails alone, with an error among the results."""

    tasks: Annotated[
        list[Annotated[TaskCreate, Field(discriminator="task")]], Field(min_length=1, max_length=MAX_TASKS)
    ]


class _Body(WireModel):
    """The body as it comes: each task is read by itself, so that one that is wrong is the only one to fail."""

    tasks: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_TASKS)]


class _Named(WireModel):
    custom_id: Annotated[str, Field(max_length=256)] | None = None


@router.post("", status_code=202, response_model=BatchObject, responses=ERRORS, openapi_extra=body_of(BatchCreate))
async def create_batch(request: Request, caller: Admitted, body: JsonBody) -> BatchObject:
    """Begin a batch. It runs to its end whether or not the client stays, and goes on after the server was down."""
    tasks = await translate(request, _read_tasks, body)
    return await caller.chat.tasks.batches.create(caller.owner_id, tasks)


@router.get("", response_model=BatchList, responses=ERRORS)
async def list_batches(caller: Admitted) -> BatchList:
    """The caller's batches: those that run, and those that have ended in the last seven days (at most 32)."""
    return BatchList(data=await caller.chat.tasks.batches.all_of(caller.owner_id))


@router.get("/{batch_id}", response_model=BatchObject, responses=ERRORS | MISSING)
async def retrieve_batch(batch_id: str, caller: Admitted) -> BatchObject:
    """How far a batch is."""
    return await caller.chat.tasks.batches.get(caller.owner_id, batch_id)


@router.get(
    "/{batch_id}/results",
    response_model=BatchEntries,
    response_model_exclude_none=True,
    responses=ERRORS | MISSING,
)
async def batch_results(
    batch_id: str,
    caller: Admitted,
    after: Annotated[int, Query(ge=-1, description="Entries numbered above this.")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    stream: Annotated[bool, Query(description="Server-sent events: those there are, then those that come.")] = False,
) -> Any:
    """What is done, in the order in which it was done; `stream=true` goes on to the batch's end."""
    batches = caller.chat.tasks.batches
    if not stream:
        return await batches.page(caller.owner_id, batch_id, after, limit)
    await batches.get(caller.owner_id, batch_id)
    return EventStream(_frames(batches, batch_id, after), caller.key)


@router.post("/{batch_id}/cancel", response_model=BatchObject, responses=ERRORS | MISSING)
async def cancel_batch(batch_id: str, caller: Admitted) -> BatchObject:
    """End a batch; what is done is kept."""
    return await caller.chat.tasks.batches.cancel(caller.owner_id, batch_id)


@router.delete("/{batch_id}", status_code=204, responses=ERRORS | MISSING)
async def delete_batch(batch_id: str, caller: Admitted) -> Response:
    """End a batch and forget its results."""
    await caller.chat.tasks.batches.delete(caller.owner_id, batch_id)
    return Response(status_code=204)


def _read_tasks(body: dict[str, Any]) -> list[tuple[str | None, TaskCreate | ApiError]]:
    """Raises ApiError where the results could not be told apart."""
    return [(_custom_id(value, index), _read_task(value)) for index, value in enumerate(validate(_Body, body).tasks)]


def _read_task(value: dict[str, Any]) -> TaskCreate | ApiError:
    try:
        return read_task(value)
    except ApiError as error:
        return error


def _custom_id(value: dict[str, Any], index: int) -> str | None:
    try:
        return validate(_Named, value).custom_id
    except ApiError as error:
        raise ApiError(error.code, f"tasks[{index}].{error.message}", f"tasks[{index}].custom_id") from None


async def _frames(batches: Batches, batch_id: str, after: int) -> AsyncIterator[bytes]:
    """The entries as they come. A stream that a stopping server ends has no last frame: the batch has not ended."""
    async for entry in batches.follow(batch_id, after):
        yield data_frame(compact(entry.model_dump(exclude_none=True)))
    if not batches.stopping:
        yield DONE
