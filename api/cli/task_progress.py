"""A bar with the rate and the time left, on a terminal; and one way to run jobs under it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from idefics_chat.inference.errors import EngineStopped
from idefics_chat.inference.task_runner import Job, Key, TaskResult, run_all
from idefics_chat.tasks.remote import ServerError

INTERRUPTED = 130


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
