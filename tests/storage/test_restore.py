"""Backups restored: what was there is kept whole, whatever is restored how often and wherever it breaks off."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from idefics_chat.cli.main import app
from idefics_chat.storage import maintenance
from idefics_chat.storage.errors import DatabaseUnavailable
from idefics_chat.storage.store import Store
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio


def conversations(file: Path) -> int:
    """How many a database holds that is whole."""
    assert verify(file).problems == ()
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("SELECT count(*) FROM conversations").fetchone()[0])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


async def made(file: Path, empty_database: Path, count: int) -> Path:
    """A database of so many conversations."""
    shutil.copyfile(empty_database, file)
    store = await Store.open(str(file))
    owner = await store.owner("ada")
    for number in range(count):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    await store.close()
    return file


@pytest.fixture
async def one(tmp_path, empty_database):
    return await made(tmp_path / "one.db", empty_database, 1)


@pytest.fixture
async def two(tmp_path, empty_database):
    return await made(tmp_path / "two.db", empty_database, 2)


@pytest.fixture
async def crashed(tmp_path, empty_database):
    """A database of five conversations in a folder of its own, left by a process that ended with all in the log."""
    folder, left = tmp_path / "running", tmp_path / "left"
    folder.mkdir()
    left.mkdir()
    shutil.copyfile(empty_database, folder / "chat.db")
    store = await Store.open(str(folder / "chat.db"))
    owner = await store.owner("ada")
    for number in range(5):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    for name in ("chat.db", "chat.db-wal"):
        shutil.copyfile(folder / name, left / name)
    await store.close()
    assert (left / "chat.db-wal").stat().st_size
    return left / "chat.db"


async def test_a_restored_backup_is_what_it_was_and_the_old_file_is_kept(store, owner, database, tmp_path, one):
    for number in range(3):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    before = files(tmp_path).keys()
    with pytest.raises(DatabaseUnavailable, match="in use"):
        maintenance.restore(one, database)
    assert files(tmp_path).keys() == before
    await store.create_conversation(owner.id, id="conv_3")
    await store.close()
    kept = maintenance.restore(one, database)
    assert kept == tmp_path / "idefics-chat.db.before-restore"
    assert (conversations(database), conversations(kept)) == (1, 4)


async def test_the_original_is_kept_however_often_another_backup_is_restored(crashed, one, two):
    kept = [maintenance.restore(backup, crashed) for backup in (one, two, one)]
    assert [conversations(file) for file in kept] == [5, 1, 2]
    assert conversations(crashed) == 1


async def test_the_command_says_under_which_name_the_old_file_is_kept(crashed, one):
    said = [
        CliRunner().invoke(app, ["db", "restore", str(one), "--database", str(file)]).output
        for file in (crashed, crashed, crashed.with_name("new.db"))
    ]
    assert said == [
        f"{crashed} is the backup now; what was there is {crashed}.before-restore.\n",
        f"{crashed} is the backup now; what was there is {crashed}.before-restore.2.\n",
        f"{crashed.with_name('new.db')} is the backup now.\n",
    ]


@pytest.mark.parametrize("links", [True, False])
async def test_a_crash_at_any_moment_leaves_a_usable_database_and_loses_nothing(crashed, one, monkeypatch, links):
    moments: list[Path] = []
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as watching:
        for name in ("replace", "rename", "link", "unlink"):
            watching.setattr(os, name, watched(getattr(os, name), crashed.parent, moments))
        maintenance.restore(one, crashed)
    assert len(moments) > 6
    for folder in moments:
        names = {"chat.db", "chat.db.before-restore"} & files(folder).keys()
        assert 5 in {conversations(folder / name) for name in names}
        assert conversations(folder / "chat.db") in (1, 5)


def watched(call: Callable[..., None], folder: Path, moments: list[Path]) -> Callable[..., None]:
    """The call, with copies of the folder as it is before and after: what a crash would leave then."""

    def keep() -> None:
        moments.append(folder.with_name(f"moment {len(moments)}"))
        shutil.copytree(folder, moments[-1])

    def calling(*arguments: object, **options: object) -> None:
        keep()
        call(*arguments, **options)
        keep()

    return calling


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.mark.parametrize("content", [b"", b"no database at all" * 300])
async def test_a_bad_backup_changes_nothing_not_even_the_log(crashed, tmp_path, content):
    (tmp_path / "b.db").write_bytes(content)
    for damaged in (False, True):
        if damaged:
            crashed.write_bytes(b"damaged" * 10_000)
        before = files(crashed.parent)
        with pytest.raises(DatabaseUnavailable):
            maintenance.restore(tmp_path / "b.db", crashed)
        assert files(crashed.parent) == before


@pytest.mark.parametrize("content", [b"", b"damaged" * 10_000])
async def test_the_log_of_a_damaged_file_is_kept_beside_it(crashed, one, content):
    log = crashed.with_name("chat.db-wal").read_bytes()
    crashed.write_bytes(content)
    kept = maintenance.restore(one, crashed)
    assert kept.with_name(f"{kept.name}-wal").read_bytes() == log
    assert conversations(crashed) == 1


async def test_a_log_without_its_file_does_not_get_into_the_backup(crashed, one):
    log = crashed.with_name("chat.db-wal").read_bytes()
    crashed.unlink()
    assert maintenance.restore(one, crashed) is None
    assert conversations(crashed) == 1
    assert crashed.with_name("chat.db.before-restore-wal").read_bytes() == log


@pytest.mark.parametrize("content", [None, b"", b"damaged" * 10_000])
async def test_a_last_step_that_fails_is_undone(crashed, one, monkeypatch, content):
    if content is not None:
        crashed.write_bytes(content)
    log = crashed.with_name("chat.db-wal").read_bytes()
    replace = os.replace

    def fail(source, target):
        if Path(target) == crashed:
            raise OSError(errno.EIO, "no more", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DatabaseUnavailable, match="no more"):
        maintenance.restore(one, crashed)
    assert files(crashed.parent).keys() == {"chat.db", "chat.db-wal"}
    assert crashed.with_name("chat.db-wal").read_bytes() == log
    if content is None:
        assert conversations(crashed) == 5


async def test_where_there_are_no_hard_links_the_old_file_is_copied(crashed, one, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    kept = maintenance.restore(one, crashed)
    assert (conversations(kept), conversations(crashed)) == (5, 1)


async def test_a_link_to_a_database_stays_a_link(crashed, one, tmp_path):
    (tmp_path / "link.db").symlink_to(crashed)
    kept = maintenance.restore(one, tmp_path / "link.db")
    assert (tmp_path / "link.db").is_symlink()
    assert (conversations(kept), conversations(crashed)) == (5, 1)


async def test_a_backup_that_has_the_name_of_the_copy_is_not_removed(one, crashed):
    backup = one.rename(crashed.with_name("chat.db.partial"))
    with pytest.raises(DatabaseUnavailable, match="another name"):
        maintenance.restore(backup, crashed)
    assert conversations(backup) == 1
