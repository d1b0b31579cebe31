"""The files of `idefics-chat batch`: jobs in, results out, and how a run that was broken off goes on.

Results are written to a journal, one JSON line as each job is done; for a result file of JSON lines the journal is that
file. A line names its job by its number and by a fingerprint of what the job says, so that a run that goes on knows
what is done and notices a file of other jobs. A job that came to an error may be changed: it runs anew. A last line
that a crash cut off is taken off again: its job runs anew too. When all is done the results are put in the order of the
jobs.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from idefics_chat.conversation.errors import ConversationError

SYNC_S = 1.0
"""At most so much of what was written can be lost with the machine's power; with the process alone nothing is."""

LISTS = {"categories", "stop", "bad_words"}
"""Columns of a CSV file that hold several texts, with commas."""

COLUMNS = (
    "line",
    "id",
    "task",
    "image",
    "text",
    "category",
    "scores",
    "finish_reason",
    "input_tokens",
    "output_tokens",
    "model",
    "error_code",
    "error",
)
Json = dict[str, Any]


class BadFile(ConversationError):
    """A file of jobs or of results that cannot be used. The message is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Line:
    """One job: its number in the file, from 1, a fingerprint of what it says, and what it says, or what is wrong."""

    number: int
    key: str
    job: Json
    problem: str | None = None

    @property
    def name(self) -> str:
        """What to call it in a list of what failed."""
        image = self.job.get("image")
        return f"line {self.number}" + (f" ({image})" if isinstance(image, str) else "")


def read_jobs(text: str, options: Json, *, is_csv: bool) -> list[Line]:
    """The jobs of a file: JSON lines, or CSV with a head that names the columns. `options` hold for all jobs that do
    not say otherwise."""
    if is_csv:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [_line(rows.line_num, options | _of_row(row)) for row in rows]
    # Other line ends may stand within a JSON text.
    return [_parsed(number, line, options) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parsed(number: int, text: str, options: Json) -> Line:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError):
        job = None
    if not isinstance(job, dict):
        return _line(number, {"unreadable": text}, "This line is not a JSON object; write one job a line.")
    return _line(number, options | job)


def _line(number: int, job: Json, problem: str | None = None) -> Line:
    return Line(number, hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16], job, problem)


def _of_row(row: dict[str | None, Any]) -> Json:
    """A row as a job: empty cells say nothing, cells that hold JSON lists and objects are read."""
    job: Json = {}
    for name, cell in row.items():
        if name is None or not isinstance(cell, str) or not cell.strip():
            continue
        if cell.lstrip()[0] in "[{":
            with contextlib.suppress(ValueError):
                job[name] = json.loads(cell)
                continue
        job[name] = [part.strip() for part in cell.split(",")] if name in LISTS else cell
    return job


class Journal:
    """Results on disk. A context manager; one run at a time has it.

    `done` holds, by job number, whether it gave a result (False: an error). Raises BadFile on entering.
    """

    def __init__(self, path: Path, lines: Iterable[Line], clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.done: dict[int, bool] = {}
        self._keys = {line.number: line.key for line in lines}
        self._clock = clock
        self._synced_s = clock()
        self._file = -1

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise BadFile(f"{self.path} cannot be written ({error.strerror}); give another --output.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_in()
        except BlockingIOError:
            os.close(self._file)
            raise BadFile(f"Another run writes {self.path}; wait for it, or give another --output.") from None
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def write(self, value: Json, line: Line) -> None:
        """Write what came of a job. When this returns the process may die."""
        record = {"line": line.number, "key": line.key, **value}
        data = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        self.done[line.number] = "error" not in value
        if self._clock() - self._synced_s > SYNC_S:
            os.fsync(self._file)
            self._synced_s = self._clock()

    def records(self) -> list[Json]:
        """What is written, in the order of the jobs."""
        values = [json.loads(text) for text in self.path.read_bytes().splitlines()]
        return sorted(values, key=lambda value: int(value["line"]))

    def forget_failures(self) -> None:
        """Take the errors out, so that their jobs run again."""
        self._replace([value for value in self.records() if "error" not in value])
        self.done = {number: True for number, good in self.done.items() if good}

    def put_in_order(self) -> None:
        """Write the results in the order of the jobs."""
        if (ordered := self.records()) and [v["line"] for v in ordered] != list(self.done):
            self._replace(ordered)

    def _take_in(self) -> None:
        """Read what an earlier run wrote. The file is changed only when all of it is known to be results."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, size, 0)
        whole = data[: data.rfind(b"\n") + 1]
        self._check_begun(whole, data[len(whole) :])
        values = list(map(self._read, whole.splitlines()))
        kept = [value for value in values if self._keys.get(value["line"]) == value["key"]]
        if len(whole) < size:
            os.ftruncate(self._file, len(whole))
        if len(kept) < len(values):
            self._replace(kept)
        self.done = {value["line"]: "error" not in value for value in kept}

    def _check_begun(self, whole: bytes, rest: bytes) -> None:
        """Without a whole line the rest must be how a first result begins. Raises BadFile."""
        if whole or not rest:
            return
        begins = (f'{{"line": {number}, "key": "{key}"'.encode() for number, key in self._keys.items())
        if not any(rest.startswith(begin) or begin.startswith(rest) for begin in begins):
            raise self._no_results()

    def _read(self, text: bytes) -> Json:
        """A result of one of the jobs, or an error of what a job was before it was changed. Raises BadFile."""
        try:
            value: Json = json.loads(text)
            number, key = value["line"], value["key"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._no_results() from None
        if not isinstance(number, int) or not isinstance(key, str):
            raise self._no_results()
        if self._keys.get(number) != key and "error" not in value:
            raise BadFile(
                f"{self.path} holds results of other jobs (line {number} or its settings are others now); "
                "give another --output, or remove it."
            )
        return value

    def _no_results(self) -> BadFile:
        return BadFile(f"{self.path} holds something else than results; give another --output.")

    def _replace(self, values: Iterable[Json]) -> None:
        """Put other lines in the place of what is there, all or nothing; the lock goes over to the new file."""
        target, file = _new_file_beside(self.path)
        fcntl.flock(file, fcntl.LOCK_EX)
        with os.fdopen(os.dup(file), "wb") as stream:
            stream.writelines(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)
        os.fsync(file)
        target.replace(self.path)
        os.close(self._file)
        self._file = file


def _new_file_beside(path: Path) -> tuple[Path, int]:
    """A file to write what is then put in the place of `path`, under a name that nothing has: its path and descriptor.
    A crash may leave one behind."""
    for number in itertools.count(1):
        target = path.with_name(f"{path.name}.new" + (f".{number}" if number > 1 else ""))
        with contextlib.suppress(FileExistsError):
            return target, os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    raise AssertionError("numbers do not end")


def check_csv(path: Path) -> None:
    """Whether a CSV file of results may be put there: nothing is, or one of ours, even if it was cut off. Raises
    BadFile."""
    head = ",".join(COLUMNS).encode() + b"\r\n"
    try:
        with path.open("rb") as stream:
            begins = stream.read(len(head))
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror}); give another --output.") from error
    if not head.startswith(begins):
        raise BadFile(
            f"{path} holds something else than results of a batch and is left as it is; give it another name and run "
            "the same command again: what is done is not run again."
        )


def write_csv(path: Path, records: Iterable[Json]) -> None:
    """The results as CSV, all or nothing. Raises BadFile where there is a file of something else by now."""
    check_csv(path)
    target, file = _new_file_beside(path)
    with os.fdopen(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(map(_row, records))
        stream.flush()
        os.fsync(stream.fileno())
    target.replace(path)


def _row(record: Json) -> Json:
    usage, error = record.get("usage") or {}, record.get("error") or {}
    scores = json.dumps(record["scores"], ensure_ascii=False) if "scores" in record else None
    return {
        **{name: record.get(name) for name in COLUMNS},
        "scores": scores,
        "input_tokens": usage.get("input_tokens"),
        "output_tokens": usage.get("output_tokens"),
        "error_code": error.get("code"),
        "error": error.get("message"),
    }


def read_text(data: bytes, name: str) -> str:
    """The text of a file of jobs. Raises BadFile."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadFile(f"{name} is not UTF-8; save it as UTF-8.") from None
