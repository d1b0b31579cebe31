"""Titles, archive and deletion of conversations; counted usage; search; which event logs were removed."""

import sqlalchemy as sa
from alembic import op

from idefics_chat.storage.dialect import dialect_of

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _extend_conversations()
    op.add_column("responses", sa.Column("log_removed_at", sa.Double(), nullable=True))
    logs = sa.text("log_removed_at IS NULL AND completed_at IS NOT NULL")
    op.create_index(
        "ix_responses_completed_at", "responses", ["completed_at"], sqlite_where=logs, postgresql_where=logs
    )
    _count_uses()
    _count_usage()
    connection = op.get_bind()
    dialect = dialect_of(connection.engine.url)
    dialect.create_search(connection)
    dialect.index_new(connection)


def _extend_conversations() -> None:
    op.add_column("conversations", sa.Column("title", sa.Text(), nullable=True))
    op.add_column("conversations", sa.Column("state", sa.Text(), server_default="active", nullable=False))
    op.add_column("conversations", sa.Column("archived_at", sa.Double(), nullable=True))
    op.add_column("conversations", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.add_column("conversations", sa.Column("released_key", sa.Text(), nullable=True))
    op.drop_index("ix_conversations_owner_id_updated_at_id", "conversations")
    op.create_index(
        "ix_conversations_owner_id_state_updated_at_id", "conversations", ["owner_id", "state", "updated_at", "id"]
    )
    op.create_index(
        "ix_conversations_deleted_at", "conversations", ["deleted_at"], sqlite_where=sa.text("deleted_at IS NOT NULL")
    )


def _count_uses() -> None:
    op.create_table(
        "owner_images",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_owner_images_owner_id"),
        sa.ForeignKeyConstraint(["digest"], ["images.digest"], name="fk_owner_images_digest"),
        sa.PrimaryKeyConstraint("owner_id", "digest", name="pk_owner_images"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_owner_images_digest", "owner_images", ["digest"])
    op.execute(
        """
        INSERT INTO owner_images (owner_id, digest, uses)
        SELECT c.owner_id, p.digest, count(*)
          FROM message_parts p JOIN messages m ON m.id = p.message_id JOIN conversations c ON c.id = m.conversation_id
         WHERE p.digest IS NOT NULL GROUP BY c.owner_id, p.digest
        """
    )
    for table in ("image_data", "images"):
        op.execute(f"DELETE FROM {table} WHERE digest NOT IN (SELECT digest FROM owner_images)")


def _count_usage() -> None:
    op.create_table(
        "owner_usage",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("conversations", sa.Integer(), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("image_bytes", sa.Integer(), nullable=False),
        sa.Column("max_conversations", sa.Integer(), nullable=True),
        sa.Column("max_messages", sa.Integer(), nullable=True),
        sa.Column("max_image_bytes", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_owner_usage_owner_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner_id", name="pk_owner_usage"),
    )
    op.execute(
        """
        INSERT INTO owner_usage (owner_id, conversations, messages, image_bytes)
        SELECT o.id,
               (SELECT count(*) FROM conversations c WHERE c.owner_id = o.id),
               (SELECT count(*) FROM messages m JOIN conversations c ON c.id = m.conversation_id
                 WHERE c.owner_id = o.id),
               (SELECT coalesce(sum(i.size_bytes), 0) FROM owner_images u JOIN images i ON i.digest = u.digest
                 WHERE u.owner_id = o.id)
          FROM owners o
        """
    )
