"""What an owner does with conversations beside talking: lists, search, titles, archive, deletion, limits.

And what the server does in the background: purging what was deleted long ago, removing old event logs.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from idefics_chat.conversation.images import ImageLimits
from idefics_chat.conversation.messages import Message
from idefics_chat.storage import dialect, exporting, importing, lifecycle, listing, quotas, reads, search, turns
from idefics_chat.storage.archive import ArchiveLimits, read_archive
from idefics_chat.storage.importing import Imported
from idefics_chat.storage.listing import Order, State
from idefics_chat.storage.openai_messages import from_openai, to_openai
from idefics_chat.storage.opened import OpenedDatabase
from idefics_chat.storage.values import Conversation, Hit, Limits, Page, Purged, Usage

PAGE = 50
MAX_PAGE = 200
CHUNK = 20
"""How many conversations or logs are removed in one unit of work, so that turns do not wait long for it."""


class Library(OpenedDatabase):
    """The part of the store that lists, finds, changes and removes. `limit` is at most `MAX_PAGE` everywhere."""

    # lists and search

    async def conversations(
        self,
        owner_id: str,
        *,
        state: State = "active",
        limit: int = PAGE,
        order: Order = "desc",
        after: str | None = None,
    ) -> Page[Conversation]:
        """The owner's conversations by when a turn was last in them; the page that follows the conversation `after`.

        Raises ConversationNotFound for an unknown `after`.
        """
        async with self._read() as connection:
            return await listing.conversations(connection, owner_id, state, _size(limit), order, after)

    async def items(
        self,
        owner_id: str,
        conversation_id: str,
        *,
        limit: int = PAGE,
        order: Order = "desc",
        after: str | None = None,
        tip_id: str | None = None,
    ) -> Page[Message]:
        """The messages on the path to `tip_id`, or to the conversation's tip; the page that follows the item `after`.

        Raises ConversationNotFound, and ItemNotFound for a tip or an `after` that is not there.
        """
        async with self._read() as connection:
            return await listing.items(connection, owner_id, conversation_id, _size(limit), order, after, tip_id)

    async def tree(
        self, owner_id: str, conversation_id: str, *, limit: int = PAGE, after: str | None = None
    ) -> Page[Message]:
        """The messages of all branches, by their ids, each with its parent's. Raises ConversationNotFound."""
        async with self._read() as connection:
            return await listing.tree(connection, owner_id, conversation_id, _size(limit), after)

    async def search(self, owner_id: str, query: str, *, limit: int = PAGE, offset: int = 0) -> list[Hit]:
        """The owner's messages that hold what `query` asks for, the best first. See search.py for queries."""
        async with self._read() as connection:
            return await search.search(connection, owner_id, query, _size(limit), max(offset, 0))

    # changes

    async def update_conversation(
        self,
        owner_id: str,
        conversation_id: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, str] | None = None,
        archived: bool | None = None,
    ) -> Conversation:
        """Change what is not None; an empty title takes it away. Raises ConversationNotFound."""
        now = self._clock()
        change = lifecycle.update_conversation
        return await self._write(change, owner_id, conversation_id, title, metadata, archived, now)

    async def delete_conversation(self, owner_id: str, conversation_id: str) -> None:
        """Hide a conversation; `restore_conversation` takes it back. Its external key is free at once.

        Raises ConversationNotFound, and ConversationBusy while a turn is running in it.
        """
        await self._write(lifecycle.delete_conversation, owner_id, conversation_id, self._clock())

    async def restore_conversation(self, owner_id: str, conversation_id: str) -> Conversation:
        """Take a deleted conversation back. Raises ConversationNotFound, and AlreadyExists when its key is taken."""
        return await self._write(lifecycle.restore_conversation, owner_id, conversation_id)

    async def purge_conversation(self, owner_id: str, conversation_id: str) -> Purged:
        """Delete a conversation for good; what was deleted. Raises ConversationNotFound, ConversationBusy."""
        purged = await self._write(lifecycle.purge_conversation, owner_id, conversation_id)
        await self._overwrite()
        return purged

    async def purge_deleted(self, before: float) -> Purged:
        """Purge all conversations, of every owner, that were deleted before then (seconds since the epoch)."""
        purged = more = await self._write(lifecycle.purge_deleted, before, CHUNK)
        while more.conversations:
            more = await self._write(lifecycle.purge_deleted, before, CHUNK)
            purged += more
        if purged.conversations:
            await self._overwrite()
        return purged

    async def remove_old_logs(self, before: float) -> int:
        """Remove the event logs of responses that ended before then; how many. Messages and responses stay."""
        removed = more = await self._write(lifecycle.remove_old_logs, before, CHUNK, self._clock())
        while more:
            more = await self._write(lifecycle.remove_old_logs, before, CHUNK, self._clock())
            removed += more
        return removed

    # export and import

    async def export_archive(
        self,
        owner_id: str,
        target: Path,
        conversation_ids: Sequence[str] | None = None,
        progress: exporting.Progress | None = None,
    ) -> int:
        """Write the owner's conversations, or those named, to a new zip file; how many. The format: archive.py.

        All are as they are at one moment. `progress` is called in another thread. Raises FileExistsError.
        """

        def export() -> int:
            with dialect.told(), dialect.snapshot(self._url) as connection:
                return exporting.export_archive(connection, owner_id, target, conversation_ids, progress)

        return await asyncio.to_thread(export)

    async def import_archive(self, owner_id: str, source: Path, limits: ArchiveLimits | None = None) -> Imported:
        """Add an archive's conversations to the owner's, those that are there already left as they are.

        Raises InvalidArchive, AlreadyExists, QuotaExceeded; then nothing is changed.
        """
        checked = await asyncio.to_thread(read_archive, source, limits)
        return await self._write(importing.import_archive, owner_id, checked, self._clock())

    async def openai_messages(
        self, owner_id: str, conversation_id: str, tip_id: str | None = None
    ) -> list[dict[str, Any]]:
        """The path to `tip_id`, or to the conversation's tip, as a chat completion's messages. See openai_messages.py.

        Raises ConversationNotFound, ItemNotFound.
        """
        async with self._read() as connection:
            tip_id = await listing.tip(connection, owner_id, conversation_id, tip_id)
            messages = await reads.path(connection, conversation_id, tip_id)
            digests = {digest for message in messages for digest in message.digests}
            images = {digest: await reads.image(connection, owner_id, digest) for digest in digests}
        return to_openai(messages, images.__getitem__)

    async def import_openai_messages(
        self,
        owner_id: str,
        messages: Any,
        *,
        id: str,
        make_id: Callable[[], str],
        limits: ImageLimits | None = None,
    ) -> Conversation:
        """A new conversation of a chat completion's messages; `make_id` gives the messages' ids.

        Raises InvalidMessages, AlreadyExists, QuotaExceeded; then nothing is changed.
        """
        now = self._clock()
        read = partial(from_openai, messages, make_id=make_id, created_at=now, limits=limits)
        checked, images = await asyncio.to_thread(read)
        return await self._write(turns.create_with_messages, owner_id, id, checked, images, now)

    # limits

    async def usage(self, owner_id: str) -> Usage:
        """What the owner has and may have."""
        return await self._write(quotas.usage, owner_id)

    async def set_limits(self, owner_id: str, limits: Limits) -> None:
        """Let the owner have so much from now on. What is over it already stays; more of it raises QuotaExceeded."""
        await self._write(quotas.set_limits, owner_id, limits)

    async def _overwrite(self) -> None:
        """Take what was removed out of the search's index and out of the write-ahead log too."""
        await self._write(search.forget_removed)
        await self._writer.apart(dialect.empty_log)


def _size(limit: int) -> int:
    return max(1, min(limit, MAX_PAGE))
