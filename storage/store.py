"""The store: what the rest of the house sees of the database.

Every call that writes returns only once its work is committed and flushed to the disk. Every call that takes an owner
answers about another owner's things, and about deleted ones, exactly as about things that do not exist. All calls
raise DatabaseUnavailable when the database cannot be used.

It knows nothing of the model, of prompts or of the wire; ids come from the caller.
"""

import contextlib
from collections.abc import Mapping, Sequence

from idefics_chat.conversation.messages import Message
from idefics_chat.storage import accounts, reads, rows, turns
from idefics_chat.storage.batch_store import BatchStore
from idefics_chat.storage.errors import ConversationNotFound, OwnerNotFound
from idefics_chat.storage.library import PAGE, Library, page_size
from idefics_chat.storage.listing import page
from idefics_chat.storage.values import (
    Conversation,
    Event,
    FinishedResponse,
    Key,
    NewResponse,
    Owner,
    Page,
    ResponseRow,
    StoredImage,
)


class Store(Library, BatchStore):
    """The database, opened. Make it with `open`, end it with `close`. `clock` gives seconds since the epoch."""

    # owners and keys

    async def owner(self, name: str) -> Owner:
        """The owner of that name, made if there is none. Raises InvalidName where it would have to be made."""
        with contextlib.suppress(OwnerNotFound):  # as a rule there is one: nothing need wait for the writer
            return await self.known_owner(name)
        return await self._write(accounts.get_or_create_owner, name, self._clock())

    async def known_owner(self, name: str) -> Owner:
        """The owner of that name. Raises OwnerNotFound."""
        async with self._read() as connection:
            found = await accounts.OWNER_BY_NAME.fetch(connection, {"name": name})
        if not found:
            raise OwnerNotFound(name)
        return Owner(*found[0])

    async def owners(self, *, limit: int = PAGE, after: str = "") -> Page[Owner]:
        """Owners by their names; the page that follows the name `after`."""
        values = {"after": after, "limit": page_size(limit) + 1}
        async with self._read() as connection:
            found = (await connection.execute(accounts.OWNERS, values)).all()
        return page([Owner(*row) for row in found], page_size(limit))

    async def owner_of_key(self, key_hash: str) -> Owner | None:
        """Whom a key acts for, None when it is unknown, expired or revoked."""
        async with self._read() as connection:
            found = await accounts.OWNER_BY_KEY.fetch(connection, {"key_hash": key_hash, "now": self._clock()})
        return Owner(*found[0]) if found else None

    async def add_key(
        self,
        owner_id: str,
        key_hash: str,
        name: str,
        *,
        scopes: Sequence[str] = (),
        expires_at: float | None = None,
    ) -> None:
        """Let a key, by its hash, act for the owner.

        Raises AlreadyExists when the hash is known, InvalidName and InvalidExpiry.
        """
        await self._write(accounts.add_key, owner_id, key_hash, name, tuple(scopes), expires_at, self._clock())

    async def key(self, key_hash: str) -> Key | None:
        """What is known of a key, also of one that no longer works; None for an unknown one."""
        async with self._read() as connection:
            found = await accounts.KEY.fetch(connection, {"key_hash": key_hash})
        return rows.read_key(found[0]) if found else None

    async def keys(self, owner_id: str) -> list[Key]:
        """The owner's keys, oldest first, with those that no longer work."""
        async with self._read() as connection:
            return [
                rows.read_key(row) for row in (await connection.execute(accounts.KEYS, {"owner_id": owner_id})).all()
            ]

    async def revoke_key(self, owner_id: str, name: str) -> int:
        """End the owner's keys of that name; how many. Raises KeyNotFound when none of them still worked."""
        return await self._write(accounts.revoke_key, owner_id, name, self._clock())

    # conversations

    async def create_conversation(
        self,
        owner_id: str,
        *,
        external_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        id: str,
    ) -> Conversation:
        """A new conversation. Raises AlreadyExists when its id, or its key for this owner, is taken."""
        return await self._write(accounts.create_conversation, owner_id, id, external_key, metadata, self._clock())

    async def get_or_create_conversation(
        self,
        owner_id: str,
        external_key: str,
        *,
        id: str,
    ) -> Conversation:
        """The owner's conversation of that key, made under `id` if there is none, in one step."""
        values = {"owner_id": owner_id, "external_key": external_key}
        async with self._read() as connection:
            found = await accounts.CONVERSATION_BY_KEY.fetch(connection, values)
        if found:  # as a rule: nothing need wait for the writer
            return rows.read_conversation(found[0])
        return await self._write(accounts.get_or_create_conversation, owner_id, external_key, id, self._clock())

    async def conversation(self, owner_id: str, conversation_id: str) -> Conversation:
        """Raises ConversationNotFound."""
        async with self._read() as connection:
            found = await accounts.CONVERSATION.fetch(connection, {"id": conversation_id, "owner_id": owner_id})
        if not found:
            raise ConversationNotFound(conversation_id)
        return rows.read_conversation(found[0])

    # turns

    async def begin_response(
        self, owner_id: str, new: NewResponse, events: Sequence[Event], *, new_conversation: bool = False
    ) -> ResponseRow:
        """Store a turn's input, images and first events; from here on it is running. See turns.begin_response.

        With `new_conversation` its conversation is made in the same step: both are there, or neither is.
        """
        make_at = self._clock() if new_conversation else None
        return await self._write(turns.begin_response, owner_id, new, tuple(events), make_at)

    async def append_events(self, response_id: str, events: Sequence[Event]) -> None:
        """Add to a running response's log. Raises ResponseNotFound, ResponseFinished, EventOutOfOrder."""
        await self._write(turns.append_events, response_id, tuple(events))

    async def finish_response(self, finished: FinishedResponse, events: Sequence[Event]) -> None:
        """Store a running response's end, its answer and last events. See turns.finish_response."""
        await self._write(turns.finish_response, finished, tuple(events))

    async def response(self, owner_id: str, response_id: str) -> ResponseRow:
        """Raises ResponseNotFound."""
        async with self._read() as connection:
            return await reads.response(connection, owner_id, response_id)

    async def find_response_by_key(
        self, owner_id: str, idempotency_key: str, request_hash: str | None
    ) -> ResponseRow | None:
        """The owner's response to the request that first came with the key, None for a new key.

        Raises IdempotencyConflict when that was another request.
        """
        async with self._read() as connection:
            return await reads.response_by_key(connection, owner_id, idempotency_key, request_hash)

    async def events(self, response_id: str, after: int = -1) -> list[Event]:
        """The response's events with a number above `after`, in order; none for an unknown response."""
        async with self._read() as connection:
            return await reads.events(connection, response_id, after)

    async def running_responses(self) -> list[ResponseRow]:
        """All responses in progress, of every owner: after a start, those that the last process left."""
        async with self._read() as connection:
            return await reads.running_responses(connection)

    # messages and images

    async def add_items(
        self, owner_id: str, conversation_id: str, messages: Sequence[Message], images: Sequence[StoredImage] = ()
    ) -> None:
        """Store messages without a turn; the last becomes the conversation's tip. See turns.add_items."""
        await self._write(turns.add_items, owner_id, conversation_id, tuple(messages), tuple(images), self._clock())

    async def path(self, conversation_id: str, tip_id: str | None) -> list[Message]:
        """The messages from the root to `tip_id` with parts and token ids; no image bytes. Raises ItemNotFound."""
        async with self._read() as connection:
            return await reads.path(connection, conversation_id, tip_id)

    async def item(self, owner_id: str, item_id: str) -> tuple[str, Message]:
        """The id of the conversation that holds the message, and the message. Raises ItemNotFound."""
        async with self._read() as connection:
            return await reads.item(connection, owner_id, item_id)

    async def image(self, owner_id: str, digest: str) -> StoredImage:
        """An image that a message or a file of the owner shows, as it was sent. Raises ImageNotFound."""
        async with self._read() as connection:
            return await reads.image(connection, owner_id, digest, self._clock())

    async def image_data(self, digest: str) -> bytes:
        """An image's bytes, whoever shows it: for the engine, never for a client. Raises ImageNotFound."""
        async with self._read() as connection:
            return await reads.image_data(connection, digest)
