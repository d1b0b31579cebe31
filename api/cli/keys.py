"""`idefics-chat keys`: the keys that let clients in."""

import time
from typing import Annotated

import typer

from idefics_chat.cli.common import all_owners, fail, owner_named, run_to_end
from idefics_chat.cli.database_options import database_command, opened_store
from idefics_chat.server.auth import SCOPES, key_hash, make_key
from idefics_chat.server.settings import Settings
from idefics_chat.storage.errors import InvalidExpiry, InvalidName
from idefics_chat.storage.key_rules import check_expiry, check_name
from idefics_chat.storage.values import Key

DAY_S = 86_400

app = typer.Typer(help="Keys that let clients in.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Whose key it is: each name is an owner of conversations.")]


@app.command()
@database_command
def create(
    name: Name,
    expires_in_days: Annotated[float | None, typer.Option(help="For how long; without, for good.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="chat, read or metrics; repeat for more. Without, all that NAME may do.")
    ] = None,
    *,
    settings: Settings,
) -> None:
    """Make a key for NAME and print it, this once: only its hash is kept."""
    if unknown := set(scope or ()) - set(SCOPES):
        fail(f"There is no scope {', '.join(sorted(unknown))}; use {', '.join(SCOPES)}.")
    now_s = time.time()
    expires_at = None if expires_in_days is None else now_s + expires_in_days * DAY_S
    try:
        check_name(name)
        if expires_at is not None:
            check_expiry(expires_at, now_s)
    except (InvalidName, InvalidExpiry) as error:
        raise typer.BadParameter(str(error)) from None
    run_to_end(_create(settings, name, expires_at, tuple(scope or ())))


async def _create(settings: Settings, name: str, expires_at: float | None, scopes: tuple[str, ...]) -> None:
    async with opened_store(settings, new=True) as store:
        owner = await store.owner(name)
        key = make_key()
        await store.add_key(owner.id, key_hash(key), name, scopes=scopes, expires_at=expires_at)
    typer.echo(key)


@app.command("list")
@database_command
def list_(
    name: Annotated[str | None, typer.Argument(help="Whose keys; those of all names without.")] = None,
    *,
    settings: Settings,
) -> None:
    """The keys of NAME, or all, with those that no longer work; the keys themselves are kept nowhere."""
    run_to_end(_list(settings, name))


async def _list(settings: Settings, name: str | None) -> None:
    async with opened_store(settings) as store:
        owners = [await owner_named(store, name)] if name is not None else [one async for one in all_owners(store)]
        for owner in owners:
            for key in await store.keys(owner.id):
                typer.echo(_line(key, time.time()))


@app.command()
@database_command
def revoke(name: Name, *, settings: Settings) -> None:
    """End the keys of NAME, at once; its conversations stay."""
    run_to_end(_revoke(settings, name))


async def _revoke(settings: Settings, name: str) -> None:
    async with opened_store(settings) as store:
        count = await store.revoke_key((await owner_named(store, name)).id, name)
    typer.echo(f"1 key of {name} was revoked." if count == 1 else f"{count} keys of {name} were revoked.")


def _line(key: Key, now_s: float) -> str:
    state = "works"
    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None and key.expires_at <= now_s:
        state = "expired"
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
    return "  ".join((key.key_hash[:12], made, state, key.name, *key.scopes))
