"""The flags that all task commands share, and the model that they name: in this process, or a server's."""

import functools
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from idefics_chat.cli.common import Config, fail, settings_of
from idefics_chat.cli.task_progress import WaitTeller
from idefics_chat.conversation.errors import InvalidTask
from idefics_chat.inference.errors import InvalidSampling
from idefics_chat.server.engine_loading import use_threads
from idefics_chat.server.errors import ApiError
from idefics_chat.server.task_requests import read_task
from idefics_chat.server.task_requests import settings_of as task_settings
from idefics_chat.tasks.models import AsyncModel, open_local, open_remote

MODEL, ANSWER, OUTPUT = "The model", "The answer", "Output"


def _flag(kind: Any, name: str, text: str, panel: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)]


MODEL_FLAGS: dict[str, Any] = {
    "model": _flag(str | None, "--model", "The shipped model, a hub name, or a folder. (idefics-shapes)", MODEL),
    "dtype": _flag(str | None, "--dtype", "auto, float32, bfloat16 or float16. (auto)", MODEL),
    "quantization": _flag(str | None, "--quantization", "4bit or 8bit, by bitsandbytes.", MODEL),
    "device": _flag(str | None, "--device", "auto, cpu, cuda, xpu or mps. (auto)", MODEL),
    "config": Config,
    "server": _flag(str | None, "--server", "Use the model of the server at this URL.", MODEL),
    "key": _flag(str | None, "--key", "The server's key.", MODEL, envvar="IDEFICS_CHAT_KEY"),
}
ANSWER_FLAGS: dict[str, Any] = {
    "max_new_tokens": _flag(int | None, "--max-new-tokens", "Longest answer, in tokens. (the task's own)", ANSWER),
    "min_new_tokens": _flag(int | None, "--min-new-tokens", "Shortest answer, in tokens.", ANSWER),
    "num_beams": _flag(int | None, "--beams", "Beams of a beam search. (1, of a story 2)", ANSWER),
    "length_penalty": _flag(float | None, "--length-penalty", "Of a beam search: above 0 favours long ones.", ANSWER),
    "repetition_penalty": _flag(float | None, "--repetition-penalty", "Above 1 makes repeats less likely.", ANSWER),
    "no_repeat_ngram_size": _flag(
        int | None, "--no-repeat-ngram-size", "No run of so many tokens stands in an answer twice.", ANSWER
    ),
    "temperature": _flag(float | None, "--temperature", "Above 0 draws at random. (0)", ANSWER),
    "top_p": _flag(float | None, "--top-p", "Draw from the likeliest that have this share.", ANSWER),
    "top_k": _flag(int | None, "--top-k", "Draw from so many of the likeliest.", ANSWER),
    "seed": _flag(int | None, "--seed", "The same seed draws the same answer.", ANSWER),
    "stop": _flag(list[str] | None, "--stop", "Text at which the answer ends; repeat for more.", ANSWER),
    "bad_words": _flag(list[str] | None, "--bad-word", "Word that is never said; repeat for more.", ANSWER),
}
FLAG_NAMES = {name: "--" + name.replace("_", "-") for name in (*ANSWER_FLAGS, "normalization")} | {
    "num_beams": "--beams",
    "bad_words": "--bad-word",
}
"""The flags of parameters that a task can be refused for."""
OUTPUT_FLAGS: dict[str, Any] = {"json": _flag(bool, "--json", "One JSON object an image.", OUTPUT)}


@dataclass(frozen=True, slots=True)
class TaskFlags:
    """What the shared flags said. `options` are those of the answer that were given, by their names in a job."""

    model: dict[str, Any]
    config: Path | None
    server: str | None
    key: str | None
    options: dict[str, Any]
    json: bool


def task_command(*groups: dict[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the shared flags of these groups; it gets them as `flags`, a `TaskFlags`."""
    shared = {name: kind for group in groups for name, kind in group.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(annotation=kind)
            for (name, parameter), kind in zip(
                inspect.signature(command).parameters.items(),
                get_type_hints(command, include_extras=True).values(),
                strict=False,
            )
            if name != "flags"
        ]

        @functools.wraps(command)
        def run(context: typer.Context, **given: Any) -> None:
            flags = {name: given.pop(name) for name in shared}
            if flags["key"] and not flags["server"] and _is_typed(context, "key"):
                fail("--key is a server's key; name the server with --server, or leave it out.", 2)
            command(**given, flags=_flags(flags))

        kind = inspect.Parameter.KEYWORD_ONLY
        more = [
            inspect.Parameter(name, kind, default=False if name == "json" else None, annotation=annotation)
            for name, annotation in shared.items()
        ]
        context = inspect.Parameter("context", kind, annotation=typer.Context)
        run.__signature__ = inspect.Signature([context, *(p.replace(kind=kind) for p in own), *more])  # type: ignore[attr-defined]
        return run

    return decorate


def _flags(given: dict[str, Any]) -> TaskFlags:
    model = {name: given[name] for name in ("model", "dtype", "quantization", "device") if given.get(name)}
    if given.get("server") and model:
        raise typer.BadParameter("the server has a model of its own; leave out --" + ", --".join(model) + ".")
    options = {name: given[name] for name in ANSWER_FLAGS if given.get(name) not in (None, [])}
    return TaskFlags(
        model, given.get("config"), given.get("server"), given.get("key"), options, bool(given.get("json"))
    )


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether a flag stands on the command line, rather than in the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_job(job: Mapping[str, Any]) -> None:
    """Refuse what would be wrong with every image, before a model is loaded. Exits with 2."""
    try:
        create = read_task(job)
        task_settings(create)
        create.task_of([name for _, name in create.image_names()])
    except (ApiError, InvalidSampling, InvalidTask) as error:
        fail(_by_its_flag(str(error), error.param), 2)


def _by_its_flag(sentence: str, param: str | None) -> str:
    """A sentence about a parameter as one about the flag that gave it."""
    flag = FLAG_NAMES.get(param or "")
    return flag + sentence.removeprefix(str(param)) if flag else sentence


@asynccontextmanager
async def opened_model(flags: TaskFlags) -> AsyncIterator[AsyncModel]:
    """The model that the flags name. What is going on is said on standard error: on a terminal, and
    where a server asks to wait."""
    if flags.server:
        async with open_remote(flags.server, flags.key, WaitTeller()) as model:
            yield model
        return
    settings = settings_of(flags.model, flags.config)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    quiet_libraries(console.is_terminal)
    if console.is_terminal:
        console.print(f"Loading [bold]{settings.model}[/bold] ...")
    use_threads(settings.cpu_threads)
    async with open_local(settings) as model:
        yield model


def quiet_libraries(on_terminal: bool) -> None:
    """Bars of the libraries are for a person; what they log below a warning is for nobody here."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if on_terminal:
        # What the model runs on.
        logging.getLogger("idefics_chat.inference.loader").setLevel(logging.INFO)
    else:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
