"""`idefics-chat chat` with the shipped model: typed into, piped into, gone on with, cut short."""

import re
import subprocess
from pathlib import Path

from idefics_chat.cli.chat import spoken
from tests.api.pictures import save_pictures
from tests.api.terminal import COMMAND, CTRL_C, CTRL_D, SLOW_COMMAND, Terminal
from tests.end_to_end.server_process import ServerProcess, environment

QUESTION = "What is in this image?"
CIRCLE = "A red circle on a white background."


def piped(folder: Path, lines: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, "chat", *arguments],
        cwd=folder,
        input=lines,
        env=environment({"HOME": str(folder)}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_chat_is_held_kept_and_gone_on_with(tmp_path: Path) -> None:
    """By lines that are piped in, against a server; the last one is gone by then."""
    save_pictures(tmp_path)
    with ServerProcess(tmp_path / "chat.db") as server:
        url = f"http://{server.address}"
        lines = "photo.png What is in this image?\nWhat color is the circle?\n/again\n/dance\n/list\n"
        first = piped(tmp_path, lines, "--server", url)
        assert first.returncode == 0, first.stderr
        answers = first.stdout.splitlines()
        assert answers[:3] == [CIRCLE, "Red.", "Red."]
        assert f"idefics-chat chat --server {url}\n" in server.output  # as a new user is told
        assert "There is no command /dance" in first.stderr
        conversation = answers[3].split()[0]
        assert conversation.startswith("conv_")
        later = piped(tmp_path, "/history\nWhat color is the circle?\n", "--server", url, "--conversation", "last")
        told = ["> [image] What is in this image?", CIRCLE, "> What color is the circle?", "Red."]
        assert later.stdout.splitlines() == [*told, "Red."]
        _leave_pictures_out(tmp_path, url)
        refused = piped(tmp_path, "Hi\n", "--server", url, "--conversation", "conv_none")
        assert refused.returncode == 1
        assert "conv_none" in refused.stderr
        assert "Traceback" not in refused.stderr
    gone = piped(tmp_path, "Hi\n", "--server", url)
    assert gone.returncode == 1
    assert "No answer from" in gone.stderr


def test_an_answer_without_a_word_is_shown_as_none() -> None:
    asked = {"role": "user", "content": [{"type": "input_image"}, {"type": "input_text", "text": "What?"}]}
    assert spoken(asked) == "> [image] What?"
    assert spoken({"role": "assistant", "content": [{"type": "output_text", "text": ""}]}) == ""


def _leave_pictures_out(folder: Path, url: str) -> None:
    """A picture that cannot be shown costs its own question alone."""
    lines = "nope.png What is it?\nphoto.png bad.png Same?\n/image square.png\n/new\nphoto.png What color is it?\n"
    done = piped(folder, lines, "--server", url)
    assert done.returncode == 1
    answers = [line for line in done.stdout.splitlines() if not line.endswith((".png goes with the next question.",))]
    assert answers == ["A new conversation begins.", "Red."]
    told = done.stderr
    assert "There is no file nope.png." in told
    assert "error: bad.png: " in told
    assert "Not shown: photo.png." in told
    assert "Not shown: square.png." in told
    assert "Traceback" not in told


def test_a_server_says_itself_why_it_lets_nobody_in(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "chat.db", "--require-key") as server:
        done = piped(tmp_path, "", "Hi", "--server", f"http://{server.address}", "--key", "wrong")
    assert done.returncode == 1
    assert done.stderr.startswith("error: This key is not one of this server")


def test_a_mistyped_picture_on_the_command_line_is_told_of_before_anything_is_loaded(tmp_path: Path) -> None:
    done = piped(tmp_path, "", "nope.png", QUESTION, "--model", "/no/such/folder")
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is no file nope.png.")
    assert done.stdout == ""


def test_on_a_terminal_pictures_are_dropped_and_answers_are_cut_short(tmp_path: Path) -> None:
    """With a server of its own, and a model so slow that there is time to break in on it."""
    save_pictures(tmp_path)
    with Terminal(tmp_path, "--database", "mine.db", command=SLOW_COMMAND) as terminal:
        terminal.wait_for("> ")
        terminal.type(f"'{tmp_path}/photo.png' \n")
        terminal.wait_for("photo.png goes with the next question.")
        terminal.wait_for("[1 image] > ")
        terminal.type(f"{QUESTION}\n")
        terminal.wait_for("A red")
        terminal.press(CTRL_C)
        said = terminal.wait_for("[cut short: cancelled; /continue goes on with it]")
        assert "background" not in said
        terminal.wait_for("> ")
        terminal.type("What color is the circle?\n")
        terminal.wait_for("circle?\r\n")
        terminal.press(CTRL_C)  # perhaps before its first word
        terminal.wait_for("> ")
        terminal.type("/again\n")
        terminal.wait_for("Red.")
        terminal.wait_for("> ")
        terminal.type("/history\n")
        told = terminal.wait_for("> What color is the circle?")
        assert f"> [image] {QUESTION}\r\nA red" in told
        assert "background" not in told
        terminal.wait_for("> ")
        terminal.press(CTRL_C)
        terminal.wait_for("Go on later: idefics-chat chat --database mine.db --conversation conv_")
        assert terminal.status() == 0
    assert "Traceback" not in terminal.shown
    assert QUESTION in (tmp_path / ".idefics_chat_history").read_text()
    (tmp_path / "mine.toml").write_text('database = "mine.db"\n')
    with Terminal(tmp_path, "--config", "mine.toml", "--conversation", "last", "What shape is it?") as later:
        later.wait_for("Red.")
        later.wait_for("circle.")
        later.wait_for("> ")
        later.press(CTRL_D)
        later.wait_for("Go on later: idefics-chat chat --config mine.toml --conversation conv_")
        assert later.status() == 0
    assert "Traceback" not in later.shown


def test_an_answer_outlives_its_server_and_is_continued(tmp_path: Path) -> None:
    """The server is killed in the middle of an answer and started again at the same address."""
    save_pictures(tmp_path)
    database = tmp_path / "chat.db"
    with ServerProcess(database, command=SLOW_COMMAND) as server:
        port = server.address.rpartition(":")[2]
        with Terminal(tmp_path, "--server", f"http://{server.address}") as terminal:
            terminal.wait_for("> ")
            terminal.type(f"photo.png {QUESTION}\n")
            terminal.wait_for("A red")
            server.kill()
            with ServerProcess(database, "--port", port):
                terminal.wait_for("[cut short: server_restart; /continue goes on with it]")
                terminal.wait_for("> ")
                terminal.type("/continue\n")
                terminal.wait_for(CIRCLE)
                terminal.wait_for("> ")
                _try_commands(terminal)
            assert "Traceback" not in terminal.shown


def _try_commands(terminal: Terminal) -> None:
    """What can be typed besides questions, in a conversation about photo.png."""

    def tell(line: str, expected: str) -> str:
        terminal.type(f"{line}\n")
        return terminal.wait_for(expected) + terminal.wait_for("> ")

    (first,) = re.findall(r"conv_\w+", tell("/list", "conv_"))
    tell("/help", "/continue")
    tell("/continue", "error: No answer was cut short here.")
    tell("/image nothing.png", "There is no file 'nothing.png'.")
    tell("/image bad.png", "bad.png goes with the next question.")
    tell("What is it?", "error: ")
    tell("nope.png What is it?", "There is no file nope.png.")
    tell("/image photo.png", "photo.png goes with the next question.")
    tell("/new", "Not shown: photo.png.")
    tell("/again", "error: Nothing was asked yet.")
    tell(f"square.png {QUESTION}", "blue square")
    tell(f"/resume {first}", CIRCLE)
    tell("What color is the circle?", "Red.")
    tell("/resume", "Red.")
    tell("/delete", "Deleted; a new conversation begins.")
    tell(f"/resume {first}", "error: ")
    terminal.type("/quit\n")
    assert terminal.status() == 0
