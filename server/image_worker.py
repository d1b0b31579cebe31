"""A process that checks strangers' images, one after another: `python -m idefics_chat.server.image_worker`.

A damaged or malicious file can make a decoder take all memory, hang or crash; here it takes this process with it and
nothing else. Its memory is bounded, it cannot write files, and it ends itself when one image takes too long, also
when the server that would have ended it is gone. It imports no model and no server.

On its input: a length of eight bytes, then the image. On its output: one line of JSON, the image described or the
error with its values. Never a pickle: what comes out of here is as little trusted as what went in.
"""

import argparse
import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

from idefics_chat.conversation.errors import ImageTooLarge, InvalidImage
from idefics_chat.conversation.images import FORMATS, ImageLimits, check_image

LENGTH_BYTES = 8


def main() -> None:
    """Until the input ends."""
    parser = argparse.ArgumentParser()
    for name in ("--max-bytes", "--max-pixels", "--memory-bytes", "--time-s"):
        parser.add_argument(name, type=int, required=True)
    asked = parser.parse_args()
    # What a decoder might print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (asked.memory_bytes, asked.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = ImageLimits(asked.max_bytes, asked.max_pixels)
    while (data := _read(sys.stdin.buffer)) is not None:
        signal.alarm(asked.time_s)
        answers.write(json.dumps(describe(data, limits)).encode() + b"\n")
        signal.alarm(0)


def describe(data: bytes, limits: ImageLimits) -> dict[str, Any]:
    """The image as JSON, or why it is refused."""
    try:
        image = check_image(data, limits)
    except ImageTooLarge as error:
        return {"too_large": [error.actual, error.limit, error.unit]}
    except InvalidImage as error:
        return {"invalid": error.reason}
    return {"media_type": image.media_type, "width": image.width, "height": image.height}


def read_description(line: bytes) -> tuple[str, int, int]:
    """What a worker's line says of an image: media type, width and height.

    Raises:
        ImageError: it was refused.
        ValueError: the line says nothing that can be read.
    """
    try:
        told = json.loads(line)
        if "invalid" in told:
            raise InvalidImage(str(told["invalid"]))
        if "too_large" in told:
            actual, limit, unit = told["too_large"]
            raise ImageTooLarge(int(actual), int(limit), str(unit))
        described = str(told["media_type"]), int(told["width"]), int(told["height"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"an image worker's answer that cannot be read: {line[:80]!r}") from error
    if described[0] not in FORMATS.values():
        raise ValueError(f"an image worker names a format that is not taken: {described[0][:80]!r}")
    return described


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(LENGTH_BYTES)
    if len(header) < LENGTH_BYTES:
        return None
    return stream.read(int.from_bytes(header, "big"))


if __name__ == "__main__":
    main()
