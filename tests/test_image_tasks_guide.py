"""The guide to the image tasks: each block of code does what it says."""

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from idefics_chat.cli.main import app
from tests.api.pictures import save_pictures
from tests.end_to_end.server_process import ServerProcess

GUIDE = (Path(__file__).parents[1] / "docs" / "image-tasks.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
SECTIONS = [
    "Loading the model",
    "Quantized model",
    "Image captioning",
    "Prompted image captioning",
    "Few-shot prompting",
    "Visual question answering",
    "Image classification",
    "Image-guided text generation",
    "Running inference in batch mode",
    "IDEFICS instruct for conversational use",
]
EXPECTED = {
    "caption photo.png": "A red circle on a white background.",
    "caption square.png": "a blue square on a white background.",
    "few-shot": "A red circle on a white background.",
    "ask photo.png": "Red.",
    "--rank --json": '"category": "square"',
    "classify square.png": "square",
    "story photo.png": "Once upon a time there was a red circle.",
    "batch jobs.jsonl": "Blue.",
    "curl": '"text":"Red."',
}


def test_every_section_of_the_models_guide_is_there() -> None:
    headings = re.findall(r"^##+ (.*)$", GUIDE, re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS


def test_the_python_blocks_print_what_their_comments_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "guide"}
    printed = io.StringIO()
    for block in PYTHON:
        before = printed.tell()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "docs/image-tasks.md", "exec"), names)
        said = printed.getvalue()[before:].splitlines()
        # A comment behind a print is a line of its output.
        assert said == re.findall(r"^# (.*)$", block, re.MULTILINE), block


def test_the_shell_blocks_give_the_right_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a server, whose model is the same, so that one is loaded for all of them."""
    save_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    with ServerProcess(tmp_path / "chat.db") as server:
        url = f"http://{server.address}"
        monkeypatch.setenv("SERVER", url)
        for block in SHELL:
            if "--quantization" in block:
                continue  # wants a model from the hub; the loading of 4-bit models has tests of its own
            printed = "".join(output_of(line, url) for line in block.replace("\\\n", "").splitlines())
            wanted = next(answer for words, answer in EXPECTED.items() if words in block)
            assert wanted in printed, (block, printed)


def output_of(line: str, url: str) -> str:
    """What a line prints: our own command in this process, the others in a shell."""
    if line.startswith("idefics-chat "):
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], "--server", url])
        assert done.exit_code == 0, (line, done.stderr)
        return done.stdout
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True).stdout
