"""A turn's writes, as units of work: begun, its events, finished.

Each runs inside the writer's transaction; what it raises rolls back all of its own writes and nothing else. What may
run at once is held by the database itself: at most one response of a conversation is in progress (a partial unique
index), whichever process writes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnClause, Connection, bindparam, delete, insert, literal_column, select, update

from idefics_chat.conversation.messages import Message
from idefics_chat.storage import images, quotas, rows, tree
from idefics_chat.storage.accounts import create_conversation, require_conversation
from idefics_chat.storage.errors import (
    AlreadyExists,
    ConversationBusy,
    EventOutOfOrder,
    ResponseFinished,
    ResponseNotFound,
)
from idefics_chat.storage.models import (
    ConversationRecord,
    EventRecord,
    MessageRecord,
    PartRecord,
    ResponseRecord,
)
from idefics_chat.storage.prepared import ConstraintError, Prepared, PreparedRows
from idefics_chat.storage.values import Conversation, Event, FinishedResponse, NewResponse, ResponseRow, StoredImage

_IN_PROGRESS: ColumnClause[str] = literal_column(
    "'in_progress'"
)  # as text: a bound value would keep the partial index from being used

BY_KEY = Prepared(
    select(ResponseRecord.__table__).where(
        ResponseRecord.owner_id == bindparam("owner_id"), ResponseRecord.idempotency_key == bindparam("key")
    )
)
RUNNING = Prepared(
    select(ResponseRecord.id).where(
        ResponseRecord.conversation_id == bindparam("conversation_id"), ResponseRecord.status == _IN_PROGRESS
    )
)
_LAST_EVENT = (
    select(EventRecord.sequence_number)
    .where(EventRecord.response_id == bindparam("id"))
    .order_by(EventRecord.sequence_number.desc())
    .limit(1)
)
TO_CONTINUE = Prepared(
    select(
        ResponseRecord.id,
        ResponseRecord.owner_id,
        ResponseRecord.conversation_id,
        ResponseRecord.parent_id,
        ResponseRecord.restore_tip_id,
        ResponseRecord.input_ids,
        ResponseRecord.output_id,
        ResponseRecord.output_depth,
        ResponseRecord.output_jump_id,
        ResponseRecord.status,
        _LAST_EVENT.scalar_subquery().label("last_event"),
    ).where(ResponseRecord.id == bindparam("id"))
)
DIGESTS_OF = Prepared(
    select(PartRecord.digest).where(PartRecord.message_id == bindparam("id"), PartRecord.digest.is_not(None))
)
_ADD_RESPONSE = Prepared(insert(ResponseRecord))
_ADD_EVENTS = PreparedRows(EventRecord)
_ADD_MESSAGES = PreparedRows(MessageRecord)
_ADD_PARTS = PreparedRows(PartRecord, ("message_id", "position", "digest", "text"))
MOVE_TIP = Prepared(
    update(ConversationRecord)
    .where(ConversationRecord.id == bindparam("of"))
    .values(tip_id=bindparam("to"), updated_at=bindparam("at"))
)
_FINISH = Prepared(
    update(ResponseRecord)
    .where(ResponseRecord.id == bindparam("of"))
    .values({name: bindparam(name) for name in rows.FINISH_COLUMNS})
)
_REMOVE_MESSAGE = Prepared(delete(MessageRecord).where(MessageRecord.id == bindparam("id")))


def begin_response(
    connection: Connection, owner_id: str, new: NewResponse, events: Sequence[Event], make_at: float | None = None
) -> ResponseRow:
    """Store a turn's input and its running response; the conversation's tip becomes the last input message.

    The conversation is made first when `make_at`, its time, is given. With an idempotency key that was used before,
    returns that first response and stores nothing. Raises
    IdempotencyConflict, ConversationNotFound, ConversationBusy, ItemNotFound, ImageNotFound, AlreadyExists,
    QuotaExceeded.
    """
    first = _first_of_key(connection, owner_id, new)
    if first is not None:
        return first
    if make_at is not None:
        create_conversation(connection, owner_id, new.conversation_id, None, None, make_at)
    conversation = require_conversation(connection, owner_id, new.conversation_id)
    places = tree.load_places(connection, new.conversation_id, new.parent_id, len(new.messages) + 1)
    tree.check_chain(new.parent_id, [(message.id, message.parent_id) for message in new.messages])
    tip = new.messages[-1].id if new.messages else new.parent_id
    output = tree.add_children(places, (*((m.parent_id, m.id) for m in new.messages), (tip, new.output_id)))
    _add_response(connection, owner_id, new, conversation.tip_id, output)
    image_bytes = images.add_images(connection, owner_id, new.images, new.messages, new.created_at)
    add_messages(connection, new.conversation_id, new.messages, places)
    quotas.count(connection, owner_id, messages=len(new.messages), image_bytes=image_bytes, begun_turns=1)
    add_events(connection, new.id, events, expected=0)
    MOVE_TIP.run(connection, {"of": new.conversation_id, "to": tip, "at": new.created_at})
    return rows.begun_response(new)


def append_events(connection: Connection, response_id: str, events: Sequence[Event]) -> None:
    """Add to a running response's log. Raises ResponseNotFound, ResponseFinished, EventOutOfOrder."""
    response = _require_running(connection, response_id)
    _continue_log(connection, response, response_id, events)


def finish_response(connection: Connection, finished: FinishedResponse, events: Sequence[Event]) -> None:
    """Store a running response's end: its last events, the answer, which becomes the conversation's tip, its status.

    A failed turn leaves no trace in the conversation: its input messages go and the tip is what it was before.
    Raises ResponseNotFound, ResponseFinished, EventOutOfOrder, ItemNotFound.
    """
    response = _require_running(connection, finished.id)
    _continue_log(connection, response, finished.id, events)
    answered = finished.status != "failed" and finished.message is not None
    if finished.status == "failed":
        _undo_input(connection, response, finished.completed_at)
    elif finished.message is not None:
        _add_answer(connection, response, finished.message, finished.completed_at)
    _FINISH.run(
        connection,
        {
            "of": finished.id,
            "status": finished.status,
            "answered": answered,
            "completed_at": finished.completed_at,
            "usage": rows.optional_json(finished.usage),
            "error": rows.optional_json(finished.error),
            "incomplete_reason": finished.incomplete_reason,
        },
    )


def add_items(
    connection: Connection,
    owner_id: str,
    conversation_id: str,
    messages: Sequence[Message],
    sent: Sequence[StoredImage],
    at: float,
) -> None:
    """Store messages without a turn; the last becomes the conversation's tip. They are one chain that follows any
    message of the conversation; `sent` are the images in them.

    Raises ConversationNotFound, ConversationBusy, ItemNotFound, ImageNotFound, AlreadyExists, QuotaExceeded.
    """
    require_conversation(connection, owner_id, conversation_id)
    require_idle(connection, conversation_id)
    if not messages:
        return
    parent_id = messages[0].parent_id
    tree.check_chain(parent_id, [(message.id, message.parent_id) for message in messages])
    places = tree.load_places(connection, conversation_id, parent_id, len(messages))
    tree.add_children(places, [(message.parent_id, message.id) for message in messages])
    image_bytes = images.add_images(connection, owner_id, sent, messages, at)
    add_messages(connection, conversation_id, messages, places)
    quotas.count(connection, owner_id, messages=len(messages), image_bytes=image_bytes)
    MOVE_TIP.run(connection, {"of": conversation_id, "to": messages[-1].id, "at": at})


def create_with_messages(
    connection: Connection,
    owner_id: str,
    conversation_id: str,
    messages: Sequence[Message],
    sent: Sequence[StoredImage],
    at: float,
) -> Conversation:
    """A new conversation that holds the messages. Raises what creating and adding raise."""
    create_conversation(connection, owner_id, conversation_id, None, None, at)
    add_items(connection, owner_id, conversation_id, messages, sent, at)
    return rows.read_conversation(require_conversation(connection, owner_id, conversation_id))


def add_messages(
    connection: Connection, conversation_id: str, messages: Sequence[Message], places: tree.Places
) -> None:
    """Store messages that stand at their `places`, parents first. Raises AlreadyExists for an id that is taken."""
    if not messages:
        return
    values = [rows.message_values(message, conversation_id, places[message.id]) for message in messages]
    try:
        _ADD_MESSAGES.add(connection, values)
    except ConstraintError as error:
        raise AlreadyExists("item", ", ".join(message.id for message in messages)) from error
    parts = [part for message in messages for part in rows.part_values(message)]
    _ADD_PARTS.add(connection, parts)


def add_events(connection: Connection, response_id: str, events: Sequence[Event], *, expected: int) -> None:
    """Store events numbered on from `expected`. Raises EventOutOfOrder."""
    for number, event in enumerate(events, expected):
        if event.sequence_number != number:
            raise EventOutOfOrder(response_id, number, event.sequence_number)
    if events:
        _ADD_EVENTS.add(connection, rows.event_values(response_id, events))


def require_idle(connection: Connection, conversation_id: str) -> None:
    """Raises ConversationBusy while a turn is running in the conversation."""
    running = RUNNING.one(connection, {"conversation_id": conversation_id})
    if running is not None:
        raise ConversationBusy(conversation_id, running.id)


def _first_of_key(connection: Connection, owner_id: str, new: NewResponse) -> ResponseRow | None:
    if new.idempotency_key is None:
        return None
    row = BY_KEY.one(connection, {"owner_id": owner_id, "key": new.idempotency_key})
    return None if row is None else rows.same_request(row, new.request_hash)


def _add_response(
    connection: Connection, owner_id: str, new: NewResponse, restore_tip_id: str | None, output: tree.Place
) -> None:
    try:
        _ADD_RESPONSE.run(connection, rows.response_values(owner_id, new, restore_tip_id, output))
    except ConstraintError as error:
        running = RUNNING.one(connection, {"conversation_id": new.conversation_id})
        if running is not None:
            raise ConversationBusy(new.conversation_id, running.id) from error
        raise AlreadyExists("response", new.id) from error


def _require_running(connection: Connection, response_id: str) -> Any:
    row = TO_CONTINUE.one(connection, {"id": response_id})
    if row is None:
        raise ResponseNotFound(response_id)
    if row.status != "in_progress":
        raise ResponseFinished(response_id)
    return row


def _continue_log(connection: Connection, response: Any, response_id: str, events: Sequence[Event]) -> None:
    expected = 0 if response.last_event is None else response.last_event + 1
    add_events(connection, response_id, events, expected=expected)


def _add_answer(connection: Connection, response: Any, message: Message, at: float) -> None:
    input_ids: list[str] = rows.from_json(response.input_ids)
    parent_id = input_ids[-1] if input_ids else response.parent_id
    if message.id != response.output_id or message.parent_id not in (None, parent_id):
        raise ValueError(f"The answer of {response.id} is {response.output_id} after {parent_id}, not {message.id}.")
    places = {message.id: tree.Place(response.output_depth, response.output_jump_id)}
    if message.parent_id != parent_id:
        message = replace(message, parent_id=parent_id)
    add_messages(connection, response.conversation_id, [message], places)
    quotas.count_answer(connection, response.owner_id)
    MOVE_TIP.run(connection, {"of": response.conversation_id, "to": message.id, "at": at})


def _undo_input(connection: Connection, response: Any, at: float) -> None:
    input_ids: list[str] = rows.from_json(response.input_ids)
    MOVE_TIP.run(connection, {"of": response.conversation_id, "to": response.restore_tip_id, "at": at})
    uses = Counter(row.digest for message_id in input_ids for row in DIGESTS_OF.all(connection, {"id": message_id}))
    for message_id in reversed(input_ids):
        _REMOVE_MESSAGE.run(connection, {"id": message_id})
    freed, _, _ = images.end_uses(connection, response.owner_id, uses)
    quotas.count(connection, response.owner_id, messages=-len(input_ids), image_bytes=-freed)
