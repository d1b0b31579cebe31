"""Uploaded files."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_files_owner_id"),
        sa.ForeignKeyConstraint(["digest"], ["images.digest"], name="fk_files_digest"),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )
    op.create_index("ix_files_digest", "files", ["digest"])
    op.create_index("ix_files_owner_id_created_at_id", "files", ["owner_id", "created_at", "id"])
    op.create_index("ix_files_owner_id_purpose_created_at_id", "files", ["owner_id", "purpose", "created_at", "id"])
    op.create_index("ix_files_expires_at", "files", ["expires_at"], sqlite_where=sa.text("expires_at IS NOT NULL"))
