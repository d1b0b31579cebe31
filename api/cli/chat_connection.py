"""One conversation with a server: questions over the websocket, the rest over HTTP.

A dropped line or a restarted server loses nothing: a question carries a key, so that sending it twice asks it once, and
an answer that was cut off is read on from where the line dropped.
"""

import base64
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from idefics_chat.tasks.remote import ServerError, base_url

Json = dict[str, Any]

PATIENCE_S = 60.0
"""How long a line that dropped is tried again."""

POLL_S = 0.1
"""How often it is looked whether the person has had enough."""

MAX_FRAME_BYTES = 16 * 2**20
NOT_LET_IN = (401, 403)
ENDS = ("response.completed", "response.incomplete", "response.failed")


class Stopped(Exception):
    """The person waits no longer. What was asked may still be answered."""


class PictureRefused(ServerError):
    """A question that came to nothing for the sake of one picture."""

    def __init__(self, picture: Path, reason: str) -> None:
        super().__init__("invalid_image", f"{picture.name}: {reason}", 400)
        self.picture = picture


class ChatConnection:
    """Talks with the server at `url`. `conversation` is the id of the conversation, None before its first question.

    `stops` gives how often the person has said "enough" while an answer comes: once cancels the answer, what was said
    until then is kept; twice waits for nothing more.
    """

    def __init__(self, url: str, key: str | None, stops: Callable[[], int] = lambda: 0) -> None:
        self.url = base_url(url)
        self.conversation: str | None = None
        self._stops = stops
        self._cut_short: str | None = None
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=30)
        self._socket: ClientConnection | None = None

    def close(self) -> None:
        """Hang up."""
        self._http.close()
        if self._socket is not None:
            self._socket.close()

    def ask(self, text: str, images: Sequence[Path], show: Callable[[str], None]) -> Json:
        """Say something; `show` gets the answer's pieces as they come. Returns the finished response.

        Raises:
            PictureRefused: a picture cannot be read, or the server does not take it.
            ServerError: it was refused, or the server cannot be reached.
            Stopped
        """
        parts: list[Json] = [{"type": "input_image", "image_url": _data_url(path)} for path in images]
        if text:
            parts.append({"type": "input_text", "text": text})
        try:
            return self._answered({"input": [{"role": "user", "content": parts}]}, show)
        except ServerError as error:
            place = re.match(r"input\[0\]\.content\[(\d+)\]", error.param or "")
            if place and int(place[1]) < len(images):
                raise PictureRefused(images[int(place[1])], str(error)) from error
            raise

    def again(self, show: Callable[[str], None]) -> Json:
        """Have the last question answered again, beside the first answer. Raises as `ask`."""
        asked = [item for item in self.items() if item["role"] == "user"]
        if not asked:
            raise ServerError("empty_input", "Nothing was asked yet.", 400)
        return self._answered({"previous_item_id": asked[-1]["id"]}, show)

    def go_on(self, show: Callable[[str], None]) -> Json:
        """Have the answer that was cut short given again, and on to its end. Raises as `ask`."""
        if self._cut_short is None:
            raise ServerError("nothing_to_continue", "No answer was cut short here.", 400)
        return self._answered({"continuation_of": self._cut_short}, show)

    def items(self, limit: int = 100) -> list[Json]:
        """What was said in this conversation, the newest `limit` messages, oldest first. Raises ServerError."""
        if self.conversation is None:
            return []
        page = self._get(f"/v1/conversations/{self.conversation}/items", limit=limit, order="desc")
        return list(reversed(page["data"]))

    def conversations(self, limit: int = 10) -> list[Json]:
        """The latest conversations, the newest first. Raises ServerError."""
        listed: list[Json] = self._get("/v1/conversations", limit=limit)["data"]
        return listed

    def resume(self, conversation: str) -> None:
        """Go on with a conversation. Raises ServerError where there is no such."""
        self._get(f"/v1/conversations/{conversation}")
        self.conversation, self._cut_short = conversation, None

    def leave(self) -> None:
        """The next question begins a new conversation."""
        self.conversation = self._cut_short = None

    def delete(self) -> None:
        """Delete this conversation; the next question begins a new one."""
        if self.conversation is not None:
            self._asked("DELETE", f"/v1/conversations/{self.conversation}")
            self.leave()

    def _answered(self, create: Json, show: Callable[[str], None]) -> Json:
        # An answer that is gone on with says itself where.
        place = {} if self.conversation is None or "continuation_of" in create else {"conversation": self.conversation}
        question = _Question({"type": "response.create", "idempotency_key": str(uuid4()), **create, **place})
        while question.end is None:
            try:
                self._read_on(question, show)
            except (ConnectionClosed, InvalidHandshake, OSError) as error:
                self._socket = None
                if isinstance(error, InvalidStatus) and error.response.status_code in NOT_LET_IN:
                    raise _refusal(error.response.status_code, error.response.body) from error
                patient = time.monotonic() < question.heard_at_s + PATIENCE_S
                if not patient or (question.response_id is None and self.conversation is None):
                    raise ServerError("server_unreachable", f"No answer from {self.url} ({error}).") from error
                if self._stops():
                    raise Stopped from error
                time.sleep(0.5)
        cut_short = question.end["status"] in ("incomplete", "cancelled")
        self._cut_short = question.end["id"] if cut_short else None
        return question.end

    def _read_on(self, question: "_Question", show: Callable[[str], None]) -> None:
        """Ask, or ask on where the line is new, and read to the end."""
        socket = self._socket
        if socket is None:
            address = "ws" + self.url.removeprefix("http") + "/v1/responses"
            socket = connect(address, additional_headers=self._headers, max_size=MAX_FRAME_BYTES)
        if socket is not self._socket or not question.sent:
            self._socket = socket
            socket.send(json.dumps(question.request()))
        while question.end is None:
            self._stop_where_wanted(question, socket)
            with suppress(TimeoutError):
                show(question.take(json.loads(socket.recv(timeout=POLL_S))))
                self.conversation = question.conversation or self.conversation

    def _stop_where_wanted(self, question: "_Question", socket: ClientConnection) -> None:
        stops = self._stops()
        if stops > 1:
            self._socket = None  # what may still come on this line belongs to no question
            socket.close()
            raise Stopped
        if stops and question.response_id is not None and not question.cancelled:
            question.cancelled = True
            socket.send(json.dumps({"type": "response.cancel", "response_id": question.response_id}))

    def _get(self, path: str, **query: Any) -> Json:
        return self._asked("GET", path, **query)

    def _asked(self, method: str, path: str, **query: Any) -> Json:
        try:
            answer = self._http.request(method, path, params=query)
            value: Json = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServerError("server_unreachable", f"No answer from {self.url} ({error}).") from error
        if answer.is_success:
            return value
        raise ServerError(value["error"]["code"], value["error"]["message"], answer.status_code)


class _Question:
    """A question under way: what to send so that its answer comes, or comes on."""

    def __init__(self, create: Json) -> None:
        self._create = create
        self._last_seen = -1
        self._said = ""
        self.sent = False
        self.cancelled = False
        self.heard_at_s = time.monotonic()
        self.response_id: str | None = None
        self.conversation: str | None = None
        self.end: Json | None = None

    def request(self) -> Json:
        self.sent, self.cancelled = True, False
        if self.response_id is None:
            return self._create
        return {"type": "response.resume", "response_id": self.response_id, "starting_after": self._last_seen}

    def take(self, event: Json) -> str:
        """Take in an event; the text to show for it."""
        self.heard_at_s = time.monotonic()
        if event["type"] == "error":
            if event["code"] == "response_not_active":  # cancelled just as it ended
                return ""
            raise ServerError(event["code"], event["message"], event["status"], event.get("param"))
        self._last_seen = event["sequence_number"]
        if "response" in event:
            self.response_id = event["response"]["id"]
            self.conversation = event["response"]["conversation"]["id"]
        if event["type"] in ENDS:
            self.end = event["response"]
        if event["type"] == "response.output_text.done" and event["text"] != self._said:
            return f"\n{event['text']}"  # a crash took some of what was shown; this is what stands
        if event["type"] != "response.output_text.delta":
            return ""
        self._said += event["delta"]
        return str(event["delta"])


def _refusal(status: int, body: bytes) -> ServerError:
    """What a server says that does not let this client in."""
    try:
        told = json.loads(body)["error"]
        return ServerError(str(told["code"]), str(told["message"]), status)
    except (ValueError, KeyError, TypeError):
        return ServerError(
            "invalid_api_key", f"Not let in (HTTP {status}); give a key that is known with --key.", status
        )


def _data_url(path: Path) -> str:
    """Raises PictureRefused."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PictureRefused(path, f"This file cannot be read ({error.strerror}); give another one.") from error
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()
