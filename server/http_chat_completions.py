"""`/v1/chat/completions`: answers that are not stored.

Such an answer belongs to the request that asked for it: when the client goes away, it is cancelled.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from idefics_chat.inference.requests import Generation, GenerationResult, TextDelta
from idefics_chat.server.chat_completion_objects import (
    CompletionHead,
    Json,
    chunk_object,
    completion_object,
    finish_reason,
    usage_chunk,
)
from idefics_chat.server.chat_completions_request import parse_completion
from idefics_chat.server.errors import as_api_error
from idefics_chat.server.http_access import Admitted, JsonBody, translate
from idefics_chat.server.sse import DONE, SSE_HEADERS, SSE_TYPE, data_frame

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])


@router.post("")
async def create_completion(request: Request, caller: Admitted, body: JsonBody) -> Response:
    """An answer to the messages in the request, whole or as a stream of chunks."""
    asked = await translate(request, parse_completion, body)
    head = CompletionHead(caller.chat.new_id("chatcmpl"), caller.chat.model, caller.chat.now())
    generation = await caller.chat.generate(caller.owner_id, asked.turn)
    if asked.stream:
        return OwningStream(completion_frames(generation, head, asked.include_usage), generation)
    return JSONResponse(completion_object(head, await _whole(request, generation)))


class OwningStream(StreamingResponse):
    """A stream that cancels its generation when it is over, also where its first frame was never asked for."""

    def __init__(self, frames: AsyncIterator[bytes], generation: Generation) -> None:
        super().__init__(frames, media_type=SSE_TYPE, headers=SSE_HEADERS)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def completion_frames(generation: Generation, head: CompletionHead, include_usage: bool) -> AsyncIterator[bytes]:
    """The stream: a chunk that names the role, the pieces, the reason of the end, usage if asked for, and the end
    marker. A failure ends it with an `error` object and no marker."""
    no_usage: Json = {"usage": None} if include_usage else {}
    yield _frame(chunk_object(head, {"role": "assistant", "content": ""}) | no_usage)
    try:
        async for piece in generation:
            if isinstance(piece, TextDelta):
                yield _frame(chunk_object(head, {"content": piece.text}) | no_usage)
                continue
            yield _frame(chunk_object(head, {}, finish_reason(piece)) | no_usage)
            if include_usage:
                yield _frame(usage_chunk(head, piece.usage))
    except Exception as error:  # noqa: BLE001  the status is sent: what went wrong can only be told in the stream
        yield _frame({"error": as_api_error(error).body()})
        return
    yield DONE


async def _whole(request: Request, generation: Generation) -> GenerationResult:
    """The end of the answer, at once and cancelled where the client goes away meanwhile."""
    watching = asyncio.create_task(_cancel_when_gone(request, generation))
    try:
        async for piece in generation:
            if isinstance(piece, GenerationResult):
                return piece
        raise RuntimeError("the engine ended a generation without a result")
    finally:
        watching.cancel()
        generation.cancel()


async def _cancel_when_gone(request: Request, generation: Generation) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation.cancel()


def _frame(value: dict[str, Any]) -> bytes:
    return data_frame(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
