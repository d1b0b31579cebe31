"""Batches of tasks, so that they outlive the server."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task_batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_task_batches_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_task_batches"),
    )
    op.create_index("ix_task_batches_owner_id_created_at_id", "task_batches", ["owner_id", "created_at", "id"])
    op.create_index(
        "ix_task_batches_running", "task_batches", ["created_at"], sqlite_where=sa.text("finished_at IS NULL")
    )
    op.create_index(
        "ix_task_batches_finished_at",
        "task_batches",
        ["finished_at"],
        sqlite_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_table(
        "batch_tasks",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("sequence_number", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["batch_id"], ["task_batches.id"], name="fk_batch_tasks_batch_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "position", name="pk_batch_tasks"),
    )
    op.create_index(
        "uq_batch_tasks_batch_id_sequence_number",
        "batch_tasks",
        ["batch_id", "sequence_number"],
        unique=True,
        sqlite_where=sa.text("sequence_number IS NOT NULL"),
    )
