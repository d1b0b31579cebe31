"""`idefics-chat conversations`: look at, search, save and remove what was said."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from idefics_chat.cli.common import Database, fail, opened_store, owner_named, run_to_end, shown_progress
from idefics_chat.conversation.messages import ImagePart, Message
from idefics_chat.server.auth import LOCAL_OWNER
from idefics_chat.storage.values import Conversation

app = typer.Typer(help="Look at, search, save and remove conversations.", no_args_is_help=True)

OwnerName = Annotated[str, typer.Option("--owner", help="Whose: the name a key was made for.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="How many at the most.")]


@app.command("list")
def list_(database: Database = None, owner: OwnerName = LOCAL_OWNER, limit: Limit = 50) -> None:
    """The newest conversations."""
    run_to_end(_list(database, owner, limit))


async def _list(database: str | None, owner: str, limit: int) -> None:
    async with opened_store(database) as store:
        page = await store.conversations((await owner_named(store, owner)).id, limit=limit)
    for conversation in page.items:
        typer.echo(_line(conversation))
    if page.has_more:
        typer.echo("There are more; raise --limit.", err=True)


@app.command()
def show(
    conversation: Annotated[str, typer.Argument(help="Its id.")],
    database: Database = None,
    owner: OwnerName = LOCAL_OWNER,
) -> None:
    """All that was said in a conversation, up to its tip."""
    run_to_end(_show(database, owner, conversation))


async def _show(database: str | None, owner: str, conversation_id: str) -> None:
    async with opened_store(database) as store:
        conversation = await store.conversation((await owner_named(store, owner)).id, conversation_id)
        messages = await store.path(conversation.id, conversation.tip_id)
    typer.echo(_line(conversation))
    for message in messages:
        typer.echo(f"{message.role}: {_spoken(message)}")


@app.command()
def search(
    query: Annotated[str, typer.Argument(help='Words; "a phrase" in quotes, a beginning with a star.')],
    database: Database = None,
    owner: OwnerName = LOCAL_OWNER,
    limit: Limit = 20,
) -> None:
    """The messages that hold the words, the best first."""
    run_to_end(_search(database, owner, query, limit))


async def _search(database: str | None, owner: str, query: str, limit: int) -> None:
    async with opened_store(database) as store:
        hits = await store.search((await owner_named(store, owner)).id, query, limit=limit)
    for hit in hits:
        typer.echo(f"{hit.conversation_id}  {hit.role}: {_one_line(hit.snippet)}")


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="The zip file to make.")],
    conversations: Annotated[list[str] | None, typer.Argument(help="Ids; all without any.")] = None,
    database: Database = None,
    owner: OwnerName = LOCAL_OWNER,
) -> None:
    """Save conversations with their images as a zip file of JSON lines."""
    if target.exists():
        fail(f"There is already a file {target}; give another name.")
    run_to_end(_export(database, owner, target, conversations))


async def _export(database: str | None, owner: str, target: Path, conversations: list[str] | None) -> None:
    async with opened_store(database) as store:
        with shown_progress() as progress:
            owner_id = (await owner_named(store, owner)).id
            try:
                count = await store.export_archive(owner_id, target, conversations or None, partial(progress, "images"))
            except OSError as error:
                fail(f"{target} cannot be written ({error.strerror}); give another place.")
    typer.echo(f"{target}: {count} conversations")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A zip file that export made.")],
    database: Database = None,
    owner: OwnerName = LOCAL_OWNER,
) -> None:
    """Add the conversations of an archive; those that are there already are left as they are."""
    if not source.is_file():
        fail(f"There is no file {source}.")
    run_to_end(_import(database, owner, source))


async def _import(database: str | None, owner: str, source: Path) -> None:
    async with opened_store(database, new=True) as store:
        with shown_progress() as progress:
            owner_id = (await owner_named(store, owner)).id
            added = await store.import_archive(owner_id, source, progress=partial(progress, "images checked"))
    typer.echo(f"{added.conversations} conversations added with {added.messages} messages, {added.known} known already")


@app.command()
def delete(
    conversation: Annotated[str, typer.Argument(help="Its id.")],
    purge: Annotated[bool, typer.Option("--purge", help="For good, with the images that nothing else shows.")] = False,
    database: Database = None,
    owner: OwnerName = LOCAL_OWNER,
) -> None:
    """Hide a conversation, or with --purge delete it for good and say what was deleted."""
    run_to_end(_delete(database, owner, conversation, purge))


async def _delete(database: str | None, owner: str, conversation_id: str, purge: bool) -> None:
    async with opened_store(database) as store:
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
def restore(
    conversation: Annotated[str, typer.Argument(help="Its id.")],
    database: Database = None,
    owner: OwnerName = LOCAL_OWNER,
) -> None:
    """Take a hidden conversation back."""
    run_to_end(_restore(database, owner, conversation))


async def _restore(database: str | None, owner: str, conversation_id: str) -> None:
    async with opened_store(database) as store:
        typer.echo(_line(await store.restore_conversation((await owner_named(store, owner)).id, conversation_id)))


def _line(conversation: Conversation) -> str:
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(conversation.created_at))
    return "  ".join(part for part in (conversation.id, made, conversation.external_key, conversation.title) if part)


def _spoken(message: Message) -> str:
    parts = (f"[image {part.digest[:12]}]" if isinstance(part, ImagePart) else part.text for part in message.parts)
    return _one_line(" ".join(parts)) + ("" if message.status == "completed" else " [cut short]")


def _one_line(text: str) -> str:
    """Text from a user on one line of a terminal, without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
