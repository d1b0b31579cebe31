"""What all tests share."""

import io

import pytest
from PIL import Image


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, which the server runs on."""
    return "asyncio"


@pytest.fixture
def png() -> bytes:
    """A small valid PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
    return buffer.getvalue()
