"""Who is let in over HTTP, and how all refusals look."""

import pytest
from openai.types import Model

from idefics_chat.server.auth import key_hash, make_key
from idefics_chat.server.errors import CODES, ApiError
from idefics_chat.server.http_errors import refusal
from tests.server.http_world import http_client, refused
from tests.server.world import World

pytestmark = pytest.mark.anyio


async def test_pages_of_other_sites_and_foreign_host_names_are_refused(world: World) -> None:
    async with http_client(world, allowed_origins=("https://shop.example",)) as client:
        for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
            refused(await client.get("/v1/models", headers=headers), 403, "forbidden_origin")
        for headers in ({}, {"origin": "http://localhost:8000"}, {"origin": "https://shop.example"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_pages_of_an_allowed_origin_may_read_the_answers_and_others_may_not(world: World) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with http_client(world, allowed_origins=("https://shop.example",)) as client:
        for origin, allowed in (("https://shop.example", "https://shop.example"), ("https://evil.example", None)):
            preflight = await client.options("/v1/responses", headers={"origin": origin, **asked})
            assert preflight.headers.get("access-control-allow-origin") == allowed


async def test_without_a_good_key_nothing_is_answered_where_keys_are_needed(world: World) -> None:
    key = make_key()
    ann = await world.store.owner("ann")
    await world.store.add_key(ann.id, key_hash(key), "ann")
    async with http_client(world, require_key=True) as client:
        for headers in ({}, {"authorization": f"Bearer {make_key()}"}, {"authorization": "Bearer sk-x"}):
            answer = await client.get("/v1/models", headers=headers)
            assert refused(answer, 401, "invalid_api_key")["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
        good = await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        assert good.status_code == 200


async def test_a_stranger_is_not_told_whether_the_model_is_loaded() -> None:
    async with http_client(None) as client:
        refused(await client.get("/v1/models"), 503, "model_not_loaded")
        refused(await client.get("/v1/models", headers={"origin": "https://evil.example"}), 403, "forbidden_origin")
        assert (await client.get("/healthz")).status_code == 200
        refused(await client.get("/readyz"), 503, "model_not_loaded")


async def test_unknown_paths_and_methods_are_refused_in_the_same_shape(world: World) -> None:
    async with http_client(world) as client:
        refused(await client.get("/v1/nothing"), 404, "unknown_url")
        refused(await client.delete("/v1/models"), 405, "unknown_url")


async def test_every_answer_has_an_id_of_its_own(world: World) -> None:
    async with http_client(world) as client:
        ids = {(await client.get(path)).headers["x-request-id"] for path in ("/healthz", "/v1/models", "/v1/nothing")}
    assert len(ids) == 3


async def test_a_fault_of_ours_is_told_without_our_inside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(name: str) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(world.store, "owner", fail, raising=True)
    async with http_client(world) as client:
        answer = await client.get("/v1/models")
    assert "hunter2" not in answer.text
    refused(answer, 500, "server_error")


async def test_the_one_model_is_listed_and_found(world: World) -> None:
    async with http_client(world) as client:
        listed = (await client.get("/v1/models")).json()
        assert [Model.model_validate(model).id for model in listed["data"]] == ["scripted"]
        assert (await client.get("/v1/models/scripted")).json() == listed["data"][0]
        refused(await client.get("/v1/models/a/b"), 404, "model_not_found", "model")


def test_clients_are_told_not_to_repeat_what_would_be_refused_again() -> None:
    def retry(code: str) -> str | None:
        return refusal(ApiError(code, "Do this.")).headers.get("x-should-retry")

    assert {code for code in CODES if retry(code) == "false"} == {
        "idempotency_key_reused",
        "response_not_active",
        "already_exists",
        "quota_exceeded",
        "too_many_batches",
    }
