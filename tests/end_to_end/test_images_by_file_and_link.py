"""Images that a client uploads, or names by a link, against the real server with the `openai` package."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.end_to_end.client import Client, text_of
from tests.end_to_end.server_process import ServerProcess

QUESTION = "What is in this image?"


def sdk(server: ServerProcess) -> OpenAI:
    return OpenAI(
        base_url=f"http://{server.address}/v1",
        api_key="unused",
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    )


@pytest.fixture
def site(red_circle: bytes) -> Iterator[str]:
    """A web server on loopback that has one picture."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/red.png"
            self.send_response(200 if found else 404)
            self.send_header("content-type", "image/png")
            self.end_headers()
            self.wfile.write(red_circle if found else b"")

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_upload_is_asked_about_listed_and_given_back(server: ServerProcess, red_circle: bytes) -> None:
    with sdk(server) as client:
        file = client.files.create(file=("red.png", red_circle), purpose="vision")
        content = [{"type": "input_image", "file_id": file.id}, {"type": "input_text", "text": QUESTION}]
        answer = client.responses.create(model="idefics-shapes", input=[{"role": "user", "content": content}])
        assert "red circle" in answer.output_text
        with Client(server.url) as socket:
            socket.send("response.create", input=[{"role": "user", "content": content}])
            *_, last = socket.events()
        assert text_of(last["response"]) == answer.output_text
        assert file.id in [found.id for found in client.files.list(purpose="vision")]
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id).content == red_circle
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError, match="file"):
            client.files.retrieve(file.id)


def test_a_link_is_followed_where_the_operator_lists_its_host(database: Path, site: str, red_circle: bytes) -> None:
    with ServerProcess(database, "--image-links", site) as server, sdk(server) as client:
        picture = {"type": "input_image", "image_url": f"http://{site}/red.png"}
        content = [picture, {"type": "input_text", "text": QUESTION}]
        answer = client.responses.create(model="idefics-shapes", input=[{"role": "user", "content": content}])
        assert "red circle" in answer.output_text
        part = {"type": "image_url", "image_url": {"url": f"http://{site}/red.png", "detail": "high"}}
        completion = client.chat.completions.create(
            model="idefics-shapes",
            messages=[{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}],
        )
        assert completion.choices[0].message.content == answer.output_text
        for link, code in (
            (f"http://{site}/blue.png", "image_fetch_failed"),
            (f"http://{site.replace('127.0.0.1', 'localhost')}/red.png", "invalid_image_url"),
            (f"http://{site.replace('127.0.0.1', '127.1')}/red.png", "invalid_image_url"),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.create(
                    model="idefics-shapes", input=[{"role": "user", "content": [{**picture, "image_url": link}]}]
                )
            assert refused.value.code == code
        page = client.conversations.items.list(answer.conversation.id, include=["message.input_image.image_url"])
        assert page.data[-1].content[0].image_url.startswith("data:image/png;base64,")
        assert client.files.content(page.data[-1].content[0].file_id).content == red_circle
