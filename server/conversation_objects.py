"""Conversations as clients see them, and what they ask of them. Pure.

Source: the types of the `openai` package (`openai.types.conversations`). Fields of ours, which those types let pass:
`title`, `key`, `updated_at`, `archived`.
"""

from typing import Annotated, Any

from pydantic import Field

from idefics_chat.server.client_json import WireModel
from idefics_chat.server.input_items import InputItem
from idefics_chat.storage.values import Conversation, Hit

Json = dict[str, Any]

MAX_ITEMS = 100
"""Most items in one request."""

MAX_TITLE_CHARACTERS = 500

Title = Annotated[str, Field(max_length=MAX_TITLE_CHARACTERS)]

Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class ConversationCreate(WireModel):
    """A new conversation; ours: its title, and whether it is archived from the start."""

    metadata: Metadata | None = None
    title: Title | None = None
    archived: bool | None = None
    items: Annotated[list[InputItem], Field(max_length=MAX_ITEMS)] | None = None


class ConversationUpdate(WireModel):
    """What is to change; ours: an empty title takes it away."""

    metadata: Metadata | None = None
    title: Title | None = None
    archived: bool | None = None


class ItemsCreate(WireModel):
    """Messages to add; ours: after `previous_item_id`."""

    items: Annotated[list[InputItem], Field(max_length=MAX_ITEMS)]
    previous_item_id: str | None = None


class ConversationFork(WireModel):
    """A copy up to `previous_item_id`, or to the tip."""

    previous_item_id: str | None = None
    metadata: Metadata | None = None


def conversation_object(conversation: Conversation) -> Json:
    """The conversation; times are in whole seconds since the epoch."""
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": int(conversation.created_at),
        "metadata": dict(conversation.metadata),
        "title": conversation.title,
        "key": conversation.external_key,
        "updated_at": int(conversation.updated_at),
        "archived": conversation.archived_at is not None,
    }


def deleted_conversation(conversation_id: str) -> Json:
    """What is answered of a conversation that was deleted."""
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


def hit_object(hit: Hit) -> Json:
    """A message that was found; `marks` are the [start, end) of what was asked for in `snippet`."""
    return {
        "object": "conversation.search_hit",
        "id": hit.message_id,
        "conversation_id": hit.conversation_id,
        "role": hit.role,
        "created_at": int(hit.created_at),
        "snippet": hit.snippet,
        "marks": [list(mark) for mark in hit.marks],
    }
