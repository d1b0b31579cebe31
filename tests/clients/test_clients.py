"""Clients of other people, unmodified, each a program of its own against the real server with the shipped model.

Those in JavaScript run where `make clients` has installed them.
"""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.server_process import ServerProcess

FOLDER = Path(__file__).parent
NODE = Path(sys.executable).with_name("node")
TIME_S = 150


def run(*command: str | Path, env: dict[str, str] | None = None, data: bytes | None = None) -> str:
    """What a program prints, when it ends well."""
    ended = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        timeout=TIME_S,
        input=data,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()[-4000:]
    return ended.stdout.decode()


def told(*command: str | Path) -> dict[str, Any]:
    """What a program tells as JSON on its last line."""
    answer: dict[str, Any] = json.loads(run(*command).splitlines()[-1])
    return answer


@pytest.fixture(scope="session")
def picture(red_circle: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(red_circle).decode()


def node() -> Path:
    return NODE if NODE.exists() else Path("node")


needs_packages = pytest.mark.skipif(
    not (FOLDER / "js" / "node_modules").is_dir(), reason="the clients in JavaScript are not installed: make clients"
)


@needs_packages
def test_openai_of_javascript(server: ServerProcess, picture: str) -> None:
    said = told(node(), FOLDER / "js" / "openai_client.mjs", server.address, picture)
    assert "red circle" in said["whole"]
    assert said["whole"] == said["streamed"] == said["completed"]
    assert said["more"]
    assert said["roles"] == ["user", "assistant", "user", "assistant"]
    assert said["refused"] == [404, "response_not_found"]


@needs_packages
def test_agents_of_javascript(server: ServerProcess, picture: str) -> None:
    said = told(node(), FOLDER / "js" / "agents_client.mjs", server.address, picture)
    assert "red circle" in said["whole"]
    assert said["streamed"] == said["whole"]
    assert said["second"]


def test_langchain(server: ServerProcess, picture: str) -> None:
    said = told(sys.executable, FOLDER / "langchain_client.py", server.address, picture)
    assert "red circle" in said["completed"]
    assert len(set(said.values())) == 1, said


def test_pydantic_ai(server: ServerProcess, picture: str) -> None:
    said = told(sys.executable, FOLDER / "pydantic_ai_client.py", server.address, picture)
    assert "red circle" in said["completed"]
    assert len(set(said.values())) == 1, said


def test_llm_with_an_image(server: ServerProcess, red_circle: bytes, tmp_path: Path) -> None:
    models = "- model_id: shapes\n  model_name: idefics-shapes\n  api_base: http://{}/v1\n  vision: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models.format(server.address))
    (tmp_path / "red.png").write_bytes(red_circle)
    env = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "unused"}
    asked = (sys.executable, "-m", "llm", "-m", "shapes", "What is in this image?", "-a", tmp_path / "red.png")
    assert "red circle" in run(*asked, env=env)
    assert "red circle" in run(*asked, "--no-stream", env=env)
    assert run(*asked[:5], "-c", "And its colour?", env=env).strip()


@needs_packages
def test_the_asyncapi_document_is_one(tmp_path: Path) -> None:
    document = FOLDER.parents[1] / "docs" / "asyncapi.json"
    assert told(node(), FOLDER / "js" / "validate_asyncapi.mjs", document) == {"read": True, "errors": []}
    broken = json.loads(document.read_text())
    broken["operations"]["responses.send"]["channel"]["$ref"] = "#/channels/nothing"
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert told(node(), FOLDER / "js" / "validate_asyncapi.mjs", tmp_path / "broken.json")["errors"]
