"""Settings: flags over environment over file over defaults, and every one of them documented."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from idefics_chat.inference.engine import EngineLimits
from idefics_chat.inference.family_idefics import Idefics
from idefics_chat.inference.scheduler import SchedulerLimits
from idefics_chat.server.engine_loading import engine_limits, load_engine, model_id
from idefics_chat.server.settings import QuotaSettings, RequestSettings, Settings
from idefics_chat.server.settings_sources import SettingsError, choices_of, described, flag_of, load_settings
from idefics_chat.server.start_checks import check_exposure, check_settings, problems_of
from idefics_chat.server.start_error import StartError
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


def test_the_engine_may_use_what_the_settings_say_and_else_what_fits(tmp_path: Path) -> None:
    fitting = EngineLimits(scheduler=SchedulerLimits(kv_bytes=7))
    assert engine_limits(Settings(), fitting).scheduler.kv_bytes == 7
    wanted = Settings(kv_cache_bytes=5, max_waiting_answers=3, max_running_answers=2, image_features_folder=tmp_path)
    limits = engine_limits(wanted, fitting)
    assert (limits.scheduler.kv_bytes, limits.scheduler.max_running, limits.max_waiting) == (5, 2, 3)
    assert limits.feature_folder == tmp_path
    # An image that was taken in once is shown ever after, whatever the setting says by then.
    defaults = EngineLimits(max_image_pixels=sys.maxsize)
    assert engine_limits(Settings(), defaults) == defaults


@pytest.mark.anyio
@pytest.mark.parametrize("wanted", [False, True])
async def test_steps_are_compiled_where_the_settings_say_so(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    compiled: list[Idefics] = []
    monkeypatch.setattr(Idefics, "compile_decode", lambda self: compiled.append(self))
    await load_engine(Settings(compile_steps=wanted)).aclose()
    assert len(compiled) == wanted


def test_the_page_of_settings_is_the_one_that_the_settings_make() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "settings_page.py"))["page"]
    assert (docs / "settings.md").read_text() == page(), "run: python docs/settings_page.py"
    for name in Settings.model_fields:
        assert f"| `{name}` |" in page()


def test_every_setting_has_a_flag() -> None:
    help_text = run_command("serve", "--help").stdout
    for name in Settings.model_fields:
        assert f"{flag_of(name)} " in help_text
    for choices in ("auto, cpu, cuda, mps, xpu", "4bit, 8bit", "debug, info, warning, error", "text, json"):
        assert f"One of {choices}." in help_text


def test_the_values_of_a_setting_are_told_where_they_are_a_closed_set() -> None:
    told = {name: choices for name in Settings.model_fields if (choices := choices_of(name))}
    assert set(told) == {"dtype", "quantization", "device", "log_format", "log_level"}
    for name, choices in told.items():
        for choice in choices:
            Settings.model_validate({name: choice})
        assert described(name).endswith(f"One of {', '.join(choices)}.")


def test_limits_of_keys_and_addresses_are_turned_off_with_0_and_sizes_of_requests_are_not() -> None:
    Settings.model_validate(dict.fromkeys(QuotaSettings.model_fields, 0))
    for name in (*RequestSettings.model_fields, "max_connections"):
        with pytest.raises(ValidationError):
            Settings.model_validate({name: 0})


def test_a_flag_wins_over_the_environment_the_environment_over_the_file_and_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chat.toml"
    file.write_text('port = 1\nmodel = "from-file"\ndtype = "bfloat16"\nallowed_origins = ["https://a.example"]\n')
    monkeypatch.setenv("IDEFICS_CHAT_PORT", "2")
    monkeypatch.setenv("IDEFICS_CHAT_MODEL", "from-environment")
    monkeypatch.setenv("IDEFICS_CHAT_ALLOWED_HOSTS", "a.example, b.example")
    loaded = load_settings({"port": "3"}, file)
    found = loaded.settings
    assert (found.port, found.model, found.dtype, found.device) == (3, "from-environment", "bfloat16", "auto")
    assert (found.allowed_origins, found.allowed_hosts) == (("https://a.example",), ("a.example", "b.example"))
    origins = [loaded.origins[name].split()[0] for name in ("port", "model", "dtype", "device")]
    assert origins == ["flag", "environment", "file", "default"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "setting prot: there is no such setting (file "),
        ("port = 70000", "setting port: "),
        ('[port]\nx = "y"', "setting port: "),
        ("port = = 1", "setting config: "),
        ('tls_certificate = "cert.pem"', "setting tls_certificate and tls_key go together"),
        ('trusted_proxies = ["my-proxy"]', "setting trusted_proxies: 'my-proxy' is no address"),
        ("idle_timeout_s = inf", "setting idle_timeout_s: "),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_the_setting_s_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "chat.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_settings({}, file)
    assert [problem for problem in refused.value.problems if problem.startswith(said)] == refused.value.problems
    assert all(problem.endswith(".") or problem.endswith("them.") for problem in refused.value.problems)


def test_what_the_environment_has_for_others_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDEFICS_CHAT_SERVICE_HOST", "10.0.0.1")
    assert load_settings({}).settings == Settings()


def test_config_shows_every_setting_with_its_origin_and_no_password(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text('database = "postgresql://ann:hunter2@db/chat"\n')
    done = run_command("config", "show", "--config", str(file))
    assert [line.split(" = ")[0] for line in done.stdout.splitlines()] == list(Settings.model_fields)
    assert "hunter2" not in done.stdout + done.stderr
    assert f"database = postgresql://ann:***@db/chat  (file {file})" in done.stdout


def test_config_check_says_what_serve_would_say(tmp_path: Path) -> None:
    file = tmp_path / "chat.toml"
    file.write_text('host = "0.0.0.0"\n')
    assert run_command("config", "check").returncode == 0
    refused = run_command("config", "check", env={"IDEFICS_CHAT_CONFIG": str(file)})
    assert refused.returncode == 2
    assert "--require-key" in refused.stderr
    file.write_text("port = -1\nprot = 1\n")
    both = run_command("config", "check", "--config", str(file))
    assert both.returncode == 2
    assert both.stderr.count("error: setting ") == 2


def test_files_that_are_no_certificate_are_refused_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "not.pem"
    file.write_text("hello")
    with pytest.raises(StartError, match="tls_certificate"):
        check_settings(Settings(tls_certificate=file, tls_key=file))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model", "{folder}/nowhere", "There is no folder"),
        ("model", "{folder}", "holds no config.json"),
        ("database", "{folder}/nowhere/chat.db", "No such file or directory"),
        ("database", "{folder}/file/chat.db", "Not a directory"),
        ("database", "{folder}", "is no file"),
        ("database", "sqlite:///{folder}/nowhere/chat.db", "No such file or directory"),
        ("database", "postgresql://ann:hunter2@db/chat", "'postgresql' are not supported"),
        ("database", "postgresql://db:port/chat", "cannot be read"),
        ("image_features_folder", "{folder}/file/features", "Not a directory"),
        ("trace_endpoint", "collector:4318", "is no URL"),
        ("metrics_port", "8000", "both 8000"),
    ],
)
def test_what_serve_would_refuse_is_said_before_anything_is_started(
    tmp_path: Path, name: str, value: str, said: str
) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings.model_validate({name: value.format(folder=tmp_path)})
    with pytest.raises(StartError, match=said) as refused:
        check_settings(settings)
    assert "hunter2" not in str(refused.value)
    assert [str(problem) for problem in problems_of(settings)] == [str(refused.value)]


def test_places_that_can_be_used_are_left_as_they_are(tmp_path: Path) -> None:
    settings = Settings(database=str(tmp_path / "chat.db"), image_features_folder=tmp_path / "a" / "b", metrics_port=0)
    assert problems_of(settings) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_a_problem() -> None:
    (problem,) = problems_of(Settings(device="cuda"))
    assert "cuda" in str(problem)
