"""What an owner does with conversations beside talking: lists, search, titles, archive, deletion, files, limits.

And what the server does in the background: purging what was deleted long ago, removing old event logs and files.
"""

from collections.abc import Mapping, Sequence

from idefics_chat.conversation.messages import Message, Part
from idefics_chat.storage import deletion, files, lifecycle, listing, quotas, rows, search_terms
from idefics_chat.storage.interchange import Interchange
from idefics_chat.storage.listing import Order, State
from idefics_chat.storage.values import (
    Conversation,
    Hit,
    Limits,
    NewFile,
    Page,
    Purged,
    StoredFile,
    StoredImage,
    Usage,
)

PAGE = 50
MAX_PAGE = 200
CHUNK = 20
"""How many conversations or logs are removed in one unit of work, so that turns do not wait long for it."""


class Library(Interchange):
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
            return await listing.conversations(connection, owner_id, state, page_size(limit), order, after)

    async def previews(self, owner_id: str, conversation_ids: Sequence[str]) -> Mapping[str, tuple[Part, ...]]:
        """By the ids of those conversations of the owner in which a user said something, how the first such message
        begins: at most `PREVIEW_PARTS` parts, and `PREVIEW_LETTERS` letters of each text. One query for a page of ids.
        """
        async with self._read() as connection:
            return await listing.previews(connection, owner_id, conversation_ids)

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
            return await listing.items(connection, owner_id, conversation_id, page_size(limit), order, after, tip_id)

    async def tree(
        self, owner_id: str, conversation_id: str, *, limit: int = PAGE, after: str | None = None
    ) -> Page[Message]:
        """The messages of all branches, by their ids, each with its parent's. Raises ConversationNotFound."""
        async with self._read() as connection:
            return await listing.tree(connection, owner_id, conversation_id, page_size(limit), after)

    async def search(self, owner_id: str, query: str, *, limit: int = PAGE, offset: int = 0) -> list[Hit]:
        """The owner's messages that hold what `query` asks for, the best first; none for a query without words.

        See search_terms.py for queries.
        """
        terms = search_terms.terms_of(query)
        if not terms:
            return []
        async with self._read() as connection:
            found = await self._dialect.search(connection, owner_id, terms, page_size(limit), max(offset, 0))
        return [rows.read_hit(row) for row in found]

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

    async def delete_item(self, owner_id: str, conversation_id: str, item_id: str) -> Conversation:
        """Delete a message for good; what follows it follows its parent then. The conversation, as it is then.

        Raises ConversationNotFound, ItemNotFound, and ConversationBusy while a turn is running in it.
        """
        now = self._clock()
        changed = await self._write(deletion.delete_item, owner_id, conversation_id, item_id, now)
        await self._overwrite()
        return changed

    async def delete_response(self, owner_id: str, response_id: str) -> None:
        """Delete a response with its events and its idempotency key; its messages stay in the conversation.

        Raises ResponseNotFound, and ConversationBusy while it is running.
        """
        await self._write(deletion.delete_response, owner_id, response_id)
        await self._writer.apart(self._dialect.overwrite_removed)

    async def remove_old_logs(self, before: float) -> int:
        """Remove the event logs of responses that ended before then; how many. Messages and responses stay."""
        removed = more = await self._write(lifecycle.remove_old_logs, before, CHUNK, self._clock())
        while more:
            more = await self._write(lifecycle.remove_old_logs, before, CHUNK, self._clock())
            removed += more
        return removed

    # files

    async def add_file(self, owner_id: str, new: NewFile) -> StoredFile:
        """Keep an uploaded image, counted among the owner's. Raises AlreadyExists, QuotaExceeded."""
        return await self._write(files.add_file, owner_id, new, self._clock())

    async def file(self, owner_id: str, file_id: str) -> StoredFile:
        """What is known of a file, without its bytes. Raises StoredFileNotFound, also for an expired one."""
        async with self._read() as connection:
            return await files.file(connection, owner_id, file_id, self._clock())

    async def file_content(self, owner_id: str, file_id: str) -> StoredImage:
        """A file's bytes, as they were sent. Raises StoredFileNotFound, also for an expired one."""
        async with self._read() as connection:
            return await files.content(connection, owner_id, file_id, self._clock())

    async def files(
        self,
        owner_id: str,
        *,
        purpose: str | None = None,
        limit: int = PAGE,
        order: Order = "desc",
        after: str | None = None,
    ) -> Page[StoredFile]:
        """The owner's files by when they came, all or those of one purpose; the page that follows the file `after`.

        Raises StoredFileNotFound for an unknown `after`.
        """
        async with self._read() as connection:
            return await files.files(connection, owner_id, page_size(limit), order, after, purpose, self._clock())

    async def delete_file(self, owner_id: str, file_id: str) -> None:
        """Delete a file for good; its bytes stay as long as a message shows them. Raises StoredFileNotFound."""
        await self._write(files.delete_file, owner_id, file_id, self._clock())
        await self._writer.apart(self._dialect.overwrite_removed)

    async def remove_expired_files(self, now: float) -> int:
        """Remove the files, of every owner, that are past their time then; how many."""
        removed = more = await self._write(files.remove_expired, now, CHUNK)
        while more:
            more = await self._write(files.remove_expired, now, CHUNK)
            removed += more
        return removed

    # limits

    async def usage(self, owner_id: str) -> Usage:
        """What the owner has and may have."""
        return await self._write(quotas.usage, owner_id)

    async def set_limits(self, owner_id: str, limits: Limits) -> None:
        """Let the owner have so much from now on. What is over it already stays; more of it raises QuotaExceeded."""
        await self._write(quotas.set_limits, owner_id, limits)

    async def _overwrite(self) -> None:
        """Take what was removed out of the search's index and out of the write-ahead log too."""
        more = await self._write(self._dialect.forget_removed, True)
        while more:
            more = await self._write(self._dialect.forget_removed, False)
        await self._writer.apart(self._dialect.overwrite_removed)


def page_size(limit: int) -> int:
    """How many a page holds that was asked to hold `limit`."""
    return max(1, min(limit, MAX_PAGE))
