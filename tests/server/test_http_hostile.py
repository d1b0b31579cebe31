"""Whatever is sent over HTTP is answered: in our shape, never as a fault of ours, and the next request is served."""

import asyncio
import itertools
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idefics_chat.server.errors import CODES
from tests.server.http_world import Json, http_client
from tests.server.world import World

SAID: Json = {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
ASKED: Json = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
BODIES: dict[str, Json] = {
    "/v1/responses": {
        "input": [SAID],
        "model": "scripted",
        "conversation": {"key": "k"},
        "instructions": "",
        "stop": ["x"],
        "metadata": {"a": "b"},
        "stream": True,
        "temperature": 1.0,
        "max_output_tokens": 5,
        "previous_item_id": None,
    },
    "/v1/responses/input_tokens": {"input": [SAID], "previous_response_id": None},
    "/v1/responses/resp_x/cancel": {},
    "/v1/conversations": {"items": [SAID], "metadata": {"a": "b"}},
    "/v1/conversations/conv_x": {"title": "x", "metadata": {"a": "b"}, "archived": False},
    "/v1/conversations/conv_x/items": {"items": [SAID], "previous_item_id": None},
    "/v1/conversations/conv_x/fork": {"previous_item_id": None, "metadata": None},
    "/v1/chat/completions": {
        "messages": [ASKED],
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 1,
        "stop": "x",
        "n": 1,
        "max_tokens": 5,
    },
}
QUERIES: dict[str, tuple[str, ...]] = {
    "/v1/conversations": ("limit", "order", "after", "state"),
    "/v1/conversations/search": ("q", "limit", "offset"),
    "/v1/conversations/conv_x/items": ("limit", "order", "after", "tree", "include[]"),
    "/v1/responses/resp_x": ("stream", "starting_after", "include"),
    "/v1/responses/resp_x/input_items": ("limit", "order", "after"),
}

texts = st.text(max_size=20) | st.sampled_from(
    ["\0", "\ud800", "' OR 1=1 --", '"', "*", "<image>", "data:,", "frame:0"]
)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def spoilt(draw: st.DrawFn, value: Any) -> Any:
    """The value with something in it, however deep, replaced by anything."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: draw(spoilt(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        return [draw(spoilt(value[0])), *value[1:]]
    return draw(json_values)


WorldAt = Callable[[], AbstractAsyncContextManager[World]]
Request = dict[str, Any]
"""What httpx is to send."""


async def send_all(world_at: WorldAt, requests: list[Request]) -> None:
    """Send each to a world in which every answer ends at once, and check what is answered."""
    async with world_at() as world, http_client(world) as client:
        answering = asyncio.create_task(answer_all(world))
        try:
            for request in requests:
                async with asyncio.timeout(10):
                    check(await client.request(**request))
        finally:
            answering.cancel()


async def answer_all(world: World) -> None:
    for number in itertools.count():
        (await world.engine.turn(number)).end()


def check(given: httpx.Response) -> None:
    """Served, or refused in our shape for what the client did."""
    if given.status_code == 200:
        return
    error = given.json()["error"]
    assert given.status_code < 500, error
    assert CODES[error["code"]][0] == given.status_code or given.status_code in (404, 405), error
    assert error["message"].endswith((".", "!"))


hostile = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def many(body: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(body, min_size=15, max_size=25)


@hostile
@given(data=st.data())
@pytest.mark.parametrize("path", BODIES)
def test_any_body_is_served_or_refused_for_a_reason(world_at: WorldAt, path: str, data: st.DataObject) -> None:
    bodies = data.draw(many(spoilt(BODIES[path])))
    sent = [{"method": "POST", "url": path, "content": json.dumps(body).encode()} for body in bodies]
    asyncio.run(send_all(world_at, sent))


@hostile
@given(data=st.data())
@pytest.mark.parametrize("path", QUERIES)
def test_any_query_is_served_or_refused_for_a_reason(world_at: WorldAt, path: str, data: st.DataObject) -> None:
    words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.integers(-(2**70), 2**70).map(str)
    queries = data.draw(many(st.fixed_dictionaries({}, optional=dict.fromkeys(QUERIES[path], words))))
    asyncio.run(send_all(world_at, [{"method": "GET", "url": path, "params": query} for query in queries]))


@hostile
@given(sent=many(st.tuples(st.binary(max_size=60), st.binary(max_size=20))))
def test_any_bytes_and_any_headers_are_refused_for_a_reason(world_at: WorldAt, sent: list[tuple[bytes, bytes]]) -> None:
    requests: list[Request] = [
        {
            "method": "POST",
            "url": "/v1/responses",
            "content": body,
            "headers": [(b"authorization", b"Bearer " + key), (b"idempotency-key", key), (b"content-type", key)],
        }
        for body, key in sent
    ]
    asyncio.run(send_all(world_at, requests))


@pytest.mark.anyio
async def test_an_id_may_be_any_text(world: World) -> None:
    async with http_client(world) as client:
        for wrong in ("%00", "%ff", "..%2f..", "%F0%9F%98%80", "x" * 5000, "'", "%22"):
            for path in (f"/v1/responses/{wrong}", f"/v1/conversations/{wrong}/items/{wrong}", f"/v1/models/{wrong}"):
                given = await client.get(path)
                assert given.status_code == 404
                check(given)
