"""What a server test stands on."""

from dataclasses import dataclass

from idefics_chat.server.chat import ChatService
from idefics_chat.storage.store import Store
from tests.server.scripted_engine import ScriptedEngine


@dataclass
class World:
    """A chat service and what it stands on."""

    chat: ChatService
    store: Store
    engine: ScriptedEngine
    owner_id: str
