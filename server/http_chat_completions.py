"""`/v1/chat/completions`: answers that are not stored.

Such an answer belongs to the request that asked for it: when the client goes away, it is cancelled.
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from idefics_chat.inference.requests import Generation, GenerationResult, TextDelta
from idefics_chat.server.chat_completion_objects import (
    CompletionHead,
    Json,
    choices_of,
    chunk_object,
    completion_object,
    finish_reason,
    usage_chunk,
)
from idefics_chat.server.chat_completions_request import CompletionRequest, parse_completion
from idefics_chat.server.errors import as_api_error
from idefics_chat.server.http_access import Admitted, JsonBody, translate
from idefics_chat.server.http_presence import while_connected
from idefics_chat.server.json_text import compact
from idefics_chat.server.sse import DONE, EventStream, data_frame

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])


@router.post("")
async def create_completion(request: Request, caller: Admitted, body: JsonBody) -> Response:
    """An answer to the messages in the request, whole or as a stream of chunks."""
    asked = await translate(request, parse_completion, body)
    head = CompletionHead(caller.chat.new_id("chatcmpl"), caller.chat.model, caller.chat.now())
    generation = await while_connected(request, caller.chat.generate(caller.owner_id, asked.turn))
    if asked.stream:
        return EventStream(completion_frames(generation, head, asked), caller.key, generation.cancel)
    try:
        result = await while_connected(request, _whole(generation))
    finally:
        generation.cancel()
    return JSONResponse(completion_object(head, result, with_logprobs=asked.turn.logprobs is not None))


async def completion_frames(
    generation: Generation, head: CompletionHead, asked: CompletionRequest
) -> AsyncIterator[bytes]:
    """The stream: for each answer a chunk that names the role, its pieces and the reason of its end; then usage if
    asked for, and the end marker. A failure ends it with an `error` object and no marker."""
    no_usage: Json = {"usage": None} if asked.include_usage else {}
    with_logprobs = asked.turn.logprobs is not None
    for index in range(asked.turn.sampling.n):
        yield _frame(chunk_object(head, {"role": "assistant", "content": ""}, index=index) | no_usage)
    try:
        async for piece in generation:
            if isinstance(piece, TextDelta):
                logprobs = piece.logprobs if with_logprobs else None
                yield _frame(
                    chunk_object(head, {"content": piece.text}, index=piece.index, logprobs=logprobs) | no_usage
                )
                continue
            for index, choice in enumerate(choices_of(piece)):
                yield _frame(chunk_object(head, {}, finish_reason(choice), index=index) | no_usage)
            if asked.include_usage:
                yield _frame(usage_chunk(head, piece.usage))
    except Exception as error:  # noqa: BLE001  the status is sent: what went wrong can only be told in the stream
        yield _frame({"error": as_api_error(error).body()})
        return
    yield DONE


async def _whole(generation: Generation) -> GenerationResult:
    async for piece in generation:
        if isinstance(piece, GenerationResult):
            return piece
    raise RuntimeError("the engine ended a generation without a result")


def _frame(value: dict[str, Any]) -> bytes:
    return data_frame(compact(value))
