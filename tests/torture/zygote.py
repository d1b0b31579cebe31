"""A process that has imported all that the server imports, and forks a server whenever it is asked to.

Most of a server's start is importing torch and transformers. A forked server runs the same `main()` on the same
arguments, in a process of its own that is started and killed like any other. It is asked over the socket whose number
is the first argument: a JSON list of arguments and the file for standard error; it answers with the server's process
id, and with the exit status when there is one. Linux only.

It has no thread but its own when it forks: which modules a loaded model imports is found out in a child.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from pathlib import Path

POLL_S = 0.005


def modules_of_the_server() -> list[str]:
    """The names of the modules that are imported once a model is loaded."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        from idefics_chat.server.engine_loading import load_engine
        from idefics_chat.server.settings import Settings

        load_engine(Settings())
        with os.fdopen(writer, "w") as file:
            file.write("\n".join(sys.modules))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        names = file.read().splitlines()
    os.waitpid(child, 0)
    return names


def import_all(names: list[str]) -> None:
    """Import the modules, but those that can be imported only in their own way; the server does that itself then."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001
            continue


def run_server(arguments: list[str], standard_error: int) -> None:
    """Be `idefics-chat` with these arguments. Does not return."""
    os.dup2(standard_error, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["idefics-chat", *arguments]
    status = 0
    try:
        from idefics_chat.cli.main import main

        main()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def status_of(child: int, channel: socket.socket) -> int:
    """Wait for the child's end; its exit status, negative for a signal. Nobody listens any more: it is killed."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([channel], [], [], POLL_S)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise SystemExit


def main() -> None:
    """Until the other end of the socket is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    warnings.simplefilter("ignore")
    import_all(modules_of_the_server())
    gc.freeze()
    assert threading.active_count() == len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would lose threads"
    channel.send(b"ready")
    while True:
        asked, files, *_ = socket.recv_fds(channel, 65_536, 1)
        if not asked:
            return
        if (child := os.fork()) == 0:
            channel.close()
            run_server(json.loads(asked), files[0])
        os.close(files[0])
        channel.send(str(child).encode())
        channel.send(str(status_of(child, channel)).encode())


if __name__ == "__main__":
    main()
