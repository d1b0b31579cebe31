"""`idefics-chat serve`: the server, with its flags and what a person sees of its start."""

import logging
from typing import Annotated

import typer
from rich.console import Console

from idefics_chat.cli.common import Database, run_to_end, settings_of


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8000]")] = None,
    database: Database = None,
    model: Annotated[
        str | None, typer.Option(help="The shipped model, a hub name or a folder. [default: idefics-shapes]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. [default: auto]")] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps. [default: auto]")] = None,
    require_key: Annotated[bool | None, typer.Option("--require-key", help="Refuse connections without a key.")] = None,
    allowed_origins: Annotated[
        list[str] | None, typer.Option(help="Origin of a web page that may connect; repeat for more.")
    ] = None,
) -> None:
    """Start the server. Every flag can also stand in the environment, as IDEFICS_CHAT_PORT and so on."""
    given = {
        "host": host,
        "port": port,
        "database": database,
        "model": model,
        "dtype": dtype,
        "quantization": quantization,
        "device": device,
        "require_key": require_key,
        "allowed_origins": tuple(allowed_origins) if allowed_origins else None,
    }
    settings = settings_of(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from idefics_chat.server.serving import serve as run

    run_to_end(run(settings, _TerminalReporter()))


class _TerminalReporter:
    """Shows the start to a person."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def loading(self, model: str, address: str) -> None:
        self._console.print(f"Loading [bold]{model}[/bold] ...")

    def ready(self, model: str, address: str, database: str) -> None:
        self._console.print(
            f"[green]Ready.[/green] [bold]{model}[/bold] answers at [bold]ws://{address}/v1/responses[/bold]\n"
            f"Conversations are kept in {database}. Press Ctrl-C to stop.\n\n"
            "Talk to it from a second terminal:\n"
            f'  .venv/bin/python client_example/chat.py photo.png "What is in this image?" --url ws://{address}/v1/responses'
        )
