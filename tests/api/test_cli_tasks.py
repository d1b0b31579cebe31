"""The task commands with the shipped model and real pictures: right answers, clear refusals, kills."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from idefics_chat.cli.main import app
from tests.api.pictures import save_pictures
from tests.api.terminal import COMMAND, heed_ctrl_c, on_a_terminal
from tests.end_to_end.server_process import ServerProcess, environment

CIRCLE = "A red circle on a white background."

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder of pictures."""
    save_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("IDEFICS_CHAT_")]:
        monkeypatch.delenv(name)

    def run_command(*arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return run_command


def test_the_commands_of_the_guide_give_the_right_answers(run: Run, tmp_path: Path) -> None:
    assert run("caption", "photo.png").stdout == CIRCLE + "\n"
    prompted = run("caption", "square.png", "--prompt", "This is an image of")
    assert prompted.stdout == "a blue square on a white background.\n"
    assert run("ask", "photo.png", "What colour is it?").stdout == "Red.\n"
    assert run("classify", "square.png", "--categories", "circle,square,triangle").stdout == "square\n"
    ranked = run("classify", "square.png", "--categories", "circle,square,triangle", "--rank").stdout
    assert ranked.split()[1::2] == ["square", "circle", "triangle"] or ranked.split()[1] == "square"
    assert run("story", "photo.png", "--beams", "2").stdout.startswith("Once upon a time there was a red circle.")
    example = {"image": "square.png", "answer": "A blue square on a white background."}
    (tmp_path / "examples.jsonl").write_text(json.dumps(example) + "\n")
    assert run("few-shot", "examples.jsonl", "photo.png").stdout == CIRCLE + "\n"


def test_a_category_is_printed_as_it_was_given_and_none_of_them_is_told_of(run: Run) -> None:
    classify = ("classify", "square.png", "--categories")
    assert run(*classify, "Circle,SQUARE").stdout == "SQUARE\n"
    assert run(*classify, "cat,dog").stdout.endswith(" (none of the categories)\n")
    missed = json.loads(run(*classify, "cat,dog", "--json").stdout)
    assert (bool(missed["text"]), missed["category"]) == (True, None)
    assert "category" not in json.loads(run("caption", "square.png", "--json").stdout)


def test_json_is_one_object_an_image_and_goes_on_past_bad_ones(run: Run) -> None:
    done = run("classify", "photo.png", "bad.png", "missing.png", "--categories", "circle,square", "--rank", "--json")
    first, bad, missing = (json.loads(line) for line in done.stdout.splitlines())
    assert set(first) == {"image", "text", "finish_reason", "usage", "category", "scores", "log_likelihoods"}
    assert (first["image"], first["text"], list(first["scores"])) == ("photo.png", "circle", ["circle", "square"])
    assert bad["error"]["code"] == "invalid_image"
    assert missing["error"]["code"] == "image_not_found"
    assert done.exit_code == 1
    assert "2 of 3 images came to nothing" in done.stderr
    assert "bad.png" in done.stderr


def test_images_are_files_folders_patterns_and_standard_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").unlink()
    for words in (["."], ["*.png"], ["photo.png", "square.png", "triangle.png"]):
        done = run("ask", *words, "What color is it?")
        assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["Red.", "Blue.", "Green."], words
    photo = (tmp_path / "photo.png").read_bytes()
    assert run("caption", "-", stdin=photo).stdout == CIRCLE + "\n"
    assert run("caption", "-", stdin=b"photo.png\nsquare.png\n").stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["caption", "empty"], "There is no image in the folder"),
        (["caption", "*.jpg"], "There is no image in what"),
        (["caption", "photo.png", "--model", "/no/such/folder"], "There is no folder"),
        (["caption", "photo.png", "--dtype", "float7"], "dtype"),
        (["caption", "photo.png", "--server", "http://127.0.0.1:9"], "Is the server running"),
        (["caption", "photo.png", "--server", "http://x", "--model", "y"], "the server has a model of its own"),
        (["ask"], "Give the images first, then the question: idefics-chat ask photo.png"),
        (["ask", "photo.png"], "Give the images first, then the question"),
        (["ask", "photo.png", "square.png"], "Give the images first, then the question"),
        (["ask", "What colour is it?", "photo.png"], "Give the images first, then the question"),
        (["ask", "What colour is it?", "empty"], "Give the images first, then the question"),
        (["few-shot", "none.jsonl", "photo.png"], "cannot be read"),
        (["few-shot", "photo.png", "photo.png"], "cannot be read"),
        (["batch", "none.jsonl"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    tmp_path: Path, run: Run, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    done = run(*arguments)
    told = done.stderr + str(done.exception or "")
    assert done.exit_code != 0
    assert sentence in " ".join(told.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["caption", "photo.png", "--beams", "0"], "--beams must be a whole number from 1 to 64."),
        (["story", "photo.png", "--beams", "99"], "--beams must be"),
        (["caption", "photo.png", "--temperature", "9"], "--temperature must be between 0 and 2."),
        (["caption", "photo.png", "--max-new-tokens", "0"], "--max-new-tokens: Input should be greater than"),
        (["batch", "jobs.jsonl", "--temperature", "9"], "--temperature must be"),
        (["classify", "photo.png", "--categories", "a,b", "--rank", "--normalization", "foo"], "--normalization: "),
        (["classify", "photo.png", "--categories", "a,b", "--normalization", "tokens"], "give --rank too"),
        (["classify", "photo.png", "--categories", "a,a"], "A category stands twice"),
        (["ask", "photo.png", " "], "The question is empty"),
        (["caption", "photo.png", "--key", "k"], "name the server with --server"),
        (["chat", "--key", "k"], "name the server with --server"),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence_before_anything_is_loaded(
    run: Run, arguments: list[str], sentence: str
) -> None:
    done = run(*arguments, "--model", "/no/such/folder")
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_in_the_environment_may_stand_there_unused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDEFICS_CHAT_KEY", "k")
    assert run("caption", "photo.png").stdout == CIRCLE + "\n"


def test_help_shows_examples_and_every_command(run: Run) -> None:
    for command in ("caption", "ask", "classify", "story", "few-shot", "batch", "chat"):
        done = run(command, "--help")
        assert done.exit_code == 0
        assert "idefics-chat" in done.stdout or command == "batch"
        assert command in run("--help").stdout


def test_a_terminal_gets_a_table(tmp_path: Path) -> None:
    save_pictures(tmp_path)
    shown = on_a_terminal([*COMMAND, "ask", "photo.png", "square.png", "What color is it?"], tmp_path)
    assert "image" in shown
    assert "photo.png" in shown
    assert "Red." in shown
    assert "Loading" in shown
    classified = on_a_terminal([*COMMAND, "classify", "photo.png", "--categories", "cat,dog"], tmp_path)
    assert "(none of the categories)" in classified


# -- batches

MIXED = [
    {"task": "caption", "image": "photo.png", "id": "first"},
    {"task": "ask", "image": "square.png", "question": "What color is it?"},
    {"task": "caption", "image": "bad.png"},
    {"task": "classify", "image": "photo.png", "categories": ["circle", "square"], "rank": True},
    {
        "task": "instruct",
        "messages": [{"role": "user", "content": [{"image": "photo.png"}, {"text": "What is in this image?"}]}],
    },
]


def results(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_mixes_tasks_goes_on_past_bad_images_and_lists_them(run: Run, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(job) for job in MIXED) + "\nnonsense\n")
    done = run("batch", "jobs.jsonl", "--output", "out/results.jsonl")
    assert done.exit_code == 1
    assert "2 of 6 jobs came to nothing" in done.stderr
    assert "line 3 (bad.png)" in done.stderr
    found = results(tmp_path / "out" / "results.jsonl")
    assert [result["line"] for result in found] == [1, 2, 3, 4, 5, 6]
    assert [result.get("text") for result in found] == [CIRCLE, "Blue.", None, "circle", CIRCLE, None]
    assert (found[0]["id"], found[0]["model"]) == ("first", "idefics-shapes")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    again = run("batch", "jobs.jsonl", "--output", "out/results.jsonl")
    assert again.exit_code == 1
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    (tmp_path / "bad.png").write_bytes((tmp_path / "photo.png").read_bytes())
    run("batch", "jobs.jsonl", "--output", "out/results.jsonl", "--retry-failed")
    assert [r.get("text") for r in results(tmp_path / "out" / "results.jsonl")][2] == CIRCLE


def test_a_batch_is_csv_in_and_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(
        "task,image,question,categories,max_new_tokens\n"
        "caption,photo.png,,,3\n"
        'ask,square.png,"What color is it?",,\n'
        'classify,photo.png,,"circle,square",\n'
    )
    done = run("batch", "jobs.csv", "-o", "results.csv")
    assert done.exit_code == 0, done.stderr
    head, first, second, third = (tmp_path / "results.csv").read_text().splitlines()
    assert head.startswith("line,id,task,image,text")
    assert "length" in first
    assert "Blue." in second
    assert "circle" in third
    whole = (tmp_path / "results.csv").read_bytes()
    for length in (0, 9, len(head) + 1, len(whole) - 9):
        (tmp_path / "results.csv").write_bytes(whole[:length])  # cut off
        assert run("batch", "jobs.csv", "-o", "results.csv").exit_code == 0  # it is made of results.csv.jsonl again
        assert (tmp_path / "results.csv").read_text().splitlines() == [head, first, second, third]


@pytest.mark.parametrize("there", [b"a,b\n1,2\n", b"line;id;task\r\n", b"lines", b"\xff"])
def test_a_foreign_csv_file_beside_what_a_batch_has_done_is_refused_and_left_alone(
    run: Run, tmp_path: Path, there: bytes
) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps(MIXED[0]))
    assert run("batch", "jobs.jsonl", "-o", "mine.csv").exit_code == 0
    made = (tmp_path / "mine.csv").read_bytes()
    (tmp_path / "mine.csv").write_bytes(there)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("batch", "jobs.jsonl", "-o", "mine.csv", "--retry-failed")
    assert done.exit_code == 1
    assert "mine.csv holds something else than results" in str(done.exception)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "mine.csv").rename(tmp_path / "kept.csv")  # as it says
    assert run("batch", "jobs.jsonl", "-o", "mine.csv").exit_code == 0
    assert (tmp_path / "mine.csv").read_bytes() == made


def test_a_csv_file_that_no_batch_made_is_refused_and_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps(MIXED[0]))
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    done = run("batch", "jobs.jsonl", "-o", "mine.csv")
    assert done.exit_code == 1
    assert "give another --output, or remove mine.csv" in str(done.exception)
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"
    assert not (tmp_path / "mine.csv.jsonl").exists()


@pytest.mark.parametrize(
    ("jobs", "output"),
    [
        ("jobs.jsonl", "jobs.jsonl"),
        ("jobs.jsonl", "./jobs.jsonl"),
        ("jobs.csv", "jobs.csv"),
        ("out.csv.jsonl", "out.csv"),
    ],
)
def test_a_batch_does_not_write_into_its_jobs(run: Run, tmp_path: Path, jobs: str, output: str) -> None:
    (tmp_path / jobs).write_text("\n".join(map(json.dumps, MIXED)))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("batch", jobs, "-o", output)
    assert done.exit_code == 1
    assert "which holds the jobs" in str(done.exception)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_batch_without_output_is_printed(run: Run) -> None:
    done = run("batch", "-", stdin=(json.dumps(MIXED[0]) + "\n").encode())
    assert json.loads(done.stdout)["text"] == CIRCLE


def test_a_batch_that_is_killed_or_stopped_goes_on_with_nothing_twice_and_nothing_lost(
    run: Run, tmp_path: Path
) -> None:
    count = 900  # enough to be broken in on, however fast
    names = ["photo", "square", "triangle"]
    jobs = [{"task": "caption", "image": f"{names[number % 3]}.png", "id": number} for number in range(count)]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    output = tmp_path / "results.jsonl"
    killed = start_batch(tmp_path)
    wait_for_lines(output, 20, killed)
    killed.kill()
    killed.communicate()
    kept = output.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]

    stopped = start_batch(tmp_path)
    wait_for_lines(output, kept.count(b"\n") + 20, stopped)
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "Traceback" not in told
    done = len(results(output))
    assert done < count
    assert f"{done} of {count} jobs are done" in told
    assert "run the same command again to go on" in told

    finished = run("batch", "jobs.jsonl", "--output", "results.jsonl")
    assert finished.exit_code == 0, finished.stderr
    found = results(output)
    assert [result["line"] for result in found] == list(range(1, count + 1))
    assert [result["id"] for result in found] == list(range(count))
    by_line = {result["line"]: result for result in found}
    for earlier in map(json.loads, kept.splitlines()):
        assert by_line[earlier["line"]] == earlier
    shapes = ["A red circle on a white", "A blue square on a white", "A green triangle on a black"]
    assert [result["text"] for result in found] == [f"{shapes[number % 3]} background." for number in range(count)]


def start_batch(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "batch", "jobs.jsonl", "--output", "results.jsonl"],
        preexec_fn=heed_ctrl_c,
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 50
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_s_model_can_be_used_and_its_going_is_said(run: Run, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "chat.db") as server:
        url = f"http://{server.address}"
        assert run("caption", "photo.png", "--server", url).stdout == CIRCLE + "\n"
        (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(job) for job in MIXED))
        done = run("batch", "jobs.jsonl", "-o", "results.jsonl", "--server", url)
        assert "1 of 5 jobs came to nothing" in done.stderr
    again = run("caption", "photo.png", "square.png", "--server", url)
    assert again.exit_code == 1
    assert "Is the server running" in again.stderr + str(again.exception)
