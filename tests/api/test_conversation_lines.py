"""Conversations as lines: what a person needs to find one again, whatever users wrote into it."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from idefics_chat.cli.conversation_lines import LONGEST_PREVIEW, SHORTEST_PREVIEW, line_of, preview_of
from idefics_chat.cli.main import app
from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Conversation

UNTITLED = Conversation("conv_1", "owner_1", None, {}, 0.0, None)
IMAGE = ImagePart("0" * 64)
PLAIN = len("conv_1  1970-01-01 00:00  ")
HOSTILE = "a\x1b[2J\x1b]0;mine\x07\r\nb\u202ec\x9b1m"


def said(text: str) -> tuple[Part, ...]:
    return (TextPart(text),)


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (said("What is this?"), "What is this?"),
        ((IMAGE, TextPart("What is this?")), "[image] What is this?"),
        ((TextPart("Compare"), IMAGE, IMAGE, TextPart("with"), IMAGE), "Compare [images] with [image]"),
        ((IMAGE,), "[image]"),
        (said("  two\n\n\tlines "), "two lines"),
        (said(HOSTILE), "a [2J ]0;mine b c 1m"),
        (said(" "), ""),
        ((), ""),
    ],
)
def test_a_preview_says_what_was_asked_and_where_pictures_were(parts: tuple[Part, ...], shown: str) -> None:
    assert preview_of(parts) == shown


def test_a_title_stands_in_the_place_of_a_preview() -> None:
    first = said("What is this?")
    assert line_of(UNTITLED, first)[PLAIN:] == "What is this?"
    assert line_of(replace(UNTITLED, external_key="telegram:42"), first).endswith("  telegram:42  What is this?")
    assert line_of(replace(UNTITLED, title="Circles"), first)[PLAIN:] == "Circles"
    assert line_of(UNTITLED) == line_of(UNTITLED, said("\n")) == line_of(UNTITLED).rstrip()


def test_keys_and_titles_do_not_steer_the_terminal() -> None:
    line = line_of(replace(UNTITLED, external_key=HOSTILE, title=HOSTILE))
    assert line.isprintable()
    assert "[2J" in line


@given(st.text(max_size=300), st.integers(1, 200))
def test_a_line_keeps_to_the_terminal_s_width_whatever_was_written(text: str, width: int) -> None:
    line = line_of(UNTITLED, said(text), width)
    assert line.isprintable()
    assert cell_len(line) <= max(width, PLAIN + SHORTEST_PREVIEW)


def test_letters_that_are_two_cells_wide_count_as_two() -> None:
    assert line_of(UNTITLED, said("図" * 40), PLAIN + 21)[PLAIN:] == "図" * 10 + "…"


def test_where_there_is_no_terminal_a_preview_is_cut_all_the_same() -> None:
    preview = line_of(UNTITLED, said("word " * 100))[PLAIN:]
    assert (len(preview), preview[-1]) == (LONGEST_PREVIEW, "…")


def test_a_list_of_conversations_shows_how_they_begin_on_lines_of_the_terminal(tmp_path: Path) -> None:
    database = str(tmp_path / "chat.db")

    async def fill() -> None:
        store = await Store.open(database)
        owner = await store.owner("ann")
        for number, text in enumerate(("What is\nthis? " + "x" * 99, "Hi", "Hello")):
            conversation = await store.create_conversation(owner.id, id=f"conv_{number}")
            await store.add_items(owner.id, conversation.id, [Message(f"msg_{number}", "user", said(text))], [])
        await store.update_conversation(owner.id, "conv_2", title="Old")
        await store.close()

    asyncio.run(fill())
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "60"}
    listed = CliRunner().invoke(app, ["conversations", "list", "--owner", "ann", "--database", database], env=terminal)
    told = sorted(line[:6] + line[PLAIN - 2 :] for line in listed.output.splitlines())
    assert told == ["conv_0  What is this? " + "x" * (60 - PLAIN - 15) + "…", "conv_1  Hi", "conv_2  Old"]
