"""`/v1/responses` over HTTP: the same turns, logs and objects as on the websocket.

A stored turn belongs to the chat service: a client that goes away, whether it waited for the answer or read its stream,
ends it only where the disconnect policy says so, and can come back for the rest. A turn that still waits for its
conversation is withdrawn.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from idefics_chat.server.client_json import WireModel, validate
from idefics_chat.server.errors import ApiError
from idefics_chat.server.http_access import (
    Admitted,
    Caller,
    JsonBody,
    PageQuery,
    WantedPage,
    WithImages,
    translate,
)
from idefics_chat.server.http_presence import while_connected
from idefics_chat.server.image_urls import image_urls
from idefics_chat.server.item_objects import Json, item_object, list_object
from idefics_chat.server.response_log import ResponseLog
from idefics_chat.server.responses_request import ResponseCreate, parse_body
from idefics_chat.server.sse import ReadingStream
from idefics_chat.server.stored_response import stored_response
from idefics_chat.storage.errors import ItemNotFound

router = APIRouter(prefix="/v1/responses", tags=["responses"])


class HttpCreate(WireModel):
    """What only the HTTP way of creating a response has; the websocket always streams."""

    stream: bool | None = None


class HttpResponseCreate(ResponseCreate, HttpCreate):
    """The body of a request for a response."""


@router.post("")
async def create_response(request: Request, caller: Admitted, body: JsonBody) -> Response:
    """One turn. The answer is its Response: when it has ended, at once with `background`, or as a stream."""
    body = with_idempotency_key(body, request.headers)
    wanted = validate(HttpCreate, body)
    turn = await translate(request, parse_body, body)
    if turn.store:
        responding = caller.chat.turns.respond(caller.owner_id, turn, request.state.body_bytes)
    else:
        responding = caller.chat.unstored().respond(caller.owner_id, turn)
    log = await while_connected(request, responding)
    if wanted.stream:
        return ReadingStream(log.read(), caller.key)
    if turn.background:
        return JSONResponse(await find_response(caller, log.response_id))
    return JSONResponse(await while_connected(request, _final(log)))


@router.post("/input_tokens")
async def count_input_tokens(request: Request, caller: Admitted, body: JsonBody) -> Json:
    """How many tokens the prompt of such a turn has. Nothing is stored."""
    tokens = await caller.chat.count_input_tokens(caller.owner_id, await translate(request, parse_body, body))
    return {"object": "response.input_tokens", "input_tokens": tokens}


@router.get("/{response_id}")
async def retrieve_response(
    response_id: str,
    caller: Admitted,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1)] = -1,
) -> Response:
    """A response as it stands; with `stream` its events above `starting_after`, then those that come."""
    if stream:
        return ReadingStream(await caller.chat.turns.follow(caller.owner_id, response_id, starting_after), caller.key)
    return JSONResponse(await find_response(caller, response_id))


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, caller: Admitted) -> Json:
    """End a running response and give its end. One that was cancelled before is given again."""
    try:
        await caller.chat.turns.cancel(caller.owner_id, response_id)
    except ApiError as error:
        found = await find_response(caller, response_id)
        if error.code == "response_not_active" and found["status"] == "cancelled":
            return found
        raise
    await caller.chat.turns.wait(caller.owner_id, response_id)
    return await find_response(caller, response_id)


@router.delete("/{response_id}")
async def delete_response(response_id: str, caller: Admitted) -> Json:
    """Delete a response and its events; one that runs is cancelled first. Its messages stay in the conversation."""
    try:
        await caller.chat.turns.cancel(caller.owner_id, response_id)
    except ApiError as error:
        if error.code != "response_not_active":
            raise
    await caller.chat.turns.wait(caller.owner_id, response_id)
    await caller.store.delete_response(caller.owner_id, response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items")
async def list_input_items(response_id: str, caller: Admitted, page: WantedPage, with_images: WithImages) -> Json:
    """The messages that the request brought; those of earlier turns are its conversation's."""
    row = await caller.store.response(caller.owner_id, response_id)
    ids, has_more = page_of(row.input_ids, page)
    try:
        messages = [(await caller.store.item(caller.owner_id, item_id))[1] for item_id in ids]
    except ItemNotFound:  # a failed turn leaves no trace of what was said
        return list_object([], False)
    urls = await image_urls(caller, messages) if with_images else {}
    return list_object([item_object(message, urls) for message in messages], has_more)


async def find_response(caller: Caller, response_id: str) -> Json:
    """The stored response. Raises ResponseNotFound, and StorageError where nobody runs it and it cannot be ended."""
    row = await caller.chat.turns.orphans.response(caller.owner_id, response_id)
    answer = (await caller.store.item(caller.owner_id, row.output_id))[1] if row.answered else None
    return stored_response(row, answer)


def with_idempotency_key(body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """The body with the key of the `Idempotency-Key` header as its own.

    Raises:
        ApiError: `invalid_value` where the two differ.
    """
    key = headers.get("idempotency-key")
    if key is None:
        return dict(body)
    if body.get("idempotency_key") not in (None, key):
        message = "The header Idempotency-Key and the field idempotency_key differ; send one of them."
        raise ApiError("invalid_value", message, "idempotency_key")
    return {**body, "idempotency_key": key}


def page_of(ids: tuple[str, ...], page: PageQuery) -> tuple[tuple[str, ...], bool]:
    """The ids of the wanted page of a short list, oldest first, and whether more follow.

    Raises:
        ItemNotFound: `after` is not in the list.
    """
    ordered = ids if page.order == "asc" else ids[::-1]
    if page.after is not None and page.after not in ordered:
        raise ItemNotFound(page.after)
    start = 0 if page.after is None else ordered.index(page.after) + 1
    return ordered[start : start + page.limit], len(ordered) > start + page.limit


async def _final(log: ResponseLog) -> Json:
    """The Response that the log's last event shows, once it is there."""
    with log.read() as events:
        *_, last = [event async for event in events]
    response: Json = json.loads(last.payload)["response"]
    return response
