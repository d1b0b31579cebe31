"""Settings: from flags, then the environment (`IDEFICS_CHAT_...`), then these defaults."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SHIPPED_MODEL = "idefics-shapes"
"""The id of the checkpoint that ships with the package."""


class Settings(BaseSettings):
    """All that an operator can set. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="IDEFICS_CHAT_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0 takes a free one.")
    database: str = Field("./idefics-chat.db", description="SQLite file, or an SQLAlchemy URL.")
    model: str = Field(SHIPPED_MODEL, description="The shipped model, a hub name, or a folder.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Precision of the weights.")
    quantization: Literal["4bit", "8bit"] | None = Field(None, description="Quantize the weights with bitsandbytes.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the model runs.")
    require_key: bool = Field(False, description="Refuse connections without a key.")
    allowed_origins: tuple[str, ...] = Field((), description="Origins of web pages that may connect, besides our own.")
    max_frame_bytes: int = Field(
        32 * 2**20, gt=0, description="Longest websocket frame, and longest HTTP body, that is accepted."
    )
    max_image_bytes: int = Field(20 * 2**20, gt=0, description="Largest image file that is accepted.")
    max_image_pixels: int = Field(50_000_000, gt=0, description="Most pixels that an image may have.")
    max_images_per_turn: int = Field(16, gt=0, description="Most images in one turn.")
    max_text_characters: int = Field(200_000, gt=0, description="Most characters of text in one turn.")
    default_max_output_tokens: int = Field(512, gt=0, description="Longest answer where the request names no limit.")
    event_log_retention_s: float = Field(
        7 * 86_400.0,
        ge=60,
        description="How long streamed events are kept after an answer's end, for clients to resume.",
    )
    deleted_retention_s: float = Field(
        30 * 86_400.0, ge=0, description="How long a deleted conversation can be taken back before it is purged."
    )
    drain_s: float = Field(5.0, ge=0, description="How long a stopping server waits for what is under way.")

    def database_path(self) -> Path | None:
        """The database file, if the setting names a file."""
        return None if "://" in self.database else Path(self.database)
