"""`idefics-chat batch`: any number of tasks of any kinds, from a file to a file, going on where it stopped."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from idefics_chat.cli.batch_files import BadFile, Journal, Json, Line, check_csv, read_jobs, read_text, write_csv
from idefics_chat.cli.common import run_to_end
from idefics_chat.cli.task_inputs import STANDARD_INPUT
from idefics_chat.cli.task_options import ANSWER_FLAGS, MODEL_FLAGS, TaskFlags, check_job, opened_model, task_command
from idefics_chat.cli.task_output import Failure, error_object, result_object, show_failures
from idefics_chat.cli.task_progress import progress_bar, results_of, run_until_interrupted
from idefics_chat.inference.task_runner import TaskResult
from idefics_chat.tasks.images import ImageShelf
from idefics_chat.tasks.jobs import job_order
from idefics_chat.tasks.models import AsyncModel


@task_command(MODEL_FLAGS, ANSWER_FLAGS)
def batch(
    jobs: Annotated[
        str, typer.Argument(help="JSON lines or .csv, one job a line; - for standard input.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON lines or .csv. Without it results are printed.", show_default=False),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what came to nothing.")] = False,
    *,
    flags: TaskFlags,
) -> None:
    """Run a file of tasks, any number and any mixture.

    A job is a JSON object, or a row of a CSV file with a head:

        {"task": "caption", "image": "photo.png", "prompt": "This is an image of"}

        {"task": "ask", "image": "photo.png", "question": "What colour is it?"}

        {"task": "classify", "image": "photo.png", "categories": ["circle", "square"], "rank": true}

        {"task": "story", "image": "photo.png", "num_beams": 2}

        {"task": "few-shot", "image": "photo.png", "examples": [{"image": "a.png", "answer": "A circle."}]}

        {"task": "instruct", "messages": [{"role": "user", "content": [{"image": "a.png"}, {"text": "What is it?"}]}]}

    Paths are taken from the file's folder. Flags of the answer hold for jobs that do not say otherwise. Run the same
    command again to go on where it stopped: what is in the output is not run again, and nothing of it is lost.
    """
    check_job({"task": "caption", "image": "any", **flags.options})
    folder, lines = _read(jobs, flags.options)
    if output is not None:
        _check_output(output, jobs)
    failures: list[Failure] = []
    with ExitStack() as stack:
        run = _Run(flags, folder, lines, failures)
        if output is not None:
            run.journal = stack.enter_context(Journal(_journal_path(output), lines))
            if retry_failed:
                run.journal.forget_failures()
        run_until_interrupted(run.to_the_end, run.how_to_go_on)
        if run.journal is not None and output is not None:
            run.journal.put_in_order()
            _finish(output, run.journal, lines, failures)
    show_failures(failures, len(lines), "jobs")
    if failures:
        raise typer.Exit(1)


class _Run:
    """One run over the jobs that are left."""

    def __init__(self, flags: TaskFlags, folder: Path, lines: list[Line], failures: list[Failure]) -> None:
        self.journal: Journal | None = None
        self._flags = flags
        self._folder = folder
        self._lines = lines
        self._failures = failures
        self._done = 0

    def to_the_end(self) -> None:
        """Run what is left."""
        done = self.journal.done if self.journal else {}
        left = [line for line in self._lines if line.number not in done]
        self._done = len(self._lines) - len(left)
        if left:
            run_to_end(self._run(left))

    def how_to_go_on(self) -> str:
        """For who broke it off."""
        far = f"{self._done} of {len(self._lines)} jobs are done"
        if self.journal is None:
            return f"{far}; give --output to be able to go on where a run stopped."
        return f"{far} and kept in {self.journal.path}; run the same command again to go on."

    async def _run(self, left: list[Line]) -> None:
        async with opened_model(self._flags) as model:
            with progress_bar("batch", len(self._lines), self._done) as advance:
                async for line, result in results_of(self._jobs(model, left), advance):
                    self._take(line, result, model.name)

    def _jobs(self, model: AsyncModel, left: Iterable[Line]) -> Iterator[tuple[Line, Any]]:
        return ((line, partial(self._answer, model, line)) for line in left)

    async def _answer(self, model: AsyncModel, line: Line) -> TaskResult:
        if line.problem is not None:
            raise BadFile(line.problem)
        shelf = ImageShelf(model.limits)
        order = await job_order(line.job, shelf, self._folder, strict=False)
        return await model.runner.run(order, patient=True)

    def _take(self, line: Line, result: TaskResult | Exception, model: str) -> None:
        self._done += 1
        said = {name: line.job[name] for name in ("id", "task", "image") if isinstance(line.job.get(name), str | int)}
        value = {**said, "model": model, **_came_of(line, result)}
        if self.journal is not None:
            self.journal.write(value, line)
            return
        typer.echo(json.dumps({"line": line.number, **value}, ensure_ascii=False))
        if isinstance(result, Exception):
            self._failures.append(Failure(line.name, result))


def _came_of(line: Line, result: TaskResult | Exception) -> Json:
    if isinstance(result, Exception):
        return {"error": error_object(result)}
    return result_object(result, line.job.get("task"))


def _read(jobs: str, options: Json) -> tuple[Path, list[Line]]:
    """The folder that paths are taken from, and the jobs."""
    if jobs == STANDARD_INPUT:
        return Path(), read_jobs(read_text(sys.stdin.buffer.read(), "Standard input"), options, is_csv=False)
    path = Path(jobs).expanduser()
    try:
        text = read_text(path.read_bytes(), jobs)
    except OSError as error:
        raise BadFile(
            f"The jobs {jobs} cannot be read ({error.strerror}); give a file of JSON lines or CSV."
        ) from error
    lines = read_jobs(text, options, is_csv=_is_csv(path))
    if not lines:
        raise BadFile(f"There are no jobs in {jobs}; write one a line.")
    return path.parent, lines


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _journal_path(output: Path) -> Path:
    """Where results go as they come: a CSV file is made of them at the end."""
    return output.with_name(output.name + ".jsonl") if _is_csv(output) else output


def _check_output(output: Path, jobs: str) -> None:
    """Nothing that is there already may be lost. Raises BadFile."""
    for path in (output, _journal_path(output)):
        if jobs != STANDARD_INPUT and path.exists() and path.samefile(Path(jobs).expanduser()):
            raise BadFile(f"The results would be written into {path}, which holds the jobs; give another --output.")
    journal = _journal_path(output)
    if output.exists() and not journal.exists():
        raise BadFile(
            f"There is a file {output} already, and no {journal} of a run that made it; give another --output, "
            f"or remove {output}."
        )
    if journal != output:
        check_csv(output)


def _finish(output: Path, journal: Journal, lines: list[Line], failures: list[Failure]) -> None:
    """Make the CSV file, and gather what came to nothing, in earlier runs too."""
    records = journal.records()
    if _is_csv(output):
        write_csv(output, records)
    by_number = {line.number: line for line in lines}
    failures += [
        Failure(by_number[record["line"]].name, BadFile(record["error"]["message"]))
        for record in records
        if "error" in record
    ]
    good = len(records) - len(failures)
    typer.echo(f"{good} results are in {output}.", err=True)
