"""Answers that go on where they broke off, conversations seen from elsewhere, and answers that nobody waits for,
against the real server with the shipped model."""

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.end_to_end.client import Client, Json, message, text_of
from tests.end_to_end.server_process import ServerProcess

QUESTION = "What is in this image?"


def sdk(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"http://{server.address}/v1", api_key="unused", max_retries=0, timeout=60)


def stored_text(server: ServerProcess, conversation_id: str) -> dict[str, str]:
    """The texts of the conversation's answers and messages, by id."""
    with sdk(server) as client:
        items = client.conversations.items.list(conversation_id, order="asc", limit=100).data
    return {item.id: "".join(getattr(part, "text", None) or "" for part in item.content) for item in items}


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_the_rest_of_a_cut_answer_joins_it_as_if_it_had_never_been_cut(
    client: Client, red_circle: bytes, cut: int
) -> None:
    whole = client.ask(QUESTION, red_circle)
    assert whole["status"] == "completed"
    part = client.ask(QUESTION, red_circle, max_output_tokens=cut)
    assert (part["status"], part["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    client.send("response.create", continuation_of=part["id"])
    events = list(client.events())
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas[0] == text_of(part), "what was said comes first, letter for letter"
    assert "".join(deltas) == text_of(events[-1]["response"]) == text_of(whole)


def test_an_answer_that_a_crash_cut_off_is_kept_and_continued(
    database: Path, red_circle: bytes, ramble: dict[str, Any]
) -> None:
    with ServerProcess(database) as server, Client(server.url) as client:
        client.send("response.create", input=[message(QUESTION, red_circle)], **ramble)
        seen = ""
        for event in client.events():
            if event["type"] == "response.created":
                response_id = event["response"]["id"]
            if event["type"] == "response.output_text.delta":
                seen += event["delta"]
                if len(seen) > 150:
                    break
        time.sleep(0.6)  # a flush
        server.kill()
    with ServerProcess(database) as server, sdk(server) as client:
        cut = client.responses.retrieve(response_id)
        assert (cut.status, cut.incomplete_details.model_extra["cause"]) == ("incomplete", "server_restart")
        assert cut.output_text.startswith(seen)
        # Asked as before, for the model would perhaps end here by itself: where the crash came is chance.
        again = {**ramble, "max_output_tokens": 20, "continuation_of": response_id}
        rest = client.responses.create(model="idefics-shapes", extra_body=again)
        assert rest.output_text.startswith(cut.output_text)
        assert len(rest.output_text) > len(cut.output_text)
        answers = stored_text(server, rest.conversation.id)
        assert answers[rest.output[0].id] == rest.output_text


def test_a_second_device_sees_what_is_said_over_another_connection_and_over_http(
    server: ServerProcess, client: Client, red_circle: bytes
) -> None:
    first = client.ask(QUESTION, red_circle)
    conversation = first["conversation"]["id"]
    with Client(server.url) as device:
        device.send("conversation.subscribe", conversation=conversation, starting_after=first["output"][0]["id"])
        assert device.receive()["type"] == "conversation.subscribed"
        client.ask("And what is its colour?", conversation=conversation)
        with sdk(server) as http:
            http.responses.create(model="idefics-shapes", input="And again?", conversation=conversation)
        texts: dict[str, str] = {}
        ended = 0
        while ended < 2:
            frame = device.receive()
            ended += frame["type"] == "response.completed"
            take(texts, frame)
        everything = stored_text(server, conversation)
        assert texts == dict(list(everything.items())[2:])
        cursor = frame["cursor"]
    with Client(server.url) as device:
        device.send("conversation.subscribe", conversation=conversation, starting_after=cursor)
        assert device.receive()["type"] == "conversation.subscribed"
        with sdk(server) as http:
            http.conversations.items.create(conversation, items=[message("A note.")])
            assert device.receive()["item"]["content"][0]["text"] == "A note."
            http.conversations.delete(conversation)
            over = device.receive()
        assert (over["type"], over["code"]) == ("conversation.unsubscribed", "conversation_deleted")


def take(texts: dict[str, str], frame: Json) -> None:
    """What a device keeps of a frame."""
    if frame["type"] == "conversation.item.added":
        texts[frame["item"]["id"]] = "".join(part.get("text") or "" for part in frame["item"]["content"])
    elif frame["type"] == "response.output_text.delta":
        texts[frame["item_id"]] = texts.get(frame["item_id"], "") + frame["delta"]


def test_an_answer_that_nobody_reads_ends_where_the_request_says_so(
    server: ServerProcess, red_circle: bytes, ramble: dict[str, Any]
) -> None:
    with Client(server.url) as client:
        client.send("response.create", input=[message(QUESTION, red_circle)], on_disconnect="cancel", **ramble)
        response_id = client.receive()["response"]["id"]
        while client.receive()["type"] != "response.output_text.delta":
            pass
    with sdk(server) as http, http.responses.retrieve(response_id, stream=True) as stream:
        *_, last = stream
    assert json.loads(last.response.model_dump_json())["status"] == "cancelled"
    assert last.response.incomplete_details.model_extra["cause"] == "disconnected"


def test_what_is_not_stored_is_followed_up_on_its_connection_alone(
    server: ServerProcess, client: Client, red_circle: bytes
) -> None:
    first = client.ask(QUESTION, red_circle, store=False)
    assert "red circle" in text_of(first)
    assert (first["store"], first["conversation"]) == (False, None)
    second = client.ask("And its colour?", store=False, previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    with sdk(server) as http:
        with pytest.raises(openai.NotFoundError):
            http.responses.retrieve(first["id"])
        given = http.responses.create(model="idefics-shapes", input="Hello", store=False, max_output_tokens=3)
        with pytest.raises(openai.NotFoundError):
            http.responses.retrieve(given.id)


def test_beams_and_log_probabilities_come_over_the_wire(server: ServerProcess, red_circle: bytes) -> None:
    with sdk(server) as http:
        given = http.responses.create(
            model="idefics-shapes",
            input=[message(QUESTION, red_circle)],
            top_logprobs=2,
            include=["message.output_text.logprobs"],
            extra_body={"num_beams": 2},
        )
        assert given.output_text
        plain = http.responses.create(
            model="idefics-shapes", input=[message(QUESTION, red_circle)], include=["message.output_text.logprobs"]
        )
        tokens = plain.output[0].content[0].logprobs
        assert "".join(token.token for token in tokens).strip() == plain.output_text
        assert all(token.logprob <= 0 for token in tokens)
        several = http.chat.completions.create(
            model="idefics-shapes",
            messages=[{"role": "user", "content": "Hello"}],
            n=2,
            temperature=1,
            seed=1,
            max_tokens=5,
            logprobs=True,
            top_logprobs=1,
        )
        assert [choice.index for choice in several.choices] == [0, 1]
        assert all(choice.logprobs.content for choice in several.choices)
