"""What the commands share: the database option, settings, running to the end, progress on a terminal."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from idefics_chat.server.settings import Settings
from idefics_chat.storage.store import Store

Database = Annotated[
    str | None, typer.Option("--database", help="SQLite file, or an SQLAlchemy URL. [default: ./idefics-chat.db]")
]


def settings_of(given: dict[str, Any]) -> Settings:
    """The settings: what was given on the command line, then the environment, then the defaults. Exits with 2."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in problem["loc"])
            typer.echo(f"error: setting {name}: {problem['msg']}", err=True)
        raise typer.Exit(2) from None


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; of a group of errors the first is the one to tell."""
    try:
        asyncio.run(work)
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def fail(sentence: str) -> NoReturn:
    """End the command with a sentence and exit status 1."""
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(1)


@asynccontextmanager
async def opened_store(database: str | None) -> AsyncIterator[Store]:
    """The store that the option or the settings name."""
    store = await Store.open(settings_of({"database": database}).database)
    try:
        yield store
    finally:
        await store.close()


def database_file(database: str | None) -> Path:
    """The database's file, which must be there. Exits with 1 otherwise."""
    path = settings_of({"database": database}).database_path()
    if path is None or not path.is_file():
        fail(f"There is no database file {path or database}; give its path with --database.")
    return path


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, nothing elsewhere. Call it with what is being done, how much of it, and of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show
