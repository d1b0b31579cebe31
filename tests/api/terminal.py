"""A command on a terminal of its own, as a person has it. There are no tests here."""

import functools
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.end_to_end.server_process import environment

COMMAND = (sys.executable, "-c", "from idefics_chat.cli.main import main; main()")

SLOW_MODEL = """
import time
from idefics_chat.inference.scheduler import Scheduler
step = Scheduler.step
def slow_step(self):
    time.sleep(0.25)
    step(self)
Scheduler.step = slow_step
from idefics_chat.cli.main import main
main()
"""
SLOW_COMMAND = (sys.executable, "-c", SLOW_MODEL)
"""The same, with a model so slow that a person can break in on it."""

CTRL_C = "\x03"
CTRL_D = "\x04"
PERSON_S = 0.3


def heed_ctrl_c() -> None:
    """In a child: what a shell puts in the background has children that ignore SIGINT, tests that it runs too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _sit_down(follower: int) -> None:
    """In a child: make the terminal its controlling one, so that Ctrl-C is a signal there."""
    os.login_tty(follower)
    heed_ctrl_c()


class Terminal:
    """`idefics-chat chat` typed into by a test. A context manager, which ends it."""

    def __init__(self, folder: Path, *arguments: str, command: tuple[str, ...] = COMMAND) -> None:
        leader, follower = pty.openpty()
        self._leader = leader
        self.process = subprocess.Popen(
            [*command, "chat", *arguments],
            cwd=folder,
            env=environment({"TERM": "xterm", "HOME": str(folder)}),
            preexec_fn=functools.partial(_sit_down, follower),
        )
        os.close(follower)
        self.shown = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def press(self, key: str) -> None:
        """As a person does, who is slower than a prompt: readline may miss a signal in the moment in which it shows
        one."""
        time.sleep(PERSON_S)
        self.type(key)

    def wait_for(self, text: str) -> str:
        """Read until `text` is shown, after what was waited for before; what was shown up to it."""
        deadline = time.monotonic() + 60
        while text not in self.shown[self._seen :]:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._leader], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._leader, 65536).decode(errors="replace")
                except OSError:
                    break
        assert text in self.shown[self._seen :], self.shown
        start, self._seen = self._seen, self.shown.index(text, self._seen) + len(text)
        return self.shown[start : self._seen]

    def status(self) -> int:
        """Of its end."""
        return self.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        os.close(self._leader)


def on_a_terminal(command: Sequence[str], folder: Path) -> str:
    """What a command writes where it thinks that a person reads."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, cwd=folder, stdin=follower, stdout=follower, stderr=follower, env=environment({"TERM": "xterm"})
    )
    os.close(follower)
    written = b""
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.2)[0]:
            try:
                written += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
    process.wait(60)
    os.close(leader)
    return written.decode(errors="replace")
