"""A conversation as it happens, as frames: its items, and the events of its responses, whoever asked for them.

The frames of one subscription form one stream. Each frame with a `cursor` can be gone on from, by another connection or
after a restart: the cursor is the id of the last item, or a response's id and the number of its last event. Nothing
that was said comes twice or is left out, because ids sort by the time they were made and all is looked up in the store.
An item that was deleted while nobody watched leaves nothing that could be told, but for the one that a cursor names.

Knows no socket.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from idefics_chat.conversation.messages import Message
from idefics_chat.server.chat import ChatService
from idefics_chat.server.conversation_feeds import Signal, TooFarBehind
from idefics_chat.server.conversation_objects import conversation_object
from idefics_chat.server.errors import ApiError
from idefics_chat.server.item_objects import item_object
from idefics_chat.server.json_text import compact
from idefics_chat.storage.errors import ConversationNotFound, ItemNotFound, ResponseNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import ResponseRow

Json = dict[str, Any]

PAGE = 50


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a watcher has come: the last item that it has, and in the middle of a response the last event."""

    item_id: str | None = None
    response_id: str | None = None
    sequence_number: int = -1


def read_cursor(text: str | None) -> Cursor:
    """The cursor that a client names: `msg_...`, `resp_...:7`, or none.

    Raises:
        ApiError: `invalid_value`.
    """
    if text is None:
        return Cursor()
    head, colon, number = text.partition(":")
    if not colon:
        return Cursor(item_id=text)
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        message = "starting_after takes an item's id, or the cursor of a frame; use one of them."
        raise ApiError("invalid_value", message, "starting_after")
    return Cursor(response_id=head, sequence_number=int(number))


class ConversationWatch:
    """One subscription of one owner to one conversation."""

    def __init__(
        self, chat: ChatService, store: Store, owner_id: str, conversation_id: str, starting_after: str | None
    ) -> None:
        self._chat = chat
        self._store = store
        self._owner_id = owner_id
        self._id = conversation_id
        self._start = read_cursor(starting_after)
        self._last = ""  # the newest item that was told, or was there before
        self._cursor: str | None = starting_after

    async def check(self) -> None:
        """Raises ConversationNotFound, ResponseNotFound, ItemNotFound: this cannot be watched from there."""
        await self._store.conversation(self._owner_id, self._id)
        if self._start.response_id is not None:
            row = await self._store.response(self._owner_id, self._start.response_id)
            if row.conversation_id != self._id:
                raise ResponseNotFound(row.id)

    async def frames(self) -> AsyncGenerator[str, None]:
        """The frames as JSON texts, until the conversation is deleted or the watcher is too far behind."""
        with self._chat.turns.feeds.watch(self._id) as signals:
            yield self._frame("conversation.subscribed", conversation=self._id)
            try:
                async for text in self._missed():
                    yield text
                async for signal in signals:
                    if signal.what == "conversation_deleted":
                        yield self._over("conversation_deleted", "The conversation was deleted.")
                        return
                    async for text in self._told(signal):
                        yield text
            except ConversationNotFound:
                yield self._over("conversation_deleted", "The conversation was deleted.")
            except TooFarBehind:
                message = "This subscriber reads too slowly; subscribe again from the last cursor."
                yield self._over("subscriber_too_slow", message)

    async def _missed(self) -> AsyncIterator[str]:
        """What happened after the start, up to now."""
        start = self._start
        if start.response_id is not None:
            async for text in self._response(start.response_id, start.sequence_number):
                yield text
        # Asked before the items are read: an answer that ends meanwhile is among them or is told from its log.
        running = await self._running()
        if start.item_id is not None:
            self._last = start.item_id
            if await self._is_gone(start.item_id):
                yield self._deleted(start.item_id)
        elif start.response_id is None:
            self._last = (await self._store.conversation(self._owner_id, self._id)).tip_id or ""
        if start != Cursor():
            async for message in self._items_after(self._last):
                yield self._added(message)
        if running is not None:
            async for text in self._answer(running):
                yield text

    async def _is_gone(self, item_id: str) -> bool:
        try:
            await self._store.item(self._owner_id, item_id)
        except ItemNotFound:
            return True
        return False

    def _deleted(self, item_id: str) -> str:
        return self._frame("conversation.item.deleted", conversation=self._id, item_id=item_id)

    async def _running(self) -> ResponseRow | None:
        """The response that is under way; none where it is not stored yet: that it has begun will be told."""
        response_id = self._chat.turns.running_in(self._id)
        if response_id is None:
            return None
        with contextlib.suppress(ResponseNotFound):
            return await self._store.response(self._owner_id, response_id)
        return None

    async def _told(self, signal: Signal) -> AsyncIterator[str]:
        match signal.what:
            case "item_added" if signal.id > self._last:
                try:
                    _, message = await self._store.item(self._owner_id, signal.id)
                except ItemNotFound:
                    return  # it has gone already
                yield self._added(message)
            case "response_begun":
                async for text in self._begun(signal.id):
                    yield text
            case "item_deleted":
                yield self._deleted(signal.id)
            case "conversation_changed":
                found = await self._store.conversation(self._owner_id, self._id)
                yield self._frame("conversation.updated", conversation=conversation_object(found))

    async def _begun(self, response_id: str) -> AsyncIterator[str]:
        try:
            row = await self._store.response(self._owner_id, response_id)
        except ResponseNotFound:
            return
        async for text in self._answer(row):
            yield text

    async def _answer(self, row: ResponseRow) -> AsyncIterator[str]:
        """A response from its first event, unless its answer was told as an item already."""
        if row.output_id > self._last:
            async for text in self._response(row.id, -1):
                yield text

    async def _response(self, response_id: str, after: int) -> AsyncIterator[str]:
        """The events of a response numbered above `after`, to its end; the input of a failed one is taken back."""
        row = await self._store.response(self._owner_id, response_id)
        with await self._chat.turns.follow(self._owner_id, response_id, after) as events:
            async for event in events:
                self._cursor = f"{response_id}:{event.sequence_number}"
                yield self._marked(event.payload)
                if event.type == "response.failed":
                    for item_id in row.input_ids:
                        yield self._frame("conversation.item.deleted", conversation=self._id, item_id=item_id)
        self._last = max(self._last, row.output_id)

    def _added(self, message: Message) -> str:
        self._last = max(self._last, message.id)
        self._cursor = message.id
        item = item_object(message, {})
        return self._frame(
            "conversation.item.added", conversation=self._id, item=item, previous_item_id=message.parent_id
        )

    async def _items_after(self, item_id: str) -> AsyncIterator[Message]:
        more = True
        while more:
            page = await self._store.tree(self._owner_id, self._id, limit=PAGE, after=item_id)
            for message in page.items:
                item_id = message.id
                yield message
            more = page.has_more

    def _over(self, code: str, message: str) -> str:
        return self._frame("conversation.unsubscribed", conversation=self._id, code=code, message=message)

    def _frame(self, kind: str, **fields: Any) -> str:
        return self._marked(compact({"type": kind, **fields}))

    def _marked(self, payload: str) -> str:
        marks = compact({"subscription": self._id, "cursor": self._cursor})
        return f"{payload[:-1]},{marks[1:]}"
