"""Conversations into the database, from an archive that was checked, as one unit of work: all of it or nothing.

What is there already is left alone, so that importing twice is importing once. Turns wait meanwhile.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from idefics_chat.conversation.messages import Message
from idefics_chat.storage import images, quotas, rows, tree, turns
from idefics_chat.storage.archive import Archive
from idefics_chat.storage.errors import AlreadyExists
from idefics_chat.storage.models import ConversationRecord, ResponseRecord
from idefics_chat.storage.prepared import ConstraintError, Prepared
from idefics_chat.storage.values import Conversation, ResponseRow

_ADD_CONVERSATION = Prepared(insert(ConversationRecord))
_ADD_RESPONSE = Prepared(insert(ResponseRecord))


@dataclass(frozen=True, slots=True)
class Imported:
    """How many conversations and messages were added, and how many conversations were there already."""

    conversations: int
    messages: int
    known: int


def import_archive(connection: Connection, owner_id: str, archive: Archive, now: float) -> Imported:
    """Add the archive's conversations that the owner does not have, under their own ids.

    Raises AlreadyExists when an id or an external key names something else here, QuotaExceeded, InvalidArchive; then
    nothing is added.
    """
    new = [one for one in archive.conversations if not _known(connection, owner_id, one)]
    for conversation in new:
        _add(connection, owner_id, archive, conversation, now)
    messages = sum(len(archive.messages[conversation.id]) for conversation in new)
    return Imported(len(new), messages, len(archive.conversations) - len(new))


def _known(connection: Connection, owner_id: str, conversation: Conversation) -> bool:
    found = select(ConversationRecord.owner_id).where(ConversationRecord.id == conversation.id)
    owner = connection.execute(found).scalar_one_or_none()
    if owner not in (None, owner_id):
        raise AlreadyExists("conversation", conversation.id)
    return owner is not None


def _add(connection: Connection, owner_id: str, archive: Archive, conversation: Conversation, now: float) -> None:
    messages = archive.messages[conversation.id]
    try:
        _ADD_CONVERSATION.run(connection, _conversation_values(owner_id, conversation))
    except ConstraintError as error:
        raise AlreadyExists("conversation with the key", conversation.external_key or conversation.id) from error
    digests = sorted({digest for message in messages for digest in message.digests})
    image_bytes = images.add_images(connection, owner_id, archive.with_bytes(digests), messages, now)
    places: tree.Places = {}
    for message in messages:
        tree.add_child(places, message.parent_id, message.id)
    turns.add_messages(connection, conversation.id, messages, places)
    quotas.count(connection, owner_id, conversations=1, messages=len(messages), image_bytes=image_bytes)
    _add_responses(connection, owner_id, archive.responses[conversation.id], messages, places)
    move = {"of": conversation.id, "to": conversation.tip_id, "at": conversation.updated_at}
    turns.MOVE_TIP.run(connection, move)


def _add_responses(
    connection: Connection,
    owner_id: str,
    responses: tuple[ResponseRow, ...],
    messages: tuple[Message, ...],
    places: tree.Places,
) -> None:
    ids = {message.id for message in messages}
    for response in responses:
        place = places.get(response.output_id, tree.Place(0, response.output_id))
        values = rows.ended_response_values(owner_id, response, place, answered=response.output_id in ids)
        try:
            _ADD_RESPONSE.run(connection, values)
        except ConstraintError as error:
            raise AlreadyExists("response", response.id) from error


def _conversation_values(owner_id: str, conversation: Conversation) -> dict[str, object]:
    return {
        "id": conversation.id,
        "owner_id": owner_id,
        "external_key": conversation.external_key,
        "metadata_json": rows.to_json(dict(conversation.metadata)),
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
        "tip_id": None,
        "title": conversation.title,
        "state": "active" if conversation.archived_at is None else "archived",
        "archived_at": conversation.archived_at,
        "deleted_at": None,
        "released_key": None,
    }
