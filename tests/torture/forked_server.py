"""Servers forked by a zygote (zygote.py), with what a test needs of a `subprocess.Popen`."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Self

from tests.end_to_end.server_process import ServerProcess, environment

START_S = 900.0
END_S = 120.0


class Zygote:
    """Forks servers, one at a time. A context manager; it starts in the background."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment({"PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}),
            )
        self._ready = False

    def fork(self, arguments: list[str]) -> "ForkedProcess":
        """A server with these arguments of `idefics-chat`. Waits until the modules are imported."""
        if not self._ready:
            self._channel.settimeout(START_S)
            assert self._channel.recv(64) == b"ready", "the zygote did not start"
            self._ready = True
        reader, writer = os.pipe()
        socket.send_fds(self._channel, [json.dumps(arguments).encode()], [writer])
        os.close(writer)
        return ForkedProcess(int(self._channel.recv(64)), self._channel, os.fdopen(reader))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ForkedProcess:
    """A forked server's process, as `ServerProcess` uses one."""

    def __init__(self, pid: int, channel: socket.socket, stderr: IO[str]) -> None:
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        self._channel = channel

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that has not been waited for."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        if self.returncode is None:
            self._channel.setblocking(False)
            try:
                self.returncode = int(self._channel.recv(64))
            except BlockingIOError:
                return None
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit status. Raises TimeoutError."""
        if self.returncode is None:
            self._channel.settimeout(timeout)
            self.returncode = int(self._channel.recv(64))
        return self.returncode


class ColdServer(ServerProcess):
    """A server that starts from nothing, on a machine that may be busy."""

    start_s = START_S


class ForkedServer(ServerProcess):
    """A server that a zygote forks."""

    start_s = START_S

    def __init__(self, zygote: Zygote, database: Path) -> None:
        self._zygote = zygote
        super().__init__(database)

    def _spawn(self, arguments: list[str], env: dict[str, str]) -> Any:
        return self._zygote.fork(arguments)
