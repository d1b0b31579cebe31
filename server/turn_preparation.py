"""From what a client asked to a turn that can run: where it goes, what it says, and a prompt that fits.

Nothing is stored here: whatever is wrong with a turn shows before the store hears of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from idefics_chat.conversation.messages import Message
from idefics_chat.conversation.prompt import Prompt
from idefics_chat.inference.requests import Engine, ImageLoader
from idefics_chat.server.errors import ApiError
from idefics_chat.server.image_intake import CheckedMessage, ImageIntake
from idefics_chat.server.places import Place, Places
from idefics_chat.server.prompt_fitting import Begun, FittedPrompt, fit_prompt
from idefics_chat.server.turns import Turn
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import NewResponse, StoredImage

MAX_DROPPED_IDS = 100
"""Items out of the context that a response names: those before are too, and the row of a turn must not grow with all
that was ever said."""


@dataclass(frozen=True, slots=True)
class PreparedTurn:
    """A turn ready to be stored and run. `load_image` gives its images' bytes, those that are not stored yet too;
    `begun` is the answer that it continues."""

    new: NewResponse
    prompt: Prompt
    max_output_tokens: int
    load_image: ImageLoader
    begun: Begun | None = None


class TurnPreparation:
    """Prepares turns for one engine and one store. `max_images`, `max_text` and `max_items` bound one turn's
    input."""

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
        max_items: int = 256,
    ) -> None:
        self._store = store
        self._engine = engine
        self._clock = clock
        self._make_id = make_id
        self._places = Places(store, make_id)
        self.images = images
        """Where images come in."""

        self._max_images = max_images
        self._max_text = max_text
        self._max_items = max_items
        self._default_max_output_tokens = default_max_output_tokens

    def check_request(self, turn: Turn) -> None:
        """What can be said of a turn without looking anything up.

        Raises:
            ApiError
        """
        model = self._engine.info.id
        if turn.model not in (None, "", model):
            raise ApiError("model_not_found", f"This server speaks with {model!r}; set model to that.", "model")
        if len(turn.input) > self._max_items:
            message = f"This turn has {len(turn.input)} items and at most {self._max_items} are taken; send fewer."
            raise ApiError("invalid_value", message, "input")
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
        """Where the turn goes. See Places.find."""
        return await self._places.find(owner_id, turn)

    async def prepare(self, owner_id: str, turn: Turn, place: Place, conversation_id: str) -> PreparedTurn:
        """Check the images, make the messages, fit the prompt.

        Raises:
            ApiError, ContextLengthExceeded: nothing was stored.
        """
        messages, images = await self.check_input(owner_id, turn, place.parent_id)
        history = await self.history(place)
        return await self._prepared(turn, place, conversation_id, history, messages, images, images)

    async def prepare_unstored(
        self,
        owner_id: str,
        turn: Turn,
        chain_id: str,
        history: Sequence[Message] = (),
        shown: Sequence[StoredImage] = (),
    ) -> PreparedTurn:
        """Check and fit a turn that follows `history` and is not stored; `shown` are images of it that are not either.

        Turns of one `chain_id` may share what the model has read.

        Raises:
            ApiError, ContextLengthExceeded
        """
        place = Place(None, history[-1].id if history else None)
        messages, images = await self.check_input(owner_id, turn, place.parent_id)
        return await self._prepared(turn, place, chain_id, history, messages, images, [*shown, *images])

    async def check_input(
        self, owner_id: str, turn: Turn, parent_id: str | None
    ) -> tuple[tuple[Message, ...], list[StoredImage]]:
        """The turn's messages, linked to `parent_id`, with ids of their own, and the images in them.

        Raises:
            ApiError: the first image that is refused, named by its parameter.
        """
        checked, images = await self.images.check_messages(owner_id, turn.input)
        return self._linked(checked, parent_id), images

    def image_loader(self, at_hand: Sequence[StoredImage]) -> ImageLoader:
        """Of these images, which the store may not have, and of those that it has."""
        own = {image.digest: image.data for image in at_hand}

        async def load(digest: str) -> bytes:
            return own[digest] if digest in own else await self._store.image_data(digest)

        return load

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

    async def history(self, place: Place) -> Sequence[Message]:
        """The messages on the path to the place. Raises ItemNotFound."""
        if place.conversation_id is None or place.parent_id is None:
            return ()
        return await self._store.path(place.conversation_id, place.parent_id)

    async def _prepared(
        self,
        turn: Turn,
        place: Place,
        conversation_id: str,
        history: Sequence[Message],
        messages: tuple[Message, ...],
        images: Sequence[StoredImage],
        at_hand: Sequence[StoredImage],
    ) -> PreparedTurn:
        if not messages and (not history or history[-1].role != "user"):
            raise ApiError("missing_required_parameter", "There is nothing to answer; add input.", "input")
        load_image = self.image_loader(at_hand)
        max_output_tokens = turn.max_output_tokens or self._default_max_output_tokens
        fitted = await fit_prompt(
            self._engine,
            (*history, *messages),
            load_image,
            instructions=turn.instructions or place.instructions,
            answer_tokens=max_output_tokens,
            may_drop=turn.truncation != "disabled",
            begun=place.begun,
        )
        new = self._new_response(turn, place, conversation_id, messages, images, fitted)
        return PreparedTurn(new, fitted.prompt, max_output_tokens, load_image, place.begun)

    def _new_response(
        self,
        turn: Turn,
        place: Place,
        conversation_id: str,
        messages: tuple[Message, ...],
        images: Sequence[StoredImage],
        fitted: FittedPrompt,
    ) -> NewResponse:
        context = {
            "max_tokens": self._engine.info.context_tokens,
            "dropped_items": len(fitted.dropped_ids),
            "dropped_item_ids": list(fitted.dropped_ids[-MAX_DROPPED_IDS:]),
        }
        request = {
            **turn.echo(),
            "instructions": turn.instructions or place.instructions,
            "model": self._engine.info.id,
            "context": context,
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

    def _linked(self, checked: Sequence[CheckedMessage], parent_id: str | None) -> tuple[Message, ...]:
        messages: list[Message] = []
        for said, parts in checked:
            message = Message(self._make_id("msg"), said.role, parts, parent_id, "completed", self._clock())
            messages.append(message)
            parent_id = message.id
        return tuple(messages)
