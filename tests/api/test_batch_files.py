"""The files of a batch: nothing twice, nothing lost, wherever a run was broken off."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idefics_chat.cli.batch_files import BadFile, Journal, read_jobs, write_csv

JOBS = "\n".join(json.dumps({"task": "caption", "image": f"{number}.png"}) for number in range(1, 7))
LINES = read_jobs(JOBS, {}, is_csv=False)


def test_json_lines_are_numbered_as_in_the_file() -> None:
    lines = read_jobs('\n{"task": "caption"}\n\nnonsense\n[1]\n{"text": "a\u2028b"}\n', {}, is_csv=False)
    assert [line.number for line in lines] == [2, 4, 5, 6]
    assert [line.problem is None for line in lines] == [True, False, False, True]
    assert lines[3].job == {"text": "a\u2028b"}


def test_csv_rows_are_jobs_with_lists_by_commas_or_as_json() -> None:
    text = 'task,image,categories,num_beams,stop\nclassify,a.png,"a, b",2,\nclassify,b.png,"[""a,b"", ""c""]",,x\n'
    first, second = read_jobs(text, {}, is_csv=True)
    assert first.job == {"task": "classify", "image": "a.png", "categories": ["a", "b"], "num_beams": "2"}
    assert second.job == {"task": "classify", "image": "b.png", "categories": ["a,b", "c"], "stop": ["x"]}


def test_options_hold_for_jobs_that_do_not_say_otherwise_and_make_them_other_jobs() -> None:
    text = '{"task": "story"}\n{"task": "story", "num_beams": 3}'
    plain, beams = read_jobs(text, {"num_beams": 2}, is_csv=False)
    assert (plain.job["num_beams"], beams.job["num_beams"]) == (2, 3)
    bare = read_jobs(text, {}, is_csv=False)
    assert plain.key != bare[0].key
    assert beams.key == bare[1].key


def journal(folder: Path) -> Journal:
    return Journal(folder / "results.jsonl", LINES)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    order=st.permutations(range(6)),
    written=st.integers(0, 6),
    cut=st.integers(0, 400),
    texts=st.lists(st.text(max_size=8), min_size=6, max_size=6),
)
def test_a_run_broken_off_at_any_byte_goes_on_without_loss_or_repeat(
    tmp_path: Path, order: list[int], written: int, cut: int, texts: list[str]
) -> None:
    path = tmp_path / "results.jsonl"
    path.unlink(missing_ok=True)
    with journal(tmp_path) as first:
        for index in order[:written]:
            first.write({"text": texts[index]}, LINES[index])
    data = path.read_bytes()
    whole = data[: max(0, len(data) - cut)]
    path.write_bytes(whole)
    with journal(tmp_path) as again:
        # What a crash leaves whole is known, and nothing else is.
        assert list(again.done) == [LINES[index].number for index in order[: whole.count(b"\n")]]
        for line in LINES:
            if line.number not in again.done:
                again.write({"text": texts[line.number - 1]}, line)
        again.put_in_order()
    results = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [result["line"] for result in results] == [1, 2, 3, 4, 5, 6]
    assert [result["text"] for result in results] == texts


def test_results_of_other_jobs_are_refused_and_left_alone(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.write({"text": "a"}, LINES[0])
    before = (tmp_path / "results.jsonl").read_bytes()
    others = read_jobs('{"task": "ask"}', {}, is_csv=False)
    with pytest.raises(BadFile, match="other jobs"), Journal(tmp_path / "results.jsonl", others):
        raise AssertionError("it was taken")
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "there",
    [
        b"my diary\n",
        b"my diary",
        JOBS.encode(),
        b"\x89PNG\r\n\x1a\n\x00\x00\nIDAT",
        b'{"line": 1, "key": "0000000000000000", "te',
        b"[1]\n[2",
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone_to_the_byte(tmp_path: Path, there: bytes) -> None:
    (tmp_path / "results.jsonl").write_bytes(there)
    with pytest.raises(BadFile, match="something else"), journal(tmp_path):
        raise AssertionError("it was taken")
    assert (tmp_path / "results.jsonl").read_bytes() == there


def test_a_cut_line_behind_results_of_other_jobs_is_left_alone(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.write({"text": "a"}, LINES[0])
    before = (tmp_path / "results.jsonl").read_bytes() + b'{"line": 2, "k'
    (tmp_path / "results.jsonl").write_bytes(before)
    others = read_jobs('{"task": "ask"}', {}, is_csv=False)
    with pytest.raises(BadFile, match="other jobs"), Journal(tmp_path / "results.jsonl", others):
        raise AssertionError("it was taken")
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_two_runs_at_once_are_not_let_at_one_file(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        with pytest.raises(BadFile, match="Another run"), journal(tmp_path):
            raise AssertionError("it was taken")
        first.forget_failures()  # puts a new file in its place
        with pytest.raises(BadFile, match="Another run"), journal(tmp_path):
            raise AssertionError("it was taken")


def test_what_failed_runs_again_only_when_asked_to(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.write({"text": "a"}, LINES[0])
        first.write({"error": {"code": "invalid_image", "message": "No."}}, LINES[1])
    with journal(tmp_path) as again:
        assert again.done == {1: True, 2: False}
        again.forget_failures()
        assert again.done == {1: True}
        again.write({"text": "b"}, LINES[1])
    assert [json.loads(line)["line"] for line in (tmp_path / "results.jsonl").read_text().splitlines()] == [1, 2]


def test_a_job_that_failed_may_be_changed_and_runs_anew(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.write({"error": {"code": "image_not_found", "message": "No."}}, LINES[1])
        first.write({"text": "a"}, LINES[0])
        first.write({"error": {"code": "invalid_image", "message": "No."}}, LINES[2])
    repaired = read_jobs(JOBS.replace("2.png", "two.png"), {}, is_csv=False)
    with Journal(tmp_path / "results.jsonl", repaired) as again:
        assert again.done == {1: True, 3: False}
        again.write({"text": "b"}, repaired[1])
        again.put_in_order()
        assert [(value["line"], value.get("text")) for value in again.records()] == [(1, "a"), (2, "b"), (3, None)]
    changed = read_jobs(JOBS.replace("1.png", "one.png"), {}, is_csv=False)
    with pytest.raises(BadFile, match="other jobs"), Journal(tmp_path / "results.jsonl", changed):
        raise AssertionError("it was taken")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="cannot be written"), Journal(tmp_path / "file" / "results.jsonl", LINES):
        raise AssertionError("it was opened")


def test_a_csv_file_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadFile, match="something else"):
        write_csv(tmp_path / "results.csv", [])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["a,b\n1,2\n"]


def test_files_that_stand_under_the_name_of_a_new_one_are_left_alone(tmp_path: Path) -> None:
    for name in ("results.jsonl.new", "results.jsonl.new.2", "results.csv.new"):
        (tmp_path / name).write_text("mine")
    with journal(tmp_path) as first:
        first.write({"error": {"code": "invalid_image", "message": "No."}}, LINES[0])
        first.forget_failures()
        write_csv(tmp_path / "results.csv", [{"line": 1, "text": "a"}])
    assert {path.name for path in tmp_path.iterdir() if path.read_text() == "mine"} == {
        "results.jsonl.new",
        "results.jsonl.new.2",
        "results.csv.new",
    }
    assert len(list(tmp_path.iterdir())) == 5


def test_csv_results_hold_texts_of_any_kind(tmp_path: Path) -> None:
    usage = {"input_tokens": 4, "output_tokens": 9}
    records = [
        {"line": 1, "task": "story", "image": "a.png", "text": 'One,\n"two"', "usage": usage, "finish_reason": "stop"},
        {"line": 2, "text": "cat", "scores": {"cat": 0.9, "dog": 0.1}, "usage": usage},
        {"line": 3, "error": {"code": "invalid_image", "message": "No."}},
    ]
    write_csv(tmp_path / "results.csv", records)
    with (tmp_path / "results.csv").open(newline="") as stream:
        first, second, third = csv.DictReader(stream)
    assert first["text"] == 'One,\n"two"'
    assert (first["input_tokens"], first["output_tokens"]) == ("4", "9")
    assert json.loads(second["scores"]) == {"cat": 0.9, "dog": 0.1}
    assert (third["error_code"], third["error"], third["text"]) == ("invalid_image", "No.", "")
