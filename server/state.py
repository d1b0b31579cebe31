"""What an application serves with; until the model is loaded there is nothing, and the endpoints say so."""

import time
from dataclasses import dataclass, field

from idefics_chat.server.chat import ChatService
from idefics_chat.server.errors import ApiError
from idefics_chat.server.held_key import CHECK_INTERVAL_S
from idefics_chat.server.metrics import Metrics
from idefics_chat.server.quotas import Quotas
from idefics_chat.server.settings import Settings
from idefics_chat.server.tracing import Tracing
from idefics_chat.storage.store import Store


@dataclass(frozen=True, slots=True)
class Services:
    """What stands once the model is loaded."""

    store: Store
    chat: ChatService


@dataclass(slots=True)
class ServerState:
    """The settings, what is counted, and the services once they stand."""

    settings: Settings
    services: Services | None = None
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)
    key_check_interval_s: float = CHECK_INTERVAL_S
    """How often the key of a websocket or an HTTP stream is looked up."""

    quotas: Quotas = field(init=False)

    def __post_init__(self) -> None:
        self.quotas = Quotas(self.settings, time.time)

    def running_turns(self) -> int:
        """Answers that wait or are under way, those that are not stored too."""
        return int(self.metrics.registry.get_sample_value("idefics_chat_turns_running") or 0)

    def ready(self) -> Services:
        """The services. Raises ApiError `model_not_loaded` while there are none."""
        if self.services is None:
            raise ApiError("model_not_loaded", "The model is still being loaded; try again in a moment.")
        return self.services
