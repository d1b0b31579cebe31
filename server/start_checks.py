"""What can be said of settings before anything is started: `serve` stops at the first problem, `config check` tells
all of them.

Nothing is made or changed, and the network is not asked: whether the hub has a model, and whether a port is free, shows
at the start.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from idefics_chat.inference.errors import ModelLoadError
from idefics_chat.server.auth import is_loopback
from idefics_chat.server.settings import SHIPPED_MODEL, Settings
from idefics_chat.server.settings_sources import shown_value
from idefics_chat.server.start_error import StartError
from idefics_chat.server.tracing import start_tracing
from idefics_chat.server.web_server import tls_context
from idefics_chat.storage.dialect import database_url
from idefics_chat.storage.errors import DatabaseUnavailable

EVERY_ADDRESS = ("", "0.0.0.0", "::")


def check_settings(settings: Settings) -> None:
    """Raises StartError: they cannot be used together, or here."""
    for check in CHECKS:
        check(settings)


def problems_of(settings: Settings) -> list[StartError]:
    """All that `check_settings` would raise, one after the other, and what `check_device` would."""
    found = []
    for check in (*CHECKS, check_device):
        try:
            check(settings)
        except StartError as error:
            found.append(error)
    return found


def check_device(settings: Settings) -> None:
    """Whether this machine has the device. It imports torch, so the server leaves it to the loading of the model.

    Raises:
        StartError
    """
    if settings.device in ("auto", "cpu"):
        return
    from idefics_chat.inference.precision import choose_device

    try:
        choose_device(settings.device)
    except ModelLoadError as error:
        raise StartError(str(error)) from error


def check_exposure(settings: Settings) -> None:
    """Raises StartError where strangers could come in without a key."""
    if not is_loopback(settings.host) and not settings.require_key:
        raise StartError(
            f"Listening on {settings.host} lets other machines in without a key: add --require-key, and make a key "
            f"with: idefics-chat keys create NAME --database {shown_value('database', settings.database)}"
        )


def _check_certificate(settings: Settings) -> None:
    tls_context(settings)


def _check_ports(settings: Settings) -> None:
    hosts = {settings.host, settings.metrics_host}
    if settings.port and settings.port == settings.metrics_port and (len(hosts) == 1 or hosts & set(EVERY_ADDRESS)):
        raise StartError(f"The port and metrics_port are both {settings.port}; set another metrics_port.")


def _check_model(settings: Settings) -> None:
    """A folder must be there; a name is looked up when the model is loaded."""
    if settings.model == SHIPPED_MODEL:
        return
    from idefics_chat.inference.checkpoint_source import find_in_folder

    try:
        find_in_folder(settings.model)
    except ModelLoadError as error:
        raise StartError(f"{error} (--model {settings.model})") from error


def _check_database(settings: Settings) -> None:
    named = f"(--database {shown_value('database', settings.database)})"
    try:
        database_url(settings.database)
    except DatabaseUnavailable as error:
        raise StartError(f"{error} {named}") from error
    path = settings.database_path()
    if path is None:
        return
    if path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        raise StartError(f"{path} is no file that can be written; give another file. {named}")
    _check_folder(path.parent, "The database cannot be kept", named)


def _check_image_features(settings: Settings) -> None:
    folder = settings.image_features_folder
    if folder is not None:
        standing = next(place for place in (folder, *folder.parents) if place.exists())
        _check_folder(standing, "Encoded images cannot be kept", f"(--image-features-folder {folder})")


def _check_folder(folder: Path, complaint: str, named: str) -> None:
    """Whether files can be made there; one without a name is, and is gone again."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        sentence = f"{complaint} in {folder} ({error.strerror}); choose a folder that can be written. {named}"
        raise StartError(sentence) from error


def _check_tracing(settings: Settings) -> None:
    start_tracing(settings.trace_endpoint).stop()


CHECKS: tuple[Callable[[Settings], None], ...] = (
    check_exposure,
    _check_certificate,
    _check_ports,
    _check_model,
    _check_database,
    _check_image_features,
    _check_tracing,
)
"""In this order."""
