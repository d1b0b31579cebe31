"""The message tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.conversation.errors import InvalidMessage, UnknownMessage
from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.conversation.tree import MessageTree


def message(name: str, parent: str | None = None) -> Message:
    return Message(name, "user", (TextPart(name),), parent)


def test_a_path_runs_from_the_root_to_the_tip() -> None:
    tree = MessageTree.of([message("a"), message("b", "a"), message("c", "b"), message("d", "a")])
    assert [m.id for m in tree.path("c")] == ["a", "b", "c"]
    assert [m.id for m in tree.path("d")] == ["a", "d"]


def test_regenerating_makes_a_sibling_and_keeps_the_first_answer() -> None:
    tree = MessageTree.of([message("question"), message("answer", "question")]).add(message("another", "question"))
    assert [m.id for m in tree.children("question")] == ["answer", "another"]
    assert [m.id for m in tree.leaves()] == ["answer", "another"]


def test_adding_leaves_the_first_tree_as_it_was() -> None:
    tree = MessageTree.of([message("a")])
    tree.add(message("b", "a"))
    assert list(tree.messages) == ["a"]


def test_an_unknown_parent_or_tip_is_named() -> None:
    with pytest.raises(UnknownMessage, match="ghost"):
        MessageTree.of([message("a", "ghost")])
    with pytest.raises(UnknownMessage, match="ghost"):
        MessageTree.of([message("a")]).path("ghost")


def test_an_id_stands_once() -> None:
    with pytest.raises(InvalidMessage):
        MessageTree.of([message("a"), message("a")])


def test_only_users_show_images() -> None:
    with pytest.raises(InvalidMessage, match="role 'user'"):
        Message("a", "assistant", (ImagePart("0" * 64),))


@given(st.lists(st.integers(0, 30), max_size=30))
def test_every_path_ends_at_its_tip_and_each_message_follows_its_parent(parents: list[int]) -> None:
    messages = [message("m0")]
    for index, parent in enumerate(parents, start=1):
        messages.append(message(f"m{index}", f"m{parent % index}"))
    tree = MessageTree.of(messages)
    for tip in tree.messages:
        path = tree.path(tip)
        assert path[-1].id == tip
        assert [m.parent_id for m in path] == [None, *(m.id for m in path[:-1])]
