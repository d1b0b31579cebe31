"""Makes the engine that the settings ask for."""

import os
import sys
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

    if settings.cpu_threads:
        use_threads(settings.cpu_threads)
    source = str(checkpoint_path()) if settings.model == SHIPPED_MODEL else settings.model
    loaded = load_model(source, dtype=settings.dtype, quantization=settings.quantization, device=settings.device)
    limits = engine_limits(settings, fitting_limits(loaded))
    return create_engine(loaded, model_id=model_id(settings.model), limits=limits, compile_steps=settings.compile_steps)


def use_threads(asked: int) -> None:
    """Let torch compute on so many CPU threads, in a process that is ours. 0: as many as OMP_NUM_THREADS says; without
    it as torch would, but one CPU is left alone. With a thread on each the event loop has none to itself, and a small
    model's threads wait for one another at each of its many steps: on two cores it said half as many tokens a second on
    both as on one (`benchmarks/server_load.py threads`)."""
    import torch

    from idefics_chat.inference.devices import usable_cpus

    if asked:
        torch.set_num_threads(asked)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cpus() - 1)))


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
        # Images are checked where they come in, perhaps under another setting than today's.
        max_image_pixels=sys.maxsize,
    )


def model_id(model: str) -> str:
    """What the model is called in the API: its hub name, or the name of its folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model
