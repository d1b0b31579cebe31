"""Makes the engine that the settings ask for."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_chat.inference.requests import Engine
from idefics_chat.server.settings import SHIPPED_MODEL, Settings

if TYPE_CHECKING:
    from idefics_chat.inference.engine import EngineLimits


def load_engine(settings: Settings) -> Engine:
    """The engine for the model of the settings. Takes from a second to minutes.

    Raises:
        ModelLoadError
    """
    # torch takes seconds to import, and most commands do without it.
    from idefics_chat.default_model import checkpoint_path
    from idefics_chat.inference.engine import create_engine, fitting_limits
    from idefics_chat.inference.loader import load_model

    source = str(checkpoint_path()) if settings.model == SHIPPED_MODEL else settings.model
    loaded = load_model(source, dtype=settings.dtype, quantization=settings.quantization, device=settings.device)
    limits = engine_limits(settings, fitting_limits(loaded))
    return create_engine(loaded, model_id=model_id(settings.model), limits=limits, compile_steps=settings.compile_steps)


def engine_limits(settings: Settings, fitting: "EngineLimits") -> "EngineLimits":
    """What the engine may use: what the settings say, and where they leave it open what fits."""
    scheduler = replace(
        fitting.scheduler,
        max_running=settings.max_running_answers,
        kv_bytes=settings.kv_cache_bytes or fitting.scheduler.kv_bytes,
        host_bytes=settings.parked_cache_bytes,
        feature_bytes=settings.image_features_bytes,
    )
    return replace(
        fitting,
        max_waiting=settings.max_waiting_answers,
        scheduler=scheduler,
        feature_folder=settings.image_features_folder,
        feature_disk_bytes=settings.image_features_disk_bytes,
    )


def model_id(model: str) -> str:
    """What the model is called in the API: its hub name, or the name of its folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model
