"""`idefics-chat chat` with the shipped model: typed into, piped into, gone on with, cut short."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.api.pictures import save_pictures
from tests.end_to_end.server_process import ServerProcess, environment

COMMAND = [sys.executable, "-c", "from idefics_chat.cli.main import main; main()", "chat"]
CIRCLE = "A red circle on a white background."


def piped(folder: Path, lines: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
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
        assert "There is no command /dance" in first.stderr
        conversation = answers[3].split()[0]
        assert conversation.startswith("conv_")
        later = piped(tmp_path, "/history\nWhat color is the circle?\n", "--server", url, "--conversation", "last")
        told = ["> [image] What is in this image?", CIRCLE, "> What color is the circle?", "Red."]
        assert later.stdout.splitlines() == [*told, "Red."]
        refused = piped(tmp_path, "Hi\n", "--server", url, "--conversation", "conv_none")
        assert refused.returncode == 1
        assert "conv_none" in refused.stderr
        assert "Traceback" not in refused.stderr
    gone = piped(tmp_path, "Hi\n", "--server", url)
    assert gone.returncode == 1
    assert "No answer from" in gone.stderr


class Terminal:
    """A command on a terminal of its own, typed into by a test."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        leader, follower = pty.openpty()
        self._leader = leader
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment({"TERM": "xterm", "HOME": str(folder)}),
            start_new_session=True,
        )
        os.close(follower)
        self.shown = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until `text` is shown, after what was waited for before."""
        deadline = time.monotonic() + 90
        while text not in self.shown[self._seen :]:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._leader], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._leader, 65536).decode(errors="replace")
                except OSError:
                    break
        assert text in self.shown[self._seen :], self.shown
        self._seen = self.shown.index(text, self._seen) + len(text)

    def close(self) -> int:
        status = self.process.wait(30)
        os.close(self._leader)
        return status


def test_on_a_terminal_a_server_is_started_and_pictures_are_dropped(tmp_path: Path) -> None:
    save_pictures(tmp_path)
    terminal = Terminal(tmp_path, "--database", "mine.db")
    terminal.wait_for("> ")
    terminal.type(f"'{tmp_path}/photo.png' \n")
    terminal.wait_for("photo.png goes with the next question.")
    terminal.wait_for("[1 image] > ")
    terminal.type("What is in this image?\n")
    terminal.wait_for(CIRCLE)
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    terminal.wait_for("Go on later: idefics-chat chat --database mine.db --conversation conv_")
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
    assert (tmp_path / "mine.db").exists()
    assert "What is in this image?" in (tmp_path / ".idefics_chat_history").read_text()
