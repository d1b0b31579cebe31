"""The server and the pictures of the end-to-end tests."""

from tests.end_to_end.conftest import blue_square, red_circle, server

__all__ = ["blue_square", "red_circle", "server"]
