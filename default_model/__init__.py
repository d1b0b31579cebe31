"""The small checkpoint that ships with the repository, and how it was made.

A real IDEFICS-1 (`IdeficsForVisionText2Text`) that sees coloured shapes. This module knows only where the checkpoint
lies; it imports nothing heavy, so that asking for the path costs nothing.
"""

from pathlib import Path

__all__ = ["checkpoint_path"]


def checkpoint_path() -> Path:
    """The folder of the shipped checkpoint: pass it to `AutoProcessor.from_pretrained` and to the model class."""
    return Path(__file__).resolve().parent / "checkpoint"
