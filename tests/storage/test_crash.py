"""A process killed in the middle of writing: what it acknowledged is there, whole and once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idefics_chat.storage.store import Store
from idefics_chat.storage.values import FinishedResponse
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio

WRITER = Path(__file__).with_name("writing_process.py")


def write_and_kill(database: Path, after_s: float) -> list[list[str]]:
    """What a writing process acknowledged before it was killed, `after_s` seconds after its first turn began."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(WRITER), str(database), "8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    return [line.decode().split() for line in lines if line.endswith(b"\n")][1:]


async def check_acknowledged(database: Path, acknowledged: list[list[str]]) -> None:
    store = await Store.open(str(database))
    try:
        owner = await store.owner("ada")
        for what, response_id, *last in acknowledged:
            row = await store.response(owner.id, response_id)
            log = await store.events(response_id)
            assert [event.sequence_number for event in log] == list(range(len(log)))
            assert (await store.item(owner.id, row.input_ids[0]))[1].digests
            if what == "events":
                assert len(log) > int(last[0])
            if what == "finished":
                assert row.status == "completed"
                assert len(log) == 4
                path = [message.id for message in await store.path(row.conversation_id, row.output_id)]
                assert path[-2:] == [*row.input_ids, row.output_id]
                assert len(path) == len(set(path))
        for row in await store.running_responses():
            await store.finish_response(FinishedResponse(row.id, "incomplete", None, 2.0), [])
        assert await store.running_responses() == []
    finally:
        await store.close()


async def test_kill_9_in_mid_write_loses_nothing_acknowledged(database):
    acknowledged: list[list[str]] = []
    for after_s in (0.05, 0.3, 0.6):
        acknowledged += write_and_kill(database, after_s)
        assert verify(database).problems == ()
    assert sum(line[0] == "finished" for line in acknowledged) > 20
    await check_acknowledged(database, acknowledged)
    assert verify(database).problems == ()
