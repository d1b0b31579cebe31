"""Settings: what an operator can set, section by section. Sizes are in bytes, times in seconds.

Where they come from is `settings_sources`: flags, then the environment, then a file, then these defaults.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from idefics_chat.server.answer_settings import AnswerSettings
from idefics_chat.server.image_settings import ImageSettings

SHIPPED_MODEL = "idefics-shapes"
"""The id of the checkpoint that ships with the package."""

ENV_PREFIX = "IDEFICS_CHAT_"


def _listed(value: Any) -> Any:
    """A list as it is written in the environment: with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _network(value: str) -> str:
    """Raises ValueError with a sentence."""
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError(f"{value!r} is no address and no network; write 10.0.0.7 or 10.0.0.0/8") from None


def _networks(value: Any) -> Any:
    listed = _listed(value)
    return tuple(_network(str(part)) for part in listed) if isinstance(listed, list | tuple) else listed


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_networks)]
Port = Annotated[int, Field(ge=0, le=65535)]
Limit = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Deadline = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ListeningSettings(BaseModel):
    """Who may come in"""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8000, description="Port to listen on; 0 takes a free one.")
    require_key: bool = Field(False, description="Refuse connections without a key.")
    allowed_hosts: Names = Field((), description="Names that the server answers to, besides loopback's.")
    allowed_origins: Names = Field((), description="Origins of web pages that may connect, besides our own.")
    tls_certificate: Path | None = Field(None, description="PEM file with the certificate and its chain: https, wss.")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    trusted_proxies: Networks = Field(
        (), description="Addresses or networks of proxies whose X-Forwarded-For and -Proto are believed."
    )

    @model_validator(mode="after")
    def _whole_pair(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; set both")
        for name, path in (("tls_certificate", self.tls_certificate), ("tls_key", self.tls_key)):
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: there is no file {path}")
        return self


class ModelSettings(BaseModel):
    """The model"""

    model: str = Field(SHIPPED_MODEL, description="The shipped model, a hub name, or a folder.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Precision of the weights.")
    quantization: Literal["4bit", "8bit"] | None = Field(None, description="Quantize the weights with bitsandbytes.")
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field("auto", description="Where the model runs.")
    cpu_threads: Limit = Field(
        0, description="CPU threads of the model; 0 for OMP_NUM_THREADS, or else for all CPUs but one."
    )
    compile_steps: bool = Field(
        False, description="Compile decode steps with torch.compile; their first use may take minutes."
    )
    default_max_output_tokens: Size = Field(512, description="Longest answer where the request names no limit.")
    max_running_answers: Size = Field(16, description="Answers that are decoded at once; more wait.")
    max_waiting_answers: Size = Field(64, description="Answers that wait; more are refused with server_busy.")
    kv_cache_bytes: Limit = Field(
        0, description="Keys and values on the device, of running and parked conversations; 0 for what fits."
    )
    parked_cache_bytes: Limit = Field(
        4 * 2**30, description="Keys and values parked in the host's memory; 0 parks none."
    )
    image_features_bytes: Limit = Field(
        512 * 2**20, description="Encoded images that are kept in memory; 0 keeps none."
    )
    image_features_folder: Path | None = Field(
        None, description="Folder where encoded images outlive the server; not another server's at the same time."
    )
    image_features_disk_bytes: Size = Field(2**30, description="Encoded images that are kept in that folder.")


class StorageSettings(BaseModel):
    """What is kept"""

    database: str = Field("./idefics-chat.db", description="SQLite file, or an SQLAlchemy URL of SQLite.")
    event_log_retention_s: Annotated[float, Field(ge=60)] = Field(
        7 * 86_400.0, description="How long streamed events are kept after an answer's end, for clients to resume."
    )
    deleted_retention_s: Seconds = Field(
        30 * 86_400.0, description="How long a deleted conversation can be taken back before it is purged."
    )


class RequestSettings(BaseModel):
    """How large a request may be"""

    max_frame_bytes: Size = Field(
        32 * 2**20,
        description="Longest websocket frame, and longest HTTP body, that is accepted; and how much of one name's HTTP "
        "requests may wait for conversations that are being answered.",
    )
    max_image_bytes: Size = Field(20 * 2**20, description="Largest image file that is accepted.")
    max_image_pixels: Size = Field(50_000_000, description="Most pixels that an image may have.")
    max_images_per_turn: Size = Field(16, description="Most images in one turn.")
    max_items_per_turn: Size = Field(256, description="Most items in one turn's input.")
    max_text_characters: Size = Field(200_000, description="Most characters of text in one turn.")


class QuotaSettings(BaseModel):
    """How much one key's name, and one address, may use; 0 is no limit"""

    connections_per_key: Limit = Field(1000, description="Websockets open at once for one key's name.")
    connections_per_address: Limit = Field(1000, description="Websockets open at once from one address.")
    running_turns_per_key: Limit = Field(64, description="Answers under way at once for one key's name.")
    running_turns_per_address: Limit = Field(64, description="Answers under way at once for one address.")
    turns_per_minute_per_key: Limit = Field(0, description="Turns in any minute for one key's name.")
    turns_per_minute_per_address: Limit = Field(0, description="Turns in any minute from one address.")
    tokens_per_day_per_key: Limit = Field(0, description="Tokens, input and output, in a UTC day for one key's name.")
    tokens_per_day_per_address: Limit = Field(0, description="Tokens, input and output, in a UTC day for one address.")
    bytes_per_day_per_key: Limit = Field(0, description="Bytes received in a UTC day for one key's name.")
    bytes_per_day_per_address: Limit = Field(0, description="Bytes received in a UTC day from one address.")


class ConnectionSettings(BaseModel):
    """Connections"""

    max_connections: Size = Field(10_000, description="Connections of all kinds at once; more are closed.")
    handshake_timeout_s: Deadline = Field(10.0, description="How long a request's head may take to arrive.")
    body_timeout_s: Deadline = Field(120.0, description="How long a request's body may take to arrive.")
    keep_alive_s: Deadline = Field(75.0, description="How long an HTTP connection may stand between two requests.")
    idle_timeout_s: Seconds = Field(
        0.0, description="How long a websocket may stand without a message either way; 0 for as long as it likes."
    )
    ping_interval_s: Deadline = Field(20.0, description="How often the server pings a websocket.")
    ping_timeout_s: Deadline = Field(90.0, description="How long a websocket's pong may take before it is closed.")
    stalled_timeout_s: Deadline = Field(
        90.0, description="How long a client may read nothing of what was sent before its connection is closed."
    )
    sse_keepalive_s: Deadline = Field(15.0, description="How often a comment is sent on an HTTP stream that is silent.")


class OperationSettings(BaseModel):
    """Running it"""

    drain_s: Seconds = Field(5.0, description="How long a stopping server waits for what is under way.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object a line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged, and above.")
    metrics_port: Port | None = Field(
        None, description="A port of its own, on metrics_host, for /metrics without a key; 0 takes a free one."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of metrics_port.")
    trace_endpoint: str | None = Field(
        None, description="URL that takes OpenTelemetry traces (OTLP over HTTP); needs the extra otel."
    )


SECTIONS: tuple[type[BaseModel], ...] = (
    ListeningSettings,
    ModelSettings,
    StorageSettings,
    RequestSettings,
    ImageSettings,
    AnswerSettings,
    QuotaSettings,
    ConnectionSettings,
    OperationSettings,
)
"""The sections, in the order in which they are shown."""


class Settings(
    OperationSettings,
    ConnectionSettings,
    QuotaSettings,
    AnswerSettings,
    ImageSettings,
    RequestSettings,
    StorageSettings,
    ModelSettings,
    ListeningSettings,
    BaseSettings,
):
    """All of them."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    def database_path(self) -> Path | None:
        """The database file, by its path or an SQLite URL; None for any other database."""
        if "://" not in self.database:
            return Path(self.database)
        try:
            url = make_url(self.database)
        except (ArgumentError, ValueError):
            return None
        name = url.database if url.get_backend_name() == "sqlite" else None
        return Path(name) if name and not name.startswith("file:") else None
