"""The commands beside serve: keys, the database's care, conversations; each run as a person would run it."""

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.end_to_end.client import Client, text_of
from tests.end_to_end.server_process import ServerProcess, run_command


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory, red_circle: bytes) -> Iterator[tuple[ServerProcess, str]]:
    """A running server and a conversation in it."""
    with ServerProcess(tmp_path_factory.mktemp("talked") / "chat.db") as server:
        with Client(server.url) as client:
            first = client.ask("What is in this image?", red_circle, conversation={"key": "telegram:42"})
        yield server, first["conversation"]["id"]


def command(database: Path, *words: str) -> str:
    """A command that must succeed; what it printed."""
    done = run_command(*words, "--database", str(database))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def refused(database: Path, *words: str) -> str:
    done = run_command(*words, "--database", str(database))
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_conversations_are_listed_shown_and_searched_while_the_server_runs(talked: tuple[ServerProcess, str]) -> None:
    server, conversation = talked
    listed = command(server.database, "conversations", "list")
    assert conversation in listed
    assert listed.rstrip().endswith("  telegram:42  What is in this image? [image]")
    shown = command(server.database, "conversations", "show", conversation).splitlines()
    assert shown[1].startswith("user: What is in this image? [image ")
    assert "red circle" in shown[2]
    assert conversation in command(server.database, "conversations", "search", "circ*")
    assert command(server.database, "conversations", "search", "elephant") == ""
    command(server.database, "keys", "create", "ann")
    assert command(server.database, "conversations", "list", "--owner", "ann") == ""
    assert "no owner 'nobody'" in refused(server.database, "conversations", "list", "--owner", "nobody")


def test_a_backup_of_a_running_server_is_sound_and_goes_on_elsewhere(
    talked: tuple[ServerProcess, str], tmp_path: Path
) -> None:
    server, conversation = talked
    copy = tmp_path / "copy.db"
    command(server.database, "db", "backup", str(copy))
    assert "Sound; 1 images" in command(copy, "db", "check")
    assert "already a file" in refused(server.database, "db", "backup", str(copy))
    elsewhere = tmp_path / "elsewhere.db"
    assert "is the backup now" in command(elsewhere, "db", "restore", str(copy))
    with ServerProcess(elsewhere) as again, Client(again.url) as client:
        assert "red" in text_of(client.ask("What color is the circle?", conversation=conversation)).lower()


def test_a_running_server_s_database_is_not_replaced(talked: tuple[ServerProcess, str], tmp_path: Path) -> None:
    server, _ = talked
    copy = tmp_path / "copy.db"
    command(server.database, "db", "backup", str(copy))
    refused(server.database, "db", "restore", str(copy))


def test_the_database_is_counted_compacted_and_upgraded(talked: tuple[ServerProcess, str], tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    command(talked[0].database, "db", "backup", str(copy))
    assert "1 conversations" in command(copy, "db", "stats")
    assert "bytes were given back" in command(copy, "db", "vacuum")
    said, revision = command(copy, "db", "upgrade").removesuffix(" already.\n").split(" is at ")
    assert said == str(copy)
    assert revision in command(copy, "db", "stats")


def test_damage_is_found_and_said(talked: tuple[ServerProcess, str], tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    command(talked[0].database, "db", "backup", str(copy))
    data = bytearray(copy.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xff" * 4096
    copy.write_bytes(data)
    done = run_command("db", "check", "--database", str(copy))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr


def test_conversations_move_to_another_database_by_an_archive(
    talked: tuple[ServerProcess, str], tmp_path: Path, red_circle: bytes
) -> None:
    server, conversation = talked
    archive = tmp_path / "saved.zip"
    assert "1 conversations" in command(server.database, "conversations", "export", str(archive))
    assert "already a file" in refused(server.database, "conversations", "export", str(archive))
    for nowhere in (tmp_path / "nowhere" / "x.zip", archive / "x.zip"):
        assert "cannot be written" in refused(server.database, "conversations", "export", str(nowhere))
    some = tmp_path / "some.zip"
    assert "'conv_no'" in refused(server.database, "conversations", "export", str(some), conversation, "conv_no")
    assert not some.exists()
    with zipfile.ZipFile(archive) as packed:
        assert red_circle in [packed.read(name) for name in packed.namelist()]
        assert json.loads(packed.read("manifest.json"))
    other = tmp_path / "other.db"
    assert "1 conversations added" in command(other, "conversations", "import", str(archive))
    assert "0 conversations added" in command(other, "conversations", "import", str(archive))
    assert command(other, "conversations", "show", conversation) == command(
        server.database, "conversations", "show", conversation
    )
    archive.write_bytes(archive.read_bytes()[:-40])
    refused(other, "conversations", "import", str(archive))
    refused(other, "conversations", "import", str(tmp_path / "missing.zip"))


def test_what_is_deleted_can_be_taken_back_until_it_is_purged(
    talked: tuple[ServerProcess, str], tmp_path: Path
) -> None:
    server, conversation = talked
    copy = tmp_path / "copy.db"
    command(server.database, "db", "backup", str(copy))
    command(copy, "conversations", "delete", conversation)
    assert conversation not in command(copy, "conversations", "list")
    assert conversation in command(copy, "conversations", "restore", conversation)
    said = command(copy, "conversations", "delete", conversation, "--purge")
    assert "2 messages" in said
    assert "1 images" in said
    refused(copy, "conversations", "show", conversation)
    assert b"telegram:42" not in copy.read_bytes()


def test_owners_are_listed_with_their_quotas_and_held_to_them(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    key = command(database, "keys", "create", "ann").strip()
    assert command(database, "owners", "list") == "ann  0 conversations, 0 messages, 0 image bytes\n"
    assert "0 of 2 messages" in command(database, "owners", "quota", "ann", "--messages", "2")
    with ServerProcess(database) as server:
        with Client(server.url, additional_headers={"Authorization": f"Bearer {key}"}) as client:
            first = client.ask("Hello")
            client.send("response.create", input="Again", previous_response_id=first["id"])
            error = client.receive()
            assert (error["type"], error["error"]["code"]) == ("error", "quota_exceeded")
        assert "1 conversations, 2 of 2 messages" in command(database, "owners", "list")
    both = command(database, "owners", "quota", "ann", "--messages", "0", "--conversations", "1")
    assert "1 of 1 conversations, 2 messages" in both
    assert "no owner 'bob'" in refused(database, "owners", "quota", "bob", "--messages", "1")


def test_nobody_is_made_an_owner_by_being_asked_about(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    command(database, "keys", "create", "ann")
    command(database, "keys", "create", "bob")
    assert [line.split()[-1] for line in command(database, "keys", "list").splitlines()] == ["ann", "bob"]
    for words in (
        ("keys", "list", "eve"),
        ("keys", "revoke", "eve"),
        ("conversations", "search", "x", "--owner", "eve"),
    ):
        assert "no owner 'eve'" in refused(database, *words)
    assert "eve" not in command(database, "owners", "list")


def test_a_revoked_or_expired_key_lets_nobody_in(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    kept, revoked = (command(database, "keys", "create", name).strip() for name in ("ann", "bob"))
    expired = command(database, "keys", "create", "carol", "--expires-in-days", "1").strip()
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE api_keys SET expires_at = created_at WHERE name = 'carol'")
    command(database, "keys", "revoke", "bob")
    assert "works" in command(database, "keys", "list", "ann")
    assert "revoked" in command(database, "keys", "list", "bob")
    assert "expired" in command(database, "keys", "list", "carol")
    with ServerProcess(database, "--require-key") as server:
        with Client(server.url, additional_headers={"Authorization": f"Bearer {kept}"}):
            pass
        for key in (revoked, expired):
            with pytest.raises(InvalidStatus, match="401"):
                Client(server.url, additional_headers={"Authorization": f"Bearer {key}"})


@pytest.mark.parametrize(
    "words", [("",), ("a\nb",), *(("ann", "--expires-in-days", days) for days in ("0", "-1", "1e300", "nan"))]
)
def test_a_key_that_no_list_would_show_or_that_never_works_is_not_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    database = tmp_path / "chat.db"
    done = run_command("keys", "create", "--database", str(database), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert not database.exists()


def test_a_database_newer_than_the_program_is_refused_with_a_sentence(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    command(database, "db", "upgrade")
    newer = tmp_path / "newer.db"
    shutil.copy(database, newer)
    with sqlite3.connect(newer) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    assert "newer" in refused(newer, "conversations", "list")


def test_help_names_every_command() -> None:
    shown = run_command("--help").stdout
    for name in ("serve", "keys", "db", "conversations"):
        assert name in shown
