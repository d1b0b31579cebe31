"""A server that asks tasks to wait: heeded, told of once a wait, on standard error alone."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from typer.testing import CliRunner

from idefics_chat.cli.main import app
from idefics_chat.cli.task_progress import QUIET_S, WaitTeller
from idefics_chat.conversation.tasks import Caption
from idefics_chat.inference.requests import Usage
from idefics_chat.inference.task_runner import Order, TaskResult
from idefics_chat.server.task_objects import task_object
from idefics_chat.tasks import remote
from idefics_chat.tasks.remote import RemoteRunner, ServerError
from tests.api.pictures import save_pictures
from tests.api.terminal import COMMAND, on_a_terminal

CAPTION = task_object(TaskResult("A circle.", "stop", Usage(4, output_tokens=2)), "caption", "far").model_dump(
    mode="json"
)
TOO_FAST = "ann has asked for 9 turns within a minute; try again in 20 s."


def refusal(code: str, message: str, status: int, retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx.Response(status, json={"error": {"code": code, "message": message}}, headers=headers)


async def run(answers: list[httpx.Response], waits: list[ServerError], *, patient: bool = True) -> str:
    """What a caption comes to where the server gives these answers one after another."""
    left = iter(answers)

    async def image(_: str) -> bytes:
        return b"pixels"

    transport = httpx.MockTransport(lambda _: next(left))
    async with RemoteRunner("http://far", on_wait=waits.append, transport=transport) as runner:
        return (await runner.run(Order(Caption("0" * 64), image), patient=patient)).text


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was slept; no time passes."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(remote.asyncio, "sleep", sleep)
    return slept


@pytest.mark.parametrize(
    ("status", "retry_after", "named", "pause"),
    [
        (429, "20", 20.0, 20.0),
        (429, "40000", 40_000.0, remote.LONGEST_WAIT_S),
        (429, "0", 0.0, 1.0),
        (429, None, None, 1.0),
        (429, "Fri, 31 Dec 2049 23:59:59 GMT", None, 1.0),
        (429, "-5", None, 1.0),
        (429, "9" * 5000, None, 1.0),
        (503, "20", 20.0, 1.0),
        (503, None, None, 1.0),
    ],
)
def test_a_limit_is_waited_out_and_a_place_in_the_queue_asked_for_again(
    pauses: list[float], status: int, retry_after: str | None, named: float | None, pause: float
) -> None:
    waits: list[ServerError] = []
    answers = [refusal("rate_limit_exceeded", TOO_FAST, status, retry_after), httpx.Response(200, json=CAPTION)]
    assert asyncio.run(run(answers, waits)) == "A circle."
    assert [wait.retry_after_s for wait in waits] == [named]
    assert pauses == [pause]


@pytest.mark.parametrize(
    ("answer", "patient"),
    [
        (refusal("rate_limit_exceeded", TOO_FAST, 429, "20"), False),
        (refusal("server_stopping", "The server is stopping.", 503, "20"), True),
        (refusal("invalid_image", "No.", 400), True),
    ],
)
def test_who_is_not_patient_and_what_cannot_be_waited_out_is_refused_at_once(
    pauses: list[float], answer: httpx.Response, patient: bool
) -> None:
    waits: list[ServerError] = []
    with pytest.raises(ServerError):
        asyncio.run(run([answer], waits, patient=patient))
    assert waits == pauses == []


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capfd.readouterr()
    assert out == ""
    return err.splitlines()


def test_many_tasks_in_one_wait_are_one_line_and_the_next_wait_is_another(capfd: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    teller = WaitTeller(lambda: now_s)
    too_fast = ServerError("rate_limit_exceeded", TOO_FAST, 429, retry_after_s=50)
    busy = ServerError("server_busy", "The server has as many turns waiting as it takes; try again in 1 s.", 503)
    for _ in range(32):
        teller(too_fast)
    assert told(capfd) == ["ann has asked for 9 turns within a minute; waiting 50 s."]
    teller(busy)
    assert told(capfd) == ["The server has as many turns waiting as it takes; waiting."]
    now_s = QUIET_S - 1
    teller(busy)
    assert told(capfd) == []
    now_s = QUIET_S
    teller(too_fast)
    teller(busy)
    assert told(capfd) == ["The server has as many turns waiting as it takes; waiting."]
    now_s = 50.0
    teller(too_fast)
    assert told(capfd) == ["ann has asked for 9 turns within a minute; waiting 50 s."]


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "1 s"), (120, "120 s"), (121, "3 min"), (20_000, "6 h")])
def test_how_long_is_said_for_people(capfd: pytest.CaptureFixture[str], seconds: float, shown: str) -> None:
    WaitTeller()(ServerError("quota_exceeded", "All is\x1b[2J\nused.", 429, retry_after_s=seconds))
    assert told(capfd) == [f"All is [2J used; waiting {shown}."]


class BusyAtFirst(BaseHTTPRequestHandler):
    """A server that asks the first tasks to wait."""

    refusals: ClassVar[int] = 0

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "far"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if BusyAtFirst.refusals > 0:
            BusyAtFirst.refusals -= 1
            self._answer(429, {"error": {"code": "rate_limit_exceeded", "message": TOO_FAST}}, {"retry-after": "1"})
        else:
            self._answer(200, CAPTION)

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def busy_server() -> Iterator[str]:
    """Its URL; it refuses two requests."""
    BusyAtFirst.refusals = 2
    with ThreadingHTTPServer(("127.0.0.1", 0), BusyAtFirst) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_on_a_terminal_the_line_stands_above_the_bar(tmp_path: Path, busy_server: str) -> None:
    save_pictures(tmp_path)
    (tmp_path / "jobs.jsonl").write_text('{"task": "caption", "image": "photo.png"}\n' * 2)
    shown = on_a_terminal([*COMMAND, "batch", "jobs.jsonl", "-o", "out.jsonl", "--server", busy_server], tmp_path)
    assert re.search(r"(\r\x1b\[2K|\n)ann has asked for 9 turns within a minute; waiting 1 s\.\s*\r\n", shown), shown


@pytest.mark.parametrize(
    "words",
    [["batch", "jobs.jsonl"], ["batch", "jobs.jsonl", "-o", "out.jsonl"], ["caption", "photo.png", "square.png"]],
)
def test_a_command_says_that_its_server_asks_to_wait_and_says_it_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_server: str, words: list[str]
) -> None:
    save_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.jsonl").write_text('{"task": "caption", "image": "photo.png"}\n' * 2)
    done = CliRunner().invoke(app, [*words, "--server", busy_server])
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0] == "ann has asked for 9 turns within a minute; waiting 1 s."
    assert done.stderr.count("waiting") == 1
    assert "waiting" not in done.stdout
    assert done.stdout.count("A circle.") == (0 if "-o" in words else 2)
