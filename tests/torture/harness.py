"""Kills the real server at random moments while many clients talk, and checks that nothing acknowledged was lost.

A client remembers what it saw: the turns that were acknowledged, the text that was streamed of each, the ends. After
every kill the server is started again and all of it is compared with what the server says and with what the database
holds. A turn that was not acknowledged is sent again under its key and must not be there twice.
"""

import json
import math
import random
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidMessage

from idefics_chat.storage.verify import verify
from tests.end_to_end.client import ANSWER_S, ENDS, Client, Json, message, text_of
from tests.end_to_end.server_process import ServerProcess
from tests.torture.forked_server import END_S, ColdServer, ForkedServer, Zygote

CLIENTS = 6
LONGEST_LIFE_S = 30.0
MOST_ACKNOWLEDGED, MOST_DELTAS = 8, 100
AFTERWARDS_S = 0.05
STARTING_SHARE, STARTING_S = 0.1, (0.0, 0.5)
EPOCH_KILLS = 50
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


class Happenings:
    """What clients saw in one life of the server: turns acknowledged, and pieces of answers streamed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = {"acknowledged": 0, "deltas": 0}

    def saw(self, what: str) -> None:
        """One more."""
        with self._changed:
            self._count[what] += 1
            self._changed.notify_all()

    def wait_for(self, what: str, count: int) -> None:
        """Until there are so many, or a life is over that was too long."""
        with self._changed:
            self._changed.wait_for(lambda: self._count[what] >= count, LONGEST_LIFE_S)


class UncheckedClient(Client):
    """A client that takes frames as they are: their types are checked where nothing is killed, and what counts here is
    what is in them. A slow server is no dead one: it may take its time."""

    def __init__(self, url: str) -> None:
        super().__init__(url, open_timeout=END_S, ping_interval=None)

    def receive(self) -> Json:
        """The next frame."""
        frame: Json = json.loads(self.socket.recv(timeout=ANSWER_S))
        return frame


class TalkingClient:
    """Talks in one conversation until it is told to stop or its line drops; goes on after a restart."""

    def __init__(self, number: int, image: bytes, rng: random.Random) -> None:
        self.conversation_key = f"torture:{number}"
        self.turns: list[Turn] = []
        self.complaint: Exception | None = None
        self.resumed = 0
        self._image = image
        self._rng = rng

    def talk(self, url: str, happenings: Happenings) -> None:
        """Until the server dies. A turn that was under way is read on; one that was not acknowledged is sent again."""
        try:
            with UncheckedClient(url) as client:
                if self.turns and self.turns[-1].end is None:
                    self._finish(client, self.turns[-1], happenings)
                while True:
                    self.turns.append(self._new_turn())
                    self._finish(client, self.turns[-1], happenings)
        except (ConnectionClosed, InvalidMessage, OSError, EOFError):
            return
        except Exception as error:  # noqa: BLE001 (raised again where the clients are waited for)
            self.complaint = error

    def _new_turn(self) -> Turn:
        turn = Turn(f"say {uuid.uuid4().hex}")
        image = [self._image] if self._rng.random() < 0.15 else []
        ramble = {**RAMBLE, "seed": self._rng.randrange(99)} if self._rng.random() < 0.5 else {}
        place = {"conversation": {"key": self.conversation_key}, "idempotency_key": turn.key}
        turn.request = {"input": [message(turn.text, *image)], **place, **ramble}
        return turn

    def _finish(self, client: Client, turn: Turn, happenings: Happenings) -> None:
        if turn.response_id is None:
            client.send("response.create", **turn.request)
        else:
            turn.streamed = ""
            self.resumed += 1
            client.send("response.resume", response_id=turn.response_id)
        for event in client.events():
            if event["type"] == "error":
                raise AssertionError(f"a turn was refused: {event}")
            if event["type"] == "response.created":
                turn.response_id = event["response"]["id"]
                turn.streamed = ""
                happenings.saw("acknowledged")
            if "delta" in event:
                turn.streamed += event["delta"]
                happenings.saw("deltas")
            if event["type"] in ENDS:
                turn.end = event["response"]
                assert turn.end["status"] != "failed", f"a turn failed: {turn.end['error']}"


@dataclass
class Tally:
    """What was checked so far. `starting` kills came while the server started, `cold` ones after a start from
    nothing. `resumed` is how often a stream was read on after a kill, `cut_off` how many answers a kill ended."""

    kills: int = 0
    starting: int = 0
    cold: int = 0
    acknowledged: int = 0
    completed: int = 0
    cut_off: int = 0
    resumed: int = 0

    def with_turns_of(self, clients: list[TalkingClient]) -> "Tally":
        """The tally with what these clients saw."""
        turns = [turn for client in clients for turn in client.turns]
        ends = Counter(turn.end["status"] for turn in turns if turn.end is not None)
        return replace(
            self,
            acknowledged=self.acknowledged + sum(turn.response_id is not None for turn in turns),
            completed=self.completed + ends["completed"],
            cut_off=self.cut_off + ends["incomplete"],
            resumed=self.resumed + sum(client.resumed for client in clients),
        )


class Servers:
    """Starts servers: forked by a zygote where there is one, else each as the command line does."""

    def __init__(self, zygote: Zygote | None) -> None:
        self._zygote = zygote

    @property
    def forks(self) -> bool:
        """Whether there is a zygote."""
        return self._zygote is not None

    def start(self, database: Path, *, cold: bool) -> ServerProcess:
        """A server that is ready, `cold` from nothing. Raises RuntimeError when it does not start."""
        if cold or self._zygote is None:
            return ColdServer(database)
        return ForkedServer(self._zygote, database)

    def kill_while_starting(self, database: Path, after_s: float) -> None:
        """Kill a forked server so long after its start, ready or not: while it mends what the last kill left."""
        assert self._zygote is not None
        process = self._zygote.fork(["serve", "--port", "0", "--database", str(database)])
        with process.stderr:
            threading.Event().wait(after_s)
            process.kill()
            process.wait(END_S)


def torture(
    folder: Path,
    image: bytes,
    kills: int,
    seed: int,
    zygote: Zygote | None = None,
    *,
    until_s: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Kill the server `kills` times, a new database every `EPOCH_KILLS`; the tally. By the monotonic time `until_s` it
    ends in any case, with all that is checked at an end.

    With a zygote the first server of each database is started from nothing and the others are forked; some are killed
    while they start. Without one all are started from nothing.

    Raises:
        AssertionError: something acknowledged was lost, doubled or changed, or a database does not hold together.
    """
    tally = Tally()
    while tally.kills < kills and time.monotonic() < until_s:
        database = folder / f"{tally.kills:05}.db"
        rng = random.Random(seed * 100_003 + tally.kills)
        clients = [TalkingClient(number, image, random.Random(rng.random())) for number in range(CLIENTS)]
        last = min(kills, tally.kills + EPOCH_KILLS)
        cold = True
        while tally.kills < last and time.monotonic() < until_s:
            kill_once(database, clients, Servers(zygote), rng, tally, cold=cold)
            cold = False
            say(str(tally.with_turns_of(clients)))
        check_whole(database, clients, Servers(zygote))
        tally = tally.with_turns_of(clients)
    return tally


def kill_once(
    database: Path, clients: list[TalkingClient], servers: Servers, rng: random.Random, tally: Tally, *, cold: bool
) -> None:
    """A life of the server and its end, and what is there after it."""
    if not cold and servers.forks and rng.random() < STARTING_SHARE:
        servers.kill_while_starting(database, rng.uniform(*STARTING_S))
        tally.starting += 1
    else:
        with servers.start(database, cold=cold) as server:
            seen = snapshot(clients)
            talk_until_killed(server, clients, rng)
        tally.cold += cold or not servers.forks
        check_streams(clients, seen)
    check_database(database, clients)
    tally.kills += 1


def talk_until_killed(server: ServerProcess, clients: list[TalkingClient], rng: random.Random) -> None:
    """All clients talk; the server is killed a moment after so many turns were acknowledged, or pieces of answers
    streamed, as chance wants. Raises what a client has to complain of."""
    happenings = Happenings()
    threads = [threading.Thread(target=client.talk, args=(server.url, happenings)) for client in clients]
    for thread in threads:
        thread.start()
    if rng.random() < 0.5:
        happenings.wait_for("acknowledged", rng.randint(0, MOST_ACKNOWLEDGED))
    else:
        happenings.wait_for("deltas", rng.randint(1, MOST_DELTAS))
    threading.Event().wait(rng.uniform(0, AFTERWARDS_S))
    server.kill()
    for thread in threads:
        thread.join(END_S)
        assert not thread.is_alive(), "a client hangs"
    for client in clients:
        if client.complaint is not None:
            raise client.complaint


def check_whole(database: Path, clients: list[TalkingClient], servers: Servers) -> None:
    """A last start, at which every turn that was acknowledged is read again, a clean stop, and the file verified."""
    with servers.start(database, cold=False) as server:
        for client in clients:
            check_ends(client, server.url)
        assert server.terminate() == 0
    report = verify(database)
    assert report.sound, report.problems


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
    """After the crash, before anything mends it: SQLite's own checks, every acknowledged message once, every answer
    whose end was seen whole."""
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        texts = Counter(text for (text,) in connection.execute("SELECT text FROM message_parts"))
        answers = {
            response_id: (status, text)
            for response_id, status, text in connection.execute(
                "SELECT r.id, r.status, p.text FROM responses r LEFT JOIN message_parts p ON p.message_id = r.output_id"
            )
        }
    for turn in (turn for client in clients for turn in client.turns):
        count = texts[turn.text]
        assert count == 1 if turn.response_id else count <= 1, f"{turn.text} stands {count} times"
        if turn.end is not None:
            status, text = answers[str(turn.response_id)]
            assert (status, text or "") == (turn.end["status"], text_of(turn.end)), turn


def check_ends(client: TalkingClient, url: str) -> None:
    """Every acknowledged turn has one end, the same as its client saw; no turn stands twice under its key."""
    with UncheckedClient(url) as connection:
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
