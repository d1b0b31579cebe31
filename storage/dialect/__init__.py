"""What differs between kinds of databases, behind one interface. There is one kind so far, SQLite.

    interface.py    `Dialect`: all that a second kind would have to give
    sqlite.py       SQLite's, put together from
    connections.py  engines and pragmas, what error codes mean
    full_text.py    the search over messages, by FTS5
    files.py        backups, checks and care of a database file
    replacing.py    a backup in the place of a database, which is kept

All else in the house is SQLAlchemy's, and a test holds that no other module names a pragma or a function of SQLite's.
"""

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from idefics_chat.storage.dialect.interface import Dialect
from idefics_chat.storage.dialect.sqlite import SQLite
from idefics_chat.storage.errors import DatabaseUnavailable

_DIALECTS: dict[str, Dialect] = {"sqlite": SQLite()}


def database_url(url_or_path: str) -> URL:
    """An SQLAlchemy URL, without a driver, of a URL or a file's path.

    Raises DatabaseUnavailable for what is no URL, for another kind of database and for one that cannot be shared by
    connections.
    """
    try:
        url = make_url(url_or_path) if "://" in url_or_path else URL.create("sqlite", database=url_or_path)
    except (ArgumentError, ValueError) as error:  # a port that is no number is a ValueError
        raise DatabaseUnavailable("The database's URL cannot be read; give an SQLite file.") from error
    dialect_of(url).check_url(url)
    return url.set(drivername=url.get_backend_name())


def dialect_of(url: URL) -> Dialect:
    """The dialect of a database. Raises DatabaseUnavailable for a kind that there is none of."""
    kind = url.get_backend_name()
    if kind not in _DIALECTS:
        raise DatabaseUnavailable(f"Databases of kind {kind!r} are not supported; give an SQLite file.")
    return _DIALECTS[kind]


__all__ = ["Dialect", "database_url", "dialect_of"]
