"""The flags by which all commands that open the database are told which one, and the database that they name."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from idefics_chat.cli.common import Config, fail, settings_of
from idefics_chat.server.settings import Settings
from idefics_chat.storage.store import Store

Database = Annotated[
    str | None,
    typer.Option("--database", help="SQLite file, or an SQLAlchemy URL of SQLite. [default: ./idefics-chat.db]"),
]
FLAGS: dict[str, Any] = {"database": Database, "config": Config}
HOW_TO_NAME_IT = "give its path with --database, or with --config the file of settings that names it"


def database_command(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that name the database. It gets, as `settings`, what they, the environment and the file
    say: the settings with which `serve` would open that database. Exits with 2 where serve would refuse them."""

    @functools.wraps(command)
    def run(database: str | None, config: Path | None, **given: Any) -> None:
        command(**given, settings=settings_of({"database": database}, config))

    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=kind) for p in inspect.signature(command).parameters.values() if p.name != "settings"]
    more = [inspect.Parameter(name, kind, default=None, annotation=annotation) for name, annotation in FLAGS.items()]
    run.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    return run


@asynccontextmanager
async def opened_store(settings: Settings, *, new: bool = False) -> AsyncIterator[Store]:
    """The store that the settings name. Exits with 1 where its file is not there, unless a `new` one may be made: a
    path that was mistyped would look like a database with nothing in it."""
    if not new and (path := settings.database_path()) is not None:
        _require_file(path)
    store = await Store.open(settings.database)
    try:
        yield store
    finally:
        await store.close()


def database_file(settings: Settings) -> Path:
    """The database's file, which must be there. Exits with 1 otherwise."""
    path = settings.database_path()
    if path is None:
        fail(f"The database is not named by a file; {HOW_TO_NAME_IT}.")
    _require_file(path)
    return path


def _require_file(path: Path) -> None:
    if not path.is_file():
        fail(f"There is no database file {path}; {HOW_TO_NAME_IT}.")
