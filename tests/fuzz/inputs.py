"""What hostile clients send: events and bodies with something wrong in them, frames and heads that break the rules.

All of it comes from a seeded `random.Random`, so that a run can be repeated.
"""

import base64
import json
import random
import struct
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

SAID: Json = {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
        "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
    )
).decode()
SHOWN: Json = {
    "role": "user",
    "content": [
        {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"},
        {"type": "input_text", "text": "What?"},
    ],
}
SHORT = {"max_output_tokens": 2}
EVENTS: tuple[Json, ...] = (
    {"type": "response.create", "input": [SAID], "stream_id": "a", "metadata": {"a": "b"}, "stop": ["x"], **SHORT},
    {"type": "response.create", "input": [SHOWN], "temperature": 1.0, "top_p": 0.5, "seed": 1, "top_k": 3, **SHORT},
    {"type": "response.create", "input": "Hi", "conversation": {"key": "k"}, "idempotency_key": "i", **SHORT},
    {"type": "response.create", "input": "Hi", "previous_response_id": "resp_x", "generate": False},
    {
        "type": "response.create",
        "input": [{**SAID, "content": [{"type": "input_image", "image_url": "frame:0"}]}],
        **SHORT,
    },
    {"type": "response.cancel", "response_id": "resp_x"},
    {"type": "response.interrupt", "response_id": "resp_x", "mode": "cancel"},
    {"type": "response.resume", "response_id": "resp_x", "starting_after": 3, "stream_id": "b"},
    {"type": "conversation.subscribe", "conversation": "conv_x", "starting_after": None},
    {"type": "conversation.unsubscribe", "conversation": "conv_x"},
)
REALTIME: tuple[Json, ...] = (
    {"type": "session.update", "session": {"type": "realtime", "instructions": "x", "output_modalities": ["text"]}},
    {"type": "conversation.item.create", "item": {"type": "message", **SAID}, "previous_item_id": None},
    {"type": "conversation.item.retrieve", "item_id": "msg_x"},
    {"type": "conversation.item.delete", "item_id": "msg_x"},
    {"type": "response.create", "response": {"conversation": "none", "input": [{"type": "message", **SAID}], **SHORT}},
    {"type": "response.cancel"},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
)
SOCKETS: dict[str, tuple[Json, ...]] = {"/v1/responses": EVENTS, "/v1/realtime": REALTIME}
BODIES: dict[str, Json] = {
    "/v1/responses": {"input": [SAID], "stream": True, "instructions": "x", "temperature": 1.0, **SHORT},
    "/v1/responses/input_tokens": {"input": [SHOWN]},
    "/v1/conversations": {"items": [SAID], "metadata": {"a": "b"}},
    "/v1/conversations/conv_x": {"title": "x", "archived": False},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 1, "max_tokens": 2},
}
PATHS = (
    *BODIES,
    "/v1/responses/resp_x?stream=true&starting_after=1",
    "/v1/conversations/search?q=x&limit=3",
    "/v1/conversations/conv_x/items?order=asc&after=msg_x",
    "/v1/models",
    "/v1/files/file_x/content",
    "/metrics",
    "/healthz",
    "/",
)
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD", "BREW", "\x00")
HEADERS = (
    "authorization", "origin", "content-type", "idempotency-key", "traceparent", "x-forwarded-for", "expect", "range",
    "accept-encoding", "connection", "cookie", "sec-websocket-protocol",
)  # fmt: skip
WORDS = (
    "", "\0", "\ud800", "\udfff\ud800", "' OR 1=1 --", '"', "*", "<image>", "<end_of_utterance>", "data:,", "frame:0",
    "frame:99999999999999999999", "http://169.254.169.254/", "../../etc/passwd", "resp_" + "0" * 32, "conv_", "\u202e",
    "😀" * 10, "%s%n", "${jndi:x}", "a" * 5000, "\r\nx: y",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0, 0.1, float("inf"), float("nan"))


@dataclass(frozen=True, slots=True)
class Hostile:
    """One input. `message`: a websocket message to `path`; `raw`: bytes on a websocket that was opened to `path`;
    `http`: bytes on a fresh connection; `slow`: the same, drop by drop and never whole; `gone`: opened and dropped
    with a reset; `flood`: a message many times over, with nothing read between."""

    kind: Literal["message", "raw", "http", "slow", "gone", "flood"]
    path: str
    data: str | bytes


def hostile(rng: random.Random) -> Hostile:
    """Any one of them."""
    kind = rng.choices(("message", "raw", "http", "slow", "gone", "flood"), weights=(60, 14, 20, 1, 4, 1))[0]
    path = rng.choice(tuple(SOCKETS))
    if kind in ("message", "flood"):
        return Hostile(kind, path, message(rng, path))
    if kind == "raw":
        return Hostile("raw", path, frames(rng, path))
    if kind == "gone":
        return Hostile("gone", path, frames(rng, path) if rng.random() < 0.5 else request(rng)[: rng.randrange(80)])
    return Hostile("http" if kind == "http" else "slow", "", request(rng))


def message(rng: random.Random, path: str) -> str | bytes:
    """A websocket message: an event with something wrong in it, or no event at all."""
    chance = rng.random()
    if chance < 0.80:
        return text_of(spoilt(rng, rng.choice(SOCKETS[path])), rng)
    if chance < 0.85:
        return rng.choice(("", " ", "[]", "null", "1e999", '"x"', "{", "{}", "\ufeff{}", '{"type":1}', "NaN"))
    if chance < 0.90:
        depth = rng.choice((10, 1000, 100_000))
        return rng.choice(("[", '{"a":', '[{"input":')) * depth
    if chance < 0.95:
        return rng.randbytes(rng.choice((0, 1, 100, 70_000)))
    return '{"type":"response.create","input":"' + "x" * rng.choice((1000, 200_001, 1_100_000)) + '"}'


def spoilt(rng: random.Random, value: Any) -> Any:
    """The value with something in it, however deep, replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.1:
            return {key: part for key, part in value.items() if key != name}
        if chance < 0.2:
            return {**value, rng.choice(WORDS): anything(rng)}
        return {**value, name: spoilt(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        return [spoilt(rng, value[0]), *value[1:]] * rng.choice((1, 1, 1, 2, 300))
    return anything(rng)


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, and some that are none."""
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4):
        return rng.choice(WORDS)
    if kind == 5:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(WORDS)[:20]: anything(rng, depth + 1) for _ in range(rng.randrange(4))}


def text_of(value: Any, rng: random.Random) -> str:
    """As JSON; halves of surrogate pairs can only be sent escaped."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5 or "\\ud" in json.dumps(value))
    return text if len(text) < 2_000_000 else text[:2_000_000]


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, rsv: int = 0, length: int | None = None
) -> bytes:
    """A client's websocket frame, by the rules or not. `length` is what it says of its payload."""
    said = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    mask = 0x80 if masked else 0
    if said < 126:
        head += bytes([mask | said])
    elif said < 2**16:
        head += bytes([mask | 126]) + struct.pack(">H", said)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", said)
    return head + (b"\0\0\0\0" if masked else b"") + payload


def frames(rng: random.Random, path: str) -> bytes:
    """Frames that break a rule, or bytes that are no frames."""
    good = text_of(rng.choice(SOCKETS[path]), rng).encode("utf-8", "replace")
    return rng.choice(
        (
            lambda: frame(1, b"\xff\xfe" + good),
            lambda: frame(1, good[:-1] + b"\xc3"),
            lambda: frame(1, good, masked=False),
            lambda: frame(rng.choice((3, 4, 5, 6, 7, 11, 15)), good),
            lambda: frame(1, good, rsv=rng.randrange(1, 8)),
            lambda: frame(9, b"x" * 200),
            lambda: frame(9, b"x", fin=False),
            lambda: frame(8, rng.randbytes(rng.choice((0, 1, 2, 3, 125)))),
            lambda: frame(8, struct.pack(">H", rng.choice((0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)))),
            lambda: frame(0, good),
            lambda: frame(1, good, fin=False) + frame(1, good),
            lambda: frame(1, good, fin=False) + frame(8, b"\x03\xe8"),
            lambda: frame(1, good, length=2**63 + 5),
            lambda: frame(1, good, length=2**40),
            lambda: frame(2, b"", fin=True) * rng.randrange(1, 40),
            lambda: b"".join(
                frame(1 if n == 0 else 0, good[n : n + 1], fin=n == len(good) - 1) for n in range(len(good))
            ),
            lambda: frame(9, b"ping") * rng.randrange(1, 200),
            lambda: frame(10, b"pong"),
            lambda: rng.randbytes(rng.randrange(1, 300)),
            lambda: frame(1, good)[: rng.randrange(1, 20)],
        )
    )()


def request(rng: random.Random) -> bytes:
    """An HTTP request with something wrong in it."""
    chance = rng.random()
    path = rng.choice(PATHS)
    if chance < 0.55:
        path = rng.choice(tuple(BODIES))
        body = text_of(spoilt(rng, BODIES[path]), rng).encode("utf-8", "replace")
        return _head("POST", path, _headers(rng), len(body)) + body
    if chance < 0.7:
        return _head(
            rng.choice(METHODS), path + rng.choice(("", "?", "?limit=x", "/%00", "/%ff", "/..")), _headers(rng), None
        )
    if chance < 0.78:
        return _head("POST", path, [], rng.choice((-1, 5, 10**20)))[:-2] + b"content-length: 3\r\n\r\nabc"
    if chance < 0.86:
        chunks = rng.choice((b"zz\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\n", b"3\r\nabc", b"1;" + b"x" * 9000))
        return _head("POST", path, ["transfer-encoding: chunked"], None) + chunks
    if chance < 0.92:
        return _head("GET", path, [f"x: {'y' * rng.choice((100, 70_000))}"] * rng.randrange(1, 5), None)
    return rng.randbytes(rng.randrange(1, 400))


def _headers(rng: random.Random) -> list[str]:
    words = [word.replace("\r", "").replace("\n", "").replace("\0", "")[:200] for word in WORDS]
    return [f"{rng.choice(HEADERS)}: {rng.choice(words)}" for _ in range(rng.randrange(3))]


def _head(method: str, path: str, headers: list[str], length: int | None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *headers]
    if length is not None:
        lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")
