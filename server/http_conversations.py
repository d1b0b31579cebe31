"""`/v1/conversations` and their items. Ours among them: the list, the search, forks and the tree of all branches."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from idefics_chat.conversation.messages import Message
from idefics_chat.server.client_json import validate
from idefics_chat.server.conversation_objects import (
    ConversationCreate,
    ConversationFork,
    ConversationUpdate,
    ItemsCreate,
    conversation_object,
    deleted_conversation,
    hit_object,
)
from idefics_chat.server.errors import ApiError
from idefics_chat.server.http_access import (
    DEFAULT_PAGE,
    MAX_PAGE,
    Admitted,
    Caller,
    JsonBody,
    WantedPage,
    WithImages,
    translate,
)
from idefics_chat.server.http_presence import while_connected
from idefics_chat.server.image_urls import image_urls
from idefics_chat.server.input_items import read_items
from idefics_chat.server.item_objects import Json, item_object, list_object
from idefics_chat.storage.errors import ItemNotFound
from idefics_chat.storage.values import Page

MAX_QUERY_CHARACTERS = 1000

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])


@router.post("")
async def create_conversation(request: Request, caller: Admitted, body: JsonBody) -> Json:
    """A new conversation, with items from the start where some are given."""
    create = validate(ConversationCreate, body)
    said = await translate(request, read_items, create.items, "items") if create.items else ()
    made = await caller.chat.edits.create(
        caller.owner_id, said, create.metadata, title=create.title, archived=create.archived
    )
    return conversation_object(made)


@router.get("")
async def list_conversations(
    caller: Admitted, page: WantedPage, state: Literal["active", "archived"] = "active"
) -> Json:
    """The owner's conversations, by when a turn last was in them."""
    found = await caller.store.conversations(
        caller.owner_id, state=state, limit=page.limit, order=page.order, after=page.after
    )
    return list_object([conversation_object(conversation) for conversation in found.items], found.has_more)


@router.get("/search")
async def search_conversations(
    caller: Admitted,
    q: Annotated[str, Query(max_length=MAX_QUERY_CHARACTERS)],
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Json:
    """The owner's messages that hold all that `q` asks for, the best first."""
    hits = await caller.store.search(caller.owner_id, q, limit=limit + 1, offset=offset)
    return list_object([hit_object(hit) for hit in hits[:limit]], len(hits) > limit)


@router.get("/{conversation_id}")
async def retrieve_conversation(conversation_id: str, caller: Admitted) -> Json:
    """A conversation, without its items."""
    return conversation_object(await caller.store.conversation(caller.owner_id, conversation_id))


@router.post("/{conversation_id}")
async def update_conversation(conversation_id: str, caller: Admitted, body: JsonBody) -> Json:
    """Change what is given; metadata is replaced as a whole."""
    change = validate(ConversationUpdate, body).model_dump()
    return conversation_object(await caller.chat.edits.update(caller.owner_id, conversation_id, **change))


@router.delete("/{conversation_id}")
async def delete_conversation(conversation_id: str, caller: Admitted) -> Json:
    """Delete a conversation with its items and responses."""
    await caller.chat.edits.delete(caller.owner_id, conversation_id)
    return deleted_conversation(conversation_id)


@router.post("/{conversation_id}/fork")
async def fork_conversation(conversation_id: str, caller: Admitted, body: JsonBody) -> Json:
    """A new conversation with copies of the items up to one of them."""
    fork = validate(ConversationFork, body)
    made = await caller.chat.edits.fork(caller.owner_id, conversation_id, fork.previous_item_id, fork.metadata)
    return conversation_object(made)


@router.get("/{conversation_id}/items")
async def list_items(
    conversation_id: str,
    request: Request,
    caller: Admitted,
    page: WantedPage,
    with_images: WithImages,
    tree: bool = False,
) -> Json:
    """The items on the path to the tip; with `tree` those of all branches, oldest first, each with its parent's id."""
    if not tree:
        found = await caller.store.items(
            caller.owner_id, conversation_id, limit=page.limit, order=page.order, after=page.after
        )
        return await _items(caller, found, with_images)
    if request.query_params.get("order") == "desc":
        raise ApiError("unsupported_value", "A tree is listed oldest first; leave order out.", "order")
    found = await caller.store.tree(caller.owner_id, conversation_id, limit=page.limit, after=page.after)
    listed = await _items(caller, found, with_images)
    for item, message in zip(listed["data"], found.items, strict=True):
        item["previous_item_id"] = message.parent_id
    return listed


@router.post("/{conversation_id}/items")
async def create_items(
    conversation_id: str, request: Request, caller: Admitted, body: JsonBody, with_images: WithImages
) -> Json:
    """Add messages without an answer. Where the conversation is being answered they wait for the answer's end, as long
    as the client does; too much that waits is refused with `rate_limit_exceeded`."""
    create = validate(ItemsCreate, body)
    said = await translate(request, read_items, create.items, "items")
    appending = caller.chat.edits.append(
        caller.owner_id, conversation_id, said, create.previous_item_id, request.state.body_bytes
    )
    added = await while_connected(request, appending)
    return await _items(caller, Page(added, False), with_images)


@router.get("/{conversation_id}/items/{item_id}")
async def retrieve_item(conversation_id: str, item_id: str, caller: Admitted, with_images: WithImages) -> Json:
    """An item, on whatever branch of the conversation."""
    found_in, message = await caller.store.item(caller.owner_id, item_id)
    if found_in != conversation_id:
        raise ItemNotFound(item_id)
    return (await _objects(caller, [message], with_images))[0]


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(conversation_id: str, item_id: str, caller: Admitted) -> Json:
    """Remove an item for good; the answer is its conversation. What followed it follows the item before it."""
    return conversation_object(await caller.chat.edits.delete_item(caller.owner_id, conversation_id, item_id))


async def _items(caller: Caller, page: Page[Message], with_images: bool) -> Json:
    return list_object(await _objects(caller, page.items, with_images), page.has_more)


async def _objects(caller: Caller, messages: Sequence[Message], with_images: bool) -> list[Json]:
    urls = await image_urls(caller, messages) if with_images else {}
    return [item_object(message, urls) for message in messages]
