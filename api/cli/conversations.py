"""`idefics-chat conversations`: look at, search, save and remove what was said."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from idefics_chat.cli.common import fail, owner_named, run_to_end, shown_progress
from idefics_chat.cli.conversation_lines import line_of, one_line, spoken
from idefics_chat.cli.database_options import database_command, opened_store
from idefics_chat.server.auth import LOCAL_OWNER
from idefics_chat.server.settings import Settings

app = typer.Typer(help="Look at, search, save and remove conversations.", no_args_is_help=True)

OwnerName = Annotated[str, typer.Option("--owner", help="Whose: the name a key was made for.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="How many at the most.")]


@app.command("list")
@database_command
def list_(owner: OwnerName = LOCAL_OWNER, limit: Limit = 50, *, settings: Settings) -> None:
    """The newest conversations: of those without a title, how the first question begins."""
    run_to_end(_list(settings, owner, limit))


async def _list(settings: Settings, owner: str, limit: int) -> None:
    async with opened_store(settings) as store:
        owner_id = (await owner_named(store, owner)).id
        page = await store.conversations(owner_id, limit=limit)
        untitled = [conversation.id for conversation in page.items if not conversation.title]
        previews = await store.previews(owner_id, untitled)
    console = Console()
    width = console.width if console.is_terminal else None
    for conversation in page.items:
        typer.echo(line_of(conversation, previews.get(conversation.id, ()), width))
    if page.has_more:
        typer.echo("There are more; raise --limit.", err=True)


@app.command()
@database_command
def show(
    conversation: Annotated[str, typer.Argument(help="Its id.")],
    owner: OwnerName = LOCAL_OWNER,
    *,
    settings: Settings,
) -> None:
    """All that was said in a conversation, up to its tip."""
    run_to_end(_show(settings, owner, conversation))


async def _show(settings: Settings, owner: str, conversation_id: str) -> None:
    async with opened_store(settings) as store:
        conversation = await store.conversation((await owner_named(store, owner)).id, conversation_id)
        messages = await store.path(conversation.id, conversation.tip_id)
    typer.echo(line_of(conversation))
    for message in messages:
        typer.echo(f"{message.role}: {spoken(message)}")


@app.command()
@database_command
def search(
    query: Annotated[str, typer.Argument(help='Words; "a phrase" in quotes, a beginning with a star.')],
    owner: OwnerName = LOCAL_OWNER,
    limit: Limit = 20,
    *,
    settings: Settings,
) -> None:
    """The messages that hold the words, the best first."""
    run_to_end(_search(settings, owner, query, limit))


async def _search(settings: Settings, owner: str, query: str, limit: int) -> None:
    async with opened_store(settings) as store:
        hits = await store.search((await owner_named(store, owner)).id, query, limit=limit)
    for hit in hits:
        typer.echo(f"{hit.conversation_id}  {hit.role}: {one_line(hit.snippet)}")


@app.command()
@database_command
def export(
    target: Annotated[Path, typer.Argument(help="The zip file to make.")],
    conversations: Annotated[list[str] | None, typer.Argument(help="Ids; all without any.")] = None,
    owner: OwnerName = LOCAL_OWNER,
    *,
    settings: Settings,
) -> None:
    """Save conversations with their images as a zip file of JSON lines."""
    if target.exists():
        fail(f"There is already a file {target}; give another name.")
    run_to_end(_export(settings, owner, target, conversations))


async def _export(settings: Settings, owner: str, target: Path, conversations: list[str] | None) -> None:
    async with opened_store(settings) as store:
        with shown_progress() as progress:
            owner_id = (await owner_named(store, owner)).id
            try:
                count = await store.export_archive(owner_id, target, conversations or None, partial(progress, "images"))
            except OSError as error:
                fail(f"{target} cannot be written ({error.strerror}); give another place.")
    typer.echo(f"{target}: {count} conversations")


@app.command("import")
@database_command
def import_(
    source: Annotated[Path, typer.Argument(help="A zip file that export made.")],
    owner: OwnerName = LOCAL_OWNER,
    *,
    settings: Settings,
) -> None:
    """Add the conversations of an archive; those that are there already are left as they are."""
    if not source.is_file():
        fail(f"There is no file {source}.")
    run_to_end(_import(settings, owner, source))


async def _import(settings: Settings, owner: str, source: Path) -> None:
    async with opened_store(settings, new=True) as store:
        with shown_progress() as progress:
            owner_id = (await owner_named(store, owner)).id
            added = await store.import_archive(owner_id, source, progress=partial(progress, "images checked"))
    typer.echo(f"{added.conversations} conversations added with {added.messages} messages, {added.known} known already")


@app.command()
@database_command
def delete(
    conversation: Annotated[str, typer.Argument(help="Its id.")],
    purge: Annotated[bool, typer.Option("--purge", help="For good, with the images that nothing else shows.")] = False,
    owner: OwnerName = LOCAL_OWNER,
    *,
    settings: Settings,
) -> None:
    """Hide a conversation, or with --purge delete it for good and say what was deleted."""
    run_to_end(_delete(settings, owner, conversation, purge))


async def _delete(settings: Settings, owner: str, conversation_id: str, purge: bool) -> None:
    async with opened_store(settings) as store:
        owner_id = (await owner_named(store, owner)).id
        if not purge:
            await store.delete_conversation(owner_id, conversation_id)
            typer.echo(f"{conversation_id} is hidden; restore takes it back, --purge deletes it for good.")
            return
        gone = await store.purge_conversation(owner_id, conversation_id)
    typer.echo(
        f"Deleted for good: {gone.messages} messages, {gone.responses} responses, {gone.events} events, "
        f"{gone.images} images of {gone.image_bytes} bytes."
    )


@app.command()
@database_command
def restore(
    conversation: Annotated[str, typer.Argument(help="Its id.")],
    owner: OwnerName = LOCAL_OWNER,
    *,
    settings: Settings,
) -> None:
    """Take a hidden conversation back."""
    run_to_end(_restore(settings, owner, conversation))


async def _restore(settings: Settings, owner: str, conversation_id: str) -> None:
    async with opened_store(settings) as store:
        typer.echo(line_of(await store.restore_conversation((await owner_named(store, owner)).id, conversation_id)))
