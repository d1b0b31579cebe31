"""The database, opened: its one writer and its readers. What is asked of it stands in library.py and store.py."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Self, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from idefics_chat.storage import schema
from idefics_chat.storage.dialect import database_url, dialect_of
from idefics_chat.storage.errors import DatabaseUnavailable
from idefics_chat.storage.writer import Writer

T = TypeVar("T")
Clock = Callable[[], float]


class OpenedDatabase:
    """Make it with `open`, end it with `close`. `clock` gives seconds since the epoch."""

    def __init__(self, url: URL, clock: Clock) -> None:
        self._clock = clock
        self._url = url
        self._closed = False
        self._dialect = dialect_of(url)
        self._readers = self._dialect.read_engine(url)
        self._writer = Writer(self._dialect.write_engine(url), before_commit=self._dialect.index_new)

    @classmethod
    async def open(cls, url_or_path: str, *, clock: Clock = time.time) -> Self:
        """Open the database at an SQLAlchemy URL or a file's path, made if it is not there, and upgrade its schema.

        Raises DatabaseTooNew, UnknownRevision and DatabaseUnavailable.
        """
        opened = cls(database_url(url_or_path), clock)
        try:
            with opened._dialect.told():
                await opened._writer.apart(schema.upgrade)
        except BaseException:
            await opened.close()
            raise
        opened._writer.start()
        return opened

    async def close(self) -> None:
        """Write what waits, then let go of the file. Later calls raise DatabaseUnavailable."""
        self._closed = True
        await self._writer.close()
        await self._readers.dispose()

    async def check_writable(self) -> None:
        """Write and commit something that leaves nothing behind. Raises DatabaseUnavailable."""
        await self._write(_touch)

    async def _write(self, unit: Callable[..., T], *arguments: object) -> T:
        bound: Callable[[Connection], T] = partial(_with_connection_first, unit, arguments)
        return await self._writer.run(bound)

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        if self._closed:
            raise DatabaseUnavailable("The database is closed; start the server again.")
        with self._dialect.told():
            async with self._readers.connect() as connection:
                yield connection


def _with_connection_first(unit: Callable[..., T], arguments: tuple[object, ...], connection: Connection) -> T:
    return unit(connection, *arguments)


def _touch(connection: Connection) -> None:
    connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
