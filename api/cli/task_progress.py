"""A bar with the rate and the time left, on a terminal; what a server has tasks wait for; and one way to run jobs."""

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from idefics_chat.cli.task_output import printable
from idefics_chat.inference.errors import EngineStopped
from idefics_chat.inference.task_runner import Job, Key, TaskResult, run_all
from idefics_chat.tasks.remote import ServerError

INTERRUPTED = 130
QUIET_S = 30.0
"""A server that asks to wait again and again is told of so often."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f}/s")


@contextmanager
def progress_bar(what: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Call it once for each that is done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    hidden = not console.is_terminal or total == 1
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        task = bars.add_task(what, total=total, completed=done)
        yield lambda: bars.advance(task)


class WaitTeller:
    """Says on standard error that a server asks to wait, and why: once a wait, however many tasks are in it. A bar on
    the terminal stays below it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until_s: dict[str, float] = {}

    def __call__(self, refusal: ServerError) -> None:
        now_s = self._clock()
        if now_s < self._quiet_until_s.get(refusal.code, -math.inf):
            return
        self._quiet_until_s[refusal.code] = now_s + max(QUIET_S, refusal.retry_after_s or 0)
        reason = " ".join(printable(str(refusal).partition(";")[0]).split()).rstrip(".")
        # By Python's own stream: a bar takes its place, and makes room for the line.
        sys.stderr.write(f"{reason}; waiting{_how_long(refusal.retry_after_s)}.\n")
        sys.stderr.flush()


def _how_long(seconds: float | None) -> str:
    """For people: in the unit in which the number is small."""
    if seconds is None:
        return ""
    unit_s, unit = next(((s, name) for s, name in ((3600, "h"), (60, "min")) if seconds > 2 * s), (1, "s"))
    return f" {math.ceil(seconds / unit_s)} {unit}"


async def results_of(
    jobs: Iterable[tuple[Key, Job]], advance: Callable[[], None]
) -> AsyncGenerator[tuple[Key, TaskResult | Exception]]:
    """The results as they are done. Raises ServerError where the server itself is the trouble: the rest would meet
    the same."""
    async with aclosing(run_all(jobs)) as done:
        async for key, result in done:
            if isinstance(result, ServerError) and result.ends_all:
                raise result
            advance()
            yield key, result


def run_until_interrupted(work: Callable[[], object], how_to_go_on: Callable[[], str]) -> None:
    """Run a command's work; when it is broken off, by Ctrl-C (exit status 130) or by a server that is gone (1), say how
    to go on."""
    try:
        work()
    except (ServerError, EngineStopped) as error:
        typer.echo(f"error: {error}\n{how_to_go_on()}", err=True)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo(f"\nStopped. {how_to_go_on()}", err=True)
        raise typer.Exit(INTERRUPTED) from None
