"""What is SQLite's own stands behind the dialect, and nothing else names it."""

import ast
import re
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from idefics_chat.storage.dialect import Dialect, database_url, dialect_of
from idefics_chat.storage.dialect.sqlite import SQLite
from idefics_chat.storage.errors import DatabaseUnavailable

STORAGE = Path(__file__).parents[2] / "storage"
SQLITES_OWN = re.compile(
    r"\bPRAGMA\b|\bfts5?\b|\bMATCH\b|\bVACUUM\b|\bsqlite|\bAUTOINCREMENT\b|\bWITHOUT ROWID\b|\bCREATE VIRTUAL\b"
    r"|\bOR (IGNORE|REPLACE)\b|\browid\b|\bIMMEDIATE\b",
    re.IGNORECASE,
)
SQLALCHEMYS = {"sqlite_with_rowid", "sqlite_where"}
"""Options of SQLAlchemy's tables, which other databases pass over."""


def modules() -> list[Path]:
    """All but the dialect's own, and the migrations of the past, which say once more what the tables were."""
    found = [path for path in STORAGE.rglob("*.py") if not {"dialect", "migrations"} & set(path.parts)]
    assert len(found) > 20
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_no_other_module_names_what_is_sqlites_own(path):
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            assert node.value in SQLALCHEMYS or not SQLITES_OWN.search(node.value), node.value
        if isinstance(node, ast.Import):
            assert not any("sqlite" in alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            names = f"{node.module} {' '.join(alias.name for alias in node.names)}"
            assert "sqlite" not in names, names


def test_the_interface_is_all_there_and_all_that_is_used():
    wanted = {name for name in vars(Dialect) if not name.startswith("_")}
    assert wanted == {name for name in vars(SQLite) if not name.startswith("_")}
    used = "\n".join(path.read_text() for path in STORAGE.rglob("*.py"))
    for name in wanted:
        assert re.search(rf"dialect(_of\(.*\))?\.{name}\b", used), f"nobody calls {name}"


def test_another_kind_of_database_is_refused_with_a_sentence():
    with pytest.raises(DatabaseUnavailable, match="'postgresql' are not supported"):
        database_url("postgresql://localhost/chat")
    with pytest.raises(DatabaseUnavailable, match="keeps nothing"):
        database_url("sqlite://")
    assert isinstance(dialect_of(make_url("sqlite:///a.db")), SQLite)
