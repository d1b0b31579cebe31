"""Commands that look into a database: a path that was mistyped is said, not answered with an empty database."""

import fcntl
import os
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from typer.testing import CliRunner

from idefics_chat.cli.main import app
from idefics_chat.storage.schema import revisions, upgrade

READING = [
    "keys list",
    "keys revoke ann",
    "owners list",
    "owners quota ann",
    "conversations list",
    "conversations show conv_1",
    "conversations search words",
    "conversations export {folder}/saved.zip",
    "conversations delete conv_1",
    "conversations restore conv_1",
]


CARE = ["db check", "db backup {folder}/copy.db", "db vacuum", "db stats"]
MAKING = ["keys create ann", "conversations import {folder}/archive.zip", "db upgrade", "db restore {folder}/backup.db"]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("IDEFICS_CHAT_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
@pytest.mark.parametrize("words", READING)
def test_a_database_that_is_not_there_is_neither_made_nor_called_empty(tmp_path: Path, words: str, scheme: str) -> None:
    missing = tmp_path / "mistyped.db"
    asked = [*words.format(folder=tmp_path).split(), "--database", f"{scheme}{missing}"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith(f"error: There is no database file {missing}")
    assert list(tmp_path.iterdir()) == []


def test_the_first_key_makes_the_database_and_a_list_finds_it(tmp_path: Path) -> None:
    database = str(tmp_path / "chat.db")
    assert CliRunner().invoke(app, ["keys", "create", "ann", "--database", database]).exit_code == 0
    listed = CliRunner().invoke(app, ["keys", "list", "--database", f"sqlite:///{database}"])
    assert listed.output.split()[-1] == "ann"


def test_an_upgrade_says_what_it_did(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    newest = revisions()[-1]
    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    upgrade(engine, revisions()[0])
    engine.dispose()
    for file, said in (
        (database, f"was made, at revision {newest}."),
        (database, f"is at revision {newest} already."),
        (tmp_path / "old.db", f"was brought from revision {revisions()[0]} to {newest}."),
    ):
        assert CliRunner().invoke(app, ["db", "upgrade", "--database", str(file)]).output == f"{file} {said}\n"


@pytest.mark.parametrize(("count", "said"), [(1, "1 key of ann was revoked."), (2, "2 keys of ann were revoked.")])
def test_revoked_keys_are_counted(tmp_path: Path, count: int, said: str) -> None:
    database = ["--database", str(tmp_path / "chat.db")]
    for _ in range(count):
        CliRunner().invoke(app, ["keys", "create", "ann", *database])
    assert CliRunner().invoke(app, ["keys", "revoke", "ann", *database]).output == f"{said}\n"


# -- where the database is named


def list_keys(*arguments: str) -> str:
    """What `keys list` says of the database that it was led to."""
    done = CliRunner().invoke(app, ["keys", "list", *arguments])
    assert done.exit_code == 0, done.output
    return done.output.split()[-1]


def test_a_flag_wins_over_the_environment_the_environment_over_the_file_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in (("default", "idefics-chat.db"), ("file", "f.db"), ("environment", "e.db"), ("flag", "g.db")):
        assert CliRunner().invoke(app, ["keys", "create", name, "--database", file]).exit_code == 0
    (tmp_path / "chat.toml").write_text('database = "f.db"\nport = 9000\n')
    assert list_keys() == "default"
    assert list_keys("--config", "chat.toml") == "file"
    monkeypatch.setenv("IDEFICS_CHAT_CONFIG", "chat.toml")
    assert list_keys() == "file"
    monkeypatch.setenv("IDEFICS_CHAT_DATABASE", "e.db")
    assert list_keys("--config", "chat.toml") == "environment"
    assert list_keys("--config", "chat.toml", "--database", "g.db") == "flag"


@pytest.mark.parametrize("words", [*READING, *CARE])
def test_every_command_that_reads_goes_to_the_database_of_the_file(tmp_path: Path, words: str) -> None:
    config = tmp_path / "chat.toml"
    config.write_text(f'database = "{tmp_path}/elsewhere.db"\n')
    done = CliRunner().invoke(app, [*words.format(folder=tmp_path).split(), "--config", str(config)])
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith(f"error: There is no database file {tmp_path}/elsewhere.db; ")
    assert "--database" in done.stderr
    assert "--config" in done.stderr


@pytest.mark.parametrize("words", MAKING)
def test_every_command_that_makes_a_database_makes_that_of_the_file(tmp_path: Path, words: str) -> None:
    backup, archive = str(tmp_path / "backup.db"), str(tmp_path / "archive.zip")
    assert CliRunner().invoke(app, ["keys", "create", "ann", "--database", backup]).exit_code == 0
    exported = CliRunner().invoke(app, ["conversations", "export", archive, "--database", backup, "--owner", "ann"])
    assert exported.exit_code == 0, exported.output
    config = tmp_path / "chat.toml"
    config.write_text(f'database = "{tmp_path}/elsewhere.db"\n')
    done = CliRunner().invoke(app, [*words.format(folder=tmp_path).split(), "--config", str(config)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "elsewhere.db").is_file()


@pytest.mark.parametrize("written", ["databse = 'x.db'", "database = [", "port = 'many'", None])
@pytest.mark.parametrize("words", [*READING, *CARE, *MAKING])
def test_a_file_that_serve_refuses_is_refused_with_the_same_words(
    tmp_path: Path, words: str, written: str | None
) -> None:
    config = tmp_path / "chat.toml"
    if written is not None:
        config.write_text(written)
    refused = CliRunner().invoke(app, ["serve", "--config", str(config)])
    done = CliRunner().invoke(app, [*words.format(folder=tmp_path).split(), "--config", str(config)])
    assert (done.exit_code, done.stderr) == (refused.exit_code, refused.stderr)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: setting ")


def test_a_chat_whose_database_a_server_has_is_led_to_that_server(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    assert CliRunner().invoke(app, ["db", "upgrade", "--database", str(database)]).exit_code == 0
    with database.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = CliRunner().invoke(app, ["chat", "--database", str(database)], input="Hi\n")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: Another server has the database {database}; ")
    assert "--server URL" in done.stderr
    assert "--database" in done.stderr
