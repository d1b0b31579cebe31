"""One conversation with a server: questions over the websocket, the rest over HTTP.

A dropped line or a restarted server loses nothing: a question carries a key, so that sending it twice asks it once, and
an answer that was cut off is read on from where the line dropped.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from idefics_chat.tasks.remote import ServerError, base_url

Json = dict[str, Any]

PATIENCE_S = 60.0
"""How long a line that dropped is tried again."""

MAX_FRAME_BYTES = 16 * 2**20
ENDS = ("response.completed", "response.incomplete", "response.failed")


class ChatConnection:
    """Talks with the server at `url`. `conversation` is the id of the conversation, None before its first question."""

    def __init__(self, url: str, key: str | None, conversation: str | None = None) -> None:
        self.url = base_url(url)
        self.conversation = conversation
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

        Ctrl-C cancels the answer: what was said until then is kept.

        Raises:
            ServerError: it was refused, or the server cannot be reached.
        """
        parts: list[Json] = [{"type": "input_image", "image_url": _data_url(path)} for path in images]
        if text:
            parts.append({"type": "input_text", "text": text})
        return self._answered({"input": [{"role": "user", "content": parts}]}, show)

    def again(self, show: Callable[[str], None]) -> Json:
        """Have the last question answered again, beside the first answer. Raises as `ask`."""
        asked = [item for item in self.items() if item["role"] == "user"]
        if not asked:
            raise ServerError("empty_input", "Nothing was asked yet.", 400)
        return self._answered({"previous_item_id": asked[-1]["id"]}, show)

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
        self.conversation = conversation

    def delete(self) -> None:
        """Delete this conversation; the next question begins a new one."""
        if self.conversation is not None:
            self._asked("DELETE", f"/v1/conversations/{self.conversation}")
            self.conversation = None

    def _answered(self, create: Json, show: Callable[[str], None]) -> Json:
        question = _Question({"type": "response.create", "idempotency_key": str(uuid4()), **create}, self.conversation)
        deadline = time.monotonic() + PATIENCE_S
        while question.end is None:
            try:
                for event in self._events(question):
                    show(question.take(event))
                    deadline = time.monotonic() + PATIENCE_S
            except KeyboardInterrupt:
                self._cancel(question)
            except (ConnectionClosed, InvalidHandshake, OSError) as error:
                self._socket = None
                if time.monotonic() > deadline or (question.response_id is None and self.conversation is None):
                    raise ServerError("server_unreachable", f"No answer from {self.url} ({error}).") from error
                time.sleep(0.5)
        self.conversation = question.end["conversation"]["id"]
        return question.end

    def _events(self, question: "_Question") -> Iterator[Json]:
        """The events of a question until its end; asks, or asks on, where the line is new."""
        if self._socket is None or not question.sent:
            if self._socket is None:
                address = "ws" + self.url.removeprefix("http") + "/v1/responses"
                self._socket = connect(address, additional_headers=self._headers, max_size=MAX_FRAME_BYTES)
            self._socket.send(json.dumps(question.request()))
        while question.end is None:
            yield json.loads(self._socket.recv())

    def _cancel(self, question: "_Question") -> None:
        if question.response_id is None or self._socket is None:
            raise KeyboardInterrupt
        with suppress(ConnectionClosed):
            self._socket.send(json.dumps({"type": "response.cancel", "response_id": question.response_id}))

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

    def __init__(self, create: Json, conversation: str | None) -> None:
        self._create = create | ({"conversation": conversation} if conversation else {})
        self._last_seen = -1
        self.sent = False
        self.response_id: str | None = None
        self.end: Json | None = None

    def request(self) -> Json:
        self.sent = True
        if self.response_id is None:
            return self._create
        return {"type": "response.resume", "response_id": self.response_id, "starting_after": self._last_seen}

    def take(self, event: Json) -> str:
        """Take in an event; the text to show for it."""
        if event["type"] == "error":
            if event["code"] == "response_not_active":  # cancelled just as it ended
                return ""
            raise ServerError(event["code"], event["message"], event["status"])
        self._last_seen = event["sequence_number"]
        if "response" in event:
            self.response_id = event["response"]["id"]
        if event["type"] in ENDS:
            self.end = event["response"]
        return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""


def _data_url(path: Path) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()
