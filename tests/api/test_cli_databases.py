"""Commands that look into a database: a path that was mistyped is said, not answered with an empty database."""

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
