"""Pictures whose contents are known, and a server to ask about them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.end_to_end.client import Client, message
from tests.end_to_end.server_process import ServerProcess

Box = tuple[float, float, float, float]


def picture(colour: tuple[int, int, int], shape: str) -> bytes:
    """A PNG of one shape in the middle of a white ground, 160 pixels a side."""
    size = 160
    image = Image.new("RGB", (4 * size, 4 * size), "white")
    draw = ImageDraw.Draw(image)
    box = (size, size, 3 * size, 3 * size)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        raise ValueError(shape)
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def red_circle() -> bytes:
    return picture((220, 30, 30), "circle")


@pytest.fixture(scope="session")
def blue_square() -> bytes:
    return picture((30, 60, 215), "square")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests that leave it as it was."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "chat.db") as process:
        yield process
        assert process.process.poll() is None, "the server died"
        assert "Traceback" not in process.output, process.output


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url) as connected:
        yield connected


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


@pytest.fixture(scope="session")
def ramble(server: ServerProcess, red_circle: bytes) -> dict[str, Any]:
    """Sampling with which the small model, asked about the red circle, talks for long. The penalty falls on the end
    token too, since the prompt holds it; a seed makes it the same every time."""
    with Client(server.url) as client:
        for seed in range(40):
            sampling = {"temperature": 2, "repetition_penalty": 10, "seed": seed, "max_output_tokens": 500}
            client.send("response.create", input=[message("What is in this image?", red_circle)], **sampling)
            if sum(event["type"] == "response.output_text.delta" for event in client.events()) > 150:
                return sampling
    raise AssertionError("with no seed did the model talk for long")
