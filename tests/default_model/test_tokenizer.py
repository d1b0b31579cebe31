"""The tokenizer that ships: every string comes back, runs encode alone as they do together."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from idefics_chat.default_model import checkpoint_path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_path())


def round_trip(tokenizer: Any, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert not set(ids) & {0, 1, 2, 1024, 1025, 1026}
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize(
    "text",
    [
        "hello 😀 world",
        "  two leading spaces ",
        "مرحبا بالعالم",
        "日本語のテスト",
        "\t\n \r\n",
        "▁ is U+2581",
        "<0x41> is no byte",
        "<image></s><end_of_utterance>",
        "a\u0300 👩‍👩‍👧",
        "User: x\nAssistant: y",
    ],
)
def test_hard_strings_come_back(tokenizer: Any, text: str) -> None:
    assert round_trip(tokenizer, text) == text


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_every_string_comes_back(tokenizer: Any, text: str) -> None:
    assert round_trip(tokenizer, text) == text


@settings(deadline=None)
@given(text=st.text(alphabet="aB 1.?\n:é😀", max_size=30), spaces=st.integers(0, 5))
def test_leading_spaces_come_back(tokenizer: Any, text: str, spaces: int) -> None:
    assert round_trip(tokenizer, " " * spaces + text) == " " * spaces + text


@settings(deadline=None)
@given(text=st.text(max_size=30, alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_run_after_a_control_token_encodes_as_it_does_alone(tokenizer: Any, text: str) -> None:
    alone = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.encode(f"<image>{text}", add_special_tokens=False) == [1025, *alone]


def test_digits_stand_alone(tokenizer: Any) -> None:
    assert len(tokenizer.encode("2026", add_special_tokens=False)) == 4


def test_common_words_of_its_world_are_one_piece(tokenizer: Any) -> None:
    for word in (" red", " circle", " background", " left", "\nAssistant:", "\nUser:"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1


def test_control_tokens_have_the_ids_after_the_vocabulary(tokenizer: Any) -> None:
    tokens = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<s>", "</s>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [1024, 1025, 1026, 1, 2]
