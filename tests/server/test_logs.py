"""Logs: what an operator needs, and nothing of what a user said."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from idefics_chat.server.asker import ASKER, Asker
from idefics_chat.server.logs import QUIET, JsonLines, TextLines, hush_others, log_loop_error
from tests.server.live import LiveServer, answering, events_to_end, live_server, say

pytestmark = pytest.mark.anyio

SECRET = "Xq7secret"


@pytest.fixture(params=["text", "json"])
def logged(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """All that is logged, at every level, as an operator would see it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines() if request.param == "json" else TextLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    others = {name: logging.getLogger(name).level for name in QUIET}
    hush_others()
    yield written
    root.removeHandler(handler)
    root.setLevel(level)
    for name, before in others.items():
        logging.getLogger(name).setLevel(before)


async def talk(live: LiveServer, client: httpx.AsyncClient, text: str) -> None:
    """All the places where a client can write something, as it should be and as it should not."""
    said: dict[str, Any] = {"role": "user", "content": [{"type": "input_text", "text": text}]}
    chat = {"messages": [{"role": "user", "content": text}]}
    await client.post("/v1/responses", json={"input": [said], "metadata": {"a": text}, "conversation": {"key": text}})
    await client.post("/v1/responses", json={"input": [said], "model": text, "instructions": text})
    await client.post("/v1/chat/completions", json=chat)
    await client.post("/v1/responses", content=text.encode())
    await client.get("/v1/conversations/search", params={"q": text})
    for path in ("/v1/responses/", "/v1/conversations/", "/v1/models/", "/"):
        await client.get(path + httpx.URL("/", params={"x": text}).query.decode())
    await client.get("/v1/models", headers={"authorization": f"Bearer {SECRET}", "user-agent": SECRET})
    async with live.connect() as socket:
        await say(socket, text, instructions=text)
        await events_to_end(socket)
        await say(socket, text, model=text)
        await events_to_end(socket)
        await socket.send(text)
        await events_to_end(socket)
        await socket.send(b"\xff" + text.encode())


@settings(
    max_examples=2, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(middle=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=30))
async def test_nothing_that_a_user_says_is_logged(
    tmp_path_factory: pytest.TempPathFactory, logged: io.StringIO, middle: str
) -> None:
    text = f"{SECRET} {middle} {SECRET}"
    async with live_server(tmp_path_factory.mktemp("logs")) as live:
        work = asyncio.create_task(answering(live.engine, text))
        async with httpx.AsyncClient(base_url=f"http://{live.address}", trust_env=False) as client:
            await talk(live, client, text)
        work.cancel()
    assert "a turn ended" in logged.getvalue()
    assert SECRET not in logged.getvalue()


async def test_a_fault_of_ours_is_logged_with_its_place_and_without_its_words(
    tmp_path: Path, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_server(tmp_path) as live:

        async def fail(*_: object, **__: object) -> None:
            raise RuntimeError(SECRET) from ValueError(SECRET)

        monkeypatch.setattr(live.store, "begin_response", fail)
        async with httpx.AsyncClient(base_url=f"http://{live.address}", trust_env=False) as client:
            answer = await client.post("/v1/responses", json={"input": "Hi"})
    assert answer.status_code == 500
    shown = logged.getvalue()
    assert answer.headers["x-request-id"] in shown
    assert "builtins.RuntimeError" in shown
    assert "builtins.ValueError" in shown
    assert "stored_turns.py" in shown
    assert SECRET not in shown + answer.text


def test_an_error_that_nobody_awaited_is_logged_without_its_words(logged: io.StringIO) -> None:
    async def fail() -> None:
        raise KeyError(SECRET)

    async def forget() -> None:
        asyncio.get_running_loop().set_exception_handler(log_loop_error)
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    asyncio.run(forget())
    assert "builtins.KeyError" in logged.getvalue()
    assert SECRET not in logged.getvalue()


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord(
        "x", logging.INFO, "f", 1, message, arguments, None, extra={"fields": extra}
    )


def test_a_line_names_the_request_that_it_is_about() -> None:
    token = ASKER.set(Asker("req_1", "10.0.0.1", "owner_1"))
    try:
        line = json.loads(JsonLines().format(record("%d done", 3, status=200)))
        text = TextLines().format(record("%d done", 3, status=200))
    finally:
        ASKER.reset(token)
    assert line["event"] == "3 done"
    assert (line["request_id"], line["owner_id"], line["status"], line["level"]) == ("req_1", "owner_1", 200, "info")
    assert text.endswith("3 done request_id=req_1 owner_id=owner_1 status=200")


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    assert "\n" not in JsonLines().format(record("a\nb\u2028c", why="x\ny"))
