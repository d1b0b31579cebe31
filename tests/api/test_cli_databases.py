"""Commands that look into a database: a path that was mistyped is said, not answered with an empty database."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from idefics_chat.cli.main import app

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
