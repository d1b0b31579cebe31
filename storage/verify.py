"""Proof that a database holds together: what the schema cannot say of itself.

Every check reads rows as they lie in the file, on a connection that cannot write, and yields a sentence for each thing
that is wrong; none means that all is well. It looks at: the database's own checks, image bytes against their hashes,
the messages' tree, conversations' tips, responses and their logs, what is counted, and the table for searching.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_chat.storage import schema
from idefics_chat.storage.dialect import Dialect, database_url, dialect_of

Progress = Callable[[str, int, int], None]
SHOWN = 5
"""How many rows that fail the same check are named each; the others are counted."""

_RULES = {
    "messages whose depth or conversation does not follow from their parent's": """
        SELECT m.id FROM messages m JOIN messages p ON p.id = m.parent_id
         WHERE m.depth <> p.depth + 1 OR m.conversation_id <> p.conversation_id""",
    "first messages that are not at depth 0": "SELECT id FROM messages WHERE parent_id IS NULL AND depth <> 0",
    "messages whose jump is not what their parent's gives": """
        SELECT m.id FROM messages m LEFT JOIN messages p ON p.id = m.parent_id LEFT JOIN messages j ON j.id = p.jump_id
          LEFT JOIN messages jj ON jj.id = j.jump_id
         WHERE m.jump_id <> CASE WHEN p.id IS NULL THEN m.id
                                 WHEN p.depth - j.depth = j.depth - jj.depth THEN j.jump_id ELSE p.id END
            OR (p.id IS NOT NULL AND jj.id IS NULL)""",
    "messages whose parts are not numbered from 0 on": """
        SELECT message_id FROM message_parts GROUP BY message_id HAVING max(position) <> count(*) - 1""",
    "message parts that are not exactly one of text and image": """
        SELECT id FROM message_parts WHERE (text IS NULL) = (digest IS NULL)""",
    "conversations whose tip is another conversation's message": """
        SELECT c.id FROM conversations c JOIN messages m ON m.id = c.tip_id WHERE m.conversation_id <> c.id""",
    "responses whose answer is missing": """
        SELECT r.id FROM responses r LEFT JOIN messages m ON m.id = r.output_id WHERE r.answered AND m.id IS NULL""",
    "responses that ended without a time, or run with one": """
        SELECT id FROM responses WHERE (status = 'in_progress') <> (completed_at IS NULL)""",
    "responses whose events are not numbered from 0 on": """
        SELECT response_id FROM response_events GROUP BY response_id
        HAVING min(sequence_number) <> 0 OR max(sequence_number) <> count(*) - 1""",
    "responses whose log was removed and still has events": """
        SELECT id FROM responses WHERE log_removed_at IS NOT NULL
           AND EXISTS (SELECT 1 FROM response_events e WHERE e.response_id = responses.id)""",
    "batches whose outcomes are counted or numbered wrong": """
        SELECT b.id FROM task_batches b
          LEFT JOIN (SELECT batch_id, count(*) AS tasks, count(sequence_number) AS done, max(sequence_number) AS last
                       FROM batch_tasks GROUP BY batch_id) t ON t.batch_id = b.id
         WHERE b.total <> coalesce(t.tasks, 0) OR b.completed + b.failed <> coalesce(t.done, 0)
            OR coalesce(t.last, -1) <> coalesce(t.done, 0) - 1
            OR (b.status = 'in_progress') <> (b.finished_at IS NULL)""",
    "images without bytes": "SELECT digest FROM images WHERE digest NOT IN (SELECT digest FROM image_data)",
    "images that nothing uses": "SELECT digest FROM images WHERE digest NOT IN (SELECT digest FROM owner_images)",
    "images whose uses are counted wrong": """
        WITH use AS (SELECT c.owner_id, p.digest FROM message_parts p
                       JOIN messages m ON m.id = p.message_id JOIN conversations c ON c.id = m.conversation_id
                      WHERE p.digest IS NOT NULL UNION ALL SELECT owner_id, digest FROM files),
             shown AS (SELECT owner_id, digest, count(*) AS uses FROM use GROUP BY owner_id, digest)
        SELECT digest FROM (SELECT owner_id, digest, uses FROM owner_images EXCEPT SELECT * FROM shown)
        UNION SELECT digest FROM (SELECT * FROM shown EXCEPT SELECT owner_id, digest, uses FROM owner_images)""",
    "owners whose usage is counted wrong": """
        SELECT u.owner_id FROM owner_usage u
         WHERE u.conversations <> (SELECT count(*) FROM conversations c WHERE c.owner_id = u.owner_id)
            OR u.messages <> (SELECT count(*) FROM messages m JOIN conversations c ON c.id = m.conversation_id
                               WHERE c.owner_id = u.owner_id)
            OR u.image_bytes <> (SELECT coalesce(sum(i.size_bytes), 0) FROM owner_images o
                                   JOIN images i ON i.digest = o.digest WHERE o.owner_id = u.owner_id)""",
    "owners without a count of their usage": "SELECT id FROM owners WHERE id NOT IN (SELECT owner_id FROM owner_usage)",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found: sentences of what is wrong, and how many images' hashes were computed."""

    problems: tuple[str, ...]
    images: int

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(file: Path, progress: Progress | None = None) -> Report:
    """Check a database, also one in use: all checks see the same moment.

    `progress` is told the name of what is checked, and how much of how much is done. Blocks. Raises
    DatabaseUnavailable when the file cannot be read at all, and not for damage: that is reported. Raises
    DatabaseTooOld, DatabaseTooNew and UnknownRevision for a database whose rules are other ones.
    """
    dialect = dialect_of(database_url(str(file)))
    with dialect.told(), dialect.checking(file) as connection:
        try:
            problems = list(_of_the_file(dialect, connection, progress))
            schema.check_revision(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])
            problems += _rules(dialect, connection, progress)
            images = list(_images(connection, progress))
        except Exception as error:
            if not dialect.is_damage(error):
                raise
            return Report((f"The file is damaged: {error}.",), 0)
        return Report((*problems, *(problem for problem in images if problem)), len(images))


def _of_the_file(dialect: Dialect, connection: Any, progress: Progress | None) -> Iterator[str]:
    _tell(progress, "the file", 0, 2)
    yield from dialect.damage(connection)
    _tell(progress, "references", 1, 2)
    yield from _summed("rows that refer to missing ones", dialect.dangling(connection))


def _rules(dialect: Dialect, connection: Any, progress: Progress | None) -> Iterator[str]:
    rules = _RULES | dialect.search_faults()
    for number, (what, statement) in enumerate(rules.items()):
        _tell(progress, "rules", number, len(rules))
        yield from _summed(what, connection.execute(statement).fetchall())
    yield from _summed("responses whose JSON cannot be read", list(_unreadable(connection)))


def _unreadable(connection: Any) -> Iterator[tuple[str]]:
    for response_id, *texts in connection.execute("SELECT id, input_ids, request, usage, error FROM responses"):
        try:
            for text in texts:
                json.loads(text or "null")
        except ValueError:
            yield (response_id,)


def _images(connection: Any, progress: Progress | None) -> Iterator[str | None]:
    """For each image what is wrong with it."""
    total = int(connection.execute("SELECT count(*) FROM images").fetchone()[0])
    statement = "SELECT i.digest, i.size_bytes, d.data FROM images i JOIN image_data d ON d.digest = i.digest"
    for number, (digest, size_bytes, data) in enumerate(connection.execute(statement), 1):
        _tell(progress, "images", number, total)
        whole = isinstance(data, bytes) and hashlib.sha256(data).hexdigest() == digest and len(data) == size_bytes
        yield None if whole else f"The bytes of image {digest} are not those that were stored."


def _summed(what: str, found: Sequence[Sequence[object]]) -> Iterator[str]:
    if found:
        named = ", ".join(str(row[0]) for row in found[:SHOWN])
        yield f"There are {len(found)} {what}: {named}{', ...' if len(found) > SHOWN else ''}."


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)
