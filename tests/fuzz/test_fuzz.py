"""A few hostile inputs, in the server's own event loop, where its tasks can be counted; `make fuzz` sends 20,000."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from idefics_chat.server.errors import CODES
from idefics_chat.server.logs import hush_others
from tests.fuzz.harness import attack
from tests.fuzz.inputs import EVENTS, SOCKETS, WORDS
from tests.server.live import answering, live_server, next_event, say

pytestmark = pytest.mark.anyio


def open_sockets() -> int:
    """This process's sockets."""
    return sum(
        path.readlink().name.startswith("socket:") for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
    )


QUICK = {"handshake_timeout_s": 1, "body_timeout_s": 1, "stalled_timeout_s": 1, "ping_timeout_s": 1}


async def test_hostile_inputs_break_nothing_leave_nothing_and_harm_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hush_others()
    async with live_server(tmp_path, **QUICK) as live:
        work = asyncio.create_task(answering(live.engine, "one ", "two ", "three"))
        await attack(live.address, 30, seed=0, clients=4)
        await live.until(lambda: not live.server.server_state.connections, 20)
        tasks, sockets = len(asyncio.all_tasks()), open_sockets()
        report = await attack(live.address, 200, seed=1, clients=8)
        await live.until(lambda: not live.server.server_state.connections, 20)
        await live.until(lambda: len(asyncio.all_tasks()) <= tasks + 1)
        work.cancel()
        assert not report.failures, report.failures[:5]
        assert report.streams > 5
        assert sum(report.codes.values()) > 30
        assert open_sockets() <= sockets
        assert live.value("turns_running") == 0
        assert live.value("websocket_connections", route="/v1/responses") == 0
        assert live.value("errors_total", code="server_error") == 0
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def spoilt_event(draw: st.DrawFn) -> dict[str, Any]:
    """An event of the Responses websocket with a field of any value."""
    event = draw(st.sampled_from(EVENTS))
    return {**event, draw(st.sampled_from(sorted(event)) | st.text(max_size=8)): draw(json_values)}


@settings(
    max_examples=3, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(spoilt_event(), min_size=30, max_size=40))
async def test_any_event_is_obeyed_or_refused_for_a_reason_and_the_connection_stays(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, Any]]
) -> None:
    async with live_server(tmp_path_factory.mktemp("fuzz")) as live, live.connect() as socket:
        work = asyncio.create_task(answering(live.engine, "Hi"))
        for event in events:
            await socket.send(json.dumps(event))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    while True:
                        check(json.loads(await socket.recv()), event)
        await say(socket, "Hi", stream_id="last")
        while (answer := await next_event(socket)).get("stream_id") != "last" or answer["type"] != "response.completed":
            check(answer, events)
        work.cancel()


def check(answer: dict[str, Any], sent: Any) -> None:
    if answer["type"] == "error":
        assert answer["code"] in CODES
        assert answer["code"] != "server_error", sent


HALF = '"\\ud800"'


@pytest.mark.parametrize("path", SOCKETS)
async def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(tmp_path: Path, path: str) -> None:
    """It is JSON, and no text: stored or sent on it would break whoever reads it."""
    async with live_server(tmp_path) as live:
        work = asyncio.create_task(answering(live.engine, "Hi"))
        uri = live.url.replace("/v1/responses", path)
        async with connect(uri, proxy=None) as socket:
            if path == "/v1/realtime":
                assert (await next_event(socket))["type"] == "session.created"
            template = json.dumps(
                {"type": "response.create", "input": "HALF"}
                if path == "/v1/responses"
                else {
                    "type": "conversation.item.create",
                    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "HALF"}]},
                }
            )
            await socket.send(template.replace('"HALF"', HALF))
            answer = await next_event(socket)
            assert answer["type"] == "error", answer
            assert answer["error"]["code"] == "invalid_value"
            assert "surrogate" in answer["error"]["message"]
            await socket.send(template.replace('"HALF"', '"\\ud83d\\ude00"'))
            assert (await next_event(socket))["type"] != "error"
        work.cancel()
