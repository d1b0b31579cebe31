"""The documents say what is."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.server_process import ServerProcess

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readme_s_memory_table_is_the_computed_one() -> None:
    table = runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))["table"]
    assert table() in README


def test_the_readme_s_client_talks_to_a_server(tmp_path: Path, png: bytes) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "photo.png").write_bytes(png)
    with ServerProcess(tmp_path / "chat.db") as server:
        mine = code.replace("ws://127.0.0.1:8000/v1/responses", server.url)
        done = subprocess.run(
            [sys.executable, "-c", mine], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_file_that_a_document_links_to_is_there(document: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / document).read_text()):
        assert (ROOT / target).exists(), f"{document} links to {target}"
