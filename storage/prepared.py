"""Statements that are compiled once and run on the driver's own cursor.

SQLAlchemy's execution costs more than a small SQLite statement itself does, and a turn is some twenty of them: 64
writers got 424 turns a second through `Connection.execute` and 1,400 so, on the same machine minutes later. The
statements stay SQLAlchemy's, so that another database only needs another dialect here; values must be plain ones (str,
int, float, bytes, None).
"""

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import Connection, SelectBase, UpdateBase
from sqlalchemy.dialects import sqlite

from idefics_chat.storage.dialect import driver

Parameters = Mapping[str, object]
ConstraintError = sqlite3.IntegrityError


class Prepared:
    """A statement, compiled. `columns` are those that an insert gives values for, by default all of its table's."""

    def __init__(self, statement: SelectBase | UpdateBase, columns: Sequence[str] | None = None) -> None:
        self.statement: Any = statement
        compiled = statement.compile(dialect=sqlite.dialect(paramstyle="qmark"), column_keys=columns)
        self.sql = str(compiled)
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        self._values = _values_getter(compiled.positiontup or (), fixed)
        names = statement.selected_columns.keys() if isinstance(statement, SelectBase) else []
        self._make_row = _row_maker(names)

    def one(self, connection: Connection, parameters: Parameters) -> Any:
        """The first row found, None when there is none."""
        found = driver(connection).execute(self.sql, self._values(parameters)).fetchone()
        return None if found is None else self._make_row(found)

    def all(self, connection: Connection, parameters: Parameters) -> list[Any]:
        """All rows found."""
        found = driver(connection).execute(self.sql, self._values(parameters))
        return [self._make_row(row) for row in found.fetchall()]

    def run(self, connection: Connection, parameters: Parameters) -> int:
        """The number of rows written."""
        return driver(connection).execute(self.sql, self._values(parameters)).rowcount

    def run_each(self, connection: Connection, parameters: Sequence[Parameters]) -> None:
        """Write once for each of `parameters`."""
        driver(connection).executemany(self.sql, map(self._values, parameters))


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
