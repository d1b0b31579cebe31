"""Draws `docs/conversation.svg`, the README's picture, from a conversation with a running server.

    python docs/conversation_picture.py --url ws://127.0.0.1:8000/v1/responses

What stands in the picture is what the server answered.
"""

import argparse
import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from websockets.sync.client import connect

WIDTH, LINE, SIDE = 760, 58, 150
FONT = "font-family='system-ui, sans-serif' font-size='17'"


def drawing(*shapes: tuple[str, str, tuple[int, int, int, int]]) -> bytes:
    """A PNG of circles and squares on white; boxes are on a ground of 100 by 100."""
    image = Image.new("RGB", (800, 800), "white")
    draw = ImageDraw.Draw(image)
    for shape, colour, box in shapes:
        scaled = [8 * value for value in box]
        (draw.ellipse if shape == "circle" else draw.rectangle)(scaled, fill=colour)
    buffer = io.BytesIO()
    image.resize((200, 200), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


TURNS: list[tuple[bytes | None, str]] = [
    (drawing(("circle", "#dc1e1e", (25, 25, 75, 75))), "What is in this image?"),
    (
        drawing(("square", "#1e3cd7", (8, 32, 42, 66)), ("circle", "#f5e128", (56, 32, 92, 68))),
        "What is in this image?",
    ),
    (None, "What color is the square?"),
    (None, "What was in the first image?"),
]


def answers(url: str) -> list[str]:
    """What the server says, turn by turn, in one conversation."""
    said, conversation = [], None
    with connect(url) as socket:
        for picture, question in TURNS:
            content: list[dict[str, str]] = [{"type": "input_text", "text": question}]
            if picture is not None:
                content.append({"type": "input_image", "image_url": as_url(picture)})
            create: dict[str, Any] = {"type": "response.create", "input": [{"role": "user", "content": content}]}
            socket.send(json.dumps({**create, **({"conversation": conversation} if conversation else {})}))
            while (event := json.loads(socket.recv()))["type"] != "response.completed":
                if event["type"] in ("error", "response.failed", "response.incomplete"):
                    raise SystemExit(f"the conversation did not go well: {event}")
            conversation = event["response"]["conversation"]["id"]
            said.append(event["response"]["output"][0]["content"][0]["text"])
    return said


def as_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def svg(said: list[str]) -> str:
    """The picture: questions on the right, answers on the left."""
    rows, top = [], 20
    for (picture, question), answer in zip(TURNS, said, strict=True):
        if picture is not None:
            rows.append(
                f"<image x='{WIDTH - 20 - SIDE}' y='{top}' width='{SIDE}' height='{SIDE}' href='{as_url(picture)}'/>"
            )
            top += SIDE + 10
        for text, mine in ((question, True), (answer, False)):
            rows.append(bubble(text, top, mine))
            top += LINE
    frame = f"<rect width='{WIDTH}' height='{top + 10}' rx='14' fill='#f6f7f9'/>"
    size = f"width='{WIDTH}' height='{top + 10}' viewBox='0 0 {WIDTH} {top + 10}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{frame}{''.join(rows)}</svg>\n"


def bubble(text: str, top: int, mine: bool) -> str:
    width = min(WIDTH - 60, 32 + int(8.6 * len(text)))
    left = WIDTH - 20 - width if mine else 20
    ground, ink = ("#2f6feb", "white") if mine else ("white", "#1f2328")
    return (
        f"<rect x='{left}' y='{top}' width='{width}' height='44' rx='16' fill='{ground}' stroke='#d0d7de'/>"
        f"<text x='{left + 16}' y='{top + 28}' fill='{ink}' {FONT}>{html.escape(text)}</text>"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/responses")
    target = Path(__file__).with_name("conversation.svg")
    target.write_text(svg(answers(parser.parse_args().url)))
    print(f"wrote {target}")
