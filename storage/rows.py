"""Values to rows and back: JSON, token ids, parts. Plain functions, no database."""

import json
from array import array
from collections.abc import Iterable, Mapping
from sys import byteorder
from typing import Any, cast

from idefics_chat.conversation.messages import ImagePart, Message, Part, Role, Status, TextPart, TokenRecord
from idefics_chat.storage.errors import IdempotencyConflict
from idefics_chat.storage.search_terms import unmarked
from idefics_chat.storage.tree import Place
from idefics_chat.storage.values import (
    Conversation,
    Event,
    Hit,
    JsonObject,
    Key,
    NewResponse,
    ResponseRow,
    ResponseStatus,
)

TOKEN_ID_BYTES = 4
FINISH_COLUMNS = ("status", "answered", "completed_at", "usage", "error", "incomplete_reason")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain)


def to_json(value: object) -> str:
    """JSON as it is stored: compact, any script as it is, keys in their order."""
    return _ENCODER.encode(value)


def optional_json(value: JsonObject | None) -> str | None:
    """JSON of an object, None for None."""
    return None if value is None else to_json(value)


def from_json(text: str | None) -> Any:
    """The value of stored JSON, None for None."""
    return None if text is None else json.loads(text)


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids as little-endian unsigned 32-bit integers."""
    packed = array("I", ids)
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """The token ids that `pack_ids` packed."""
    packed = array("I", data)
    if byteorder == "big":
        packed.byteswap()
    return tuple(packed)


def message_values(message: Message, conversation_id: str, place: Place) -> dict[str, object]:
    """The message's row."""
    tokens = message.tokens
    return {
        "id": message.id,
        "conversation_id": conversation_id,
        "parent_id": message.parent_id,
        "jump_id": place.jump_id,
        "depth": place.depth,
        "role": message.role,
        "status": message.status,
        "created_at": message.created_at,
        "tokenizer": tokens.tokenizer if tokens else None,
        "token_ids": pack_ids(tokens.ids) if tokens else None,
    }


def part_values(message: Message) -> list[dict[str, object]]:
    """The rows of the message's parts."""
    return [
        {
            "message_id": message.id,
            "position": position,
            "digest": part.digest if isinstance(part, ImagePart) else None,
            "text": part.text if isinstance(part, TextPart) else None,
        }
        for position, part in enumerate(message.parts)
    ]


def event_values(response_id: str, events: Iterable[Event]) -> list[dict[str, object]]:
    """The rows of a response's events."""
    return [
        {"response_id": response_id, "sequence_number": e.sequence_number, "type": e.type, "payload": e.payload}
        for e in events
    ]


def response_values(owner_id: str, new: NewResponse, restore_tip_id: str | None, output: Place) -> dict[str, object]:
    """The row of a response that begins, whose answer will stand at `output`."""
    return {
        "id": new.id,
        "owner_id": owner_id,
        "conversation_id": new.conversation_id,
        "parent_id": new.parent_id,
        "restore_tip_id": restore_tip_id,
        "input_ids": to_json([message.id for message in new.messages]),
        "output_id": new.output_id,
        "output_depth": output.depth,
        "output_jump_id": output.jump_id,
        "answered": False,
        "status": "in_progress",
        "created_at": new.created_at,
        "completed_at": None,
        "request": to_json(new.request),
        "usage": None,
        "error": None,
        "incomplete_reason": None,
        "idempotency_key": new.idempotency_key,
        "request_hash": new.request_hash,
        "previous_response_id": new.previous_response_id,
        "log_removed_at": None,
    }


def ended_response_values(owner_id: str, response: ResponseRow, output: Place, *, answered: bool) -> dict[str, object]:
    """The row of a response that ended elsewhere; its event log stayed there."""
    return {
        "id": response.id,
        "owner_id": owner_id,
        "conversation_id": response.conversation_id,
        "parent_id": response.parent_id,
        "restore_tip_id": None,
        "input_ids": to_json(list(response.input_ids)),
        "output_id": response.output_id,
        "output_depth": output.depth,
        "output_jump_id": output.jump_id,
        "answered": answered,
        "status": response.status,
        "created_at": response.created_at,
        "completed_at": response.completed_at,
        "request": to_json(response.request),
        "usage": optional_json(response.usage),
        "error": optional_json(response.error),
        "incomplete_reason": response.incomplete_reason,
        "idempotency_key": None,
        "request_hash": None,
        "previous_response_id": response.previous_response_id,
        "log_removed_at": response.completed_at,
    }


def begun_response(new: NewResponse) -> ResponseRow:
    """What a response that has just begun reads as."""
    return ResponseRow(
        id=new.id,
        conversation_id=new.conversation_id,
        parent_id=new.parent_id,
        input_ids=tuple(message.id for message in new.messages),
        output_id=new.output_id,
        status="in_progress",
        created_at=new.created_at,
        completed_at=None,
        request=new.request,
        usage=None,
        error=None,
        incomplete_reason=None,
        idempotency_key=new.idempotency_key,
        request_hash=new.request_hash,
        previous_response_id=new.previous_response_id,
    )


def read_response(row: Any) -> ResponseRow:
    """A response from its row."""
    return ResponseRow(
        id=row.id,
        conversation_id=row.conversation_id,
        parent_id=row.parent_id,
        input_ids=tuple(from_json(row.input_ids)),
        output_id=row.output_id,
        status=cast(ResponseStatus, row.status),
        created_at=row.created_at,
        completed_at=row.completed_at,
        request=from_json(row.request),
        usage=from_json(row.usage),
        error=from_json(row.error),
        incomplete_reason=row.incomplete_reason,
        idempotency_key=row.idempotency_key,
        request_hash=row.request_hash,
        previous_response_id=row.previous_response_id,
        answered=bool(row.answered),
    )


def same_request(row: Any, request_hash: str | None) -> ResponseRow:
    """A response found by its idempotency key. Raises IdempotencyConflict when it answered another request."""
    if row.request_hash != request_hash:
        raise IdempotencyConflict(row.idempotency_key)
    return read_response(row)


def read_conversation(row: Any) -> Conversation:
    """A conversation from its row."""
    return Conversation(
        id=row.id,
        owner_id=row.owner_id,
        external_key=row.external_key,
        metadata=from_json(row.metadata_json),
        created_at=row.created_at,
        tip_id=row.tip_id,
        title=row.title,
        updated_at=row.updated_at,
        archived_at=row.archived_at,
        deleted_at=row.deleted_at,
    )


def read_hit(row: Any) -> Hit:
    """What a search found, from its row, with the marks in its snippet as places."""
    return Hit(row.conversation_id, row.id, row.role, row.created_at, *unmarked(row.snippet))


def read_key(row: Any) -> Key:
    """A key from its row."""
    scopes = tuple(from_json(row.scopes) or ())
    return Key(row.key_hash, row.owner_id, row.name, scopes, row.created_at, row.expires_at, row.revoked_at)


def read_messages(rows: Iterable[Any]) -> list[Message]:
    """Messages from rows of a message joined to one part each, a message's rows together and in the parts' order."""
    heads: dict[str, Any] = {}
    parts: dict[str, list[Part]] = {}
    for row in rows:
        heads.setdefault(row.id, row)
        parts.setdefault(row.id, []).extend(read_parts(row))
    return [_message(head, tuple(parts[message_id])) for message_id, head in heads.items()]


def read_parts(row: Any) -> tuple[Part, ...]:
    """The part that the row is joined to; none where there is none."""
    if row.digest is not None:
        return (ImagePart(row.digest),)
    return () if row.text is None else (TextPart(row.text),)


def _message(row: Any, parts: tuple[Part, ...]) -> Message:
    tokens = None if row.token_ids is None else TokenRecord(unpack_ids(row.token_ids), row.tokenizer or "")
    return Message(
        id=row.id,
        role=cast(Role, row.role),
        parts=parts,
        parent_id=row.parent_id,
        status=cast(Status, row.status),
        created_at=row.created_at,
        tokens=tokens,
    )
