"""What a person types into the chat: a question with pictures by their paths, or a command. Pure but for looking
whether a file is there.

A file that is dropped on a terminal arrives as its path: in quotes, with backslashes before its spaces, or as a
file:// link, by the terminal's taste. A path counts as a picture where it names a file with a picture's suffix. A word
with such a suffix that names no file is a slip where pictures are given: before any other word of a line, and as a word
of the command line. Everything else stays text, to the letter.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from idefics_chat.cli.task_inputs import SUFFIXES

COMMANDS = {
    "/help": "what there is",
    "/image PATH": "add a picture to the next question; dropping a file does the same",
    "/new": "begin a new conversation",
    "/list": "your latest conversations",
    "/resume ID": "go on with one of them; without an id with the latest",
    "/history": "what was said in this one",
    "/again": "have the last question answered again",
    "/continue": "have an answer that was cut short given again, to its end",
    "/delete": "delete this conversation, and begin a new one",
    "/quit": "leave (so does Ctrl-D); Ctrl-C cuts an answer short",
}
NAMES = tuple(command.split()[0] for command in COMMANDS)

_WORD = re.compile(r"""(?<!\S)(?:'([^']+)'|"([^"]+)"|((?:\\.|[^\s\\])+))(?!\S)""")


@dataclass(frozen=True, slots=True)
class Command:
    """A command, with what stood behind its name."""

    name: str
    rest: str


@dataclass(frozen=True, slots=True)
class Said:
    """A text, and the pictures whose paths stood in it."""

    text: str
    images: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture that is not there, as it was written. `str` is a sentence for the user."""

    word: str

    def __str__(self) -> str:
        return (
            f"There is no file {self.word}. Give the path of a picture that is there (links are not followed); "
            "if it is none, put other words before it."
        )


def read_line(line: str) -> Command | Said | Missing:
    """What a line says."""
    name, _, rest = line.strip().partition(" ")
    # Also a command that is none, so that a slip is not taken for a question.
    if name.startswith("/") and "/" not in name[1:]:
        return Command(name, rest.strip())
    if missing := _missing_at_start(line):
        return missing
    images = _images_in(line)
    if not images:
        return Said(line.strip(), ())
    kept, end = [], 0
    for (start, behind), _ in images:
        kept.append(line[end:start])
        end = behind
    return Said(" ".join("".join([*kept, line[end:]]).split()), tuple(path for _, path in images))


def image_path(word: str) -> Path | None:
    """The picture that a path names, however a terminal writes it; None where there is none."""
    found = _images_in(word)
    if found:
        return found[0][1]
    path = _path(word.strip().strip("'\""))
    return path if path.is_file() else None


def missing_among(words: Sequence[str]) -> Missing | None:
    """The first word of a command line that should be a picture's path and names no file. A last word with spaces is
    the question, whatever it ends in."""
    given = words[:-1] if words and " " in words[-1] else words
    return next((Missing(word) for word in given if _is_picture_name(_path(word)) and not _is_file(_path(word))), None)


def _missing_at_start(line: str) -> Missing | None:
    for _, path, word in _words_of(line):
        if not _is_picture_name(path):
            return None
        if not _is_file(path):
            return Missing(word)
    return None


def _images_in(line: str) -> list[tuple[tuple[int, int], Path]]:
    """The pictures whose paths stand in a line, each with where it stands there."""
    return [(place, path) for place, path, _ in _words_of(line) if _is_picture_name(path) and _is_file(path)]


def _words_of(line: str) -> Iterator[tuple[tuple[int, int], Path, str]]:
    """The words of a line: where each stands, the path that it would be, and itself."""
    for match in _WORD.finditer(line):
        quoted, double, bare = match.groups()
        word = quoted or double or re.sub(r"\\(.)", r"\1", bare)
        yield match.span(), _path(unquote(urlsplit(word).path) if word.startswith("file://") else word), word


def _is_picture_name(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _path(word: str) -> Path:
    try:
        return Path(word).expanduser()
    except RuntimeError:  # ~ and a user who is not there
        return Path(word)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long to be one
        return False
