"""Conversations out of the database, as an archive (archive.py). It blocks."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select

from idefics_chat.conversation.messages import ImagePart
from idefics_chat.storage import archive, rows
from idefics_chat.storage.archive import Progress
from idefics_chat.storage.errors import ConversationNotFound
from idefics_chat.storage.models import (
    ConversationRecord,
    ImageDataRecord,
    ImageRecord,
    MessageRecord,
    PartRecord,
    ResponseRecord,
)
from idefics_chat.storage.reads import MESSAGE_COLUMNS
from idefics_chat.storage.values import Conversation, ResponseRow

DATE = (1980, 1, 1, 0, 0, 0)
"""The date of every file in an archive: the same conversations give the same bytes."""

_MESSAGES = (
    select(*MESSAGE_COLUMNS, PartRecord.digest, PartRecord.text)
    .outerjoin(PartRecord, PartRecord.message_id == MessageRecord.id)
    .where(MessageRecord.conversation_id == bindparam("id"))
    .order_by(MessageRecord.depth, MessageRecord.id, PartRecord.position)
)
_RESPONSES = (
    select(ResponseRecord.__table__)
    .where(ResponseRecord.conversation_id == bindparam("id"), ResponseRecord.status != "in_progress")
    .order_by(ResponseRecord.id)
)
_DIGESTS = (
    select(PartRecord.digest)
    .join(MessageRecord, MessageRecord.id == PartRecord.message_id)
    .where(MessageRecord.conversation_id == bindparam("id"), PartRecord.digest.is_not(None))
    .distinct()
)
_ABOUT_IMAGE = select(ImageRecord.__table__).where(ImageRecord.digest == bindparam("digest"))
_DATA = select(ImageDataRecord.data).where(ImageDataRecord.digest == bindparam("digest"))


def export_archive(
    connection: Connection,
    owner_id: str,
    target: Path,
    conversation_ids: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the owner's conversations, or those named, to a new zip file; how many.

    `progress` is told how many images of how many are written. On an error no file is left.

    Raises:
        ConversationNotFound: one that was named is not there, or not the owner's.
        OSError: the file cannot be written.
    """
    conversations = _conversations(connection, owner_id, conversation_ids)
    try:
        with zipfile.ZipFile(target, "x") as packed:
            _write(connection, packed, conversations, progress)
    except FileExistsError:
        raise
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return len(conversations)


def _write(
    connection: Connection, packed: zipfile.ZipFile, conversations: list[Conversation], progress: Progress | None
) -> None:
    ids = [conversation.id for conversation in conversations]
    digests = sorted({row.digest for one in ids for row in connection.execute(_DIGESTS, {"id": one})})
    counts = {"conversations": len(ids), "messages": _count(connection, ids), "images": len(digests)}
    manifest = {"format": archive.FORMAT, "version": archive.VERSION, **counts}
    _add(packed, archive.MANIFEST, [manifest])
    _add(packed, archive.CONVERSATIONS, map(_conversation_line, conversations))
    _add(packed, archive.MESSAGES, (line for one in ids for line in _message_lines(connection, one)))
    _add(packed, archive.RESPONSES, (line for one in ids for line in _response_lines(connection, one)))
    _add(packed, archive.IMAGES, (_image_line(connection, digest) for digest in digests))
    for number, digest in enumerate(digests):
        if progress is not None:
            progress(number, len(digests))
        member = zipfile.ZipInfo(f"images/{digest}", DATE)
        packed.writestr(member, connection.execute(_DATA, {"digest": digest}).scalar_one())


def _add(packed: zipfile.ZipFile, name: str, lines: Any) -> None:
    member = zipfile.ZipInfo(name, DATE)
    member.compress_type = zipfile.ZIP_DEFLATED
    with packed.open(member, "w", force_zip64=True) as file:
        for line in lines:
            file.write(f"{rows.to_json(line)}\n".encode())


def _conversations(connection: Connection, owner_id: str, conversation_ids: Sequence[str] | None) -> list[Conversation]:
    wanted: Select[Any] = select(ConversationRecord.__table__).where(
        ConversationRecord.owner_id == owner_id, ConversationRecord.deleted_at.is_(None)
    )
    found = [rows.read_conversation(row) for row in connection.execute(wanted.order_by(ConversationRecord.id))]
    if conversation_ids is None:
        return found
    for named in conversation_ids:
        if named not in {one.id for one in found}:
            raise ConversationNotFound(named)
    return [one for one in found if one.id in conversation_ids]


def _count(connection: Connection, conversation_ids: list[str]) -> int:
    count = select(func.count()).where(MessageRecord.conversation_id == bindparam("id"))
    return sum(connection.execute(count, {"id": one}).scalar_one() for one in conversation_ids)


def _conversation_line(one: Conversation) -> dict[str, Any]:
    names = ("id", "external_key", "title", "metadata", "created_at", "updated_at", "archived_at", "tip_id")
    return {name: getattr(one, name) for name in names}


def _message_lines(connection: Connection, conversation_id: str) -> Iterator[dict[str, Any]]:
    for message in rows.read_messages(connection.execute(_MESSAGES, {"id": conversation_id})):
        tokens = message.tokens
        yield {
            "id": message.id,
            "conversation_id": conversation_id,
            "parent_id": message.parent_id,
            "role": message.role,
            "status": message.status,
            "created_at": message.created_at,
            "parts": [{"image": p.digest} if isinstance(p, ImagePart) else {"text": p.text} for p in message.parts],
            "tokens": None if tokens is None else {"tokenizer": tokens.tokenizer, "ids": list(tokens.ids)},
        }


def _response_lines(connection: Connection, conversation_id: str) -> Iterator[dict[str, Any]]:
    left_out = ("idempotency_key", "request_hash")
    names = [name for name in ResponseRow.__slots__ if name not in left_out]
    for row in connection.execute(_RESPONSES, {"id": conversation_id}):
        response = rows.read_response(row)
        yield {name: getattr(response, name) for name in names}


def _image_line(connection: Connection, digest: str) -> dict[str, Any]:
    row = connection.execute(_ABOUT_IMAGE, {"digest": digest}).one()
    return {"digest": digest, "media_type": row.media_type, "width": row.width, "height": row.height}
