"""The `openai` package's client with keys, and over a restart of the server."""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.end_to_end.client import message
from tests.end_to_end.server_process import ServerProcess, run_command

QUESTION = "What is in this image?"


def sdk(server: ServerProcess, key: str = "unused") -> OpenAI:
    return OpenAI(
        base_url=f"http://{server.address}/v1",
        api_key=key,
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    )


def make_key(database: Path, name: str) -> str:
    made = run_command("keys", "create", name, "--database", str(database))
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_each_key_sees_its_own_and_a_wrong_one_nothing(database: Path) -> None:
    keys = [make_key(database, name) for name in ("ann", "bob")]
    with ServerProcess(database, "--require-key") as server:
        with sdk(server, keys[0]) as ann, sdk(server, keys[1]) as bob, sdk(server, "sk-wrong") as nobody:
            conversation = ann.conversations.create(items=[{"role": "user", "content": "A secret."}])
            response = ann.responses.create(input="Hello", conversation=conversation.id)
            assert [item.role for item in ann.conversations.items.list(conversation.id)] == [  # type: ignore[union-attr]
                "assistant",
                "user",
                "user",
            ]
            for stranger, error in ((bob, openai.NotFoundError), (nobody, openai.AuthenticationError)):
                for ask in (
                    lambda c: c.responses.retrieve(response.id),
                    lambda c: c.responses.retrieve(response.id, stream=True),
                    lambda c: c.responses.cancel(response.id),
                    lambda c: c.responses.input_items.list(response.id),
                    lambda c: c.responses.create(input="Hi", previous_response_id=response.id),
                    lambda c: c.responses.create(input="Hi", conversation=conversation.id, stream=True),
                    lambda c: c.conversations.retrieve(conversation.id),
                    lambda c: c.conversations.items.list(conversation.id),
                    lambda c: c.conversations.update(conversation.id, metadata={"mine": "yes"}),
                    lambda c: c.conversations.delete(conversation.id),
                ):
                    with pytest.raises(error):
                        ask(stranger)
            with pytest.raises(openai.AuthenticationError) as refused:
                nobody.chat.completions.create(model="idefics-shapes", messages=[{"role": "user", "content": "Hi"}])
            assert refused.value.code == "invalid_api_key"
            assert ann.conversations.retrieve(conversation.id).metadata == {}
        assert "Traceback" not in server.output


def test_an_answer_that_a_crash_cut_off_is_read_on_after_the_restart(
    database: Path, red_circle: bytes, ramble: dict[str, Any]
) -> None:
    body = {**ramble, "input": [message(QUESTION, red_circle)], "background": True}
    with ServerProcess(database) as server, sdk(server) as client:
        started = client.responses.create(extra_body=body)
        with client.responses.retrieve(started.id, stream=True) as stream:
            seen = [event for event, _ in zip(stream, range(60), strict=False)]
        server.kill()
    with ServerProcess(database) as server, sdk(server) as client:
        ended = client.responses.retrieve(started.id)
        assert ended.status == "incomplete"
        with client.responses.retrieve(started.id, stream=True) as stream:
            replayed = list(stream)
        assert replayed[-1].type == "response.incomplete"
        assert replayed[-1].response == ended
        streamed, kept = (
            "".join(event.delta for event in events if event.type == "response.output_text.delta")
            for events in (seen, replayed)
        )
        assert kept == ended.output_text
        assert streamed.startswith(kept) or kept.startswith(streamed)
        again = client.responses.create(input="What color is the circle?", previous_response_id=ended.id)
        assert again.status == "completed"
        assert server.terminate() == 0
