"""`/v1/tasks` with the shipped model: right answers about real pictures, and clear refusals."""

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw
from starlette.requests import ClientDisconnect, Request

from idefics_chat.default_model import checkpoint_path
from idefics_chat.inference.engine import create_engine
from idefics_chat.inference.loader import LoadedModel, load_model
from idefics_chat.server.app import create_app
from idefics_chat.server.chat_assembly import open_chat
from idefics_chat.server.http_tasks import router
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState, Services
from idefics_chat.server.task_requests import AskCreate
from idefics_chat.storage.store import Store

pytestmark = pytest.mark.anyio

SHAPES = {"circle": "ellipse", "square": "rectangle"}


def picture(colour: str, shape: str) -> str:
    """A shape on white, as a data URL."""
    image = Image.new("RGB", (224, 224), "white")
    getattr(ImageDraw.Draw(image), SHAPES[shape])((72, 72, 152, 152), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


CIRCLE, SQUARE = picture("red", "circle"), picture("blue", "square")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(checkpoint_path()), dtype="float32", device="cpu")


@pytest.fixture
async def client(loaded: LoadedModel, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(database=str(tmp_path / "chat.db"))
    store = await Store.open(settings.database)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        chat = await stack.enter_async_context(open_chat(store, create_engine(loaded, model_id="shapes"), settings))
        app = create_app(ServerState(settings, Services(store, chat)))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://localhost:8000"))


async def ask(client: httpx.AsyncClient, task: str, **body: Any) -> dict[str, Any]:
    given = await client.post(f"/v1/tasks/{task}", json=body)
    assert given.status_code == 200, given.text
    answer: dict[str, Any] = given.json()
    assert (answer["object"], answer["task"], answer["model"]) == ("task.result", task, "shapes")
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"]
    return answer


async def test_every_task_is_answered_rightly(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "caption", image=CIRCLE))["text"] == "A red circle on a white background."
    prompted = await ask(client, "caption", image=SQUARE, prompt="This is an image of ")
    assert prompted["text"] == "a blue square on a white background."
    assert (await ask(client, "ask", image=CIRCLE, question="What color is it?"))["text"] == "Red."
    named = await ask(client, "classify", image=SQUARE, categories=["circle", "square", "triangle"])
    assert (named["text"], named["category"]) == ("square", "square")
    missed = await ask(client, "classify", image=SQUARE, categories=["cat", "dog"])
    assert missed["category"] is None
    story = await ask(client, "story", image=CIRCLE)
    assert story["text"].startswith("Once upon a time there was a red circle.")
    examples = [{"image": SQUARE, "answer": "A blue square on a white background."}]
    shown = await ask(client, "few-shot", image=CIRCLE, examples=examples)
    assert shown["text"] == "A red circle on a white background."
    went_on = await ask(client, "continue", parts=[{"image": CIRCLE}, {"text": "This is an image of"}])
    assert went_on["text"] == "a red circle on a white background."
    content = [{"text": "What is in this image?"}, {"image": CIRCLE}]
    said = await ask(client, "instruct", messages=[{"role": "user", "content": content}])
    assert said["text"] == "A red circle on a white background."


async def test_ranked_categories_have_probabilities(client: httpx.AsyncClient) -> None:
    body = {"image": CIRCLE, "categories": ["square", "circle", "triangle"], "rank": True}
    ranked = await ask(client, "classify", **body)
    assert next(iter(ranked["scores"])) == ranked["category"] == ranked["text"] == "circle"
    assert sum(ranked["scores"].values()) == pytest.approx(1)
    assert ranked["scores"]["circle"] > 0.9
    by_token = await ask(client, "classify", **body, normalization="tokens")
    assert by_token["category"] == "circle"


async def test_settings_of_the_generation_are_heeded(client: httpx.AsyncClient) -> None:
    short = await ask(client, "caption", image=CIRCLE, max_new_tokens=3)
    assert (short["finish_reason"], short["usage"]["output_tokens"]) == ("length", 3)
    stopped = await ask(client, "caption", image=CIRCLE, stop=[" on"])
    assert stopped["text"] == "A red circle"


REFUSED: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("caption", {}, 400, "missing_required_parameter", "image"),
    ("caption", {"image": 7}, 400, "invalid_value", "image"),
    ("caption", {"image": "photo.png"}, 400, "invalid_image_url", "image.image_url"),
    ("caption", {"image": "data:image/png;base64,AAAA"}, 400, "invalid_image", "image.image_url"),
    ("caption", {"image": "https://example.org/a.png"}, 400, "invalid_image_url", "image.image_url"),
    ("caption", {"image": "file_none"}, 404, "file_not_found", None),
    ("caption", {"image": CIRCLE, "model": "other"}, 404, "model_not_found", "model"),
    ("caption", {"image": CIRCLE, "num_beams": 0}, 400, "invalid_value", "num_beams"),
    ("caption", {"image": CIRCLE, "max_new_tokens": 0}, 400, "invalid_value", "max_new_tokens"),
    ("ask", {"image": CIRCLE, "question": " "}, 400, "invalid_value", "question"),
    ("classify", {"image": CIRCLE, "categories": []}, 400, "invalid_value", "categories"),
    ("few-shot", {"image": CIRCLE, "examples": []}, 400, "invalid_value", "examples"),
    (
        "few-shot",
        {"image": CIRCLE, "examples": [{"image": CIRCLE}]},
        400,
        "missing_required_parameter",
        "examples[0].answer",
    ),
    ("instruct", {"messages": []}, 400, "invalid_value", "messages"),
    ("ask", {"image": CIRCLE, "question": "a" * 200_001}, 400, "invalid_value", "question"),
    ("dance", {"image": CIRCLE}, 404, "unknown_url", None),
]


async def test_what_cannot_be_done_is_refused_for_a_reason(client: httpx.AsyncClient) -> None:
    for task, body, status, code, param in REFUSED:
        given = await client.post(f"/v1/tasks/{task}", json=body)
        assert given.status_code == status, given.text
        error = given.json()["error"]
        assert error["code"] == code, given.text
        assert param is None or error["param"] == param
        assert error["message"].endswith(".")


async def batch(client: httpx.AsyncClient, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    given = await client.post("/v1/tasks/batches", json={"tasks": tasks})
    assert given.status_code == 202, given.text
    made: dict[str, Any] = given.json()
    return made


async def finished(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    while True:
        state: dict[str, Any] = (await client.get(f"/v1/tasks/batches/{batch_id}")).json()
        if state["status"] != "in_progress":
            return state
        await asyncio.sleep(0.02)


async def test_a_batch_of_mixed_tasks_gives_each_its_result_and_goes_on_past_bad_ones(
    client: httpx.AsyncClient,
) -> None:
    tasks = [
        {"task": "caption", "image": CIRCLE, "custom_id": "first"},
        {"task": "ask", "image": SQUARE, "question": "What color is it?"},
        {"task": "caption", "image": "data:image/png;base64,AAAA"},
        {"task": "classify", "image": SQUARE, "categories": ["circle", "square"], "rank": True},
    ]
    made = await batch(client, tasks)
    assert made["status"] == "in_progress"
    state = await finished(client, made["id"])
    assert state["status"] == "completed"
    assert state["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    page = (await client.get(f"/v1/tasks/batches/{made['id']}/results")).json()
    assert [entry["sequence_number"] for entry in page["data"]] == [0, 1, 2, 3]
    by_index = {entry["index"]: entry for entry in page["data"]}
    assert by_index[0]["custom_id"] == "first"
    assert by_index[0]["result"]["text"] == "A red circle on a white background."
    assert by_index[1]["result"]["text"] == "Blue."
    assert by_index[2]["error"]["code"] == "invalid_image"
    assert by_index[3]["result"]["category"] == "square"
    rest = (await client.get(f"/v1/tasks/batches/{made['id']}/results", params={"after": 1, "limit": 1})).json()
    assert [entry["sequence_number"] for entry in rest["data"]] == [2]
    assert rest["has_more"] is True


async def test_an_uploaded_image_can_be_asked_about(client: httpx.AsyncClient) -> None:
    data = base64.b64decode(SQUARE.partition(",")[2])
    uploaded = await client.post("/v1/files", files={"file": ("a.png", data)}, data={"purpose": "vision"})
    file_id = uploaded.json()["id"]
    assert (await ask(client, "caption", image=file_id))["text"] == "A blue square on a white background."
    made = await batch(client, [{"task": "caption", "image": file_id}])
    state = await finished(client, made["id"])
    assert state["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_a_batch_says_too_that_no_category_was_named(client: httpx.AsyncClient) -> None:
    made = await batch(client, [{"task": "classify", "image": SQUARE, "categories": ["cat", "dog"]}])
    await finished(client, made["id"])
    (entry,) = (await client.get(f"/v1/tasks/batches/{made['id']}/results")).json()["data"]
    assert entry["result"]["category"] is None


async def test_a_batch_s_results_can_be_followed_as_they_come(client: httpx.AsyncClient) -> None:
    made = await batch(client, [{"task": "caption", "image": CIRCLE} for _ in range(5)])
    lines: list[str] = []
    url = f"/v1/tasks/batches/{made['id']}/results?stream=true"
    async with client.stream("GET", url) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in stream.aiter_lines() if line]
    assert len(lines) == 6
    assert lines[-1] == "data: [DONE]"


async def test_a_batch_is_cancelled_and_forgotten_on_request(client: httpx.AsyncClient) -> None:
    made = await batch(client, [{"task": "story", "image": CIRCLE} for _ in range(400)])
    state = (await client.post(f"/v1/tasks/batches/{made['id']}/cancel")).json()
    assert state["status"] == "cancelled"
    assert state["request_counts"]["completed"] < 400
    assert [item["id"] for item in (await client.get("/v1/tasks/batches")).json()["data"]] == [made["id"]]
    assert (await client.delete(f"/v1/tasks/batches/{made['id']}")).status_code == 204
    gone = await client.get(f"/v1/tasks/batches/{made['id']}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "batch_not_found")
    # The engine is free again.
    assert (await ask(client, "caption", image=CIRCLE))["text"] == "A red circle on a white background."


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"task": "caption"}, "missing_required_parameter", "image"),
    ({"task": "dance", "image": CIRCLE}, "invalid_value", "task"),
    ({"image": CIRCLE}, "missing_required_parameter", "task"),
    ({"task": "caption", "image": "x.png"}, "invalid_image_url", "image.image_url"),
    ({"task": "caption", "image": CIRCLE, "top_p": 2.0}, "invalid_value", "top_p"),
    ({"task": "caption", "image": CIRCLE, "model": "other"}, "model_not_found", "model"),
    ({"task": "classify", "image": CIRCLE, "categories": []}, "invalid_value", "categories"),
    ({"task": "caption", "image": CIRCLE, "num_beams": 0}, "invalid_value", "num_beams"),
    ({"error": {"code": "mine"}}, "missing_required_parameter", "task"),
]


async def test_a_task_that_is_wrong_fails_alone_and_says_why(client: httpx.AsyncClient) -> None:
    right = {"task": "caption", "image": CIRCLE, "custom_id": "right"}
    named = [{**task, "custom_id": f"wrong {number}"} for number, (task, _, _) in enumerate(WRONG)]
    made = await batch(client, [*named, right])
    state = await finished(client, made["id"])
    assert state["status"] == "completed"
    assert state["request_counts"] == {"total": len(WRONG) + 1, "completed": 1, "failed": len(WRONG)}
    page = (await client.get(f"/v1/tasks/batches/{made['id']}/results")).json()
    entries = {entry["custom_id"]: entry for entry in page["data"]}
    assert entries["right"]["result"]["text"] == "A red circle on a white background."
    for number, (_, code, param) in enumerate(WRONG):
        entry = entries[f"wrong {number}"]
        assert "result" not in entry
        assert (entry["index"], entry["error"]["code"], entry["error"]["param"]) == (number, code, param)
        assert entry["error"]["message"].endswith(".")


UNREADABLE: list[tuple[Any, str, str]] = [
    ([], "invalid_value", "tasks"),
    ({"task": "caption", "image": CIRCLE}, "invalid_value", "tasks"),
    ([{"task": "caption", "image": CIRCLE}, "caption"], "invalid_value", "tasks[1]"),
    ([{"task": "caption", "image": CIRCLE, "custom_id": 7}], "invalid_value", "tasks[0].custom_id"),
]


async def test_a_batch_that_is_no_list_of_tasks_begins_nothing(client: httpx.AsyncClient) -> None:
    for tasks, code, param in UNREADABLE:
        given = await client.post("/v1/tasks/batches", json={"tasks": tasks})
        error = given.json()["error"]
        assert (given.status_code, error["code"], error["param"]) == (400, code, param)
    assert (await client.get("/v1/tasks/batches")).json()["data"] == []


async def test_an_owner_runs_only_so_many_batches_at_once(client: httpx.AsyncClient) -> None:
    stories = [{"task": "story", "image": CIRCLE} for _ in range(200)]
    made = [await batch(client, stories) for _ in range(4)]
    given = await client.post("/v1/tasks/batches", json={"tasks": stories})
    assert (given.status_code, given.json()["error"]["code"]) == (429, "too_many_batches")
    for item in made:
        await client.post(f"/v1/tasks/batches/{item['id']}/cancel")
    assert (await client.post("/v1/tasks/batches", json={"tasks": stories[:1]})).status_code == 202


async def test_the_openapi_document_describes_every_task(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "$defs" not in str(document)
    for task in ("caption", "ask", "classify", "story", "few-shot", "continue", "instruct", "batches"):
        operation = document["paths"][f"/v1/tasks/{task}"]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]
        answer = operation["responses"]["202" if task == "batches" else "200"]
        assert answer["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1] in (
            "TaskObject",
            "BatchObject",
        )
        assert "503" in operation["responses"]


async def test_a_task_ends_when_its_client_goes_away() -> None:
    ended = asyncio.Event()

    class Tasks:
        async def run(self, owner_id: str, create: AskCreate) -> Any:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    caller = SimpleNamespace(owner_id="ann", chat=SimpleNamespace(tasks=Tasks()))
    request = Request({"type": "http", "method": "POST", "headers": [], "state": {"body_bytes": 1}}, receive)
    (endpoint,) = (route.endpoint for route in router.routes if getattr(route, "name", "") == "task_ask")  # type: ignore[attr-defined]
    with pytest.raises(ClientDisconnect):
        await endpoint(request, caller, {"image": CIRCLE, "question": "What?"})
    assert ended.is_set()
