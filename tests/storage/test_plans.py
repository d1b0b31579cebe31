"""The plans by which SQLite answers: by an index each, no table read whole, no image bytes with the rows."""

import re
import sqlite3

import pytest
from sqlalchemy.dialects import sqlite

from idefics_chat.storage import accounts, reads, tree, turns

pytestmark = pytest.mark.anyio

STATEMENTS = {
    "path": reads.PATH,
    "item": reads.ITEM,
    "response": reads.RESPONSE,
    "running responses": reads.RUNNING,
    "events": reads.EVENTS,
    "image": reads.IMAGE_OF_OWNER,
    "image data": reads.IMAGE_DATA,
    "conversation": accounts.CONVERSATION,
    "conversation by key": accounts.CONVERSATION_BY_KEY,
    "owner by key": accounts.OWNER_BY_KEY,
    "owner by name": accounts.OWNER_BY_NAME,
    "jumps": tree.JUMPS.statement,
    "response by idempotency key": turns.BY_KEY.statement,
    "running response": turns.RUNNING.statement,
    "response to continue": turns.TO_CONTINUE.statement,
}


def plan(database, statement) -> list[str]:
    sql = str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))
    names = set(re.findall(r":(\w+)", sql))
    connection = sqlite3.connect(database)
    found = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", dict.fromkeys(names, 1))]
    connection.close()
    return found


@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_statement_searches_by_an_index(store, database, name):
    scanned = [step for step in plan(database, STATEMENTS[name]) if step.startswith("SCAN")]
    allowed = {"SCAN chain", "SCAN CONSTANT ROW"}  # the chain is the path itself
    if name == "running responses":
        allowed.add("SCAN responses USING INDEX uq_responses_running")  # an index of the running ones alone
    assert set(scanned) <= allowed


async def test_a_path_is_one_look_up_by_primary_key_a_message(store, database):
    steps = plan(database, reads.PATH)
    assert sum("messages" in step and "(id=?)" in step for step in steps) == 3
    assert not any("image" in step for step in steps)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("running response", "uq_responses_running"),
        ("response by idempotency key", "uq_responses_owner_id_idempotency_key"),
        ("conversation by key", "uq_conversations_owner_id_external_key"),
        ("image", "ix_message_parts_digest"),
    ],
)
async def test_a_statement_uses_its_own_index(store, database, name, index):
    connection = sqlite3.connect(database)
    named = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    connection.close()
    steps = " ".join(plan(database, STATEMENTS[name]))
    assert index in steps if index in named else "sqlite_autoindex" in steps
