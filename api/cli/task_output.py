"""Results for a reader: a table on a terminal, plain text elsewhere, JSON where it is asked for."""

import json
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from idefics_chat.conversation.tasks import Classify
from idefics_chat.inference.task_runner import TaskResult
from idefics_chat.server.task_objects import usage_fields

MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """An image, or a line of a file of jobs, that came to nothing."""

    name: str
    error: Exception


def result_object(result: TaskResult, task: object) -> dict[str, Any]:
    """A result of the task of that name as JSON; what does not belong to it is left out. Of a classification
    `category` is null where the model named none of them."""
    value: dict[str, Any] = {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": usage_fields(result.usage),
    }
    if task == Classify.name:
        value["category"] = result.category
    more = {"scores": result.scores, "log_likelihoods": result.log_likelihoods}
    return value | {name: item for name, item in more.items() if item is not None}


def error_object(error: Exception) -> dict[str, str]:
    """An error as JSON."""
    return {"code": getattr(error, "code", "server_error"), "message": sentence_of(error)}


def sentence_of(error: Exception) -> str:
    """What to tell of an error."""
    return str(error) or type(error).__name__


class ImageResults:
    """Shows the results of images, in their order, as soon as those before are there too."""

    def __init__(self, names: list[str], task: str, as_json: bool) -> None:
        self._names = names
        self._task = task
        self._as_json = as_json
        self._console = Console(highlight=False)
        self._table = Table("image", "text", box=None, pad_edge=False, header_style="bold") if self._tabular else None
        self._waiting: dict[int, TaskResult | Exception] = {}
        self._next = 0
        self.failures: list[Failure] = []

    @property
    def _tabular(self) -> bool:
        return self._console.is_terminal and not self._as_json

    @property
    def shown(self) -> int:
        """How many are done in order."""
        return self._next

    def add(self, index: int, result: TaskResult | Exception) -> None:
        """Take the result of image number `index`."""
        self._waiting[index] = result
        while self._next in self._waiting:
            self._show(self._names[self._next], self._waiting.pop(self._next))
            self._next += 1

    def finish(self) -> None:
        """Show what is to be shown at the end: those behind one that never came, the table, what failed."""
        for index in sorted(self._waiting):
            self._show(self._names[index], self._waiting.pop(index))
        if self._table is not None and self._table.row_count:
            self._console.print(self._table)
        show_failures(self.failures, len(self._names), "images")

    def _show(self, name: str, result: TaskResult | Exception) -> None:
        if isinstance(result, Exception):
            self.failures.append(Failure(name, result))
            if self._as_json:
                typer.echo(json.dumps({"image": name, "error": error_object(result)}, ensure_ascii=False))
        elif self._as_json:
            typer.echo(json.dumps({"image": name, **result_object(result, self._task)}, ensure_ascii=False))
        elif self._table is not None:
            self._table.add_row(Text(printable(name)), Text(self._text(result, "\n")))
        else:
            text = self._text(result, "  ")
            typer.echo(text if len(self._names) == 1 else f"{name}\t{' '.join(text.split())}")

    def _text(self, result: TaskResult, gap: str) -> str:
        """What to show: the answer; of a classification the category, or that there is none; or all scores."""
        if result.scores is not None:
            return gap.join(f"{share:.3f} {printable(category)}" for category, share in result.scores.items())
        if self._task == Classify.name:
            return printable(result.category or f"{result.text} (none of the categories)".strip())
        return printable(result.text)


def show_failures(failures: list[Failure], total: int, what: str) -> None:
    """Say on standard error which ones came to nothing, and why."""
    if not failures:
        return
    typer.echo(f"error: {len(failures)} of {total} {what} came to nothing:", err=True)
    for failure in failures[:MAX_LISTED]:
        typer.echo(f"  {printable(failure.name)}: {printable(sentence_of(failure.error))}", err=True)
    if len(failures) > MAX_LISTED:
        typer.echo(f"  ... and {len(failures) - MAX_LISTED} more.", err=True)


def printable(text: str) -> str:
    """Text for a terminal, without what would steer it; line ends are kept."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
