"""Conversations over HTTP: made, listed, searched, renamed, forked, deleted; their items in pages and as a tree."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types import conversations

from idefics_chat.server.auth import key_hash, make_key
from idefics_chat.storage.values import Limits
from tests.server.http_world import Json, answer, http_client, refused
from tests.server.world import World

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(world) as opened:
        yield opened


async def made(client: httpx.AsyncClient, *texts: str, **fields: Any) -> Json:
    """A new conversation in which user and assistant said these texts in turn."""
    body = {**fields, "items": said(*texts)} if texts else fields
    given = await client.post("/v1/conversations", json=body)
    assert given.status_code == 200, given.text
    conversations.Conversation.model_validate(given.json())
    conversation: Json = given.json()
    return conversation


def said(*texts: str) -> list[Json]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


async def items(client: httpx.AsyncClient, conversation: Json, **query: Any) -> Json:
    given = await client.get(f"/v1/conversations/{conversation['id']}/items", params={"order": "asc", **query})
    assert given.status_code == 200, given.text
    page: Json = given.json()
    conversations.ConversationItemList.model_validate(page)
    return page


def texts(page: Json) -> list[tuple[str, str]]:
    return [(item["role"], item["content"][0]["text"]) for item in page["data"]]


async def ask(client: httpx.AsyncClient, world: World, said: str, answered: str, **fields: Any) -> Json:
    number = len(world.engine.asked)
    begun = await client.post("/v1/responses", json={"input": said, "background": True, **fields})
    assert begun.status_code == 200, begun.text
    await answer(world, number, answered)
    await client.get(f"/v1/responses/{begun.json()['id']}?stream=true")
    response: Json = (await client.get(f"/v1/responses/{begun.json()['id']}")).json()
    return response


async def test_a_conversation_is_made_with_items_and_gone_on_with(world: World, client: httpx.AsyncClient) -> None:
    conversation = await made(client, "My name is Ann.", "Hello Ann.", metadata={"topic": "names"})
    assert conversation["metadata"] == {"topic": "names"}
    await ask(client, world, "Who am I?", "Ann.", conversation=conversation["id"])
    assert texts(await items(client, conversation)) == [
        ("user", "My name is Ann."),
        ("assistant", "Hello Ann."),
        ("user", "Who am I?"),
        ("assistant", "Ann."),
    ]
    assert [run.text for run in world.engine.asked[0].request.prompt.runs if "Ann" in getattr(run, "text", "")]
    assert (await client.get(f"/v1/conversations/{conversation['id']}")).json()["id"] == conversation["id"]


async def test_a_new_conversation_may_be_empty(client: httpx.AsyncClient) -> None:
    assert (await items(client, await made(client)))["data"] == []
    assert (await client.post("/v1/conversations")).status_code == 200


async def test_a_new_conversation_has_its_title_and_may_be_archived(client: httpx.AsyncClient) -> None:
    titled = await made(client, "Hello", title="Greetings")
    assert (titled["title"], titled["archived"]) == ("Greetings", False)
    archived = await made(client, title="", archived=True)
    assert (archived["title"], archived["archived"]) == (None, True)
    listed = (await client.get("/v1/conversations")).json()["data"]
    assert [conversation["title"] for conversation in listed] == ["Greetings"]
    for wrong in ("T" * 501, 7):
        given = await client.post("/v1/conversations", json={"title": wrong})
        refused(given, 400, "invalid_value", "title")


async def test_nothing_is_made_where_something_is_wrong(world: World, client: httpx.AsyncClient) -> None:
    link = [{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/x.png"}]}]
    broken = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8="}]}]
    for body, code, param in (
        ({"items": said("")}, "empty_input", "items"),
        ({"items": link}, "invalid_image_url", "items[0].content[0].image_url"),
        ({"items": broken}, "invalid_image", "items[0].content[0].image_url"),
        ({"items": [{"type": "function_call"}]}, "unsupported_value", "items[0].type"),
        ({"items": "Hi"}, "invalid_value", "items"),
        ({"items": said(*("Hi",) * 101)}, "invalid_value", "items"),
        ({"metadata": {"a": 1}}, "invalid_value", "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "invalid_value", "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
    ):
        refused(await client.post("/v1/conversations", json=body), 400, code, param)
    await world.store.set_limits(world.owner_id, Limits(messages=1))
    over = await client.post("/v1/conversations", json={"items": said("a", "b", "c")})
    refused(over, 429, "quota_exceeded")
    assert over.headers["x-should-retry"] == "false"
    usage = await world.store.usage(world.owner_id)
    assert (usage.conversations, usage.messages) == (0, 0)


async def test_conversations_are_listed_in_pages_newest_first(client: httpx.AsyncClient) -> None:
    ids = [(await made(client, "Hi"))["id"] for _ in range(5)]
    first = (await client.get("/v1/conversations", params={"limit": 3})).json()
    assert ([c["id"] for c in first["data"]], first["has_more"]) == (ids[:1:-1], True)
    rest = (await client.get("/v1/conversations", params={"limit": 3, "after": first["last_id"]})).json()
    assert ([c["id"] for c in rest["data"]], rest["has_more"]) == (ids[1::-1], False)
    for param, wrong in (("limit", 0), ("limit", 101), ("order", "up"), ("state", "gone")):
        refused(await client.get("/v1/conversations", params={param: wrong}), 400, "invalid_value", param)
    refused(await client.get("/v1/conversations", params={"after": "conv_x"}), 404, "conversation_not_found")


async def test_a_conversation_is_changed_in_what_is_given(client: httpx.AsyncClient) -> None:
    conversation = await made(client, metadata={"a": "b"})
    path = f"/v1/conversations/{conversation['id']}"
    assert (await client.post(path, json={"title": "Names"})).json()["metadata"] == {"a": "b"}
    changed = (await client.post(path, json={"metadata": {"c": "d"}, "archived": True})).json()
    assert (changed["title"], changed["metadata"], changed["archived"]) == ("Names", {"c": "d"}, True)
    assert (await client.get("/v1/conversations")).json()["data"] == []
    assert (await client.get("/v1/conversations?state=archived")).json()["data"] == [changed]
    refused(await client.post(path, json={"title": 7}), 400, "invalid_value", "title")
    refused(await client.post("/v1/conversations/conv_x", json={}), 404, "conversation_not_found")


async def test_a_deleted_conversation_is_gone_with_all_that_was_in_it(world: World, client: httpx.AsyncClient) -> None:
    conversation = await made(client)
    response = await ask(client, world, "Hi", "Hello", conversation=conversation["id"])
    path = f"/v1/conversations/{conversation['id']}"
    deleted = (await client.delete(path)).json()
    conversations.ConversationDeletedResource.model_validate(deleted)
    for gone in (path, f"{path}/items"):
        refused(await client.get(gone), 404, "conversation_not_found")
    refused(await client.get(f"{path}/items/{response['output'][0]['id']}"), 404, "item_not_found")
    refused(await client.get(f"/v1/responses/{response['id']}"), 404, "response_not_found")
    refused(await client.delete(path), 404, "conversation_not_found")


async def test_a_conversation_is_not_deleted_in_the_middle_of_a_turn(world: World, client: httpx.AsyncClient) -> None:
    conversation = await made(client)
    await client.post("/v1/responses", json={"input": "Hi", "background": True, "conversation": conversation["id"]})
    refused(await client.delete(f"/v1/conversations/{conversation['id']}"), 409, "conversation_busy")
    await answer(world, 0, "Hello")


async def test_items_come_in_pages_either_way(client: httpx.AsyncClient) -> None:
    conversation = await made(client, "1", "2", "3", "4", "5")
    newest = await items(client, conversation, order="desc", limit=2)
    assert [text for _, text in texts(newest)] == ["5", "4"]
    older = await items(client, conversation, order="desc", limit=3, after=newest["last_id"])
    assert ([text for _, text in texts(older)], older["has_more"]) == (["3", "2", "1"], False)
    path = f"/v1/conversations/{conversation['id']}/items"
    refused(await client.get(path, params={"limit": 101}), 400, "invalid_value", "limit")
    refused(await client.get(path, params={"after": "msg_x"}), 404, "item_not_found")


async def test_items_are_added_and_found_and_their_images_come_back_as_they_were_sent(
    world: World, client: httpx.AsyncClient, png: bytes
) -> None:
    conversation = await made(client, "Hi", "Hello")
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    added = await client.post(
        f"/v1/conversations/{conversation['id']}/items",
        json={"items": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        params={"include[]": "message.input_image.image_url"},
    )
    conversations.ConversationItemList.model_validate(added.json())
    assert added.json()["data"][0]["content"][0]["image_url"] == url
    item_id = added.json()["data"][0]["id"]
    listed = await items(client, conversation)
    assert listed["data"][-1]["id"] == item_id
    path = f"/v1/conversations/{conversation['id']}/items/{item_id}"
    found = (await client.get(path)).json()
    conversations.Message.model_validate(found)
    (part,) = found["content"]
    assert (part["type"], part["detail"], part["image_url"]) == ("input_image", "auto", None)
    assert (await client.get(f"/v1/files/{part['file_id']}/content")).content == png
    shown = (await client.get(path, params={"include": "message.input_image.image_url"})).json()
    assert shown["content"][0]["image_url"] == url
    other = await made(client)
    refused(await client.get(f"/v1/conversations/{other['id']}/items/{item_id}"), 404, "item_not_found")
    unknown = await client.post("/v1/conversations/conv_x/items", json={"items": said("Hi")})
    refused(unknown, 404, "conversation_not_found")
    refused(await client.post(path.rsplit("/", 1)[0], json={}), 400, "missing_required_parameter", "items")


async def test_items_that_are_added_during_a_turn_wait_for_its_answer(world: World, client: httpx.AsyncClient) -> None:
    conversation = await made(client)
    await client.post("/v1/responses", json={"input": "Hi", "background": True, "conversation": conversation["id"]})
    adding = asyncio.create_task(
        client.post(f"/v1/conversations/{conversation['id']}/items", json={"items": said("Later")})
    )
    await asyncio.sleep(0.05)
    assert not adding.done()
    await answer(world, 0, "Hello")
    assert (await adding).status_code == 200
    assert texts(await items(client, conversation)) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Later")]


async def test_the_tree_shows_all_branches_with_what_each_item_follows(world: World, client: httpx.AsyncClient) -> None:
    conversation = await made(client)
    first = await ask(client, world, "Hi", "Hello", conversation=conversation["id"])
    greeting = first["output"][0]["id"]
    for text in ("left", "right"):
        await ask(client, world, text, text, conversation=conversation["id"], previous_item_id=greeting)
    assert [text for _, text in texts(await items(client, conversation))] == ["Hi", "Hello", "right", "right"]
    tree = (await items(client, conversation, tree="true"))["data"]
    assert [item["content"][0]["text"] for item in tree] == ["Hi", "Hello", "left", "left", "right", "right"]
    follows = {item["id"]: item["previous_item_id"] for item in tree}
    assert [follows[item["id"]] for item in tree if item["role"] == "user"] == [None, greeting, greeting]
    path = f"/v1/conversations/{conversation['id']}/items"
    refused(await client.get(path, params={"tree": "true", "order": "desc"}), 400, "unsupported_value", "order")


async def test_a_fork_has_the_items_up_to_one_and_goes_its_own_way(
    world: World, client: httpx.AsyncClient, png: bytes
) -> None:
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    picture = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    source = await made(client, metadata={"a": "b"})
    first = await ask(client, world, picture, "A dot.", conversation=source["id"])  # type: ignore[arg-type]
    await ask(client, world, "More?", "No.", conversation=source["id"])
    body = {"previous_item_id": first["output"][0]["id"]}
    fork = (await client.post(f"/v1/conversations/{source['id']}/fork", json=body)).json()
    conversations.Conversation.model_validate(fork)
    assert fork["metadata"] == {"a": "b"}
    await ask(client, world, "Sure?", "Yes.", conversation=fork["id"])
    await client.delete(f"/v1/conversations/{source['id']}")
    kept = await items(client, fork, **{"include[]": "message.input_image.image_url"})
    assert kept["data"][0]["content"][0]["image_url"] == url
    assert [item["role"] for item in kept["data"]] == ["user", "assistant", "user", "assistant"]
    copied = (await world.store.item(world.owner_id, kept["data"][1]["id"]))[1]
    assert copied.tokens is not None
    whole = (await client.post(f"/v1/conversations/{fork['id']}/fork")).json()
    assert len((await items(client, whole))["data"]) == 4
    bad = await client.post(f"/v1/conversations/{fork['id']}/fork", json={"previous_item_id": "msg_x"})
    refused(bad, 404, "item_not_found")


async def test_search_finds_messages_by_their_words(client: httpx.AsyncClient) -> None:
    conversation = await made(client, "The quick brown fox", "jumps over the lazy dog")
    await made(client, "Nothing of the kind")
    found = (await client.get("/v1/conversations/search", params={"q": "brown fox"})).json()
    [hit] = found["data"]
    assert (hit["conversation_id"], hit["role"], found["has_more"]) == (conversation["id"], "user", False)
    assert [hit["snippet"][start:end] for start, end in hit["marks"]] == ["brown", "fox"]
    first = (await client.get("/v1/conversations/search", params={"q": "the", "limit": 1})).json()
    assert (len(first["data"]), first["has_more"]) == (1, True)
    for wrong in (-1, 2**70):
        far = await client.get("/v1/conversations/search", params={"q": "the", "offset": wrong})
        refused(far, 400, "invalid_value", "offset")
    refused(await client.get("/v1/conversations/search"), 400, "missing_required_parameter", "q")


async def test_another_owner_finds_none_of_it(world: World, client: httpx.AsyncClient) -> None:
    conversation = await made(client, "secret words")
    item_id = (await items(client, conversation))["data"][0]["id"]
    key = make_key()
    await world.store.add_key((await world.store.owner("ann")).id, key_hash(key), "ann")
    headers = {"authorization": f"Bearer {key}"}
    path = f"/v1/conversations/{conversation['id']}"
    for method, url, body in (
        ("GET", path, None),
        ("POST", path, {"title": "Mine"}),
        ("DELETE", path, None),
        ("GET", f"{path}/items", None),
        ("GET", f"{path}/items?tree=true", None),
        ("POST", f"{path}/items", {"items": said("Hi")}),
        ("POST", f"{path}/fork", {}),
    ):
        refused(await client.request(method, url, json=body, headers=headers), 404, "conversation_not_found")
    refused(await client.get(f"{path}/items/{item_id}", headers=headers), 404, "item_not_found")
    for url in ("/v1/conversations", "/v1/conversations/search?q=secret"):
        assert (await client.get(url, headers=headers)).json()["data"] == []


async def test_an_item_is_deleted_and_what_followed_it_follows_the_one_before(client: httpx.AsyncClient) -> None:
    made_one = await made(client, "One", "Two", "Three")
    page = await items(client, made_one)
    second = page["data"][1]["id"]
    given = await client.delete(f"/v1/conversations/{made_one['id']}/items/{second}")
    conversations.Conversation.model_validate(given.json())
    assert given.json()["id"] == made_one["id"]
    assert texts(await items(client, made_one)) == [("user", "One"), ("user", "Three")]
    refused(await client.delete(f"/v1/conversations/{made_one['id']}/items/{second}"), 404, "item_not_found")
    refused(await client.delete(f"/v1/conversations/conv_x/items/{second}"), 404, "conversation_not_found")


async def test_an_item_waits_for_the_turn_before_it_goes(world: World, client: httpx.AsyncClient) -> None:
    begun = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
    conversation = begun["conversation"]
    said = (await items(client, conversation))["data"][0]["id"]
    deleting = asyncio.create_task(client.delete(f"/v1/conversations/{conversation['id']}/items/{said}"))
    await asyncio.sleep(0.05)
    assert not deleting.done()
    await answer(world, 0, "Hello")
    assert (await deleting).status_code == 200
    assert texts(await items(client, conversation)) == [("assistant", "Hello")]
