"""What a person types into the chat: a question with pictures by their paths, or a command. Pure but for looking
whether a file is there.

A file that is dropped on a terminal arrives as its path: in quotes, with backslashes before its spaces, or as a
file:// link, by the terminal's taste. A path counts as a picture where it names a file with a picture's suffix;
everything else stays text, to the letter.
"""

import re
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


def read_line(line: str) -> Command | Said:
    """What a line says."""
    name, _, rest = line.strip().partition(" ")
    # Also a command that is none, so that a slip is not taken for a question.
    if name.startswith("/") and "/" not in name[1:]:
        return Command(name, rest.strip())
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


def _images_in(line: str) -> list[tuple[tuple[int, int], Path]]:
    """The pictures whose paths stand in a line, each with where it stands there."""
    found = []
    for match in _WORD.finditer(line):
        quoted, double, bare = match.groups()
        word = quoted or double or re.sub(r"\\(.)", r"\1", bare)
        if word.startswith("file://"):
            word = unquote(urlsplit(word).path)
        path = _path(word)
        if path.suffix.lower() in SUFFIXES and _is_file(path):
            found.append((match.span(), path))
    return found


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
