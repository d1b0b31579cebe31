"""`idefics-chat serve`: the server, with a flag for every setting, and what a person sees of its start."""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from idefics_chat.cli.common import Config, run_to_end, settings_of
from idefics_chat.server.settings import SECTIONS, Settings
from idefics_chat.server.settings_sources import described, flag_of, shown_value

PROGRAM = "idefics-chat"


def serve(config: Path | None = None, **flags: Any) -> None:
    """Start the server.

    Every setting can stand in a flag, in the environment (--port as IDEFICS_CHAT_PORT) or in a TOML file (port = 9000);
    a flag wins over the environment, the environment over the file.
    """
    settings = settings_of(flags, config)
    from idefics_chat.server.logs import set_up_logs
    from idefics_chat.server.serving import serve as run

    set_up_logs(settings.log_format, settings.log_level)
    run_to_end(run(settings, _TerminalReporter(settings)))


def _parameters() -> list[inspect.Parameter]:
    """A flag for each setting. Values come as they are written: the settings themselves say what is wrong."""
    found = [inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)]
    for section in SECTIONS:
        panel = inspect.getdoc(section) or ""
        found += [_parameter(name, panel) for name in section.model_fields]
    return found


def _parameter(name: str, panel: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    default = shown_value(name, field.default)
    text = f"{described(name)} [default: {default}]" if default else described(name)
    kind: Any = str | None
    flag = flag_of(name)
    if isinstance(field.default, bool):
        kind, flag = bool | None, f"{flag}/--no-{flag.removeprefix('--')}"
    elif isinstance(field.default, tuple):
        kind, text = list[str] | None, f"{text} Repeat it for more."
    option = typer.Option(flag, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


serve.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]


class _TerminalReporter:
    """Shows the start to a person."""

    def __init__(self, settings: Settings) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        typed = Path(sys.argv[0])
        self._command = str(typed) if typed.name == PROGRAM else PROGRAM
        self._key = " --key KEY" if settings.require_key else ""

    def loading(self, model: str, url: str) -> None:
        self._console.print(f"Loading [bold]{model}[/bold] ...")

    def ready(self, model: str, url: str, database: str) -> None:
        self._console.print(
            f"[green]Ready.[/green] [bold]{model}[/bold] answers at [bold]{url}/v1/responses[/bold]\n"
            f"Conversations are kept in {database}. Press Ctrl-C to stop.\n\n"
            "Talk to it from a second terminal:\n"
            f"  {self._command} chat --server {url.replace('ws', 'http', 1)}{self._key}"
        )
