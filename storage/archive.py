"""The archive format for export and import, version 1: a zip of JSON lines and image files. Users read docs/archive.md.

    manifest.json          {"format": "idefics-chat-export", "version": 1, "conversations": N, "messages": N, ...}
    conversations.jsonl    id, external_key, title, metadata, created_at, updated_at, archived_at, tip_id
    messages.jsonl         id, conversation_id, parent_id, role, status, created_at, parts, tokens; parents first.
                           A part is {"text": ...} or {"image": SHA256}; tokens are {"tokenizer": ..., "ids": [...]}
                           or null
    responses.jsonl        id, conversation_id, parent_id, input_ids, output_id, answered, status, created_at,
                           completed_at, request, usage, error, incomplete_reason, previous_response_id; ended ones
    images.jsonl           digest, media_type, width, height
    images/SHA256          an image's bytes as they were sent

Times are in seconds since the epoch. The same conversations always give the same bytes: lines are sorted by
conversation and id, nothing depends on when or where it was written. Not in it: event logs, idempotency keys, owners'
keys and limits, deleted conversations.

This module knows the format and what a well-formed archive is; it knows no database. An archive is a stranger's: no
name in it becomes a path, every size is bounded before it is read, every value is checked.
"""

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from idefics_chat.conversation.errors import ConversationError
from idefics_chat.conversation.images import ImageLimits, check_image
from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart, TokenRecord
from idefics_chat.storage.errors import InvalidArchive
from idefics_chat.storage.values import Conversation, ResponseRow, StoredImage

T = TypeVar("T")
Progress = Callable[[int, int], None]

FORMAT = "idefics-chat-export"
VERSION = 1
CONVERSATIONS, MESSAGES, RESPONSES, IMAGES = "conversations.jsonl", "messages.jsonl", "responses.jsonl", "images.jsonl"
MANIFEST = "manifest.json"
TABLES = (CONVERSATIONS, MESSAGES, RESPONSES, IMAGES)
IMAGE_NAME = re.compile(r"images/([0-9a-f]{64})")
MAX_ID = 200
ENDED = ("completed", "incomplete", "cancelled", "failed")


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may hold at most, sizes in bytes as unpacked."""

    max_text_bytes: int = 512 * 2**20
    max_total_bytes: int = 16 * 2**30
    max_members: int = 200_000
    image: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive holds, checked: all but the images' bytes, which are read again when they are needed."""

    path: Path
    conversations: tuple[Conversation, ...]
    messages: dict[str, tuple[Message, ...]]
    responses: dict[str, tuple[ResponseRow, ...]]
    images: dict[str, StoredImage]

    def with_bytes(self, digests: Iterable[str]) -> Iterator[StoredImage]:
        """Images with their bytes, one after another. Raises InvalidArchive when the file has changed meanwhile."""
        with zipfile.ZipFile(self.path) as packed:
            for digest in digests:
                about = self.images[digest]
                data = packed.read(f"images/{digest}")
                if hashlib.sha256(data).hexdigest() != digest:
                    raise InvalidArchive(f"image {digest} changed while it was read")
                yield StoredImage(digest, about.media_type, about.width, about.height, data)


def read_archive(path: Path, limits: ArchiveLimits | None = None, progress: Progress | None = None) -> Archive:
    """Read and check an archive; blocks, and decodes every image: `progress` is told how many of how many.

    Raises InvalidArchive.
    """
    limits = limits or ArchiveLimits()
    try:
        with zipfile.ZipFile(path) as packed:
            _check_members(packed, limits)
            _check_manifest(_json(packed.read(MANIFEST)))
            images = {image.digest: image for image in _read_images(packed, limits, progress)}
            conversations = list(_lines(packed, CONVERSATIONS, _conversation))
            messages = _by_conversation(list(_lines(packed, MESSAGES, _message)), conversations)
            responses = _by_conversation(list(_lines(packed, RESPONSES, _response)), conversations)
    except InvalidArchive:
        raise
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, NotImplementedError, zipfile.LargeZipFile) as error:
        raise InvalidArchive(f"it is no whole zip file ({error})") from error
    except Exception as error:  # zlib.error and whatever else a damaged stream gives
        raise InvalidArchive(f"it cannot be unpacked ({error})") from error
    _check_unique([one.id for one in conversations], "conversation")
    _check_unique([one.id for ones in messages.values() for one in ones], "message")
    _check_unique([one.id for ones in responses.values() for one in ones], "response")
    for conversation in conversations:
        _check_tree(conversation, messages[conversation.id], images)
    return Archive(path, tuple(conversations), messages, responses, images)


def _check_members(packed: zipfile.ZipFile, limits: ArchiveLimits) -> None:
    names = [member.filename for member in packed.infolist()]
    if len(names) != len(set(names)) or len(names) > limits.max_members:
        raise InvalidArchive("it has too many files or two of one name")
    for member in packed.infolist():
        if member.filename not in (MANIFEST, *TABLES) and not IMAGE_NAME.fullmatch(member.filename):
            raise InvalidArchive(f"it holds a file {member.filename[:80]!r}, which is none of the format's")
    if missing := {MANIFEST, *TABLES} - set(names):
        raise InvalidArchive(f"it lacks {', '.join(sorted(missing))}")
    text = sum(member.file_size for member in packed.infolist() if not IMAGE_NAME.fullmatch(member.filename))
    if text > limits.max_text_bytes or sum(m.file_size for m in packed.infolist()) > limits.max_total_bytes:
        raise InvalidArchive("it is larger than allowed when it is unpacked")


def _check_manifest(manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InvalidArchive("its manifest is not of this format")
    if manifest.get("version") != VERSION:
        raise InvalidArchive(f"it is of version {manifest.get('version')!r} and this program reads version {VERSION}")


def _read_images(packed: zipfile.ZipFile, limits: ArchiveLimits, progress: Progress | None) -> Iterator[StoredImage]:
    """The images without their bytes."""
    stored = {found[1] for name in packed.namelist() if (found := IMAGE_NAME.fullmatch(name))}
    described = [_text(line, "digest") for line in _lines(packed, IMAGES, _object)]
    if stored != set(described) or len(described) != len(set(described)):
        raise InvalidArchive("its image files are not those that it describes")
    for number, line in enumerate(_lines(packed, IMAGES, _object)):
        if progress is not None:
            progress(number, len(stored))
        digest = _text(line, "digest")
        if packed.getinfo(f"images/{digest}").file_size > limits.image.max_bytes:
            raise InvalidArchive(f"image {digest} is larger than allowed")
        data = packed.read(f"images/{digest}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise InvalidArchive(f"the bytes of image {digest} are not those of its name")
        try:
            image = check_image(data, limits.image)
        except ConversationError as error:
            raise InvalidArchive(f"image {digest} cannot be used: {error}") from error
        if (image.media_type, image.width, image.height) != (line.get("media_type"), *_sizes(line)):
            raise InvalidArchive(f"image {digest} is not as it is described")
        yield StoredImage(digest, image.media_type, image.width, image.height, b"")


def _lines(packed: zipfile.ZipFile, name: str, read: Callable[[Any], T]) -> Iterator[T]:
    with packed.open(name) as file:
        for number, line in enumerate(file, 1):
            try:
                yield read(_json(line))
            except (InvalidArchive, ConversationError, ValueError, TypeError, KeyError, OverflowError) as error:
                raise InvalidArchive(f"line {number} of {name} is wrong ({error})") from error


def _json(data: bytes) -> Any:
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArchive("it holds lines that are not JSON") from error
    json.dumps(value, ensure_ascii=False).encode()  # raises for half surrogates, which cannot be stored
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _object(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise InvalidArchive("a line is no object")
    return line


def _conversation(line: Any) -> Conversation:
    metadata = _object(line)["metadata"]
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidArchive("metadata holds something that is not text")
    return Conversation(
        id=_id(line, "id"),
        owner_id="",
        external_key=_text_or_none(line, "external_key"),
        metadata=metadata,
        created_at=_time(line, "created_at"),
        tip_id=_text_or_none(line, "tip_id"),
        title=_text_or_none(line, "title"),
        updated_at=_time(line, "updated_at"),
        archived_at=None if line["archived_at"] is None else _time(line, "archived_at"),
    )


def _message(line: Any) -> tuple[str, Message]:
    role, status = _object(line)["role"], line["status"]
    if role not in ("system", "user", "assistant") or status not in ("completed", "incomplete"):
        raise InvalidArchive("a role or status is unknown")
    tokens = line["tokens"]
    return _text(line, "conversation_id"), Message(
        id=_id(line, "id"),
        role=role,
        parts=tuple(_part(part) for part in line["parts"]),
        parent_id=_text_or_none(line, "parent_id"),
        status=status,
        created_at=_time(line, "created_at"),
        tokens=None if tokens is None else TokenRecord(_token_ids(tokens["ids"]), _text(tokens, "tokenizer")),
    )


def _part(part: Any) -> Part:
    return ImagePart(_text(part, "image")) if "image" in part else TextPart(_text(part, "text"))


def _token_ids(ids: Any) -> tuple[int, ...]:
    if not all(type(number) is int and 0 <= number < 2**32 for number in ids):
        raise InvalidArchive("token ids are not 32-bit numbers")
    return tuple(ids)


def _response(line: Any) -> tuple[str, ResponseRow]:
    objects = {name: _object_or_none(line, name) for name in ("request", "usage", "error")}
    if _object(line)["status"] not in ENDED or type(line["answered"]) is not bool or objects["request"] is None:
        raise InvalidArchive("a response has not ended or lacks its request")
    return _text(line, "conversation_id"), ResponseRow(
        id=_id(line, "id"),
        conversation_id=_text(line, "conversation_id"),
        parent_id=_text_or_none(line, "parent_id"),
        input_ids=tuple(_text({"id": item}, "id") for item in line["input_ids"]),
        output_id=_id(line, "output_id"),
        status=line["status"],
        created_at=_time(line, "created_at"),
        completed_at=_time(line, "completed_at"),
        request=objects["request"],
        usage=objects["usage"],
        error=objects["error"],
        incomplete_reason=_text_or_none(line, "incomplete_reason"),
        idempotency_key=None,
        request_hash=None,
        previous_response_id=_text_or_none(line, "previous_response_id"),
        answered=line["answered"],
    )


def _check_unique(ids: list[str], kind: str) -> None:
    if len(ids) != len(set(ids)):
        raise InvalidArchive(f"two {kind}s have one id")


def _by_conversation(found: list[tuple[str, T]], conversations: list[Conversation]) -> dict[str, tuple[T, ...]]:
    sorted_out: dict[str, list[T]] = {conversation.id: [] for conversation in conversations}
    for conversation_id, one in found:
        if conversation_id not in sorted_out:
            raise InvalidArchive(f"it lacks the conversation {conversation_id[:80]!r}")
        sorted_out[conversation_id].append(one)
    return {conversation_id: tuple(ones) for conversation_id, ones in sorted_out.items()}


def _check_tree(conversation: Conversation, messages: tuple[Message, ...], images: dict[str, StoredImage]) -> None:
    known: set[str | None] = {None}
    for message in messages:
        if message.parent_id not in known:
            raise InvalidArchive(f"message {message.id!r} follows none that stands before it")
        if set(message.digests) - images.keys():
            raise InvalidArchive(f"message {message.id!r} shows an image that is not in it")
        known.add(message.id)
    if conversation.tip_id not in known:
        raise InvalidArchive(f"the tip of conversation {conversation.id!r} is not in it")


def _text(line: Any, name: str) -> str:
    if not isinstance(line[name], str):
        raise InvalidArchive(f"{name} is no text")
    return str(line[name])


def _id(line: Any, name: str) -> str:
    value = _text(line, name)
    if not 0 < len(value) <= MAX_ID:
        raise InvalidArchive(f"{name} is empty or too long")
    return value


def _text_or_none(line: Any, name: str) -> str | None:
    return None if line[name] is None else _text(line, name)


def _object_or_none(line: Any, name: str) -> dict[str, Any] | None:
    return None if line[name] is None else _object(line[name])


def _time(line: Any, name: str) -> float:
    value = line[name]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidArchive(f"{name} is no time")
    return float(value)


def _sizes(line: dict[str, Any]) -> tuple[Any, Any]:
    return line.get("width"), line.get("height")
