"""What the store asks of a kind of database beyond SQLAlchemy's own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from idefics_chat.storage.errors import StorageError
from idefics_chat.storage.search_terms import Term

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FileSizes:
    """What a database takes on the disk, in bytes: the file, its log, and what in the file is not used."""

    file: int
    log: int
    unused: int


class Dialect(Protocol):
    """A kind of database. It holds no state: where the database is, is told it."""

    # connections

    def check_url(self, url: URL) -> None:
        """Raises DatabaseUnavailable when a database there would keep nothing."""

    def write_engine(self, url: URL) -> Engine:
        """An engine for one thread that begins every transaction with the right to write. Opens nothing yet."""

    def read_engine(self, url: URL) -> AsyncEngine:
        """A pool of connections that cannot write; each statement sees the newest commit. Opens nothing yet."""

    async def fetch_all(
        self, connection: AsyncConnection, statement: str, values: Sequence[object]
    ) -> Sequence[Sequence[Any]]:
        """What a compiled statement finds, in one trip to the thread of the reader's connection."""

    def snapshot(self, url: URL) -> AbstractContextManager[Connection]:
        """A connection of its own, for reading in one thread, that sees the database as it is now until it ends."""

    def meaning(self, error: BaseException) -> StorageError | None:
        """What a driver's error means for the caller, None for one that says nothing of the database or the values."""

    def told(self) -> AbstractContextManager[None]:
        """Raises a StorageError in place of a driver's error that means one; lets all others pass."""

    # transactions

    def changes(self, connection: Connection) -> int:
        """A number that is another one once something was written through the connection."""

    def in_transaction(self, connection: Connection) -> bool:
        """Whether the transaction is still there: on some errors a database rolls all of it back by itself."""

    def rebuilding(self, connection: Connection) -> AbstractContextManager[None]:
        """Within it references between rows are not held, as tables that are made anew need. No transaction is open."""

    def overwrite_removed(self, engine: Engine) -> None:
        """Take what was removed out of the database's log too, as far as readers allow now: it waits for none, and
        logs a failure instead of raising it, since what was removed is committed."""

    # search

    def create_search(self, connection: Connection) -> None:
        """Make what is searched in, and what takes removed messages out of it."""

    def index_new(self, connection: Connection) -> None:
        """Put the texts in that are not in it yet."""

    def forget_removed(self, connection: Connection, begin: bool) -> bool:
        """A step of taking out the words that only removed messages held; whether more steps are to come."""

    async def search(
        self, connection: AsyncConnection, owner_id: str, terms: Sequence[Term], limit: int, offset: int
    ) -> Sequence[Any]:
        """The owner's messages that hold all terms, best first: rows of conversation_id, id, role, created_at and
        snippet, in which marks of search_terms.py stand around what was found."""

    def search_faults(self) -> dict[str, str]:
        """What must not be found in what is searched in: a statement that finds it, by what it is called."""

    # files

    def copy(self, source: Path, target: Path, progress: Progress | None) -> None:
        """Copy a database as it is at one moment; writers go on meanwhile. Raises DatabaseUnavailable."""

    def check_copy(self, file: Path) -> None:
        """Raises DatabaseUnavailable when the file is damaged or none of ours."""

    def replace(self, new: Path, file: Path) -> Path | None:
        """Let a flushed file take the place of a database, which is kept whole beside it; the name that it is kept
        under, None where there was none. Raises DatabaseUnavailable when it is open anywhere, and changes nothing."""

    def vacuum(self, file: Path, tick: Callable[[], None] | None) -> int:
        """Give unused space back; how many bytes. `tick` is called as it goes on. Raises DatabaseUnavailable."""

    def sizes(self, file: Path) -> FileSizes:
        """Raises DatabaseUnavailable."""

    def checking(self, file: Path) -> AbstractContextManager[Any]:
        """A driver's connection to a file that may be damaged, which sees one moment. Raises DatabaseUnavailable."""

    def damage(self, connection: Any) -> Iterator[str]:
        """What the database itself finds wrong with the file, in sentences."""

    def dangling(self, connection: Any) -> Sequence[Sequence[Any]]:
        """The rows that refer to missing ones, the table's name first; of a driver's connection."""

    def is_damage(self, error: BaseException) -> bool:
        """Whether a driver's error says that the file is damaged."""
