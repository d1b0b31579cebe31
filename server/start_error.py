"""Why the server cannot start."""

from pathlib import Path


class StartError(Exception):
    """The server cannot start. The message is a sentence for the operator."""


class DatabaseTaken(StartError):
    """Another server has the database `file`."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"Another server has the database {file}; stop it, or give this one another with --database.")
        self.file = file
