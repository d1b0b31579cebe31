"""Kills the real server at random moments while many clients talk, and checks that nothing acknowledged was lost.

A client remembers what it saw: the turns that were acknowledged, the text that was streamed of each, the ends. After
every kill the server is started again and all of it is compared with what the server says and with what the database
holds. A turn that was not acknowledged is sent again under its key and must not be there twice.
"""

import json
import random
import sqlite3
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from idefics_chat.storage.verify import verify
from tests.end_to_end.client import ENDS, Client, message, text_of
from tests.end_to_end.server_process import ServerProcess

CLIENTS = 6
LIFE_S = (0.05, 2.0)
RAMBLE = {"temperature": 2, "repetition_penalty": 10, "max_output_tokens": 120}


@dataclass
class Turn:
    """One turn as its client saw it. `response_id` stands from the acknowledgement on, `end` from its end on."""

    text: str
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    response_id: str | None = None
    streamed: str = ""
    end: dict[str, Any] | None = None
    request: dict[str, Any] = field(default_factory=dict)


class TalkingClient:
    """Talks in one conversation until it is told to stop or its line drops; goes on after a restart."""

    def __init__(self, number: int, image: bytes, rng: random.Random) -> None:
        self.conversation_key = f"torture:{number}"
        self.turns: list[Turn] = []
        self.complaint: AssertionError | None = None
        self._image = image
        self._rng = rng

    def talk(self, url: str) -> None:
        """Until the server dies. A turn that was under way is read on; one that was not acknowledged is sent again."""
        try:
            with Client(url) as client:
                if self.turns and self.turns[-1].end is None:
                    self._finish(client, self.turns[-1])
                while True:
                    self.turns.append(self._new_turn())
                    self._finish(client, self.turns[-1])
        except (ConnectionClosed, OSError, EOFError):
            return
        except AssertionError as error:
            self.complaint = error

    def _new_turn(self) -> Turn:
        turn = Turn(f"say {uuid.uuid4().hex}")
        image = [self._image] if self._rng.random() < 0.3 else []
        ramble = {**RAMBLE, "seed": self._rng.randrange(99)} if self._rng.random() < 0.5 else {}
        place = {"conversation": {"key": self.conversation_key}, "idempotency_key": turn.key}
        turn.request = {"input": [message(turn.text, *image)], **place, **ramble}
        return turn

    def _finish(self, client: Client, turn: Turn) -> None:
        if turn.response_id is None:
            client.send("response.create", **turn.request)
        else:
            turn.streamed = ""
            client.send("response.resume", response_id=turn.response_id)
        for event in client.events():
            if event["type"] == "error":
                raise AssertionError(f"a turn was refused: {event}")
            if event["type"] == "response.created":
                turn.response_id = event["response"]["id"]
                turn.streamed = ""
            turn.streamed += event.get("delta", "")
            if event["type"] in ENDS:
                turn.end = event["response"]
                assert turn.end["status"] != "failed", f"a turn failed: {turn.end['error']}"


@dataclass
class Tally:
    """What was checked so far."""

    kills: int = 0
    acknowledged: int = 0
    completed: int = 0
    cut_off: int = 0


def torture(database: Path, image: bytes, kills: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Tally:
    """Kill the server `kills` times; the tally.

    Raises:
        AssertionError: something acknowledged was lost, doubled or changed, or the database does not hold together.
    """
    rng = random.Random(seed)
    clients = [TalkingClient(number, image, random.Random(seed * 1000 + number)) for number in range(CLIENTS)]
    tally = Tally()
    for kill in range(kills):
        with ServerProcess(database) as server:
            seen = snapshot(clients)
            threads = [threading.Thread(target=client.talk, args=(server.url,)) for client in clients]
            for thread in threads:
                thread.start()
            threading.Event().wait(rng.uniform(*LIFE_S))
            server.kill()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive(), "a client hangs"
            for client in clients:
                if client.complaint is not None:
                    raise client.complaint
        check_streams(clients, seen)
        check_database(database, clients)
        tally.kills = kill + 1
        say(f"{tally.kills} kills, {sum(len(client.turns) for client in clients)} turns, all there")
    with ServerProcess(database) as server:
        for client in clients:
            check_ends(client, server.url)
        assert server.terminate() == 0
    report = verify(database)
    assert report.sound, report.problems
    turns = [turn for client in clients for turn in client.turns]
    tally.acknowledged = sum(turn.response_id is not None for turn in turns)
    tally.completed = sum(turn.end is not None and turn.end["status"] == "completed" for turn in turns)
    tally.cut_off = sum(turn.end is not None and turn.end["status"] == "incomplete" for turn in turns)
    return tally


def snapshot(clients: list[TalkingClient]) -> dict[str, str]:
    """What had been streamed of each answer before this life of the server."""
    return {turn.key: turn.streamed for client in clients for turn in client.turns}


def check_streams(clients: list[TalkingClient], before: dict[str, str]) -> None:
    """An answer that was read again after a restart agrees with what was streamed before it."""
    for client in clients:
        for turn in client.turns:
            if turn.end is not None and turn.key in before:
                streamed, kept = before[turn.key], text_of(turn.end)
                assert streamed.startswith(kept) or kept.startswith(streamed), (streamed, kept)
            if turn.end is not None:
                assert text_of(turn.end) == turn.streamed


def check_database(database: Path, clients: list[TalkingClient]) -> None:
    """After the crash, before anything mends it: SQLite's own checks, and every acknowledged message once."""
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for client in clients:
            for turn in client.turns:
                found = connection.execute(
                    "SELECT count(*) FROM message_parts WHERE text = ?", (turn.text,)
                ).fetchone()[0]
                assert found == 1 if turn.response_id else found <= 1, f"{turn.text} stands {found} times"


def check_ends(client: TalkingClient, url: str) -> None:
    """Every acknowledged turn has one end, the same as its client saw; no turn stands twice under its key."""
    with Client(url) as connection:
        for turn in client.turns:
            if turn.response_id is None:
                continue
            connection.send("response.resume", response_id=turn.response_id)
            events = list(connection.events())
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            end = events[-1]["response"]
            assert "".join(event.get("delta", "") for event in events) == text_of(end)
            if turn.end is None:
                turn.end = end
            assert json.dumps(turn.end, sort_keys=True) == json.dumps(end, sort_keys=True)
