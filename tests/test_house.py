"""The house: which part may know which, and that the package that is installed is the tree."""

import ast
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "api": "idefics_chat",
    "conversation": "idefics_chat/conversation",
    "default_model": "idefics_chat/default_model",
    "inference": "idefics_chat/inference",
    "server": "idefics_chat/server",
    "storage": "idefics_chat/storage",
}

OURS = "idefics_chat."
MAY_KNOW = {
    "api": {"cli", "tasks", "server", "storage", "inference", "conversation", "default_model"},
    "conversation": {"conversation"},
    "inference": {"inference", "conversation"},
    "storage": {"storage", "conversation"},
    "server": {"server", "storage", "inference", "conversation", "default_model"},
    "default_model": {"default_model"},
}
NEVER_IMPORTS = {
    "conversation": {"asyncio", "torch", "transformers", "sqlalchemy", "websockets", "fastapi"},
    "inference": {"sqlalchemy", "fastapi", "websockets"},
    "storage": {"torch", "transformers", "fastapi", "websockets"},
    "default_model": {"sqlalchemy", "fastapi", "websockets"},
}


def imported(path: Path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("folder", MAY_KNOW)
def test_dependencies_point_one_way(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path):
            if name.startswith(OURS):
                part = name.removeprefix(OURS).split(".")[0]
                assert part in MAY_KNOW[folder], f"{path} imports {name}"
            assert name.split(".")[0] not in NEVER_IMPORTS.get(folder, set()), f"{path} imports {name}"


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else() -> None:
    installed = {
        str(path)
        for path in distribution("idefics-chat").files or ()
        if path.parts[0] == "idefics_chat" and "__pycache__" not in path.parts
    }
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tree = {place(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert installed == tree


def place(name: str) -> str:
    """Where a file of the tree lies in the package."""
    folder, _, rest = name.partition("/")
    return f"{FOLDERS[folder]}/{rest}"


def test_a_client_may_import_the_package_without_torch() -> None:
    code = "import sys, idefics_chat; assert idefics_chat.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_console_script_says_its_version() -> None:
    script = Path(sys.executable).with_name("idefics-chat")
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == distribution("idefics-chat").version
