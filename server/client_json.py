"""What clients send as JSON: from text to an object, from an object to a model of it. Pure.

The models are lenient about what they do not know (unknown fields are ignored, as newer clients send them) and strict
about what they know (no coercion).
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Never, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from idefics_chat.server.errors import ApiError

_UNION_LABELS = {
    "str",
    "list[InputItem]",
    "list[ContentPart]",
    "ConversationRef",
    "list[str]",
    "list[ChatPart]",
    "ImageUrl",
    "caption",
    "ask",
    "classify",
    "story",
    "few-shot",
    "continue",
    "instruct",
}
"""What pydantic puts into the place of an error to name a union's branch; clients know nothing of it."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

M = TypeVar("M", bound=BaseModel)


class WireModel(BaseModel):
    """Base of what a client sends."""

    model_config = ConfigDict(strict=True, extra="ignore")


def parse_json(text: str, *, what: str = "frame") -> dict[str, Any]:
    """The JSON object that a text is; `what` the text is called in complaints.

    Raises:
        ApiError: `invalid_json` where it is none, `invalid_value` where a string in it is not valid Unicode.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError("invalid_json", f"This {what} is not valid JSON; send one JSON object.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_json", f"This {what} is JSON but not an object; send one JSON object.")
    if _SURROGATE_ESCAPE.search(text) and not _is_unicode(value):
        raise ApiError("invalid_value", f"A string in this {what} holds half a surrogate pair; send valid Unicode.")
    return value


def _is_unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> Never:
    raise ValueError(name)


def validate(model: type[M], value: dict[str, Any]) -> M:
    """The model of a client's value.

    Raises:
        ApiError: `missing_required_parameter` or `invalid_value`, naming the parameter.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise complaint(error) from None


def complaint(error: ValidationError) -> ApiError:
    """What to tell a client of a value that is not what it should be."""
    # Of a union's branches the deepest complaint is about the form that the client meant.
    first = max(error.errors(include_url=False, include_input=False), key=lambda e: len(e["loc"]))
    kind, location = first["type"], [*first["loc"]]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        location.append(first["ctx"]["discriminator"].strip("'"))
    param = _path(location)
    if kind in ("missing", "union_tag_not_found"):
        return ApiError("missing_required_parameter", f"{param} is missing; add it.", param)
    if kind == "union_tag_invalid":
        return ApiError("invalid_value", f"{param} must be one of {first['ctx']['expected_tags']}.", param)
    return ApiError("invalid_value", f"{param}: {first['msg']}.", param)


def _path(location: Sequence[int | str]) -> str:
    """The parameter at a place, as in `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _is_label(part):
            path += f".{part}" if path else part
    return path


def _is_label(part: str) -> bool:
    return part in _UNION_LABELS or part.startswith(("literal[", "constrained-", "function-"))
