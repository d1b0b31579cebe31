"""The documents of the API: whole, the ones in the repository, and true of what the server answers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from idefics_chat.server.app import create_app
from idefics_chat.server.asyncapi_document import asyncapi_document
from idefics_chat.server.openapi_document import OPERATIONS, openapi_document
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState
from tests.server.http_world import http_client

DOCS = Path(__file__).parents[2] / "docs"
BODILESS = {"/v1/responses/{response_id}/cancel", "/v1/tasks/batches/{batch_id}/cancel"}

Json = dict[str, Any]


def openapi() -> Json:
    return openapi_document(create_app(ServerState(Settings())))


def operations(document: Json) -> list[tuple[str, str, Json]]:
    return [(method, path, op) for path, ops in document["paths"].items() for method, op in ops.items()]


def references(value: Any) -> set[str]:
    """All that is referred to."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(inner) for inner in value.values()))
    return set().union(*(references(inner) for inner in value)) if isinstance(value, list) else set()


def resolves(document: Json, reference: str) -> bool:
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step.replace("~1", "/")) if isinstance(found, dict) else None
    return found is not None


def test_the_documents_in_the_repository_are_those_that_are_served() -> None:
    spec = importlib.util.spec_from_file_location("api_documents", DOCS / "api_documents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.documents().items():
        assert (DOCS / name).read_text() == text, "run: python docs/api_documents.py"


def test_every_endpoint_says_what_it_takes_and_gives() -> None:
    for method, path, operation in operations(openapi()):
        answers = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        assert answers, (method, path)
        schemas = [kind["schema"] for answer in answers for kind in answer.get("content", {}).values()]
        deletes_nothing_to_say = "204" in operation["responses"] or "202" in operation["responses"]
        assert deletes_nothing_to_say or (schemas and all(schemas)), (method, path)
        assert "ErrorAnswer" in json.dumps(operation["responses"]["default"])
        assert "422" not in operation["responses"]
        if method == "post" and path not in BODILESS:
            assert operation["requestBody"]["content"], (method, path)


def test_the_table_of_models_names_endpoints_that_exist() -> None:
    known = {(method, path) for method, path, _ in operations(openapi())}
    assert set(OPERATIONS) <= known


@pytest.mark.parametrize("document", [openapi(), asyncapi_document()], ids=["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(document: Json) -> None:
    assert [reference for reference in references(document) if not resolves(document, reference)] == []


def test_the_asyncapi_document_has_every_event_of_both_websockets() -> None:
    document = asyncapi_document()
    assert document["asyncapi"] == "3.0.0"
    assert {channel["address"] for channel in document["channels"].values()} == {"/v1/responses", "/v1/realtime"}
    for operation in document["operations"].values():
        assert operation["messages"]
        assert resolves(document, operation["channel"]["$ref"])
    kinds = {message["name"] for message in document["components"]["messages"].values()}
    assert {"response.create", "conversation.subscribe", "response.output_text.delta", "response.done"} <= kinds


@pytest.mark.anyio
async def test_both_documents_are_served() -> None:
    async with http_client(None) as client:
        assert (await client.get("/openapi.json")).json() == json.loads((DOCS / "openapi.json").read_text())
        assert (await client.get("/asyncapi.json")).json() == json.loads((DOCS / "asyncapi.json").read_text())
