"""SQLite as a `Dialect`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from idefics_chat.storage.dialect import connections, files, full_text, replacing
from idefics_chat.storage.dialect.interface import FileSizes, Progress
from idefics_chat.storage.errors import StorageError
from idefics_chat.storage.search_terms import Term


class SQLite:
    """See interface.py."""

    def check_url(self, url: URL) -> None:
        connections.check_url(url)

    def write_engine(self, url: URL) -> Engine:
        return connections.write_engine(url)

    def read_engine(self, url: URL) -> AsyncEngine:
        return connections.read_engine(url)

    async def fetch_all(
        self, connection: AsyncConnection, statement: str, values: Sequence[object]
    ) -> Sequence[Sequence[Any]]:
        return await connections.fetch_all(connection, statement, values)

    def snapshot(self, url: URL) -> AbstractContextManager[Connection]:
        return connections.snapshot(url)

    def meaning(self, error: BaseException) -> StorageError | None:
        return connections.meaning(error)

    def told(self) -> AbstractContextManager[None]:
        return connections.told()

    def changes(self, connection: Connection) -> int:
        return connections.driver(connection).total_changes

    def in_transaction(self, connection: Connection) -> bool:
        return connections.driver(connection).in_transaction

    def rebuilding(self, connection: Connection) -> AbstractContextManager[None]:
        return connections.rebuilding(connection)

    def overwrite_removed(self, engine: Engine) -> None:
        connections.empty_log(engine)

    def create_search(self, connection: Connection) -> None:
        full_text.create(connection)

    def index_new(self, connection: Connection) -> None:
        full_text.index_new(connection)

    def forget_removed(self, connection: Connection, begin: bool) -> bool:
        return full_text.forget_removed(connection, begin)

    async def search(
        self, connection: AsyncConnection, owner_id: str, terms: Sequence[Term], limit: int, offset: int
    ) -> Sequence[Any]:
        return await full_text.search(connection, owner_id, terms, limit, offset)

    def search_faults(self) -> dict[str, str]:
        return full_text.FAULTS

    def copy(self, source: Path, target: Path, progress: Progress | None) -> None:
        files.copy(source, target, progress)

    def check_copy(self, file: Path) -> None:
        files.check_copy(file)

    def replace(self, new: Path, file: Path) -> Path | None:
        return replacing.replace(new, file)

    def vacuum(self, file: Path, tick: Callable[[], None] | None) -> int:
        return files.vacuum(file, tick)

    def sizes(self, file: Path) -> FileSizes:
        return files.sizes(file)

    def checking(self, file: Path) -> AbstractContextManager[Any]:
        return files.checking(file)

    def damage(self, connection: Any) -> Iterator[str]:
        return files.damage(connection)

    def dangling(self, connection: Any) -> Sequence[Sequence[Any]]:
        return files.dangling(connection)

    def is_damage(self, error: BaseException) -> bool:
        return files.is_damage(error)
