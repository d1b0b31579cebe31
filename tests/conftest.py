"""What all tests share."""

import io

import pytest
from hypothesis import settings
from PIL import Image

# Time a machine is busy says nothing about the code; a test that hangs meets pytest's own timeout.
settings.register_profile("machine", deadline=None)
settings.load_profile("machine")


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
