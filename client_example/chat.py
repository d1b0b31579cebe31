#!/usr/bin/env python3
"""Talk to an idefics-chat server about pictures, from a terminal.

    python client_example/chat.py photo.png "What is in this image?"
    python client_example/chat.py --conversation conv_...              goes on where it stopped
    python client_example/chat.py --once photo.png "What color is it?"

Needs the `websockets` package alone. A dropped line or a restarted server loses nothing: a question carries a key, so
that sending it twice asks it once, and an answer that was cut off is read on from where the line dropped.
"""

import argparse
import base64
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

HELP = "Ask, or: /image PATH adds a picture to the next question, /quit ends. Ctrl-C cuts an answer short."
PATIENCE_S = 60
MAX_FRAME_BYTES = 16 * 2**20
SERVER_URL = os.environ.get("IDEFICS_CHAT_URL", "ws://127.0.0.1:8000/v1/responses")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


class Refused(Exception):
    """The server refused the request; the message is its sentence."""


class Question:
    """A question under way: what to send so that its answer comes, or comes on."""

    def __init__(self, content: list[dict[str, str]], conversation: str | None) -> None:
        self.create: dict[str, Any] = {
            "type": "response.create",
            "input": [{"role": "user", "content": content}],
            "idempotency_key": str(uuid.uuid4()),
        }
        if conversation:
            self.create["conversation"] = conversation
        self.response_id: str | None = None
        self.last_seen = -1
        self.said = ""
        self.end: dict[str, Any] | None = None

    def request(self) -> dict[str, Any]:
        if self.response_id is None:
            return self.create
        return {"type": "response.resume", "response_id": self.response_id, "starting_after": self.last_seen}

    def take(self, event: dict[str, Any]) -> str:
        """Take in an event; the text to show for it."""
        if event["type"] == "error":
            if event["code"] == "response_not_active":  # cancelled just as it ended
                return ""
            raise Refused(event["message"])
        self.last_seen = event["sequence_number"]
        if "response" in event:
            self.response_id = event["response"]["id"]
        if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
            self.end = event["response"]
        if event["type"] == "response.output_text.done" and event["text"] != self.said:
            return f"\n{event['text']}"  # a crash took some of what was shown; this is what stands
        piece = str(event.get("delta", ""))
        self.said += piece
        return piece


class Chat:
    """One conversation with a server, over a connection that is made again when it drops."""

    def __init__(self, url: str, key: str | None, conversation: str | None) -> None:
        self.url = websocket_url(url)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.conversation = conversation
        self.socket: ClientConnection | None = None

    def ask(self, text: str, images: list[Path]) -> None:
        """Send a question and print its answer as it comes."""
        question = Question(content_of(text, images), self.conversation)
        deadline = time.monotonic() + PATIENCE_S
        while question.end is None:
            try:
                for event in self.events(question):
                    print(question.take(event), end="", flush=True)
                    deadline = time.monotonic() + PATIENCE_S
            except KeyboardInterrupt:
                if question.response_id is None or self.socket is None:
                    raise
                self.socket.send(json.dumps({"type": "response.cancel", "response_id": question.response_id}))
            except (ConnectionClosed, InvalidHandshake, OSError) as error:
                self.socket = None
                if time.monotonic() > deadline:
                    raise Refused(f"No answer from {self.url}: {error}. Is the server running (make serve)?") from None
                if question.response_id is None and not self.conversation:
                    # Nothing was said yet: a wrong address should show at once.
                    deadline = min(deadline, time.monotonic() + 2)
                time.sleep(0.5)
        self.conversation = question.end["conversation"]["id"]
        print(note_on(question.end))

    def events(self, question: Question) -> Iterator[dict[str, Any]]:
        """The events of a question until its end; asks, or asks on, where the connection is new."""
        if self.socket is None or question.response_id is None:
            self.connection().send(json.dumps(question.request()))
        while question.end is None:
            yield json.loads(self.connection().recv())

    def connection(self) -> ClientConnection:
        """The connection, made where there is none. Raises Refused where the server would refuse the next one too."""
        if self.socket is None:
            try:
                self.socket = connect(self.url, additional_headers=self.headers, max_size=MAX_FRAME_BYTES)
            except InvalidStatus as error:
                if error.response.status_code in (401, 403):
                    raise Refused(sentence_in(error.response.body)) from None
                raise
            except InvalidURI as error:
                raise Refused(f"{error}; give --url as ws://127.0.0.1:8000/v1/responses.") from None
        return self.socket

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


def websocket_url(url: str) -> str:
    """The address of the websocket; the http address of the same server will do too."""
    return f"ws{url.removeprefix('http')}" if url.startswith(("http://", "https://")) else url


def sentence_in(body: bytes) -> str:
    """What the server says in the body of an answer that is no websocket."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "The server does not let you in; give a key that it knows with --key."


def content_of(text: str, images: list[Path]) -> list[dict[str, str]]:
    parts = [{"type": "input_image", "image_url": data_url(path)} for path in images]
    return [*parts, {"type": "input_text", "text": text}] if text else parts


def data_url(path: Path) -> str:
    return "data:image/*;base64," + base64.b64encode(path.read_bytes()).decode()


def note_on(end: dict[str, Any]) -> str:
    """What to add behind an answer that did not end by itself."""
    if end["status"] == "failed":
        return f"[failed: {end['error']['message']}]"
    if end["status"] == "completed":
        return ""
    return f" [cut short: {end['incomplete_details']['cause']}]"


def talk(chat: Chat, text: str, images: list[Path], once: bool) -> None:
    """Ask what the command line says, then what is typed."""
    if text or images:
        if sys.stdin.isatty() and not once:
            print(f"> {text}")
        chat.ask(text or "What is in this image?", images)
    if once:
        return
    if sys.stdin.isatty():
        print(HELP)
    waiting: list[Path] = []
    while (line := read_line()) is not None:
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/image":
            waiting = [*waiting, *added_image(rest)]
        elif command == "/help":
            print(HELP)
        elif line:
            answer_or_say_why(chat, line, waiting)
            waiting = []


def read_line() -> str | None:
    """The next line typed, stripped; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def added_image(name: str) -> list[Path]:
    path = Path(name.strip().strip("'\"")).expanduser()
    if path.is_file():
        return [path]
    print(f"There is no file {path}.")
    return []


def answer_or_say_why(chat: Chat, text: str, images: list[Path]) -> None:
    try:
        chat.ask(text, images)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)


def looks_like_a_file(word: str) -> bool:
    return Path(word).is_file() or (" " not in word and Path(word).suffix.lower() in IMAGE_SUFFIXES)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Talk to an idefics-chat server about pictures.", epilog=HELP)
    parser.add_argument("words", nargs="*", metavar="IMAGE... QUESTION", help="pictures, then the question")
    parser.add_argument("--conversation", help="go on with this conversation")
    parser.add_argument("--once", action="store_true", help="answer the question and end")
    parser.add_argument("--url", default=SERVER_URL)
    parser.add_argument("--key", default=os.environ.get("IDEFICS_CHAT_KEY"), help="where the server insists on one")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    images = [Path(word) for word in arguments.words if looks_like_a_file(word)]
    text = " ".join(word for word in arguments.words if not looks_like_a_file(word))
    if missing := [str(path) for path in images if not path.is_file()]:
        print(f"error: There is no file {', '.join(missing)}.", file=sys.stderr)
        return 1
    chat = Chat(arguments.url, arguments.key, arguments.conversation)
    try:
        talk(chat, text, images, arguments.once)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        chat.close()
    if chat.conversation and not arguments.once:
        address = [] if arguments.url == SERVER_URL else ["--url", arguments.url]
        again = ["python", "client_example/chat.py", *address, "--conversation", chat.conversation]
        print(f"Go on later with: {shlex.join(again)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
