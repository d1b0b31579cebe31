"""`idefics-chat db`: care of the database file."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from idefics_chat.cli.common import Database, database_file, fail, settings_of, shown_activity, shown_progress
from idefics_chat.server.settings_sources import shown_value
from idefics_chat.storage import maintenance
from idefics_chat.storage.verify import verify

app = typer.Typer(help="Care of the database.", no_args_is_help=True)


@app.command()
def upgrade(database: Database = None) -> None:
    """Bring the database to this program's revision; serve does so too when it starts."""
    named = settings_of({"database": database}).database
    typer.echo(f"{shown_value('database', named)} {_done(maintenance.upgrade(named))}")


@app.command()
def check(database: Database = None) -> None:
    """Prove that the database holds together: hashes, links, logs. Exit status 1 where it does not."""
    with shown_progress() as progress:
        report = verify(database_file(database), progress)
    for problem in report.problems:
        typer.echo(problem)
    if not report.sound:
        raise typer.Exit(1)
    typer.echo(f"Sound; {report.images} images were compared with their hashes.")


@app.command()
def backup(target: Annotated[Path, typer.Argument(help="File to make.")], database: Database = None) -> None:
    """Copy the database, as it is at one moment, to TARGET. The server may go on meanwhile."""
    with shown_progress() as progress:
        maintenance.backup(database_file(database), target, partial(progress, "pages"))
    typer.echo(f"{target}: {target.stat().st_size} bytes")


@app.command()
def restore(source: Annotated[Path, typer.Argument(help="A backup.")], database: Database = None) -> None:
    """Put a backup in the database's place. The server must be stopped; the old file is kept beside it,
    under a name that no earlier one has."""
    target = settings_of({"database": database}).database_path()
    if target is None or not source.is_file():
        fail(f"There is no backup {source}, or --database names no file.")
    with shown_progress() as progress:
        kept = maintenance.restore(source, target, partial(progress, "pages"))
    typer.echo(f"{target} is the backup now{f'; what was there is {kept}' if kept else ''}.")


@app.command()
def vacuum(database: Database = None) -> None:
    """Give the space of what was deleted back to the disk. It needs as much room again meanwhile."""
    with shown_activity("vacuum") as tick:
        freed = maintenance.vacuum(database_file(database), tick)
    typer.echo(f"{freed} bytes were given back.")


@app.command()
def stats(database: Database = None) -> None:
    """How much the database holds."""
    found = maintenance.stats(database_file(database))
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
