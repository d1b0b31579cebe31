"""Files that owners uploaded: units of work, and what is read of them.

A file is a use of its image: the bytes stay as long as a file or a message needs them. A file past its time is as if
it were deleted, and is removed a little later.
"""

from typing import Any

from sqlalchemy import Connection, Executable, bindparam, delete, insert, or_, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from idefics_chat.storage import images, quotas
from idefics_chat.storage.errors import AlreadyExists, StoredFileNotFound
from idefics_chat.storage.listing import Order, page
from idefics_chat.storage.models import FileRecord, ImageDataRecord, ImageRecord
from idefics_chat.storage.values import NewFile, Page, StoredFile, StoredImage

_KEPT = or_(FileRecord.expires_at.is_(None), FileRecord.expires_at > bindparam("now"))
_OWN = (FileRecord.owner_id == bindparam("owner_id"), FileRecord.id == bindparam("id"), _KEPT)
_COLUMNS = (
    FileRecord.id,
    FileRecord.filename,
    FileRecord.purpose,
    FileRecord.digest,
    ImageRecord.media_type,
    ImageRecord.width,
    ImageRecord.height,
    ImageRecord.size_bytes,
    FileRecord.created_at,
    FileRecord.expires_at,
)


def _files(order: Order, *, after: bool, purpose: bool) -> Executable:
    wanted = [FileRecord.owner_id == bindparam("owner_id"), _KEPT]
    if purpose:
        wanted.append(FileRecord.purpose == bindparam("purpose"))
    if after:
        position = tuple_(FileRecord.created_at, FileRecord.id)
        mark = tuple_(bindparam("after_at"), bindparam("after_id"))
        wanted.append(position > mark if order == "asc" else position < mark)
    columns = (FileRecord.created_at, FileRecord.id)
    return (
        select(*_COLUMNS)
        .join(ImageRecord, ImageRecord.digest == FileRecord.digest)
        .where(*wanted)
        .order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))
        .limit(bindparam("limit"))
    )


FILES: dict[tuple[Order, bool, bool], Executable] = {
    (order, after, purpose): _files(order, after=after, purpose=purpose)
    for order in ("asc", "desc")
    for after in (False, True)
    for purpose in (False, True)
}
FILE = select(*_COLUMNS).join(ImageRecord, ImageRecord.digest == FileRecord.digest).where(*_OWN)
CONTENT = (
    select(ImageRecord.digest, ImageRecord.media_type, ImageRecord.width, ImageRecord.height, ImageDataRecord.data)
    .select_from(FileRecord)
    .join(ImageRecord, ImageRecord.digest == FileRecord.digest)
    .join(ImageDataRecord, ImageDataRecord.digest == FileRecord.digest)
    .where(*_OWN)
)
EXPIRED = (
    select(FileRecord.id, FileRecord.owner_id, FileRecord.digest)
    .where(FileRecord.expires_at.is_not(None), FileRecord.expires_at <= bindparam("now"))
    .order_by(FileRecord.expires_at)
    .limit(bindparam("limit"))
)


def add_file(connection: Connection, owner_id: str, new: NewFile, now: float) -> StoredFile:
    """Keep a file. Its bytes count for the owner unless they did already. Raises AlreadyExists, QuotaExceeded."""
    image = new.image
    quotas.count(connection, owner_id, image_bytes=images.add_use(connection, owner_id, image, now))
    values = {
        "id": new.id,
        "owner_id": owner_id,
        "digest": image.digest,
        "filename": new.filename,
        "purpose": new.purpose,
        "created_at": now,
        "expires_at": new.expires_at,
    }
    try:
        connection.execute(insert(FileRecord), values)
    except IntegrityError as error:
        raise AlreadyExists("file", new.id) from error
    about = (image.digest, image.media_type, image.width, image.height, len(image.data))
    return StoredFile(new.id, new.filename, new.purpose, *about, now, new.expires_at)


def delete_file(connection: Connection, owner_id: str, file_id: str, now: float) -> None:
    """Remove a file, and its bytes when nothing else needs them. Raises StoredFileNotFound."""
    row = connection.execute(FILE, {"id": file_id, "owner_id": owner_id, "now": now}).one_or_none()
    if row is None:
        raise StoredFileNotFound(file_id)
    _remove(connection, owner_id, file_id, row.digest)


def remove_expired(connection: Connection, now: float, limit: int) -> int:
    """Remove at most `limit` files that are past their time, the longest first; how many."""
    found = connection.execute(EXPIRED, {"now": now, "limit": limit}).all()
    for row in found:
        _remove(connection, row.owner_id, row.id, row.digest)
    return len(found)


async def file(connection: AsyncConnection, owner_id: str, file_id: str, now: float) -> StoredFile:
    """Raises StoredFileNotFound."""
    return StoredFile(*await _one(connection, FILE, owner_id, file_id, now))


async def content(connection: AsyncConnection, owner_id: str, file_id: str, now: float) -> StoredImage:
    """A file's bytes. Raises StoredFileNotFound."""
    return StoredImage(*await _one(connection, CONTENT, owner_id, file_id, now))


async def files(
    connection: AsyncConnection,
    owner_id: str,
    limit: int,
    order: Order,
    after: str | None,
    purpose: str | None,
    now: float,
) -> Page[StoredFile]:
    """The owner's files by when they were uploaded. Raises StoredFileNotFound for an unknown `after`."""
    values: dict[str, object] = {"owner_id": owner_id, "now": now, "limit": limit + 1, "purpose": purpose}
    if after is not None:
        mark = await file(connection, owner_id, after, now)
        values |= {"after_at": mark.created_at, "after_id": mark.id}
    statement = FILES[order, after is not None, purpose is not None]
    found = (await connection.execute(statement, values)).all()
    return page([StoredFile(*row) for row in found], limit)


async def _one(connection: AsyncConnection, statement: Executable, owner_id: str, file_id: str, now: float) -> Any:
    found = await connection.execute(statement, {"id": file_id, "owner_id": owner_id, "now": now})
    row = found.one_or_none()
    if row is None:
        raise StoredFileNotFound(file_id)
    return row


def _remove(connection: Connection, owner_id: str, file_id: str, digest: str) -> None:
    connection.execute(delete(FileRecord).where(FileRecord.id == file_id))
    freed, _, _ = images.end_uses(connection, owner_id, {digest: 1})
    quotas.count(connection, owner_id, image_bytes=-freed)
