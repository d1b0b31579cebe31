"""Where settings come from: flags over the environment over a TOML file over the defaults.

Whatever is wrong is refused with the setting's name and where it stood. Names that the file does not know are refused;
names in the environment are not, since others (clients of ours, container platforms) set some with the same prefix.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from idefics_chat.server.settings import ENV_PREFIX, Settings

CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
"""Names the file where no flag does."""


class SettingsError(Exception):
    """Settings that cannot be used. `problems` are sentences, each with the setting's name."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, and where each comes from: a flag, a variable, a file, or `default`."""

    settings: Settings
    origins: Mapping[str, str]


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> LoadedSettings:
    """Read all sources. `flags` holds what was given on the command line, by the settings' names.

    Raises:
        SettingsError
    """
    configured = _configured(config)
    origins = {
        **dict.fromkeys(Settings.model_fields, "default"),
        **dict.fromkeys(_named_in(config), f"file {config}"),
        **{name: f"environment {ENV_PREFIX}{name.upper()}" for name in EnvSettingsSource(Settings)()},
        **{name: f"flag {flag_of(name)}" for name in flags},
    }
    try:
        return LoadedSettings(Settings(**configured(**flags).model_dump()), origins)
    except ValidationError as error:
        raise SettingsError([_sentence(problem, origins) for problem in error.errors()]) from None


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def described(name: str) -> str:
    """What a setting is, with its values where they are a closed set."""
    description = str(Settings.model_fields[name].description)
    choices = choices_of(name)
    return f"{description} One of {', '.join(choices)}." if choices else description


def choices_of(name: str) -> tuple[str, ...]:
    """All values of a setting, where they are a closed set of names; none otherwise."""
    kind = Settings.model_fields[name].annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if any(get_origin(one) is not Literal for one in kinds if one is not NoneType):
        return ()
    return tuple(choice for one in kinds for choice in get_args(one))


def shown_value(name: str, value: object) -> str:
    """A setting's value for people to see, without the password in a database's URL."""
    if name == "database":
        return _without_password(str(value))
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else str(value)


def _without_password(database: str) -> str:
    if "://" not in database:
        return database
    try:
        return make_url(database).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return database.partition("://")[0] + "://***"


def _configured(config: Path | None) -> type[Settings]:
    """The settings class that reads this file too."""

    class ConfiguredSettings(Settings):
        model_config = SettingsConfigDict(toml_file=config)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    return ConfiguredSettings


def _named_in(config: Path | None) -> list[str]:
    """The names at the top of the file."""
    if config is None:
        return []
    try:
        return list(tomllib.loads(config.read_text()))
    except OSError as error:
        raise SettingsError(
            [f"setting config: cannot read {config} ({error.strerror}); give the path of a file."]
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError([f"setting config: {config} is no TOML: {error}."]) from None


def _sentence(problem: Any, origins: Mapping[str, str]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    origin = origins.get(name, "default")
    if problem["type"] == "extra_forbidden":
        return f"setting {name}: there is no such setting ({origin}); `idefics-chat config show` lists them."
    said = problem["msg"].removeprefix("Value error, ")
    return f"setting {name}: {said} ({origin})." if name else f"setting {said}."
