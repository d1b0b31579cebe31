"""`idefics-chat db`: care of the database file."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from idefics_chat.cli.common import fail, shown_activity, shown_progress
from idefics_chat.cli.database_options import database_command, database_file
from idefics_chat.server.settings import Settings
from idefics_chat.server.settings_sources import shown_value
from idefics_chat.storage import maintenance
from idefics_chat.storage.verify import verify

app = typer.Typer(help="Care of the database.", no_args_is_help=True)


@app.command()
@database_command
def upgrade(*, settings: Settings) -> None:
    """Bring the database to this program's revision; serve does so too when it starts."""
    named = settings.database
    typer.echo(f"{shown_value('database', named)} {_done(maintenance.upgrade(named))}")


@app.command()
@database_command
def check(*, settings: Settings) -> None:
    """Prove that the database holds together: hashes, links, logs. Exit status 1 where it does not."""
    with shown_progress() as progress:
        report = verify(database_file(settings), progress)
    for problem in report.problems:
        typer.echo(problem)
    if not report.sound:
        raise typer.Exit(1)
    typer.echo(f"Sound; {report.images} images were compared with their hashes.")


@app.command()
@database_command
def backup(target: Annotated[Path, typer.Argument(help="File to make.")], *, settings: Settings) -> None:
    """Copy the database, as it is at one moment, to TARGET. The server may go on meanwhile."""
    with shown_progress() as progress:
        maintenance.backup(database_file(settings), target, partial(progress, "pages"))
    typer.echo(f"{target}: {target.stat().st_size} bytes")


@app.command()
@database_command
def restore(source: Annotated[Path, typer.Argument(help="A backup.")], *, settings: Settings) -> None:
    """Put a backup in the database's place. The server must be stopped; the old file is kept beside it,
    under a name that no earlier one has."""
    target = settings.database_path()
    if target is None or not source.is_file():
        fail(f"There is no backup {source}, or the database is not named by a file.")
    with shown_progress() as progress:
        kept = maintenance.restore(source, target, partial(progress, "pages"))
    typer.echo(f"{target} is the backup now{f'; what was there is {kept}' if kept else ''}.")


@app.command()
@database_command
def vacuum(*, settings: Settings) -> None:
    """Give the space of what was deleted back to the disk. It needs as much room again meanwhile."""
    with shown_activity("vacuum") as tick:
        freed = maintenance.vacuum(database_file(settings), tick)
    typer.echo(f"{freed} bytes were given back.")


@app.command()
@database_command
def stats(*, settings: Settings) -> None:
    """How much the database holds."""
    found = maintenance.stats(database_file(settings))
    rows = {**found.rows, "bytes of images": found.image_bytes, "bytes of the file": found.file_bytes}
    rows |= {"bytes of its log": found.log_bytes, "bytes that vacuum would free": found.unused_bytes}
    typer.echo(f"revision {found.revision}")
    for name, value in rows.items():
        typer.echo(f"{value:>14} {name.replace('_', ' ')}")


def _done(upgrade: maintenance.Upgrade) -> str:
    if upgrade.before is None:
        return f"was made, at revision {upgrade.after}."
    if upgrade.before == upgrade.after:
        return f"is at revision {upgrade.after} already."
    return f"was brought from revision {upgrade.before} to {upgrade.after}."
