"""What an application serves with; until the model is loaded there is nothing, and the endpoints say so."""

from dataclasses import dataclass

from idefics_chat.server.chat import ChatService
from idefics_chat.server.errors import ApiError
from idefics_chat.server.settings import Settings
from idefics_chat.storage.store import Store


@dataclass(frozen=True, slots=True)
class Services:
    """What stands once the model is loaded."""

    store: Store
    chat: ChatService


@dataclass(slots=True)
class ServerState:
    """The settings, and the services once they stand."""

    settings: Settings
    services: Services | None = None

    def ready(self) -> Services:
        """The services. Raises ApiError `model_not_loaded` while there are none."""
        if self.services is None:
            raise ApiError("model_not_loaded", "The model is still being loaded; try again in a moment.")
        return self.services
