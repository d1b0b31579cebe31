"""A plain websocket client that checks every frame it gets against the SDK's types."""

import base64
import json
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.server.openai_types import check_frame

ENDS = {"response.completed", "response.incomplete", "response.failed"}
ANSWER_S = 60

Json = dict[str, Any]


class Client:
    """One connection. `ask` says something and gives the final Response."""

    def __init__(self, url: str, **options: Any) -> None:
        self.socket: ClientConnection = connect(url, max_size=2**20, **options)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self) -> Json:
        """The next frame, checked."""
        frame: Json = json.loads(self.socket.recv(timeout=ANSWER_S))
        check_frame(frame)
        return frame

    def events(self) -> Iterator[Json]:
        """Frames up to a terminal event or an error."""
        while True:
            frame = self.receive()
            yield frame
            if frame["type"] in ENDS or frame["type"] == "error":
                return

    def ask(self, *parts: str | bytes, **fields: Any) -> Json:
        """Say texts and images in one message; the final Response."""
        self.send("response.create", input=[message(*parts)], **fields)
        *_, last = self.events()
        assert last["type"] != "error", last
        response: Json = last["response"]
        return response

    def error(self, frame: str | bytes) -> Json:
        """Send a raw frame that must be answered with an error; that error."""
        self.socket.send(frame)
        answer = self.receive()
        assert answer["type"] == "error", answer
        return answer


def message(*parts: str | bytes) -> Json:
    """A user's message; bytes are images."""
    content = [
        {"type": "input_text", "text": part}
        if isinstance(part, str)
        else {"type": "input_image", "image_url": "data:image/png;base64," + base64.b64encode(part).decode()}
        for part in parts
    ]
    return {"type": "message", "role": "user", "content": content}


def text_of(response: Json) -> str:
    """What the answer says."""
    return "".join(part["text"] for item in response["output"] for part in item["content"])
