"""Where a turn goes: its conversation, the item it follows, and, to go on with an answer, what was said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from idefics_chat.server.errors import ApiError
from idefics_chat.server.prompt_fitting import Begun
from idefics_chat.server.turns import Turn
from idefics_chat.storage.errors import ResponseNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import ResponseRow

CUT_SHORT = ("incomplete", "cancelled")


@dataclass(frozen=True, slots=True)
class Place:
    """A conversation (None: a new one is to be made) and the item that the turn follows.

    `begun` is the answer that is to be continued, `instructions` are those under which it was begun.
    """

    conversation_id: str | None
    parent_id: str | None
    begun: Begun | None = None
    instructions: str | None = None


class Places:
    """Finds places in one store."""

    def __init__(self, store: Store, make_id: Callable[[Any], str]) -> None:
        self._store = store
        self._make_id = make_id

    async def find(self, owner_id: str, turn: Turn) -> Place:
        """Where the turn goes. Looked up again once its conversation is free: its tip may have moved.

        Raises:
            ApiError: `previous_response_not_found`, `item_not_found`, `unsupported_value`.
            ConversationNotFound
        """
        if turn.continuation_of is not None:
            return await self._beside(owner_id, turn.continuation_of)
        if turn.previous_response_id is not None:
            row = await self._response(owner_id, turn.previous_response_id, "previous_response_id")
            return Place(row.conversation_id, row.tip_id)
        if turn.conversation_id is not None:
            conversation = await self._store.conversation(owner_id, turn.conversation_id)
        elif turn.conversation_key is not None:
            fresh = self._make_id("conv")
            conversation = await self._store.get_or_create_conversation(owner_id, turn.conversation_key, id=fresh)
        else:
            return Place(None, None)
        if turn.previous_item_id is None:
            return Place(conversation.id, conversation.tip_id)
        return await self._after_item(owner_id, conversation.id, turn.previous_item_id)

    async def _beside(self, owner_id: str, response_id: str) -> Place:
        """Beside an answer that was cut short, where it is given again and continued."""
        row = await self._response(owner_id, response_id, "continuation_of")
        if not row.answered or row.status not in CUT_SHORT:
            message = f"The response {row.id} has no answer that was cut short; ask anew instead."
            raise ApiError("unsupported_value", message, "continuation_of")
        _, answer = await self._store.item(owner_id, row.output_id)
        begun = Begun(answer.text, answer.tokens)
        return Place(row.conversation_id, answer.parent_id, begun, row.request.get("instructions"))

    async def _response(self, owner_id: str, response_id: str, param: str) -> ResponseRow:
        try:
            return await self._store.response(owner_id, response_id)
        except ResponseNotFound:
            message = f"There is no response {response_id[:80]!r}; use the id of a stored response."
            raise ApiError("previous_response_not_found", message, param) from None

    async def _after_item(self, owner_id: str, conversation_id: str, item_id: str) -> Place:
        found_in, message = await self._store.item(owner_id, item_id)
        if found_in != conversation_id:
            sentence = f"The item {item_id[:80]!r} is not in this conversation; use one that its items list gives."
            raise ApiError("item_not_found", sentence, "previous_item_id")
        return Place(conversation_id, message.id)
