"""Conversations changed without a turn: made with items, added to, forked.

Whatever is wrong with items shows before anything is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from idefics_chat.conversation.messages import Message
from idefics_chat.server.beside import to_its_end
from idefics_chat.server.conversation_feeds import ConversationFeeds, Signal
from idefics_chat.server.keyed_locks import KeyedLocks
from idefics_chat.server.orphans import Orphans
from idefics_chat.server.turn_preparation import TurnPreparation
from idefics_chat.server.turns import InputMessage, Turn
from idefics_chat.server.waiting_room import WaitingRoom
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Conversation, StoredImage


class ConversationEdits:
    """Edits for one store. `places` are the locks that turns hold too: nothing is added in the middle of one; `room` is
    where turns wait for them too."""

    def __init__(
        self,
        store: Store,
        preparation: TurnPreparation,
        places: KeyedLocks,
        room: WaitingRoom,
        feeds: ConversationFeeds,
        orphans: Orphans,
        *,
        make_id: Callable[[Any], str],
    ) -> None:
        self._store = store
        self._preparation = preparation
        self._places = places
        self._room = room
        self._feeds = feeds
        self._orphans = orphans
        self._make_id = make_id

    async def create(
        self,
        owner_id: str,
        said: tuple[InputMessage, ...],
        metadata: Mapping[str, str] | None,
        *,
        title: str | None = None,
        archived: bool | None = None,
    ) -> Conversation:
        """A new conversation with these messages in it.

        Raises:
            ApiError, StorageError: nothing was stored.
        """
        turn = Turn(input=said, generate=False)
        self._preparation.check_request(turn)
        messages, images = await self._preparation.check_input(owner_id, turn, None)
        return await self._filled(owner_id, metadata, messages, images, title, archived)

    async def append(
        self,
        owner_id: str,
        conversation_id: str,
        said: tuple[InputMessage, ...],
        previous_item_id: str | None = None,
        held_bytes: int = 0,
    ) -> tuple[Message, ...]:
        """Add messages after the item `previous_item_id`, or after the tip; what was added. Waits for a turn:
        `held_bytes` of them wait then that are bounded by nobody else. Who is cancelled meanwhile has added nothing.

        Raises:
            ApiError: among others `rate_limit_exceeded`, too much of the owner's waits; nothing was stored.
            StorageError: nothing was stored.
        """
        turn = Turn(said, conversation_id, previous_item_id=previous_item_id, generate=False)
        self._preparation.check_request(turn)
        async with self._room.hold(self._places, conversation_id, owner_id, held_bytes):
            return await to_its_end(self._append(owner_id, conversation_id, turn))

    async def delete_item(self, owner_id: str, conversation_id: str, item_id: str) -> Conversation:
        """Remove a message for good; those that followed it follow the one before it. Waits for a turn.

        Raises:
            ConversationNotFound, ItemNotFound
        """
        async with self._places.hold(conversation_id):
            delete = partial(self._store.delete_item, owner_id, conversation_id, item_id)
            changed = await self._orphans.unblocked(owner_id, delete)
            self._feeds.tell(conversation_id, Signal("item_deleted", item_id))
        return changed

    async def update(
        self,
        owner_id: str,
        conversation_id: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, str] | None = None,
        archived: bool | None = None,
    ) -> Conversation:
        """Change what is not None; an empty title takes it away. Raises ConversationNotFound."""
        changed = await self._store.update_conversation(
            owner_id, conversation_id, title=title, metadata=metadata, archived=archived
        )
        self._feeds.tell(conversation_id, Signal("conversation_changed", conversation_id))
        return changed

    async def delete(self, owner_id: str, conversation_id: str) -> None:
        """Delete a conversation. Raises ConversationNotFound, and ConversationBusy while a turn runs in it."""
        delete = partial(self._store.delete_conversation, owner_id, conversation_id)
        await self._orphans.unblocked(owner_id, delete)
        self._feeds.tell(conversation_id, Signal("conversation_deleted", conversation_id))

    async def fork(
        self, owner_id: str, conversation_id: str, last_item_id: str | None, metadata: Mapping[str, str] | None
    ) -> Conversation:
        """A new conversation with copies of the messages up to `last_item_id`, or to the tip.

        Raises:
            ConversationNotFound, ItemNotFound: nothing was stored.
        """
        source = await self._store.conversation(owner_id, conversation_id)
        path = await self._store.path(source.id, last_item_id or source.tip_id)
        return await self._filled(
            owner_id, source.metadata if metadata is None else metadata, self._copied(path), (), source.title
        )

    async def _append(self, owner_id: str, conversation_id: str, turn: Turn) -> tuple[Message, ...]:
        add = partial(self._added, owner_id, conversation_id, turn)
        messages = await self._orphans.unblocked(owner_id, add)
        self._feeds.tell(conversation_id, *(Signal("item_added", message.id) for message in messages))
        return messages

    async def _added(self, owner_id: str, conversation_id: str, turn: Turn) -> tuple[Message, ...]:
        place = await self._preparation.place(owner_id, turn)
        messages, images = await self._preparation.check_input(owner_id, turn, place.parent_id)
        await self._store.add_items(owner_id, conversation_id, messages, images)
        return messages

    async def _filled(
        self,
        owner_id: str,
        metadata: Mapping[str, str] | None,
        messages: tuple[Message, ...],
        images: Sequence[StoredImage],
        title: str | None = None,
        archived: bool | None = None,
    ) -> Conversation:
        made = await self._store.create_conversation(owner_id, metadata=metadata, id=self._make_id("conv"))
        try:
            await self._store.add_items(owner_id, made.id, messages, images)
            return await self._store.update_conversation(owner_id, made.id, title=title, archived=archived)
        except Exception:
            await self._store.purge_conversation(owner_id, made.id)
            raise

    def _copied(self, path: Sequence[Message]) -> tuple[Message, ...]:
        """The messages under new ids, linked as they were; their token ids stay those of record."""
        copies: list[Message] = []
        for message in path:
            parent_id = copies[-1].id if copies else None
            copies.append(replace(message, id=self._make_id("msg"), parent_id=parent_id))
        return tuple(copies)
