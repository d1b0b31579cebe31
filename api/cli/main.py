"""The command line: `idefics-chat`."""

from typing import Annotated

import typer
from rich.console import Console

from idefics_chat import __version__
from idefics_chat.cli import config, conversations, database, image_tasks, keys, owners
from idefics_chat.cli.batch import batch
from idefics_chat.cli.chat import chat
from idefics_chat.cli.serve import serve

app = typer.Typer(
    help="Conversations with IDEFICS-family vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command()(serve)
app.command()(chat)
TASKS = "Image tasks"
for command in (*image_tasks.COMMANDS, batch):
    app.command(rich_help_panel=TASKS)(command)
app.add_typer(config.app, name="config")
app.add_typer(keys.app, name="keys")
app.add_typer(owners.app, name="owners")
app.add_typer(database.app, name="db")
app.add_typer(conversations.app, name="conversations")


def main() -> None:
    """The console script. What goes wrong is a sentence on standard error and exit status 1."""
    from idefics_chat.conversation.errors import ConversationError
    from idefics_chat.inference.errors import InferenceError
    from idefics_chat.server.errors import ApiError
    from idefics_chat.server.memory import share_heaps
    from idefics_chat.server.start_error import StartError
    from idefics_chat.storage.errors import StorageError
    from idefics_chat.tasks.remote import ServerError

    share_heaps()
    try:
        app()
    except (ApiError, ConversationError, InferenceError, ServerError, StartError, StorageError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Conversations with IDEFICS-family vision-language models."""
