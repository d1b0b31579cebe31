"""Search over the text of messages, by SQLite's FTS5.

The words of scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) cannot be told
apart without a dictionary: every letter of theirs is made a word of its own, and what is asked for in them a phrase.
A query is plain text: words must all occur, "quotes" hold a phrase together, a trailing * asks for words that begin
so. Nothing else in it means anything, so no query is wrong.

Each row carries its owner as a word of a column of its own, so that a search walks the owner's rows alone.

Source: sqlite.org/fts5.html.
"""

import re
import unicodedata

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from idefics_chat.storage.dialect import driver
from idefics_chat.storage.values import Hit

SEPARATOR = "\x1f"
MARK_START, MARK_END = "\x02", "\x03"
SNIPPET_WORDS = 24
MAX_WORDS = 32
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

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc"
    "\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3\u3099\u309a]*"
)
_TERMS = re.compile(r'"([^"]*)"?(\*)?|([^\s"]+)')


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


async def search(connection: AsyncConnection, owner_id: str, query: str, limit: int, offset: int) -> list[Hit]:
    """The owner's messages that hold all that `query` asks for, the best first. Empty for a query without words."""
    expression = match_expression(owner_id, query)
    if expression is None:
        return []
    values = {"expression": expression, "owner_id": owner_id, "limit": limit, "offset": offset}
    found = await connection.exec_driver_sql(SEARCH, values)
    return [Hit(row.conversation_id, row.id, row.role, row.created_at, *unmarked(row.snippet)) for row in found.all()]


def segmented(text: str) -> str:
    """The text with every letter of an unspaced script made a word. NUL, at which SQLite's text functions end, becomes
    a separator too."""
    return _UNSPACED.sub(lambda found: f"{SEPARATOR}{found[0]}{SEPARATOR}", text.replace("\0", SEPARATOR))


def match_expression(owner_id: str, query: str) -> str | None:
    """The FTS5 expression of a query, None for one without words; at most `MAX_WORDS` of its terms count."""
    terms = [_term(quoted or plain, bool(star)) for quoted, star, plain in _TERMS.findall(query)]
    wanted = [term for term in terms if term][:MAX_WORDS]
    if not wanted:
        return None
    return f"owner : {_quoted(owner_id)} AND text : ({' AND '.join(wanted)})"


def unmarked(snippet: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The snippet's text, and where in it (start, end) what was asked for stands."""
    text, spans, start = "", [], 0
    for piece in re.split(f"([{MARK_START}{MARK_END}])", snippet.replace(SEPARATOR, "")):
        if piece == MARK_START:
            start = len(text)
        elif piece == MARK_END:
            spans.append((start, len(text)))
        else:
            text += piece
    return text, tuple(spans)


def _term(text: str, starred: bool) -> str | None:
    prefix = starred or text.endswith("*")
    words = segmented(text.rstrip("*"))
    if not any(_counts(letter) for letter in words):
        return None
    return _quoted(words) + (" *" if prefix else "")


def _counts(letter: str) -> bool:
    """Whether the tokenizer makes words of the letter."""
    category = unicodedata.category(letter)
    return category[0] in "LN" or category in ("So", "Co")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
