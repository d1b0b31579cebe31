"""Writes docs/openapi.json and docs/asyncapi.json, which the server serves too: `python docs/api_documents.py`."""

import json
from pathlib import Path
from typing import Any

from idefics_chat.server.app import create_app
from idefics_chat.server.asyncapi_document import asyncapi_document
from idefics_chat.server.openapi_document import openapi_document
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState

FOLDER = Path(__file__).parent


def documents() -> dict[str, str]:
    """The text of each file."""
    made = {
        "openapi.json": openapi_document(create_app(ServerState(Settings()))),
        "asyncapi.json": asyncapi_document(),
    }
    return {name: written(document) for name, document in made.items()}


def written(document: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, text in documents().items():
        (FOLDER / name).write_text(text)
