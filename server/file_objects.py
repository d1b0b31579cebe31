"""Files as clients see them, and the forms that bring them. Pure.

Source: the types of the `openai` package (`openai.types.FileObject`, `.FileCreateParams`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from idefics_chat.server.client_json import WireModel, validate
from idefics_chat.server.errors import ApiError
from idefics_chat.storage.values import StoredFile

Json = dict[str, Any]

Purpose = Literal["vision", "user_data", "assistants"]

MAX_FILENAME_CHARACTERS = 255


class FileForm(WireModel):
    """The fields of an upload besides the file."""

    purpose: Purpose
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: Annotated[int, Field(ge=3600, le=2_592_000, strict=False)] | None = Field(
        None, alias="expires_after[seconds]"
    )


@dataclass(frozen=True, slots=True)
class FileUpload:
    """A file that a form brought; `expires_after_s` None: it stays until it is deleted."""

    filename: str
    data: bytes
    purpose: str
    expires_after_s: int | None


def read_form(fields: Mapping[str, str], filename: str, data: bytes) -> FileUpload:
    """The upload that a form stands for. Raises ApiError."""
    form = validate(FileForm, dict(fields))
    if (form.anchor is None) != (form.seconds is None):
        raise ApiError("invalid_value", "expires_after takes an anchor and seconds; send both.", "expires_after")
    return FileUpload(plain_name(filename), data, form.purpose, form.seconds)


def plain_name(filename: str) -> str:
    """The name without folders and control characters: it is shown to people and sent in headers."""
    name = re.split(r"[/\\]", filename)[-1]
    return re.sub(r"[\x00-\x1f\x7f]", "", name)[-MAX_FILENAME_CHARACTERS:] or "image"


def file_object(file: StoredFile) -> Json:
    """The file without its bytes; times are in whole seconds since the epoch."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": None if file.expires_at is None else int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def deleted_file(file_id: str) -> Json:
    """What is answered of a file that was deleted."""
    return {"id": file_id, "object": "file", "deleted": True}
