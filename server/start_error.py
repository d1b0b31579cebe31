"""Why the server cannot start."""


class StartError(Exception):
    """The server cannot start. The message is a sentence for the operator."""
