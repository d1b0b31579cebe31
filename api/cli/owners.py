"""`idefics-chat owners`: whose conversations there are, how much each has and may have."""

from typing import Annotated

import typer

from idefics_chat.cli.common import all_owners, owner_named, run_to_end
from idefics_chat.cli.database_options import database_command, opened_store
from idefics_chat.server.settings import Settings
from idefics_chat.storage.values import Limits, Owner, Usage

app = typer.Typer(help="Owners of conversations, and their quotas.", no_args_is_help=True)

Quota = Annotated[int | None, typer.Option(min=0, help="At most so many; 0 is no limit.", show_default=False)]


@app.command("list")
@database_command
def list_(*, settings: Settings) -> None:
    """All owners with what they have, and may have."""
    run_to_end(_list(settings))


async def _list(settings: Settings) -> None:
    async with opened_store(settings) as store:
        async for owner in all_owners(store):
            typer.echo(_line(owner, await store.usage(owner.id)))


@app.command()
@database_command
def quota(
    name: Annotated[str, typer.Argument(help="The owner's name: the one its keys were made for.")],
    conversations: Quota = None,
    messages: Quota = None,
    image_bytes: Quota = None,
    *,
    settings: Settings,
) -> None:
    """Set how much an owner may have, and show it. What is over a new quota stays; more is refused."""
    run_to_end(
        _quota(settings, name, {"conversations": conversations, "messages": messages, "image_bytes": image_bytes})
    )


async def _quota(settings: Settings, name: str, given: dict[str, int | None]) -> None:
    async with opened_store(settings) as store:
        owner = await owner_named(store, name)
        usage = await store.usage(owner.id)
        if any(value is not None for value in given.values()):
            now = {what: getattr(usage.limits, what) for what in given}
            wanted = {what: now[what] if value is None else value or None for what, value in given.items()}
            await store.set_limits(owner.id, Limits(**wanted))
            usage = await store.usage(owner.id)
    typer.echo(_line(owner, usage))


def _line(owner: Owner, usage: Usage) -> str:
    shown = (
        f"{getattr(usage, what)} of {limit} {name}"
        if (limit := getattr(usage.limits, what)) is not None
        else f"{getattr(usage, what)} {name}"
        for what, name in (("conversations", "conversations"), ("messages", "messages"), ("image_bytes", "image bytes"))
    )
    return f"{owner.name}  {', '.join(shown)}"
