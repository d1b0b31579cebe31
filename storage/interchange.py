"""Conversations out of the store and into it: as archives, and as OpenAI-style messages."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from idefics_chat.conversation.images import ImageLimits
from idefics_chat.storage import exporting, importing, listing, reads, turns
from idefics_chat.storage.archive import ArchiveLimits, Progress, read_archive
from idefics_chat.storage.importing import Imported
from idefics_chat.storage.openai_messages import from_openai, to_openai
from idefics_chat.storage.opened import OpenedDatabase
from idefics_chat.storage.values import Conversation


class Interchange(OpenedDatabase):
    """The part of the store that exports and imports."""

    async def export_archive(
        self,
        owner_id: str,
        target: Path,
        conversation_ids: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Write the owner's conversations, or those named, to a new zip file; how many. The format: archive.py.

        All are as they are at one moment. `progress` is called in another thread.

        Raises:
            ConversationNotFound: one that was named is not there, or not the owner's.
            OSError: the file is there already, or cannot be written.
        """

        def export() -> int:
            with self._dialect.told(), self._dialect.snapshot(self._url) as connection:
                return exporting.export_archive(connection, owner_id, target, conversation_ids, progress)

        return await asyncio.to_thread(export)

    async def import_archive(
        self,
        owner_id: str,
        source: Path,
        limits: ArchiveLimits | None = None,
        progress: Progress | None = None,
    ) -> Imported:
        """Add an archive's conversations to the owner's, those that are there already left as they are.

        `progress` is called in another thread. Raises InvalidArchive, AlreadyExists, QuotaExceeded; then nothing is
        changed.
        """
        checked = await asyncio.to_thread(read_archive, source, limits, progress)
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
            images = {digest: await reads.image(connection, owner_id, digest, self._clock()) for digest in digests}
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
