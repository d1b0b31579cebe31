"""Bad input: a stable code, a sentence that says what to do, a connection that stays, and nothing lost."""

import base64
import json
import socket
import sqlite3
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from idefics_chat.server.errors import CODES
from idefics_chat.storage.models import Base
from tests.end_to_end.client import Client, message, text_of
from tests.end_to_end.server_process import ServerProcess, run_command

JPEG_MAGIC = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def giant_png() -> bytes:
    """20,000 x 20,000 pixels by its header, in less than 2 kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
        + chunk(b"IEND", b"")
    )


def create(**fields: Any) -> str:
    return json.dumps({"type": "response.create", **fields})


def showing(url: str) -> str:
    return create(input=[{"role": "user", "content": [{"type": "input_image", "image_url": url}]}])


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


BAD_FRAMES: list[tuple[str, str | bytes, str]] = [
    ("not JSON", "hello", "invalid_json"),
    ("JSON but no object", "[]", "invalid_json"),
    ("an unknown event", '{"type": "response.dance"}', "unknown_event"),
    ("an event without a type", "{}", "missing_required_parameter"),
    ("a missing field", '{"type": "response.cancel"}', "missing_required_parameter"),
    ("no input at all", create(), "missing_required_parameter"),
    ("an empty message", create(input=""), "empty_input"),
    ("a message of spaces", create(input=[message("  \n ")]), "empty_input"),
    ("a wrong type", create(input=7), "invalid_value"),
    ("a sampling value out of range", create(input="Hi", temperature=-1), "invalid_value"),
    ("wrong base64", showing("data:image/png;base64,%%%"), "invalid_base64_image"),
    ("not an image", showing(data_url(b"GIF89a, or so it says")), "invalid_image"),
    ("a giant in two kilobytes", showing(data_url(giant_png())), "image_too_large"),
    ("a truncated JPEG", showing(data_url(JPEG_MAGIC)), "invalid_image"),
    ("a link to fetch", showing("http://127.0.0.1:1/secret.png"), "invalid_image_url"),
    ("a frame that never came", showing("frame:0"), "invalid_image_url"),
    ("an unknown conversation", create(input="Hi", conversation="conv_none"), "conversation_not_found"),
    ("an unknown response", create(input="Hi", previous_response_id="resp_none"), "previous_response_not_found"),
    ("an unknown model", create(input="Hi", model="gpt-6"), "model_not_found"),
    ("a prompt that cannot fit", create(input="circle square " * 2000), "context_length_exceeded"),
    ("more text than is taken", create(input="x" * 200_001), "invalid_value"),
    ("half a surrogate pair", '{"type": "response.create", "input": "\\ud800"}', "invalid_value"),
    ("JSON too deep", "[" * 50_000, "invalid_json"),
    ("the cancel of nothing", '{"type": "response.cancel", "response_id": "resp_none"}', "response_not_found"),
    ("the resuming of nothing", '{"type": "response.resume", "response_id": "resp_none"}', "response_not_found"),
]


@pytest.mark.parametrize(("frame", "code"), [bad[1:] for bad in BAD_FRAMES], ids=[bad[0] for bad in BAD_FRAMES])
def test_a_bad_frame_is_answered_and_the_connection_stays(client: Client, frame: str | bytes, code: str) -> None:
    answer = client.error(frame)
    assert answer["code"] == answer["error"]["code"] == code
    assert answer["status"] == CODES[code][0]
    assert answer["message"].endswith((".", "!"))
    assert len(answer["message"]) > 20
    assert client.ask("Hello")["status"] == "completed"


def test_bad_turns_leave_a_conversation_as_it_was(client: Client, server: ServerProcess, red_circle: bytes) -> None:
    first = client.ask("What is in this image?", red_circle)
    conversation = first["conversation"]["id"]

    def rows() -> list[Any]:
        with sqlite3.connect(f"file:{server.database}?mode=ro", uri=True) as database:
            return [database.execute(f"select count(*) from {table}").fetchone() for table in Base.metadata.tables]

    before = rows()
    for frame in (
        create(conversation=conversation, input=""),
        create(conversation=conversation, input=[message(giant_png(), "What?")]),
        create(conversation=conversation, input=[message(red_circle, JPEG_MAGIC)]),
        create(conversation=conversation, input="circle " * 5000),
        create(conversation=conversation, input="Hi", temperature=99),
    ):
        client.error(frame)
    assert rows() == before
    assert "red" in text_of(client.ask("What color is the circle?", conversation=conversation)).lower()


def test_a_bad_lane_is_named_and_the_others_go_on(client: Client) -> None:
    client.send("response.create", input="", stream_id="bad")
    client.send("response.create", input="Hello", stream_id="good")
    frames = []
    while not frames or frames[-1]["type"] != "response.completed":
        frames.append(client.receive())
    assert [f["stream_id"] for f in frames if f["type"] == "error"] == ["bad"]
    assert frames[-1]["stream_id"] == "good"


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Insists on keys, takes small frames, serves one foreign page."""
    database = tmp_path_factory.mktemp("strict") / "chat.db"
    environment = {"IDEFICS_CHAT_MAX_FRAME_BYTES": "20000", "IDEFICS_CHAT_REQUIRE_KEY": "1"}
    with ServerProcess(database, "--allowed-origins", "https://shop.example", env=environment) as server:
        yield server


def new_key(database: Path, name: str) -> str:
    made = run_command("keys", "create", name, "--database", str(database))
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("\n") == 1
    return made.stdout.strip()


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


def test_another_owner_s_conversation_does_not_exist(strict_server: ServerProcess) -> None:
    ann, bob = (new_key(strict_server.database, name) for name in ("ann", "bob"))
    with Client(strict_server.url, **bearer(ann)) as client:
        mine = client.ask("Hello")
    conversation = mine["conversation"]["id"]
    with Client(strict_server.url, **bearer(bob)) as client:
        theirs = client.error(create(input="Hi", conversation=conversation))
        unknown = client.error(create(input="Hi", conversation="conv_none"))
        assert theirs["message"].replace(conversation, "conv_none") == unknown["message"]
        assert client.error(create(input="Hi", previous_response_id=mine["id"]))["status"] == 404
        client.send("response.resume", response_id=mine["id"])
        assert client.receive()["code"] == "response_not_found"
    with Client(strict_server.url, subprotocols=["realtime", f"openai-insecure-api-key.{ann}"]) as client:
        assert client.socket.subprotocol == "realtime"
        assert client.ask("Hello again", conversation=conversation)["status"] == "completed"


@pytest.mark.parametrize(
    "options", [{}, bearer("wrong"), bearer("ick_wrong")], ids=["no key", "no key of ours", "unknown"]
)
def test_without_a_known_key_the_handshake_is_refused(strict_server: ServerProcess, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        Client(strict_server.url, **options)
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"


def test_a_frame_over_the_limit_is_answered_and_one_far_over_it_is_cut_off(strict_server: ServerProcess) -> None:
    key = new_key(strict_server.database, "carol")
    with Client(strict_server.url, **bearer(key)) as client:
        assert client.error(create(input="x" * 25_000))["code"] == "frame_too_large"
        assert client.error(b"x" * 25_000)["code"] == "frame_too_large"
        assert client.ask("Hello")["status"] == "completed"
        with pytest.raises(ConnectionClosed) as closed:
            client.error(create(input="x" * 60_000))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_pages_of_other_sites_and_names_of_others_are_refused(
    server: ServerProcess, strict_server: ServerProcess
) -> None:
    host, _, port = server.address.rpartition(":")
    rebound = socket.create_connection((host, int(port)))
    evil: list[tuple[str, dict[str, Any]]] = [
        (server.url, {"origin": "https://evil.example"}),
        ("ws://evil.example/v1/responses", {"sock": rebound}),
    ]
    for url, options in evil:
        with pytest.raises(InvalidStatus) as refused:
            Client(url, **options)
        assert refused.value.response.status_code == 403
    with Client(server.url, origin=f"http://{server.address}"):
        pass
    key = new_key(strict_server.database, "dora")
    with Client(strict_server.url, origin="https://shop.example", **bearer(key)):
        pass


def test_health_and_readiness_are_told_over_http(server: ServerProcess) -> None:
    for path in ("healthz", "readyz"):
        with urllib.request.urlopen(f"http://{server.address}/{path}", timeout=10) as answer:
            assert answer.status == 200


def test_an_unknown_page_is_not_found_in_the_shape_of_all_errors(server: ServerProcess) -> None:
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"http://{server.address}/v1/nothing", timeout=10)
    assert missing.value.code == 404
    assert set(json.load(missing.value)["error"]) == {"message", "type", "code", "param"}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["serve", "--host", "0.0.0.0"], 1, "--require-key"),
        (["serve", "--port", "99999"], 2, "port"),
        (["serve", "--dtype", "float12"], 2, "dtype"),
        (["serve", "--database", "/nowhere/at/all/chat.db"], 1, "/nowhere/at/all"),
        (["serve", "--model", "/nowhere/model"], 1, "/nowhere/model"),
        (["serve", "--model", "HuggingFaceM4/idefics-9b-instruct"], 1, "HuggingFaceM4/idefics-9b-instruct"),
    ],
    ids=["open to all", "bad port", "bad precision", "no such folder", "no such model", "no hub"],
)
def test_what_keeps_the_server_from_starting_is_one_sentence(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    if "--database" not in arguments:
        arguments = [*arguments, "--database", str(tmp_path / "chat.db")]
    if "--port" not in arguments:
        arguments = [*arguments, "--port", "0"]
    done = run_command(*arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_server_on_one_database_is_refused(server: ServerProcess) -> None:
    done = run_command("serve", "--port", "0", "--database", str(server.database))
    assert done.returncode == 1
    assert "Another server has the database" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said(server: ServerProcess, tmp_path: Path) -> None:
    port = server.address.rpartition(":")[2]
    done = run_command("serve", "--port", port, "--database", str(tmp_path / "chat.db"))
    assert done.returncode == 1
    assert "--port" in done.stderr
