"""Responses over HTTP: one answer, a stream, in the background; found again, read on, cancelled."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types import responses
from openai.types.responses.input_token_count_response import InputTokenCountResponse

from idefics_chat.server.auth import key_hash, make_key
from tests.server.http_world import Json, answer, http_client, refused
from tests.server.openai_types import check_frame
from tests.server.world import World

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(world) as opened:
        yield opened


async def create(client: httpx.AsyncClient, world: World, *words: str, **fields: Any) -> httpx.Response:
    """A turn in which the model says these words."""
    number = len(world.engine.asked)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.post("/v1/responses", json={"input": "Hi", **fields}))
        group.create_task(answer(world, number, *words))
    return asked.result()


def events_of(stream: str) -> list[Json]:
    """The events of a stream, each checked against the SDK's type and against its frame's name."""
    events = []
    for frame in stream.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check_frame(event)
        events.append(event)
    return events


def a_picture(png: bytes) -> Json:
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"role": "user", "content": [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "?"}]}


async def test_a_response_is_given_when_it_has_ended_and_found_again_as_it_was(
    world: World, client: httpx.AsyncClient
) -> None:
    made = (
        await create(client, world, "Hel", "lo", metadata={"a": "b"}, presence_penalty=0.5, some_new_field=[1])
    ).json()
    response = responses.Response.model_validate(made)
    assert (response.output_text, response.status, response.metadata) == ("Hello", "completed", {"a": "b"})
    assert (await client.get(f"/v1/responses/{made['id']}")).json() == made
    assert world.engine.asked[0].request.sampling.presence_penalty == 0.5


async def test_a_stream_is_the_log_and_ends_without_a_marker(world: World, client: httpx.AsyncClient) -> None:
    streamed = await create(client, world, "Hel", "lo\u2028", stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert "\u2028" not in streamed.text
    events = events_of(streamed.text)
    stored = await world.store.events(events[0]["response"]["id"])
    assert events == [json.loads(event.payload) for event in stored]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello\u2028"


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed"])
async def test_a_stored_response_is_the_one_that_its_last_event_showed(
    world: World, client: httpx.AsyncClient, status: str
) -> None:
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.post("/v1/responses", json={"input": "Hi", "stream": True}))
        generation = await world.engine.turn(0)
        generation.say("Hello")
        {"completed": generation.end, "cancelled": generation.cancel, "failed": generation.fail}[status]()
    last = events_of(asked.result().text)[-1]["response"]
    assert last["status"] == status
    assert (await client.get(f"/v1/responses/{last['id']}")).json() == last


async def test_what_is_wrong_with_a_request_is_an_http_error_even_where_a_stream_is_asked_for(
    world: World, client: httpx.AsyncClient
) -> None:
    cases: list[tuple[Json, int, str, str | None]] = [
        ({"input": ""}, 400, "empty_input", "input"),
        ({"input": 7}, 400, "invalid_value", "input"),
        ({"input": "Hi", "temperature": "hot"}, 400, "invalid_value", "temperature"),
        ({"input": "Hi", "model": "other"}, 404, "model_not_found", "model"),
        ({"input": "Hi", "previous_response_id": "resp_x"}, 404, "previous_response_not_found", "previous_response_id"),
        ({"input": "Hi", "conversation": "conv_x"}, 404, "conversation_not_found", None),
        ({"input": "Hi", "stream": "yes"}, 400, "invalid_value", "stream"),
        ({"input": "Hi", "store": False, "background": True}, 400, "unsupported_value", "background"),
    ]
    for stream in (True, False):
        for body, status, code, param in cases:
            refused(await client.post("/v1/responses", json={"stream": stream, **body}), status, code, param)
    assert (await world.store.conversations(world.owner_id)).items == ()


async def test_a_link_is_never_fetched_and_a_broken_image_is_refused(client: httpx.AsyncClient) -> None:
    for url, code in (
        ("http://127.0.0.1:1/x.png", "invalid_image_url"),
        ("frame:0", "invalid_image_url"),
        ("data:image/png;base64,%%%", "invalid_base64_image"),
        ("data:image/png;base64,aGVsbG8=", "invalid_image"),
    ):
        said = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
        answered = await client.post("/v1/responses", json={"input": said})
        refused(answered, 400, code, "input[0].content[0].image_url")


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"null", b'{"input": NaN}', b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    error = refused(await client.post("/v1/responses", content=body), 400, "invalid_json")
    assert "body" in error["message"]


async def test_a_body_that_is_too_long_is_refused(world: World) -> None:
    async with http_client(world, max_frame_bytes=100) as client:
        refused(await client.post("/v1/responses", content=b"x" * 101), 413, "frame_too_large")
        refused(await client.post("/v1/responses", content=b"x" * 100), 400, "invalid_json")


async def test_in_the_background_a_response_is_given_at_once_and_goes_on(
    world: World, client: httpx.AsyncClient
) -> None:
    made = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
    responses.Response.model_validate(made)
    assert (made["status"], made["background"], made["output"]) == ("in_progress", True, [])
    await answer(world, 0, "Hello")
    assert events_of((await client.get(f"/v1/responses/{made['id']}?stream=true")).text)[-1]["type"] == (
        "response.completed"
    )
    ended = (await client.get(f"/v1/responses/{made['id']}")).json()
    assert (ended["status"], ended["background"]) == ("completed", True)


async def test_a_stream_is_read_on_after_a_number_and_then_live(world: World, client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
    path = f"/v1/responses/{made['id']}"
    async with asyncio.TaskGroup() as group:
        read = group.create_task(client.get(path, params={"stream": "true", "starting_after": 2}))
        await asyncio.sleep(0)
        group.create_task(answer(world, 0, "Hel", "lo"))
    events = events_of(read.result().text)
    assert [event["sequence_number"] for event in events] == list(range(3, 3 + len(events)))
    assert "".join(event.get("delta", "") for event in events) == "Hello"
    assert (
        await client.get(path, params={"stream": "true", "starting_after": events[-1]["sequence_number"]})
    ).text == ""
    for wrong in ("x", "-2"):
        bad = await client.get(path, params={"stream": "true", "starting_after": wrong})
        refused(bad, 400, "invalid_value", "starting_after")


async def test_the_header_s_key_gives_the_first_response_again(world: World, client: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "k"}
    first = await client.post("/v1/responses", json={"input": "Hi", "background": True}, headers=headers)
    await answer(world, 0, "Hello")
    again = await client.post("/v1/responses", json={"input": "Hi", "background": True}, headers=headers)
    assert again.json()["id"] == first.json()["id"]
    assert len(world.engine.asked) == 1
    other = await client.post("/v1/responses", json={"input": "Other"}, headers=headers)
    refused(other, 409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"
    both = await client.post("/v1/responses", json={"input": "Hi", "idempotency_key": "j"}, headers=headers)
    refused(both, 400, "invalid_value", "idempotency_key")


async def test_a_cancel_gives_the_end_with_what_was_said_and_only_what_runs_can_be_cancelled(
    world: World, client: httpx.AsyncClient
) -> None:
    made = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
    (await world.engine.turn(0)).say("Hel")
    cancelled = (await client.post(f"/v1/responses/{made['id']}/cancel")).json()
    responses.Response.model_validate(cancelled)
    assert cancelled["status"] == "cancelled"
    assert cancelled["output"][0]["content"][0]["text"] == "Hel"
    assert (await client.post(f"/v1/responses/{made['id']}/cancel")).json() == cancelled
    ended = (await create(client, world, "Hello")).json()
    refused(await client.post(f"/v1/responses/{ended['id']}/cancel"), 409, "response_not_active", "response_id")


async def test_input_items_come_in_pages_with_image_data_only_where_it_is_asked_for(
    world: World, client: httpx.AsyncClient, png: bytes
) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Look:"}, a_picture(png)]
    made = (await create(client, world, "Yes", input=said)).json()
    path = f"/v1/responses/{made['id']}/input_items"
    newest = (await client.get(path, params={"limit": 2})).json()
    responses.ResponseItemList.model_validate(newest)
    assert [item["content"][-1]["text"] for item in newest["data"]] == ["?", "Look:"]
    assert newest["has_more"]
    picture = newest["data"][0]["content"][0]
    assert (picture["type"], picture["detail"], picture["image_url"]) == ("input_image", "auto", None)
    rest = (await client.get(path, params={"limit": 2, "after": newest["last_id"]})).json()
    assert ([item["role"] for item in rest["data"]], rest["has_more"]) == (["system"], False)
    for name in ("include[]", "include"):
        shown = (await client.get(path, params={name: "message.input_image.image_url"})).json()
        responses.ResponseItemList.model_validate(shown)
        assert shown["data"][0]["content"][0]["image_url"] == a_picture(png)["content"][0]["image_url"]
    oldest = (await client.get(path, params={"order": "asc", "limit": 1})).json()
    assert [item["role"] for item in oldest["data"]] == ["system"]
    for param, wrong in (("limit", 0), ("limit", 101), ("limit", "x"), ("order", "up")):
        refused(await client.get(path, params={param: wrong}), 400, "invalid_value", param)
    refused(await client.get(path, params={"after": "msg_x"}), 404, "item_not_found")


async def test_a_failed_turn_has_no_input_items(world: World, client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
    (await world.engine.turn(0)).fail()
    assert "response.failed" in (await client.get(f"/v1/responses/{made['id']}?stream=true")).text
    page = (await client.get(f"/v1/responses/{made['id']}/input_items")).json()
    responses.ResponseItemList.model_validate(page)
    assert page["data"] == []


async def test_input_tokens_are_those_that_the_turn_then_has_and_nothing_is_stored(
    world: World, client: httpx.AsyncClient, png: bytes
) -> None:
    first = (await create(client, world, "Yes")).json()
    body = {"input": [a_picture(png)], "previous_response_id": first["id"]}
    counted = (await client.post("/v1/responses/input_tokens", json=body)).json()
    InputTokenCountResponse.model_validate(counted)
    conversation = await world.store.conversation(world.owner_id, first["conversation"]["id"])
    assert conversation.tip_id == first["output"][0]["id"]
    turn = (await create(client, world, "No", **body)).json()
    assert turn["usage"]["input_tokens"] == counted["input_tokens"] > first["usage"]["input_tokens"]
    by_key = await client.post("/v1/responses/input_tokens", json={"input": "Hi", "conversation": {"key": "k"}})
    refused(by_key, 400, "unsupported_value", "conversation")


async def test_another_owner_finds_nothing(world: World, client: httpx.AsyncClient) -> None:
    made = (await create(client, world, "Yes")).json()
    key = make_key()
    await world.store.add_key((await world.store.owner("ann")).id, key_hash(key), "ann")
    headers = {"authorization": f"Bearer {key}"}
    for name in ("", "/input_items", "?stream=true"):
        refused(await client.get(f"/v1/responses/{made['id']}{name}", headers=headers), 404, "response_not_found")
    refused(await client.post(f"/v1/responses/{made['id']}/cancel", headers=headers), 404, "response_not_found")


async def test_a_deleted_response_is_gone_and_its_messages_stay(world: World, client: httpx.AsyncClient) -> None:
    made = (await create(client, world, "Hello")).json()
    path = f"/v1/responses/{made['id']}"
    assert (await client.delete(path)).json() == {"id": made["id"], "object": "response", "deleted": True}
    for query in ("", "?stream=true", "/input_items"):
        refused(await client.get(path + query), 404, "response_not_found")
    refused(await client.delete(path), 404, "response_not_found")
    chained = await client.post("/v1/responses", json={"input": "And?", "previous_response_id": made["id"]})
    refused(chained, 404, "previous_response_not_found", "previous_response_id")
    items = (await client.get(f"/v1/conversations/{made['conversation']['id']}/items")).json()
    assert [item["role"] for item in items["data"]] == ["assistant", "user"]


async def test_a_running_response_is_ended_before_it_is_deleted(world: World, client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
    (await world.engine.turn(0)).say("Hel")
    assert (await client.delete(f"/v1/responses/{made['id']}")).status_code == 200
    refused(await client.get(f"/v1/responses/{made['id']}"), 404, "response_not_found")
    items = (await client.get(f"/v1/conversations/{made['conversation']['id']}/items")).json()
    assert items["data"][0]["content"][0]["text"] == "Hel"
