"""How what is sent is written as JSON: on one line, without spaces, characters as they are. Pure."""

import json
from typing import Any

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def compact(value: Any) -> str:
    """The JSON text of a value."""
    return _encoder.encode(value)
