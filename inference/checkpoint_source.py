"""Where a checkpoint comes from: a folder on this machine, the hub's cache, or the hub.

The hub's client retries for half a minute when there is no network, so the hub is asked once, shortly, before
anything else is tried. Knows nothing of what is in a checkpoint but that it has a `config.json`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from idefics_chat.inference.errors import ModelLoadError

HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """What to give to `from_pretrained`: a folder's path or a hub name, and whether the network may be used."""

    name: str
    local_files_only: bool


def find_checkpoint(source: str, hub_answers: Callable[[str], bool] | None = None) -> CheckpointSource:
    """Find where `source`, a folder or a hub name, can be read from.

    `hub_answers(name)` says whether the hub can be reached at all; tests put their own in.

    Raises:
        ModelLoadError: no such folder, no checkpoint in it, or a hub name that is neither cached nor reachable.
    """
    return find_in_folder(source) or _on_the_hub(source, hub_answers or hub_is_reachable)


def find_in_folder(source: str) -> CheckpointSource | None:
    """The checkpoint in a folder on this machine; None for what can only be a name on the hub.

    Raises:
        ModelLoadError: no such folder, or no checkpoint in it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _in_folder(folder)
    if folder.exists():
        raise ModelLoadError(f"{source!r} is a file; give the folder of a checkpoint or a name on the hub.")
    if _looks_like_a_path(source):
        raise ModelLoadError(f"There is no folder {source!r}; give the folder of a checkpoint or a name on the hub.")
    return None


def _in_folder(folder: Path) -> CheckpointSource:
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"The folder {str(folder)!r} holds no config.json, so it is not a checkpoint; "
            "give a folder that `save_pretrained` or a hub download made."
        )
    return CheckpointSource(str(folder), local_files_only=True)


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "~", os.sep)) or source.count("/") > 1 or "\\" in source


def _on_the_hub(name: str, hub_answers: Callable[[str], bool]) -> CheckpointSource:
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise ModelLoadError(
            f"{name!r} is neither a folder on this machine nor a name that the hub could have; "
            "names look like 'HuggingFaceM4/idefics-9b-instruct'."
        ) from None
    if not constants.HF_HUB_OFFLINE and hub_answers(name):
        return CheckpointSource(name, local_files_only=False)
    if isinstance(cached, str):
        return CheckpointSource(name, local_files_only=True)
    raise ModelLoadError(
        f"The model {name!r} is not on this machine and the hub ({constants.ENDPOINT}) cannot be reached; "
        "check the network, or give the folder of a checkpoint."
    )


def hub_is_reachable(name: str) -> bool:
    """Whether the hub answers a request for `name`'s configuration within `HUB_TIMEOUT_S`, whatever the answer."""
    try:
        get_session().head(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=HUB_TIMEOUT_S)
    except Exception:  # noqa: BLE001  the HTTP client below the hub's differs by version, and so do its errors
        return False
    return True
