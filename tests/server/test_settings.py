"""Settings: flags over environment over defaults, and every one of them documented."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from idefics_chat.server.serving import StartError, check_exposure, model_id
from idefics_chat.server.settings import Settings
from tests.end_to_end.server_process import run_command


def test_the_environment_sets_and_a_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDEFICS_CHAT_PORT", "9001")
    monkeypatch.setenv("IDEFICS_CHAT_MODEL", "folder")
    assert Settings().port == 9001
    assert Settings(port=9002).port == 9002
    assert Settings(port=9002).model == "folder"


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("DTYPE", "int3"), ("QUANTIZATION", "2bit"), ("DEVICE", "abacus"), ("MAX_FRAME_BYTES", "0")],
)
def test_a_bad_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IDEFICS_CHAT_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_strangers_need_a_key() -> None:
    check_exposure(Settings(host="127.0.0.1"))
    check_exposure(Settings(host="0.0.0.0", require_key=True))
    with pytest.raises(StartError, match="--require-key"):
        check_exposure(Settings(host="0.0.0.0"))


def test_a_model_is_called_by_its_hub_name_or_its_folder_s(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert model_id(str(tmp_path / "my-model")) == "my-model"
    assert model_id("HuggingFaceM4/idefics-9b-instruct") == "HuggingFaceM4/idefics-9b-instruct"


def test_the_readme_documents_every_setting() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name}`" in readme, f"the README says nothing of the setting {name}"


def test_serve_has_the_flags_that_operators_use_first() -> None:
    help_text = run_command("serve", "--help").stdout
    for flag in ("host", "port", "database", "model", "dtype", "quantization", "device", "require-key"):
        assert f"--{flag}" in help_text
