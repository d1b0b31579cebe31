"""The tables.

Ids come from the caller and are text. Rows that are listed or walked stay small: image bytes lie in a table of their
own. `messages.depth` and `.jump_id` make any ancestor findable in a logarithmic number of steps (see tree.py).
JSON is kept as the text that was written. Migrations repeat these definitions; a test compares the two. The table for
searching, message_search, is SQLite's own kind and stands in dialect.py.
"""

from sqlalchemy import Double, ForeignKey, Index, LargeBinary, MetaData, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The declarative base: every text column is plain TEXT, whatever its length."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {str: Text(), bytes: LargeBinary(), float: Double()}  # noqa: RUF012 (SQLAlchemy reads it from the class)


class OwnerRecord(Base):
    """Whose things they are."""

    __tablename__ = "owners"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[float]


class UsageRecord(Base):
    """What an owner has, counted as it is written, and how much it may have; None is no limit.

    Images count once an owner however often they are shown, with the bytes that were sent. What was deleted counts
    until it is purged.
    """

    __tablename__ = "owner_usage"

    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id", ondelete="CASCADE"), primary_key=True)
    conversations: Mapped[int]
    messages: Mapped[int]
    image_bytes: Mapped[int]
    max_conversations: Mapped[int | None]
    max_messages: Mapped[int | None]
    max_image_bytes: Mapped[int | None]


class KeyRecord(Base):
    """An API key of an owner, by its hash: the key itself is stored nowhere."""

    __tablename__ = "api_keys"

    key_hash: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    name: Mapped[str]
    scopes: Mapped[str | None]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class ConversationRecord(Base):
    """A conversation. `metadata_json` is a JSON object of strings.

    `state` is "active", "archived" or "deleted". A deleted one gives up its external key, so that the key may name a
    new conversation, and keeps it in `released_key`.
    """

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("owner_id", "external_key"),
        Index("ix_conversations_owner_id_state_updated_at_id", "owner_id", "state", "updated_at", "id"),
        Index("ix_conversations_deleted_at", "deleted_at", sqlite_where=text("deleted_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    external_key: Mapped[str | None]
    metadata_json: Mapped[str]
    created_at: Mapped[float]
    updated_at: Mapped[float]
    tip_id: Mapped[str | None] = mapped_column(ForeignKey("messages.id", use_alter=True), index=True)
    title: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="active")
    archived_at: Mapped[float | None]
    deleted_at: Mapped[float | None]
    released_key: Mapped[str | None]


class MessageRecord(Base):
    """A message, linked to its parent. `token_ids` are little-endian unsigned 32-bit integers."""

    __tablename__ = "messages"
    __table_args__ = (Index("ix_messages_conversation_id_id", "conversation_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("messages.id"), index=True)
    jump_id: Mapped[str]
    depth: Mapped[int]
    role: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[float]
    tokenizer: Mapped[str | None]
    token_ids: Mapped[bytes | None]


class PartRecord(Base):
    """A message's part: exactly one of `text` and `digest`."""

    __tablename__ = "message_parts"
    __table_args__ = (
        UniqueConstraint("message_id", "position"),
        Index("ix_message_parts_digest", "digest", sqlite_where=text("digest IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[str] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"))
    position: Mapped[int]
    digest: Mapped[str | None] = mapped_column(ForeignKey("images.digest"))
    text: Mapped[str | None]


class ImageRecord(Base):
    """What is known of an image; its bytes lie in `image_data`."""

    __tablename__ = "images"

    digest: Mapped[str] = mapped_column(primary_key=True)
    media_type: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    size_bytes: Mapped[int]
    created_at: Mapped[float]


class ImageDataRecord(Base):
    """An image's bytes, stored once however often it is shown."""

    __tablename__ = "image_data"

    digest: Mapped[str] = mapped_column(ForeignKey("images.digest", ondelete="CASCADE"), primary_key=True)
    data: Mapped[bytes]


class OwnerImageRecord(Base):
    """How many message parts and files of an owner use an image; an image that nobody uses is removed."""

    __tablename__ = "owner_images"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("images.digest"), primary_key=True, index=True)
    uses: Mapped[int]


class FileRecord(Base):
    """A file that an owner uploaded: an image under a name. After `expires_at` it is as if it were deleted."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_owner_id_created_at_id", "owner_id", "created_at", "id"),
        Index("ix_files_owner_id_purpose_created_at_id", "owner_id", "purpose", "created_at", "id"),
        Index("ix_files_expires_at", "expires_at", sqlite_where=text("expires_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    digest: Mapped[str] = mapped_column(ForeignKey("images.digest"), index=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]


class BatchRecord(Base):
    """A batch of tasks. `completed` and `failed` count its tasks' outcomes; it has ended once `finished_at` is set."""

    __tablename__ = "task_batches"
    __table_args__ = (
        Index("ix_task_batches_owner_id_created_at_id", "owner_id", "created_at", "id"),
        Index("ix_task_batches_running", "created_at", sqlite_where=text("finished_at IS NULL")),
        Index("ix_task_batches_finished_at", "finished_at", sqlite_where=text("finished_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    status: Mapped[str]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]
    total: Mapped[int]
    completed: Mapped[int]
    failed: Mapped[int]


class BatchTaskRecord(Base):
    """A task of a batch: a request that is still to be answered, or an outcome under its number, or neither where the
    batch was cancelled before the task's turn."""

    __tablename__ = "batch_tasks"
    __table_args__ = (
        Index(
            "uq_batch_tasks_batch_id_sequence_number",
            "batch_id",
            "sequence_number",
            unique=True,
            sqlite_where=text("sequence_number IS NOT NULL"),
        ),
    )

    batch_id: Mapped[str] = mapped_column(ForeignKey("task_batches.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    custom_id: Mapped[str | None]
    request: Mapped[str | None]
    sequence_number: Mapped[int | None]
    outcome: Mapped[str | None]


class ResponseRecord(Base):
    """A turn. Message ids in it are plain text: a failed turn's messages are gone, its row stays.

    `restore_tip_id` is the conversation's tip before the turn; `output_depth` and `output_jump_id` are the answer's
    place in the tree, found when the turn began. `log_removed_at` is when its events were removed.
    """

    __tablename__ = "responses"
    __table_args__ = (
        Index("ix_responses_conversation_id_id", "conversation_id", "id"),
        Index(
            "uq_responses_running",
            "conversation_id",
            unique=True,
            sqlite_where=text("status = 'in_progress'"),
            postgresql_where=text("status = 'in_progress'"),
        ),
        Index(
            "uq_responses_owner_id_idempotency_key",
            "owner_id",
            "idempotency_key",
            unique=True,
            sqlite_where=text("idempotency_key IS NOT NULL"),
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index(
            "ix_responses_completed_at",
            "completed_at",
            sqlite_where=text("log_removed_at IS NULL AND completed_at IS NOT NULL"),
            postgresql_where=text("log_removed_at IS NULL AND completed_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id"))
    parent_id: Mapped[str | None]
    restore_tip_id: Mapped[str | None]
    input_ids: Mapped[str]
    output_id: Mapped[str]
    output_depth: Mapped[int]
    output_jump_id: Mapped[str]
    answered: Mapped[bool]
    status: Mapped[str]
    created_at: Mapped[float]
    completed_at: Mapped[float | None]
    request: Mapped[str]
    usage: Mapped[str | None]
    error: Mapped[str | None]
    incomplete_reason: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str | None]
    previous_response_id: Mapped[str | None]
    log_removed_at: Mapped[float | None]


class EventRecord(Base):
    """One event of a response's log."""

    __tablename__ = "response_events"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True)
    sequence_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str]
    payload: Mapped[str]
