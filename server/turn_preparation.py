"""From what a client asked to a turn that can run: where it goes, what it says, and a prompt that fits.

Nothing is stored here: whatever is wrong with a turn shows before the store hears of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from idefics_chat.conversation.errors import ContextLengthExceeded
from idefics_chat.conversation.layouts import layout_named
from idefics_chat.conversation.messages import Message
from idefics_chat.conversation.prompt import Prompt
from idefics_chat.conversation.window import Window, shrink
from idefics_chat.inference.requests import Engine, ImageLoader
from idefics_chat.server.errors import ApiError
from idefics_chat.server.image_intake import CheckedMessage, ImageIntake
from idefics_chat.server.turns import Turn
from idefics_chat.storage.errors import ResponseNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import NewResponse, StoredImage

MIN_ANSWER_SHARE = 4
"""At most a quarter of the context is kept free for an answer; a longer one may be asked for and ends where the
context does."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a turn goes: a conversation (None: a new one is to be made) and the item it follows."""

    conversation_id: str | None
    parent_id: str | None


@dataclass(frozen=True, slots=True)
class PreparedTurn:
    """A turn ready to be stored and run. `load_image` gives its images' bytes, those that are not stored yet too."""

    new: NewResponse
    prompt: Prompt
    max_output_tokens: int
    load_image: ImageLoader


@dataclass(frozen=True, slots=True)
class UnstoredTurn:
    """A turn ready to be run beside the store."""

    prompt: Prompt
    max_output_tokens: int
    load_image: ImageLoader


class TurnPreparation:
    """Prepares turns for one engine and one store. `max_images` and `max_text` bound one turn's input."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        *,
        clock: Callable[[], float],
        make_id: Callable[[Any], str],
        images: ImageIntake,
        max_images: int,
        max_text: int,
        default_max_output_tokens: int,
    ) -> None:
        self._store = store
        self._engine = engine
        self._clock = clock
        self._make_id = make_id
        self.images = images
        """Where images come in."""

        self._max_images = max_images
        self._max_text = max_text
        self._default_max_output_tokens = default_max_output_tokens

    def check_request(self, turn: Turn) -> None:
        """What can be said of a turn without looking anything up.

        Raises:
            ApiError
        """
        model = self._engine.info.id
        if turn.model not in (None, "", model):
            raise ApiError("model_not_found", f"This server speaks with {model!r}; set model to that.", "model")
        parts = [part for message in turn.input for part in message.parts]
        images = sum(not isinstance(part, str) for part in parts)
        if images > self._max_images:
            message = (
                f"This turn has {images} images and at most {self._max_images} are taken; send them in several turns."
            )
            raise ApiError("invalid_value", message, "input")
        characters = sum(len(part) for part in parts if isinstance(part, str)) + len(turn.instructions or "")
        if characters > self._max_text:
            message = (
                f"This turn has {characters} characters of text and at most {self._max_text} are taken; shorten it."
            )
            raise ApiError("invalid_value", message, "input")

    async def place(self, owner_id: str, turn: Turn) -> Place:
        """Where the turn goes. Looked up again once its conversation is free: its tip may have moved.

        Raises:
            ApiError: `previous_response_not_found`, `item_not_found`.
            ConversationNotFound
        """
        if turn.previous_response_id is not None:
            return await self._after_response(owner_id, turn.previous_response_id)
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

    async def prepare(self, owner_id: str, turn: Turn, place: Place, conversation_id: str) -> PreparedTurn:
        """Check the images, make the messages, fit the prompt.

        Raises:
            ApiError, ContextLengthExceeded: nothing was stored.
        """
        messages, images = await self.check_input(owner_id, turn, place.parent_id)
        history = await self._history(place)
        if not messages and (not history or history[-1].role != "user"):
            raise ApiError("missing_required_parameter", "There is nothing to answer; add input.", "input")
        load_image = self._image_loader(images)
        window, prompt = await self._fit((*history, *messages), turn, load_image)
        new = self.new_response(turn, place, conversation_id, messages, images, window.dropped_ids)
        return PreparedTurn(new, prompt, turn.max_output_tokens or self._default_max_output_tokens, load_image)

    async def prepare_unstored(self, owner_id: str, turn: Turn) -> UnstoredTurn:
        """Check and fit a turn whose input is all there is to it.

        Raises:
            ApiError, ContextLengthExceeded
        """
        messages, images = await self.check_input(owner_id, turn, None)
        load_image = self._image_loader(images)
        _, prompt = await self._fit(messages, turn, load_image)
        return UnstoredTurn(prompt, turn.max_output_tokens or self._default_max_output_tokens, load_image)

    async def check_input(
        self, owner_id: str, turn: Turn, parent_id: str | None
    ) -> tuple[tuple[Message, ...], list[StoredImage]]:
        """The turn's messages, linked to `parent_id`, with ids of their own, and the images in them.

        Raises:
            ApiError: the first image that is refused, named by its parameter.
        """
        checked, images = await self.images.check_messages(owner_id, turn.input)
        return self._linked(checked, parent_id), images

    async def count_tokens(self, owner_id: str, turn: Turn) -> int:
        """The tokens of the prompt that the turn would have now.

        Raises:
            ApiError, ConversationNotFound, ContextLengthExceeded
        """
        if turn.conversation_key is not None:  # looking it up would make it
            raise ApiError("unsupported_value", "Name the conversation by its id here.", "conversation")
        place = await self.place(owner_id, turn)
        prepared = await self.prepare(owner_id, turn, place, place.conversation_id or "")
        return sum(await self._engine.count_tokens(prepared.prompt, prepared.load_image))

    def new_response(
        self,
        turn: Turn,
        place: Place,
        conversation_id: str,
        messages: tuple[Message, ...],
        images: Sequence[StoredImage],
        dropped_ids: Sequence[str] = (),
    ) -> NewResponse:
        """The turn as the store begins it; `dropped_ids` are the items that its prompt leaves out."""
        request = {
            **turn.echo(),
            "model": self._engine.info.id,
            "context": {"max_tokens": self._engine.info.context_tokens, "dropped_item_ids": list(dropped_ids)},
        }
        return NewResponse(
            id=self._make_id("resp"),
            conversation_id=conversation_id,
            parent_id=place.parent_id,
            messages=messages,
            images=tuple(images),
            output_id=self._make_id("msg"),
            created_at=self._clock(),
            request=request,
            idempotency_key=turn.idempotency_key,
            request_hash=turn.request_hash,
            previous_response_id=turn.previous_response_id,
        )

    async def _after_response(self, owner_id: str, response_id: str) -> Place:
        try:
            row = await self._store.response(owner_id, response_id)
        except ResponseNotFound:
            message = f"There is no response {response_id[:80]!r}; use the id of a stored response."
            raise ApiError("previous_response_not_found", message, "previous_response_id") from None
        return Place(row.conversation_id, row.tip_id)

    async def _after_item(self, owner_id: str, conversation_id: str, item_id: str) -> Place:
        found_in, message = await self._store.item(owner_id, item_id)
        if found_in != conversation_id:
            sentence = f"The item {item_id[:80]!r} is not in this conversation; use one that its items list gives."
            raise ApiError("item_not_found", sentence, "previous_item_id")
        return Place(conversation_id, message.id)

    async def _history(self, place: Place) -> Sequence[Message]:
        if place.conversation_id is None or place.parent_id is None:
            return ()
        return await self._store.path(place.conversation_id, place.parent_id)

    def _linked(self, checked: Sequence[CheckedMessage], parent_id: str | None) -> tuple[Message, ...]:
        messages: list[Message] = []
        for said, parts in checked:
            message = Message(self._make_id("msg"), said.role, parts, parent_id, "completed", self._clock())
            messages.append(message)
            parent_id = message.id
        return tuple(messages)

    def _image_loader(self, images: Sequence[StoredImage]) -> ImageLoader:
        """Of these images, which the store may not have yet, and of those that it has."""
        own = {image.digest: image.data for image in images}

        async def load(digest: str) -> bytes:
            return own[digest] if digest in own else await self._store.image_data(digest)

        return load

    async def _fit(self, messages: tuple[Message, ...], turn: Turn, load_image: ImageLoader) -> tuple[Window, Prompt]:
        context = self._engine.info.context_tokens
        answer = min(turn.max_output_tokens or self._default_max_output_tokens, context // MIN_ANSWER_SHARE)
        limit = context - answer
        layout = layout_named(self._engine.info.layout)
        window = Window(messages)
        while True:
            prompt = layout(window.messages, turn.instructions)
            tokens = await self._engine.count_tokens(prompt, load_image)
            if sum(tokens) > limit and turn.truncation == "disabled":
                raise ContextLengthExceeded(sum(tokens), limit)
            smaller = shrink(window, prompt, tokens, limit)
            if smaller is window:
                return window, prompt
            window = smaller
