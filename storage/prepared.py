"""Statements that are compiled once and run on the driver's own cursor.

SQLAlchemy's execution costs more than a small statement itself does, and a turn is some twenty of them: 64 writers got
424 turns a second through `Connection.execute` and 1,400 so, on the same machine minutes later. The statements stay
SQLAlchemy's, and are compiled for whatever database the connection is to; its driver must bind values by their place.
Values must be plain ones (str, int, float, bytes, None).

A statement lets the interpreter's lock go, and gets it back in competition with the model's thread, which lets it go
for a moment at every operation and takes it again. So rows are inserted many in a statement: beside 16 streams of the
shipped model that say some 1,100 tokens, the writer's thread gave way 640 times so, and 1,010 times row by row.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import Connection, SelectBase, UpdateBase, bindparam, insert
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase

from idefics_chat.storage.dialect import dialect_of

Parameters = Mapping[str, object]


MANY_SIZES = (64, 16, 4, 1)
"""How many rows one statement inserts: few sizes, so that few statements are compiled."""


class ConstraintError(Exception):
    """What was to be written would break a constraint of the schema."""


class Prepared:
    """A statement, compiled."""

    def __init__(self, statement: SelectBase | UpdateBase) -> None:
        self.statement: Any = statement
        self._kind: str | None = None
        names = statement.selected_columns.keys() if isinstance(statement, SelectBase) else []
        self._make_row = _row_maker(names)

    def one(self, connection: Connection, parameters: Parameters) -> Any:
        """The first row found, None when there is none."""
        found = self._execute(connection, parameters).fetchone()
        return None if found is None else self._make_row(found)

    def all(self, connection: Connection, parameters: Parameters) -> list[Any]:
        """All rows found."""
        return [self._make_row(row) for row in self._execute(connection, parameters).fetchall()]

    async def fetch(self, connection: AsyncConnection, parameters: Parameters) -> list[Any]:
        """All rows found, over an asynchronous connection. One trip to its thread, where SQLAlchemy makes four."""
        if self._kind != connection.dialect.name:
            self._compile(connection.dialect)
        found = await dialect_of(connection.engine.url).fetch_all(connection, self._sql, self._values(parameters))
        return [self._make_row(row) for row in found]

    def run(self, connection: Connection, parameters: Parameters) -> int:
        """The number of rows written. Raises ConstraintError."""
        return int(self._execute(connection, parameters).rowcount)

    def run_each(self, connection: Connection, parameters: Sequence[Parameters]) -> None:
        """Write once for each of `parameters`. Raises ConstraintError."""
        if self._kind != connection.dialect.name:
            self._compile(connection.dialect)
        cursor = _driver(connection).cursor()
        try:
            cursor.executemany(self._sql, [self._values(one) for one in parameters])
        except self._broken as error:
            raise ConstraintError(str(error)) from error

    def _execute(self, connection: Connection, parameters: Parameters) -> Any:
        if self._kind != connection.dialect.name:
            self._compile(connection.dialect)
        cursor = _driver(connection).cursor()
        try:
            cursor.execute(self._sql, self._values(parameters))
        except self._broken as error:
            raise ConstraintError(str(error)) from error
        return cursor

    def _compile(self, dialect: Dialect) -> None:
        compiled = self.statement.compile(dialect=dialect)
        self._sql = str(compiled)
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        self._values = _values_getter(compiled.positiontup or (), fixed)
        self._broken: Any = dialect.loaded_dbapi.IntegrityError
        self._kind = dialect.name  # last: another thread that sees it needs the rest


class PreparedRows:
    """An insert of any number of rows of a table, with values for `columns`, by default all of its columns."""

    def __init__(self, record: type[DeclarativeBase], columns: Sequence[str] | None = None) -> None:
        self._columns = tuple(record.__table__.columns.keys() if columns is None else columns)
        self._statements = {
            size: Prepared(insert(record).values([self._bound(number) for number in range(size)]))
            for size in MANY_SIZES
        }

    def add(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        """Insert the rows. Raises ConstraintError."""
        start = 0
        for size in MANY_SIZES:
            while len(rows) - start >= size:
                self._add(connection, rows[start : start + size])
                start += size

    def _bound(self, number: int) -> Mapping[str, Any]:
        return {column: bindparam(f"{column}_{number}") for column in self._columns}

    def _add(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        values = {f"{column}_{number}": row[column] for number, row in enumerate(rows) for column in self._columns}
        self._statements[len(rows)].run(connection, values)


def _driver(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def _values_getter(names: Sequence[str], fixed: Parameters) -> Callable[[Parameters], Sequence[object]]:
    """What takes a statement's values, in their order, out of its named parameters."""
    if not names:
        return lambda _: ()
    get: Any = itemgetter(*names)
    if fixed:
        return lambda parameters: get({**fixed, **parameters})
    return get if len(names) > 1 else lambda parameters: (parameters[names[0]],)


def _row_maker(names: Sequence[str]) -> Callable[[Iterable[object]], Any]:
    """What makes a named tuple of a driver's row."""
    row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]
    return cast(Callable[[Iterable[object]], Any], row._make)
