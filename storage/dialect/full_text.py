"""The search over the text of messages, by SQLite's FTS5.

Each row carries its owner as a word of a column of its own, so that a search walks the owner's rows alone.

Source: sqlite.org/fts5.html.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from idefics_chat.storage.dialect.connections import driver
from idefics_chat.storage.search_terms import MARK_END, MARK_START, Term, segmented

SNIPPET_WORDS = 24
MERGE_PAGES = 500

_CREATE = """
CREATE VIRTUAL TABLE message_search USING fts5(
    owner, text, tokenize = "unicode61 remove_diacritics 2 categories 'L* N* M* So Co'"
)
"""
_FORGET = """
CREATE TRIGGER message_parts_forget AFTER DELETE ON message_parts WHEN old.text IS NOT NULL BEGIN
    DELETE FROM message_search WHERE rowid = old.id;
END
"""
_ADD = "INSERT INTO message_search (rowid, owner, text) VALUES (?, ?, ?)"
LAST = "SELECT rowid FROM message_search ORDER BY rowid DESC LIMIT 1"
NEW_TEXTS = """
SELECT p.id, c.owner_id, p.text FROM message_parts p JOIN messages m ON m.id = p.message_id
  JOIN conversations c ON c.id = m.conversation_id WHERE p.id > ? AND p.text IS NOT NULL AND p.text <> ''
"""
SEARCH = f"""
WITH best AS MATERIALIZED (
    SELECT message_search.rowid AS part_id, m.conversation_id, m.id, m.role, m.created_at,
           bm25(message_search, 0.0, 1.0) AS rank
      FROM message_search
      JOIN message_parts p ON p.id = message_search.rowid
      JOIN messages m ON m.id = p.message_id
      JOIN conversations c ON c.id = m.conversation_id
     WHERE message_search MATCH :expression AND c.owner_id = :owner_id AND c.state <> 'deleted'
     ORDER BY rank, message_search.rowid DESC
     LIMIT :limit OFFSET :offset
)
SELECT best.*, snippet(message_search, 1, '{MARK_START}', '{MARK_END}', '…', {SNIPPET_WORDS}) AS snippet
  FROM best JOIN message_search ON message_search.rowid = best.part_id
 WHERE message_search MATCH :expression
 ORDER BY best.rank, best.part_id DESC
"""
"""First the page's messages, then snippets of those alone: of all matches they would cost three times as much."""

FAULTS = {
    "texts that cannot be searched for": """
        SELECT id FROM message_parts WHERE text <> '' AND id NOT IN (SELECT rowid FROM message_search)""",
    "entries for searching whose text is gone": """
        SELECT rowid FROM message_search WHERE rowid NOT IN (SELECT id FROM message_parts WHERE text <> '')""",
}


def create(connection: Connection) -> None:
    """Make the table to search in, and what takes removed messages out of it."""
    connection.exec_driver_sql(_CREATE)
    connection.exec_driver_sql(_FORGET)


def index_new(connection: Connection) -> None:
    """Put the texts into the table that are not in it yet.

    They are those after the last one in it: a part's id is above all others when it is stored, and what is removed is
    taken out at once. For many texts together FTS5 writes far less than for each alone: its own flush comes with every
    statement that SQLite may have to undo by itself.
    """
    database = driver(connection)
    last = database.execute(LAST).fetchone()
    found = database.execute(NEW_TEXTS, (0 if last is None else last[0],)).fetchall()
    database.executemany(_ADD, ((part_id, owner_id, segmented(text)) for part_id, owner_id, text in found))


def forget_removed(connection: Connection, begin: bool) -> bool:
    """A step of merging the table's segments into one, without the words that only removed messages held.

    The first step begins the merge; whether more steps are to come.
    """
    database = driver(connection)
    changes = database.total_changes
    pages = -MERGE_PAGES if begin else MERGE_PAGES
    database.execute("INSERT INTO message_search (message_search, rank) VALUES ('merge', ?)", (pages,))
    return database.total_changes - changes > 1  # the inserted row itself counts as one


async def search(
    connection: AsyncConnection, owner_id: str, terms: Sequence[Term], limit: int, offset: int
) -> Sequence[Any]:
    """The rows of the owner's messages that hold all terms, the best first."""
    values = {"expression": match_expression(owner_id, terms), "owner_id": owner_id, "limit": limit, "offset": offset}
    return (await connection.exec_driver_sql(SEARCH, values)).all()


def match_expression(owner_id: str, terms: Sequence[Term]) -> str:
    """The FTS5 expression of at least one term."""
    wanted = " AND ".join(_quoted(term.words) + (" *" if term.prefix else "") for term in terms)
    return f"owner : {_quoted(owner_id)} AND text : ({wanted})"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
