"""Files brought to the disk for good. It blocks, and knows nothing of databases."""

import os
import shutil
from pathlib import Path


def flush(path: Path) -> None:
    """Bring what a file, or the names that a folder holds, are now to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_file(source: Path, target: Path) -> None:
    """Copy and flush a file; what is at `target` is whole. Raises OSError."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        flush(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def give_second_name(file: Path, name: Path) -> None:
    """Let a file have another name too; where the disk has no hard links, a copy gets it. Raises OSError."""
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:
        copy_file(file, name)
    flush(name.parent)
