"""What is typed into the chat: pictures by their paths, as terminals write them, commands, and all else as it is."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.cli.chat_lines import NAMES, Command, Missing, Said, image_path, missing_among, read_line


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my holiday (1).png"
    path.write_bytes(b"x")
    return path


def test_a_dropped_file_is_a_picture_however_the_terminal_writes_it(photo: Path) -> None:
    escaped = str(photo).replace(" ", "\\ ").replace("(", "\\(").replace(")", "\\)")
    for written in (f"'{photo}'", f'"{photo}"', escaped, f"file://{quote(str(photo))}", f" '{photo}' "):
        assert read_line(written) == Said("", (photo,))
        assert image_path(written) == photo


def test_a_picture_can_stand_anywhere_in_a_question(photo: Path) -> None:
    assert read_line(f"What's in '{photo}' here?") == Said("What's in here?", (photo,))
    assert read_line(f"'{photo}' '{photo}' Same?") == Said("Same?", (photo, photo))


def test_what_is_no_file_with_a_picture_s_suffix_stays_text(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for line in (
        "Look at missing.png",
        f"Read {tmp_path}/notes.txt",
        "It's 5 o'clock",
        "Is it 'missing.png' or missing.jpg?",
        "a\\b",
        "Look at http://x/y.png",
    ):
        assert read_line(line) == Said(line, ())


def test_a_picture_before_all_other_words_must_be_there(photo: Path) -> None:
    for word in ("missing.png", "nowhere/*.JPG", "~nobody/x.webp", "http://x/y.png", f"{photo}.gif"):
        assert read_line(f"'{word}' What is this?") == Missing(word)
    assert read_line("nope.jpeg") == Missing("nope.jpeg")
    assert read_line(f"'{photo}' nope.bmp Same?") == Missing("nope.bmp")
    assert str(Missing("nope.png")).startswith("There is no file nope.png.")


def test_a_word_of_the_command_line_with_a_picture_s_suffix_must_be_there(photo: Path) -> None:
    assert missing_among(["nope.png", "What is this?"]) == Missing("nope.png")
    assert missing_among([str(photo), "What is this?", "nope.PNG"]) == Missing("nope.PNG")
    assert missing_among(["my holidays.png", "What is this?"]) == Missing("my holidays.png")
    assert missing_among([str(photo), "How large is photo.png"]) is None
    assert missing_among(["Hello"]) is None
    assert missing_among([]) is None


def test_commands_are_known_by_their_slash() -> None:
    assert read_line("/resume conv_1 ") == Command("/resume", "conv_1")
    assert read_line("/nope") == Command("/nope", "")
    assert read_line("/etc/passwd is a file") == Said("/etc/passwd is a file", ())
    assert "/quit" in NAMES


@given(st.text())
def test_no_line_is_too_odd(line: str) -> None:
    said = read_line(line)
    assert not isinstance(said, Said) or said.images or said.text == line.strip()
