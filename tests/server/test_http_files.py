"""Uploads over HTTP: kept, listed, shown in turns by their id, given back byte for byte, deleted."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import FileDeleted, FileObject

from idefics_chat.server.auth import key_hash, make_key
from idefics_chat.server.file_objects import MAX_FILENAME_CHARACTERS, plain_name
from tests.server.http_world import Json, answer, http_client, refused
from tests.server.world import World

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(world) as opened:
        yield opened


async def upload(client: httpx.AsyncClient, data: bytes, name: str = "a.png", **fields: Any) -> httpx.Response:
    form = {"purpose": "vision", **fields}
    return await client.post("/v1/files", data=form, files={"file": (name, data, "image/png")})


async def kept(client: httpx.AsyncClient, data: bytes, **fields: Any) -> Json:
    given = await upload(client, data, **fields)
    assert given.status_code == 200, given.text
    FileObject.model_validate(given.json())
    made: Json = given.json()
    return made


def showing(file_id: str) -> list[Json]:
    return [{"role": "user", "content": [{"type": "input_image", "file_id": file_id, "detail": "low"}]}]


async def ask(client: httpx.AsyncClient, world: World, **fields: Any) -> Json:
    number = len(world.engine.asked)
    asking = asyncio.create_task(client.post("/v1/responses", json=fields))
    await answer(world, number, "Yes")
    given = await asking
    assert given.status_code == 200, given.text
    made: Json = given.json()
    return made


async def stranger(world: World) -> dict[str, str]:
    key = make_key()
    await world.store.add_key((await world.store.owner("ann")).id, key_hash(key), "ann")
    return {"authorization": f"Bearer {key}"}


async def test_an_upload_comes_back_byte_for_byte(world: World, client: httpx.AsyncClient, png: bytes) -> None:
    file = await kept(client, png, name="../../ab.png")
    assert (file["bytes"], file["filename"], file["purpose"], file["expires_at"]) == (
        len(png),
        "ab.png",
        "vision",
        None,
    )
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    content = await client.get(f"/v1/files/{file['id']}/content")
    assert (content.content, content.headers["content-type"]) == (png, "image/png")
    assert content.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in content.headers["content-security-policy"]


async def test_a_file_is_shown_in_turns_by_its_id_and_stays_with_them(
    world: World, client: httpx.AsyncClient, png: bytes
) -> None:
    file = await kept(client, png)
    response = await ask(client, world, input=showing(file["id"]))
    (digest,) = world.engine.asked[0].request.prompt.digests
    assert await world.engine.asked[0].request.load_image(digest) == png
    deleted = await client.delete(f"/v1/files/{file['id']}")
    FileDeleted.model_validate(deleted.json())
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
    for path in ("", "/content"):
        refused(await client.get(f"/v1/files/{file['id']}{path}"), 404, "file_not_found")
    items = (await client.get(f"/v1/responses/{response['id']}/input_items")).json()
    shown = items["data"][0]["content"][0]
    assert (await client.get(f"/v1/files/{shown['file_id']}/content")).content == png
    refused(await client.post("/v1/responses", json={"input": showing(file["id"])}), 404, "file_not_found")


async def test_an_image_of_a_message_has_an_id_by_which_it_can_be_shown_again(
    world: World, client: httpx.AsyncClient, png: bytes
) -> None:
    file = await kept(client, png)
    first = await ask(client, world, input=showing(file["id"]))
    items = (await client.get(f"/v1/responses/{first['id']}/input_items")).json()
    shown = items["data"][0]["content"][0]["file_id"]
    FileObject.model_validate((await client.get(f"/v1/files/{shown}")).json())
    await ask(client, world, input=showing(shown))
    assert world.engine.asked[1].request.prompt.digests == world.engine.asked[0].request.prompt.digests
    refused(await client.delete(f"/v1/files/{shown}"), 404, "file_not_found")
    asked = client.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": shown}}]}]},
    )
    refused(await asked, 400, "invalid_image_url", "messages[0].content[0].image_url")


async def test_files_come_in_pages_and_by_their_purpose(client: httpx.AsyncClient, png: bytes) -> None:
    made = [await kept(client, png, purpose=purpose) for purpose in ("vision", "user_data", "vision")]
    page = (await client.get("/v1/files", params={"limit": 2})).json()
    assert [file["id"] for file in page["data"]] == [made[2]["id"], made[1]["id"]]
    assert (page["has_more"], page["last_id"]) == (True, made[1]["id"])
    rest = (await client.get("/v1/files", params={"after": page["last_id"], "limit": 10_000})).json()
    assert [file["id"] for file in rest["data"]] == [made[0]["id"]]
    some = (await client.get("/v1/files", params={"purpose": "user_data", "order": "asc"})).json()
    assert [file["id"] for file in some["data"]] == [made[1]["id"]]
    refused(await client.get("/v1/files", params={"purpose": "mischief"}), 400, "invalid_value", "purpose")
    refused(await client.get("/v1/files", params={"after": "file_x"}), 404, "file_not_found")


async def test_a_file_may_expire(client: httpx.AsyncClient, png: bytes) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = await kept(client, png, **fields)
    assert 4600 <= file["expires_at"] < 4700, "an hour from the world's clock, which began at 1000"
    gone = await client.get(f"/v1/files/{file['id']}")
    refused(gone, 404, "file_not_found")  # the store's clock is the real one
    half = await upload(client, png, **{"expires_after[anchor]": "created_at"})
    refused(half, 400, "invalid_value", "expires_after")
    soon = await upload(client, png, **{**fields, "expires_after[seconds]": "10"})
    refused(soon, 400, "invalid_value", "expires_after[seconds]")


async def test_what_is_no_upload_of_an_image_is_refused(client: httpx.AsyncClient, png: bytes) -> None:
    refused(await upload(client, b"no image"), 400, "invalid_image", "file")
    refused(await upload(client, png[:40]), 400, "invalid_image", "file")
    refused(await upload(client, png, purpose="fine-tune"), 400, "invalid_value", "purpose")
    refused(await client.post("/v1/files", files={"file": png}), 400, "missing_required_parameter", "purpose")
    refused(await client.post("/v1/files", json={}), 400, "invalid_value", "file")
    form = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x\r\n", b"--x\r\n\r\n--x--", b"--x--"):
        given = await client.post("/v1/files", content=body, headers=form)
        assert (given.status_code, given.json()["error"]["param"]) == (400, "file"), body
    given = await client.post("/v1/files", data={"purpose": "vision", "file": "text"}, files={"other": png})
    refused(given, 400, "missing_required_parameter", "file")


async def test_too_much_is_refused_before_it_is_all_there(world: World) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while True:
            sent += 10_000
            yield bytes(10_000)

    async with http_client(world, max_image_bytes=50_000) as client:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        refused(await client.post("/v1/files", content=endless(), headers=headers), 413, "image_too_large", "file")
    assert sent < 500_000


async def test_another_owner_finds_no_file_and_no_image(world: World, client: httpx.AsyncClient, png: bytes) -> None:
    file = await kept(client, png)
    response = await ask(client, world, input=showing(file["id"]))
    items = (await client.get(f"/v1/responses/{response['id']}/input_items")).json()
    headers = await stranger(world)
    for file_id in (file["id"], items["data"][0]["content"][0]["file_id"]):
        for path in ("", "/content"):
            refused(await client.get(f"/v1/files/{file_id}{path}", headers=headers), 404, "file_not_found")
        refused(await client.delete(f"/v1/files/{file_id}", headers=headers), 404, "file_not_found")
        turn = await client.post("/v1/responses", json={"input": showing(file_id)}, headers=headers)
        refused(turn, 404, "file_not_found")
    assert (await client.get("/v1/files", headers=headers)).json()["data"] == []


@given(st.text())
def test_any_file_name_becomes_a_plain_one(name: str) -> None:
    plain = plain_name(name)
    assert 0 < len(plain) <= MAX_FILENAME_CHARACTERS
    assert not set(plain) & {"/", "\\", "\n", "\r", "\0"}
