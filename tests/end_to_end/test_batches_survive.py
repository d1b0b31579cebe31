"""A batch of tasks is done once, whatever happens to the server meanwhile."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.server_process import ServerProcess

TASKS = 120
WAIT_S = 50


def test_a_batch_goes_on_after_a_kill_and_a_stop_with_nothing_twice_and_nothing_lost(
    database: Path, red_circle: bytes, blue_square: bytes
) -> None:
    images = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (red_circle, blue_square)]
    tasks = [{"task": "caption", "image": images[n % 2], "custom_id": f"#{n}"} for n in range(TASKS)]
    with ServerProcess(database) as server, httpx.Client(base_url=f"http://{server.address}") as client:
        batch_id = client.post("/v1/tasks/batches", json={"tasks": tasks}).raise_for_status().json()["id"]
        seen = wait_for(client, batch_id, 20)
        server.kill()
    with ServerProcess(database) as server, httpx.Client(base_url=f"http://{server.address}") as client:
        more = wait_for(client, batch_id, len(seen) + 20)
        assert more[: len(seen)] == seen
        followed = []
        with client.stream("GET", f"/v1/tasks/batches/{batch_id}/results?stream=true", timeout=WAIT_S) as stream:
            for line in filter(None, stream.iter_lines()):
                followed.append(json.loads(line.removeprefix("data: ")))  # no last frame: the batch does not end
                if len(followed) == len(more):
                    assert server.terminate() == 0
        assert followed[: len(more)] == more
    with ServerProcess(database) as server, httpx.Client(base_url=f"http://{server.address}") as client:
        entries = wait_for(client, batch_id, TASKS)
        assert entries[: len(followed)] == followed
        state = client.get(f"/v1/tasks/batches/{batch_id}").json()
    assert state["status"] == "completed"
    assert state["request_counts"] == {"total": TASKS, "completed": TASKS, "failed": 0}
    assert [entry["sequence_number"] for entry in entries] == list(range(TASKS))
    assert sorted(entry["index"] for entry in entries) == list(range(TASKS))
    for entry in entries:
        shape = ("red circle", "blue square")[entry["index"] % 2]
        assert entry["custom_id"] == f"#{entry['index']}"
        assert entry["result"]["text"] == f"A {shape} on a white background."


def wait_for(client: httpx.Client, batch_id: str, count: int) -> list[dict[str, Any]]:
    """The batch's results, once there are so many."""
    deadline = time.monotonic() + WAIT_S
    while True:
        page = client.get(f"/v1/tasks/batches/{batch_id}/results", params={"limit": 1000}).raise_for_status().json()
        if len(page["data"]) >= count:
            found: list[dict[str, Any]] = page["data"]
            return found
        assert time.monotonic() < deadline, f"{len(page['data'])} of {count} in time"
        time.sleep(0.05)
