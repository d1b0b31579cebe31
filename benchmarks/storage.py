"""What the store is claimed to do, measured: turns written a second, cost at scale, size on disk.

    python benchmarks/storage.py [--turns N] [--messages N] [--conversations N] [--rounds N] [--folder DIR]

A turn is what a conversation writes: a question and its first events in one transaction, the answer with its token
ids and the last events in another. It is compared with the same store asked by one caller, who waits for each commit
(one commit a write), and with plain `sqlite3` that writes the very same rows, indexes and search entries in a single
transaction. Disks differ: the time of a flush (fdatasync) is printed beside. The best of the rounds counts for each.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from idefics_chat.conversation.messages import ImagePart, Message, TextPart, TokenRecord
from idefics_chat.storage import tree, turns
from idefics_chat.storage.search_terms import segmented
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Event, FinishedResponse, NewResponse, Owner, StoredImage

QUESTION = "What is in this image, and what colour is it?"
ANSWER = "There is a red square on the left and a small blue circle beside it."
PAYLOAD = json.dumps({"type": "response.output_text.delta", "delta": " square", "item_id": "msg_0", "output_index": 0})
FIRST = [Event(number, "response.created", PAYLOAD) for number in range(2)]
LAST = [Event(number, "response.output_text.delta", PAYLOAD) for number in range(2, 8)]
WRITERS = 64
TABLES = ("owners", "conversations", "messages", "message_parts", "responses", "response_events", "owner_usage")


def new_turn(conversation_id: str, number: int, parent_id: str | None) -> NewResponse:
    """A turn whose ids sort by time, as the server's do."""
    question = Message(f"msg_{number:012}q", "user", (TextPart(QUESTION),), parent_id, created_at=float(number))
    output_id = f"msg_{number:012}r"
    return NewResponse(
        f"resp_{number:012}", conversation_id, parent_id, (question,), (), output_id, float(number), {"model": "m"}
    )


async def converse(store: Store, owner: Owner, conversation_id: str, numbers: list[int]) -> None:
    """One writer: turn after turn, each acknowledged before the next."""
    parent_id: str | None = None
    for number in numbers:
        new = new_turn(conversation_id, number, parent_id)
        await store.begin_response(owner.id, new, FIRST)
        record = TokenRecord(tuple(range(20)), "fingerprint")
        answer = Message(new.output_id, "assistant", (TextPart(ANSWER),), new.messages[-1].id, tokens=record)
        finished = FinishedResponse(new.id, "completed", answer, float(number), {"output_tokens": 20})
        await store.finish_response(finished, LAST)
        parent_id = new.output_id


async def store_turns(file: Path, writers: int, turns_each: int) -> float:
    """Acknowledged turns a second."""
    store = await Store.open(str(file))
    owner = await store.owner("ada")
    for writer in range(writers):
        await store.create_conversation(owner.id, id=f"conv_{writer:04}")
    started = time.perf_counter()
    await asyncio.gather(
        *(
            converse(store, owner, f"conv_{writer:04}", [10**9 + writer + writers * n for n in range(turns_each)])
            for writer in range(writers)
        )
    )
    taken = time.perf_counter() - started
    await store.close()
    return writers * turns_each / taken


def raw_turns(source: Path, target: Path) -> float:
    """Turns a second when plain sqlite3 writes the rows of `source` to a new file in one transaction."""
    with closing(sqlite3.connect(source)) as reading:
        made = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'message_search_%' "
        schema = [row[0] for row in reading.execute(f"{made} AND name NOT LIKE 'sqlite%' ORDER BY type = 'trigger'")]
        rows = {name: reading.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
    with closing(sqlite3.connect(target, isolation_level=None)) as writing:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            writing.execute(f"PRAGMA {pragma}")
        for statement in schema:
            writing.execute(statement)
        insert = {name: f"INSERT INTO {name} VALUES ({','.join('?' * len(found[0]))})" for name, found in rows.items()}
        writing.executemany(insert["owners"], rows["owners"])
        writing.executemany(insert["owner_usage"], rows["owner_usage"])
        writing.executemany(insert["conversations"], [(*row[:6], None, *row[7:]) for row in rows["conversations"]])
        messages, parts = {row[0]: row for row in rows["messages"]}, {row[1]: row for row in rows["message_parts"]}
        events: dict[str, list[tuple[object, ...]]] = {}
        for row in rows["response_events"]:
            events.setdefault(row[0], []).append(row)
        owner_id = rows["owners"][0][0]
        started = time.perf_counter()
        writing.execute("BEGIN IMMEDIATE")
        for response in rows["responses"]:
            answer_id = response[6]
            writing.execute(insert["responses"], response)
            for message_id in (*json.loads(response[5]), answer_id):
                part = parts[message_id]
                writing.execute(insert["messages"], messages[message_id])
                writing.execute(insert["message_parts"], part)
                writing.execute(
                    "INSERT INTO message_search (rowid, owner, text) VALUES (?, ?, ?)",
                    (part[0], owner_id, segmented(part[4])),
                )
            writing.executemany(insert["response_events"], events[response[0]])
            writing.execute(
                "UPDATE conversations SET tip_id = ?, updated_at = ? WHERE id = ?", (answer_id, 1.0, response[2])
            )
        writing.execute("COMMIT")
        return len(rows["responses"]) / (time.perf_counter() - started)


def flush_ms(folder: Path) -> float:
    """The median time of a flush of 8 KiB, in milliseconds."""
    times = []
    handle = os.open(folder / "flush", os.O_CREAT | os.O_RDWR)
    for number in range(200):
        os.pwrite(handle, b"x" * 8_192, number * 8_192)
        started = time.perf_counter()
        os.fdatasync(handle)
        times.append(time.perf_counter() - started)
    os.close(handle)
    return 1_000 * statistics.median(times)


def measure_writes(folder: Path, count: int, rounds: int) -> None:
    best = dict.fromkeys(("together", "one", "raw"), 0.0)
    for number in range(rounds):
        file = folder / f"together{number}.db"
        best["together"] = max(best["together"], asyncio.run(store_turns(file, WRITERS, count // WRITERS)))
        one = asyncio.run(store_turns(folder / f"one{number}.db", 1, max(count // 16, 1)))
        best["one"] = max(best["one"], one)
        best["raw"] = max(best["raw"], raw_turns(file, folder / f"raw{number}.db"))
    print(f"flush                       {flush_ms(folder):10.2f} ms")
    print(f"{WRITERS} writers                  {best['together']:10.0f} turns/s")
    print(f"one, a commit a write       {best['one']:10.0f} turns/s   ratio {best['together'] / best['one']:.2f}")
    print(f"sqlite3, one transaction    {best['raw']:10.0f} turns/s   ratio {best['together'] / best['raw']:.2f}")


async def fill_conversation(store: Store, owner: Owner, conversation_id: str, count: int) -> None:
    await store.create_conversation(owner.id, id=conversation_id)
    ids = [f"{conversation_id}_{number:08}" for number in range(count)]
    parents = [None, *ids[:-1]]
    messages = [Message(one, "user", (TextPart(QUESTION),), parent) for one, parent in zip(ids, parents, strict=True)]

    def unit(connection):  # type: ignore[no-untyped-def]
        places: tree.Places = {}
        tree.add_children(places, [(message.parent_id, message.id) for message in messages])
        turns.add_messages(connection, conversation_id, messages, places)
        connection.exec_driver_sql("UPDATE conversations SET tip_id = ? WHERE id = ?", (ids[-1], conversation_id))

    await store._writer.run(unit)


async def fill_list(store: Store, owner: Owner, count: int) -> None:
    def unit(connection):  # type: ignore[no-untyped-def]
        values = [(f"{owner.name}_{n:08}", owner.id, float(n), float(n)) for n in range(count)]
        connection.connection.dbapi_connection.executemany(
            "INSERT INTO conversations (id, owner_id, metadata_json, created_at, updated_at) VALUES (?, ?, '{}', ?, ?)",
            values,
        )

    await store._writer.run(unit)


async def best_ms(call, repeat: int = 60) -> float:  # type: ignore[no-untyped-def]
    """The lower quartile of a call's time, in milliseconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return 1_000 * statistics.quantiles(times, n=4)[0]


async def measure_scale(file: Path, messages: int, conversations: int) -> None:
    store = await Store.open(str(file))
    ada, few, many = [await store.owner(name) for name in ("ada", "few", "many")]
    await fill_conversation(store, ada, "short", 50)
    await fill_conversation(store, ada, "long", messages)
    await fill_list(store, few, 100)
    await fill_list(store, many, conversations)
    short = await best_ms(lambda: store.items(ada.id, "short"))
    long = await best_ms(lambda: store.items(ada.id, "long"))
    middle = await best_ms(lambda: store.items(ada.id, "long", after=f"long_{messages // 3:08}"))
    few_ms = await best_ms(lambda: store.conversations(few.id))
    many_ms = await best_ms(lambda: store.conversations(many.id))
    print(f"last 50 of 50 messages      {short:10.2f} ms")
    print(f"last 50 of {messages:<16} {long:10.2f} ms        ratio {long / short:.2f}")
    print(f"50 in the middle of them    {middle:10.2f} ms        ratio {middle / short:.2f}")
    print(f"newest 50 of 100 convs      {few_ms:10.2f} ms")
    print(f"newest 50 of {conversations:<14} {many_ms:10.2f} ms        ratio {many_ms / few_ms:.2f}")
    await store.close()


async def measure_size(folder: Path, conversations: int = 1_000, images: int = 50, turns_each: int = 3) -> None:
    """Conversations that show images of 20 kB drawn from a few, beside base64 in the message's row."""
    chance = random.Random(7)
    data = [chance.randbytes(20_000) for _ in range(images)]
    store = await Store.open(str(folder / "size.db"))
    owner = await store.owner("ada")
    plain = sqlite3.connect(folder / "plain.db")
    plain.execute("CREATE TABLE messages (id TEXT PRIMARY KEY, conversation_id TEXT, role TEXT, content TEXT)")
    number = 10**9
    for conversation in range(conversations):
        conversation_id, parent_id = f"conv_{conversation:06}", None
        await store.create_conversation(owner.id, id=conversation_id)
        for _ in range(turns_each):
            number += 1
            shown = chance.choice(data)
            image = StoredImage(hashlib.sha256(shown).hexdigest(), "image/png", 1, 1, shown)
            parts = (TextPart(QUESTION), ImagePart(image.digest))
            question = Message(f"msg_{number:012}q", "user", parts, parent_id)
            new = new_turn(conversation_id, number, parent_id)
            new = NewResponse(
                new.id, conversation_id, parent_id, (question,), (image,), new.output_id, new.created_at, new.request
            )
            await store.begin_response(owner.id, new, FIRST)
            answer = Message(new.output_id, "assistant", (TextPart(ANSWER),), question.id)
            await store.finish_response(FinishedResponse(new.id, "completed", answer, 1.0), LAST)
            parent_id = new.output_id
            content = json.dumps([{"text": QUESTION}, {"image": base64.b64encode(shown).decode()}])
            plain.execute("INSERT INTO messages VALUES (?, ?, 'user', ?)", (question.id, conversation_id, content))
            plain.execute("INSERT INTO messages VALUES (?, ?, 'assistant', ?)", (answer.id, conversation_id, ANSWER))
    plain.commit()
    plain.close()
    await store.close()
    ours, theirs = (folder / "size.db").stat().st_size, (folder / "plain.db").stat().st_size
    print(f"{conversations} conversations on disk {ours / 2**20:10.1f} MiB, with events and search")
    print(f"base64 in rows              {theirs / 2**20:10.1f} MiB       ratio {theirs / ours:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12_800, help="turns written by 64 writers")
    parser.add_argument("--messages", type=int, default=100_000, help="messages of the long conversation")
    parser.add_argument("--conversations", type=int, default=100_000, help="conversations of the long list")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the databases are written and removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        measure_writes(folder, arguments.turns, arguments.rounds)
        asyncio.run(measure_scale(folder / "scale.db", arguments.messages, arguments.conversations))
        asyncio.run(measure_size(folder))


if __name__ == "__main__":
    main()
