"""The plans by which SQLite answers: by an index each, no table read whole, no image bytes with the rows."""

import re
import sqlite3

import pytest
from sqlalchemy.dialects import sqlite

from idefics_chat.storage import (
    accounts,
    batches,
    deletion,
    files,
    images,
    lifecycle,
    listing,
    quotas,
    reads,
    tree,
    turns,
)
from idefics_chat.storage.dialect import full_text

pytestmark = pytest.mark.anyio

STATEMENTS = {
    "path": reads.PATH.statement,
    "item": reads.ITEM.statement,
    "response": reads.RESPONSE.statement,
    "running responses": reads.RUNNING,
    "events": reads.EVENTS.statement,
    "image": reads.IMAGE_OF_OWNER.statement,
    "image data": reads.IMAGE_DATA.statement,
    "conversation": accounts.CONVERSATION.statement,
    "conversation by key": accounts.CONVERSATION_BY_KEY.statement,
    "owner by key": accounts.OWNER_BY_KEY.statement,
    "owner by name": accounts.OWNER_BY_NAME.statement,
    "owners": accounts.OWNERS,
    "jumps": tree.JUMPS.statement,
    "conversations": listing.CONVERSATIONS["desc", False],
    "conversations after one": listing.CONVERSATIONS["desc", True],
    "oldest conversations after one": listing.CONVERSATIONS["asc", True],
    "a conversation's place in the list": listing.MARK,
    "tip": listing.TIP,
    "an item's place": listing.PLACE,
    "ancestor": listing.ANCESTOR,
    "items": listing.UPWARDS,
    "tree": listing.TREE,
    "to purge": lifecycle.TO_PURGE,
    "old logs": lifecycle.OLD_LOGS,
    "usage": quotas.USAGE.statement,
    "answers to come": quotas.TO_COME.statement,
    "uses of an image": images.USES.statement,
    "any use of an image": images.ANY_USE.statement,
    "response by idempotency key": turns.BY_KEY.statement,
    "running response": turns.RUNNING.statement,
    "response to continue": turns.TO_CONTINUE.statement,
    "what follows an item": deletion.DESCENDANTS.statement,
    "file": files.FILE,
    "content of a file": files.CONTENT,
    "expired files": files.EXPIRED,
    "batch": batches.BATCH,
    "batches": batches.BATCHES,
    "running batches": batches.RUNNING,
    "old batches": batches.OLD,
    "tasks that are left": batches.LEFT,
    "outcomes": batches.OUTCOMES,
}


def plan(database, statement, *values) -> list[str]:
    named = sqlite.dialect(paramstyle="named")
    sql = statement if isinstance(statement, str) else str(statement.compile(dialect=named))
    names = set(re.findall(r":(\w+)", sql))
    connection = sqlite3.connect(database)
    found = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values or dict.fromkeys(names, 1))]
    connection.close()
    return found


@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_statement_searches_by_an_index(store, database, name):
    scanned = [step for step in plan(database, STATEMENTS[name]) if step.startswith("SCAN")]
    # The chain is the path itself, the climb the jumps made, the last one a page's ids.
    allowed = {"SCAN chain", "SCAN climb", "SCAN CONSTANT ROW", "SCAN anon_1", "SCAN descendants"}
    if name in ("running responses", "answers to come"):
        allowed.add("SCAN responses USING INDEX uq_responses_running")  # an index of the running ones alone
    if name == "running batches":
        allowed.add("SCAN task_batches USING INDEX ix_task_batches_running")  # likewise
    assert set(scanned) <= allowed


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_conversations_are_read_in_the_order_of_their_index(store, database, order, after):
    (step,) = plan(database, listing.CONVERSATIONS[order, after])
    assert "ix_conversations_owner_id_state_updated_at_id" in step
    assert ("(updated_at,id)" in step) == after  # it begins at the mark, and nothing is sorted


async def test_previews_are_looked_up_conversation_by_conversation(store, database):
    compiled = listing.PREVIEWS.compile(dialect=sqlite.dialect(paramstyle="named"))
    asked = compiled.construct_expanded_state({"owner_id": "owner_1", "ids": ["conv_1", "conv_2"]})
    connection = sqlite3.connect(database)
    steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {asked.statement}", asked.parameters)]
    connection.close()
    assert not [step for step in steps if step.startswith("SCAN")]
    assert [step for step in steps if "ix_messages_conversation_id_id (conversation_id=?)" in step]
    assert not [step for step in steps if "TEMP B-TREE" in step and "LAST TERM" not in step]


@pytest.mark.parametrize("purpose", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_files_are_read_in_the_order_of_their_index(store, database, order, after, purpose):
    first, about = plan(database, files.FILES[order, after, purpose])
    assert ("ix_files_owner_id_purpose_created_at_id" if purpose else "ix_files_owner_id_created_at_id") in first
    assert ("(created_at,id)" in first) == after
    assert "images" in about


async def test_a_search_reads_the_matches_alone(store, database):
    steps = plan(database, full_text.SEARCH)
    scanned = [step for step in steps if step.startswith("SCAN")]
    assert scanned  # M: by what matches
    assert all(re.fullmatch(r"SCAN message_search VIRTUAL TABLE INDEX \d+:=?M\d", step) for step in scanned)


async def test_only_texts_that_are_new_are_read_to_be_indexed(store, database):
    assert [step for step in plan(database, full_text.NEW_TEXTS, 1) if "p USING INTEGER PRIMARY KEY (rowid>?)" in step]
    assert not [step for step in plan(database, full_text.LAST) if "TEMP B-TREE" in step]


async def test_a_path_is_one_look_up_by_primary_key_a_message(store, database):
    steps = plan(database, reads.PATH.statement)
    assert sum("messages" in step and "(id=?)" in step for step in steps) == 3
    assert not any("image" in step for step in steps)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("running response", "uq_responses_running"),
        ("answers to come", "uq_responses_running"),
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
