"""A process that writes turns until it is killed, and says on its standard output what was acknowledged.

    python writing_process.py DATABASE CONVERSATIONS

One line each, written whole: `begun RESPONSE`, `events RESPONSE NUMBER` (the last one), `finished RESPONSE`.
"""

import asyncio
import hashlib
import os
import sys

from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Event, FinishedResponse, NewResponse, StoredImage


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def event(number: int) -> Event:
    return Event(number, "delta", f'{{"sequence_number": {number}}}')


def turn(conversation: str, number: int, parent_id: str | None) -> NewResponse:
    name = f"{conversation}_{number:06}"
    data = f"image {number % 7}".encode() * 500
    image = StoredImage(hashlib.sha256(data).hexdigest(), "image/png", 1, 1, data)
    question = Message(f"msg_{name}_q", "user", (TextPart("?"), ImagePart(image.digest)), parent_id)
    return NewResponse(
        f"resp_{name}", conversation, parent_id, (question,), (image,), f"msg_{name}_a", float(number), {}, name, "h"
    )


async def converse(store: Store, owner_id: str, conversation: str) -> None:
    await store.get_or_create_conversation(owner_id, conversation, id=conversation)
    parent_id = None
    for number in range(1_000_000):
        new = turn(conversation, number, parent_id)
        await store.begin_response(owner_id, new, [event(0)])
        say(f"begun {new.id}")
        await store.append_events(new.id, [event(1), event(2)])
        say(f"events {new.id} 2")
        answer = Message(new.output_id, "assistant", (TextPart("!"),), new.messages[-1].id)
        await store.finish_response(FinishedResponse(new.id, "completed", answer, 1.0), [event(3)])
        say(f"finished {new.id}")
        parent_id = new.output_id


async def main(database: str, conversations: int) -> None:
    store = await Store.open(database)
    owner = await store.owner("ada")
    say("ready")
    async with asyncio.TaskGroup() as group:
        for number in range(conversations):
            group.create_task(converse(store, owner.id, f"conv{os.getpid()}x{number}"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
