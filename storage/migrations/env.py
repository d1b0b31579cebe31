"""Alembic's environment: runs the migrations on the connection that schema.py hands over, in its transaction."""

from alembic import context

from idefics_chat.storage.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
