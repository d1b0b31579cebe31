"""The real server as a process of its own, started, killed and started again by a test."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_S = 90
END_S = 60

_READY = re.compile(r"ws://(\S+?)/v1/responses")
_COMMAND = [sys.executable, "-c", "from idefics_chat.cli.main import main; main()"]


def run_command(*arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """`idefics-chat` with these arguments, to its end."""
    return subprocess.run(
        [*_COMMAND, *arguments], capture_output=True, text=True, timeout=START_S, env=environment(env), check=False
    )


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of the server, on one thread of the processor."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("IDEFICS_CHAT_")}
    return {**mine, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(extra or {})}


class ServerProcess:
    """`idefics-chat serve` on a free port of loopback. A context manager; `output` is what it wrote so far."""

    start_s: float = START_S

    def __init__(
        self,
        database: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self._command = command
        self.database = database
        self.output = ""
        serve = ["serve", "--port", "0", "--database", str(database), *arguments]
        self.process = self._spawn(serve, environment(env))
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._pump, daemon=True).start()
        try:
            self.address = self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def url(self) -> str:
        """Of the Responses websocket."""
        return f"ws://{self.address}/v1/responses"

    def kill(self) -> None:
        """As a crash would: SIGKILL."""
        self.process.kill()
        self._reap()

    def terminate(self) -> int:
        """As a supervisor would: SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        self._reap()
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.kill()

    def _spawn(self, arguments: list[str], env: dict[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._command, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env
        )

    def _reap(self) -> None:
        self.process.wait(timeout=END_S)
        while self._lines.get(timeout=END_S) is not None:
            pass

    def _pump(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.output += line
                self._lines.put(line)
        self._lines.put(None)

    def _wait_until_ready(self) -> str:
        while (line := self._lines.get(timeout=self.start_s)) is not None:
            if found := _READY.search(line):
                return found[1]
        self.process.wait(timeout=END_S)
        self._lines.put(None)
        raise RuntimeError(f"the server ended with {self.process.returncode}: {self.output}")
