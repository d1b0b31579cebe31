"""Runs the Autobahn suite against an echo on our websocket transport: `python -m tests.autobahn --python PYTHON2.7`.

The suite (autobahntestsuite 0.8.2) runs under Python 2.7 alone: give an interpreter that has it installed. Its report
goes to `--report`. Compression is off in our server, so the cases of compression are left out; those of speed too.
"""

import argparse
import asyncio
import collections
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState
from idefics_chat.server.web_server import WebServer, listen

LEFT_OUT = ["9.*", "12.*", "13.*"]
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
KNOWN = {"7.1.5"}
"""Failed by the `websockets` package: a close between a message's fragments is answered with 1002, not 1000."""
RESULTS = Path(__file__).with_name("results.json")
"""What the last run found, case by case."""


async def echo(websocket: WebSocket) -> None:
    """Sends back what comes."""
    await websocket.accept()
    while (message := await websocket.receive())["type"] == "websocket.receive":
        if message.get("text") is not None:
            await websocket.send_text(message["text"])
        else:
            await websocket.send_bytes(message["bytes"])


async def run(python: str, library: str | None, report: Path) -> dict[str, str]:
    """The behaviour of each case, by its number."""
    state = ServerState(Settings(port=0))
    with listen(state.settings) as listener, tempfile.TemporaryDirectory() as folder:
        server = WebServer(state)
        server.config.app = Starlette(routes=[WebSocketRoute("/", echo)])
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        spec = {
            "outdir": str(report),
            "servers": [{"agent": "idefics-chat", "url": url}],
            "cases": ["*"],
            "exclude-cases": LEFT_OUT,
            "exclude-agent-cases": {},
        }
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(spec))
        environment = {**os.environ, **({} if library is None else {"PYTHONPATH": library})}
        code = "from autobahntestsuite.wstest import run; run()"
        suite = await asyncio.create_subprocess_exec(
            python,
            "-c",
            code,
            "-m",
            "fuzzingclient",
            "-s",
            str(file),
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
        )
        if await suite.wait():
            raise SystemExit("the suite did not run")
        server.should_exit = True
        await serving
    found: dict[str, dict[str, Any]] = json.loads((report / "index.json").read_text())["idefics-chat"]
    return {case: result["behavior"] for case, result in found.items()}


def main() -> None:
    """Exit status 1 where a case failed that is not known to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="a Python 2.7")
    parser.add_argument(
        "--library", help="folder in which the suite is installed, where it is not the interpreter's own"
    )
    parser.add_argument("--report", type=Path, default=Path("autobahn-report"))
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.python, arguments.library, arguments.report.resolve()))
    counts = collections.Counter(results.values())
    failed = sorted(case for case, behaviour in results.items() if behaviour not in PASSED)
    sys.stdout.write(f"{len(results)} cases: {dict(counts)}\nfailed: {', '.join(failed) or 'none'}\n")
    RESULTS.write_text(json.dumps(results, indent=0, sort_keys=True) + "\n")
    sys.exit(0 if set(failed) <= KNOWN else 1)


if __name__ == "__main__":
    main()
