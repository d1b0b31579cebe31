"""The message tree: a conversation is not a line, since an answer can be made again and a question changed.

Every message knows its parent, so a branch is only another child, and a fork copies nothing. The tree is immutable:
adding gives a new tree.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from idefics_chat.conversation.errors import InvalidMessage, UnknownMessage
from idefics_chat.conversation.messages import Message


@dataclass(frozen=True, slots=True)
class MessageTree:
    """Messages by id. Every parent is in the tree, so following parents from any message ends at a root."""

    messages: Mapping[str, Message] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, messages: Iterable[Message]) -> "MessageTree":
        """A tree of messages given parents first.

        Raises:
            UnknownMessage: a parent that was not given before its child.
            InvalidMessage: an id that was given twice.
        """
        known: dict[str, Message] = {}
        for message in messages:
            _check_new(message, known)
            known[message.id] = message
        return cls(MappingProxyType(known))

    def add(self, message: Message) -> "MessageTree":
        """A tree with this message too. Raises as `of`."""
        _check_new(message, self.messages)
        return MessageTree(MappingProxyType({**self.messages, message.id: message}))

    def path(self, tip_id: str) -> tuple[Message, ...]:
        """The messages from the root to `tip_id`, that one included.

        Raises:
            UnknownMessage: the tip is not in the tree.
        """
        path = [self._get(tip_id)]
        while (parent_id := path[-1].parent_id) is not None:
            path.append(self._get(parent_id))
        return tuple(reversed(path))

    def children(self, parent_id: str | None) -> tuple[Message, ...]:
        """The messages said right after `parent_id` (None: the roots), in the order they were added."""
        return tuple(message for message in self.messages.values() if message.parent_id == parent_id)

    def leaves(self) -> tuple[Message, ...]:
        """The ends of all branches, in the order they were added."""
        parents = {message.parent_id for message in self.messages.values()}
        return tuple(message for message in self.messages.values() if message.id not in parents)

    def _get(self, message_id: str) -> Message:
        try:
            return self.messages[message_id]
        except KeyError:
            raise UnknownMessage(message_id) from None


def _check_new(message: Message, known: Mapping[str, Message]) -> None:
    if message.id in known:
        raise InvalidMessage(f"The item {message.id!r} is in this conversation already.")
    if message.parent_id is not None and message.parent_id not in known:
        raise UnknownMessage(message.parent_id)
