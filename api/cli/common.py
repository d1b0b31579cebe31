"""What the commands share: settings, owners by name, running to the end, progress on a terminal."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from idefics_chat.server.auth import LOCAL_OWNER
from idefics_chat.server.settings import Settings
from idefics_chat.server.settings_sources import CONFIG_VARIABLE, LoadedSettings, SettingsError, load_settings
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Owner

REFRESH_S = 0.1

Config = Annotated[
    Path | None, typer.Option("--config", envvar=CONFIG_VARIABLE, help="TOML file with settings.", show_default=False)
]


def loaded_settings(given: dict[str, Any], config: Path | None = None) -> LoadedSettings:
    """The settings: what was given on the command line, then the environment, the file, the defaults. Exits with 2."""
    if config is None and (named := os.environ.get(CONFIG_VARIABLE)):
        config = Path(named)
    try:
        return load_settings({name: value for name, value in given.items() if value not in (None, [])}, config)
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(2) from None


def settings_of(given: dict[str, Any], config: Path | None = None) -> Settings:
    """The settings alone. Exits with 2."""
    return loaded_settings(given, config).settings


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; of a group of errors the first is the one to tell."""
    try:
        asyncio.run(work)
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def fail(sentence: str, status: int = 1) -> NoReturn:
    """End the command with a sentence and an exit status: 1, or 2 where the command line itself is wrong."""
    typer.echo(f"error: {sentence}", err=True)
    raise typer.Exit(status)


async def owner_named(store: Store, name: str) -> Owner:
    """The owner of that name; the local one is always there. Raises OwnerNotFound."""
    return await store.owner(name) if name == LOCAL_OWNER else await store.known_owner(name)


async def all_owners(store: Store) -> AsyncIterator[Owner]:
    """Every owner, by name."""
    page = await store.owners()
    while True:
        for owner in page.items:
            yield owner
        if not page.has_more:
            return
        page = await store.owners(after=page.items[-1].name)


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


@contextmanager
def shown_activity(what: str) -> Iterator[Callable[[], None]]:
    """A spinner and the time on a terminal, for work of which nobody knows how far it is. It moves only when it is
    called: when it stands still, so does the work."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as shown:
        shown.add_task(what, total=None)
        last = time.monotonic()

        def tick() -> None:
            nonlocal last
            if time.monotonic() - last > REFRESH_S:
                last = time.monotonic()
                shown.refresh()

        yield tick
