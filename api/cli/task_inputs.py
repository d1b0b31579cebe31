"""From what stands on the command line to images: files, folders, globs, links, standard input."""

import glob
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from idefics_chat.cli.common import fail
from idefics_chat.conversation.images import FORMATS
from idefics_chat.tasks.images import is_url

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image to be read when its turn comes, under the name that results call it by."""

    name: str
    source: str | bytes


def find_images(words: Iterable[str]) -> list[NamedImage]:
    """The images that the words name, in order. A folder stands for the images in it, a pattern for what it matches,
    `-` for an image on standard input, or for names there, one a line. Exits where a word names nothing.

    A file that is missing or no image is named all the same: it is told of when its turn comes.
    """
    return [image for word in words for image in _named_by(word)]


def names_an_image(word: str) -> bool:
    """Whether a word is an image rather than something that is said: a link, what is there, a picture's suffix."""
    path = Path(word)
    return is_url(word) or _is_there(path) or (" " not in word and path.suffix.lower() in SUFFIXES)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a question is too long to be a name
        return False


def _named_by(word: str) -> Iterator[NamedImage]:
    path = Path(word).expanduser()
    if word == STANDARD_INPUT:
        yield from _on_standard_input(sys.stdin.buffer.read())
    elif is_url(word) or path.is_file():
        yield NamedImage(word, str(path) if path.is_file() else word)
    elif path.is_dir():
        yield from _several(sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), f"the folder {word}")
    elif glob.has_magic(word):
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        yield from _several([p for p in found if p.is_file()], f"what {word} matches")
    else:
        yield NamedImage(word, str(path))


def _several(paths: list[Path], where: str) -> Iterator[NamedImage]:
    if not paths:
        fail(f"There is no image in {where}.")
    yield from (NamedImage(str(path), str(path)) for path in paths)


def _on_standard_input(data: bytes) -> Iterator[NamedImage]:
    if _looks_like_an_image(data):
        yield NamedImage(STANDARD_INPUT, data)
        return
    names = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    if not names:
        fail("Standard input holds neither an image nor names of images, one a line.")
    yield from (NamedImage(name, str(Path(name).expanduser()) if not is_url(name) else name) for name in names)


def _looks_like_an_image(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is taken; nothing is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)):
            return True
    except Exception:  # noqa: BLE001  whatever the decoder says of it: it is no image
        return False
