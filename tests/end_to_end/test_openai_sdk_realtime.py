"""The `openai` package's Realtime client, unmodified, against the real server: text and images, sync and async."""

import base64
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from websockets.exceptions import InvalidStatus

from tests.end_to_end.server_process import ServerProcess

QUESTION = "What is in this image?"
MODEL = "idefics-shapes"


@pytest.fixture
def options(server: ServerProcess) -> dict[str, Any]:
    return {"base_url": f"http://{server.address}/v1", "api_key": "unused", "max_retries": 0, "timeout": 60}


def said(image: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": QUESTION}]
    return {"type": "message", "role": "user", "content": content}


def test_the_sync_client_shows_a_picture_and_goes_on_with_the_conversation(
    options: dict[str, Any], red_circle: bytes
) -> None:
    with OpenAI(**options) as client:
        with client.realtime.connect(model=MODEL) as connection:
            assert connection.recv().type == "session.created"
            connection.session.update(session={"type": "realtime", "instructions": "Answer."})
            assert connection.recv().type == "session.updated"
            connection.conversation.item.create(item=said(red_circle))
            connection.response.create()
            text = ""
            for event in connection:
                assert event.type != "error", event
                if event.type == "response.output_text.delta":
                    text += event.delta
                if event.type == "response.done":
                    break
            assert "red circle" in text
            assert event.response.status == "completed"
            assert event.response.output[0].content[0].text == text
            assert event.response.usage.input_token_details.image_tokens > 0
            conversation = event.response.conversation_id
        items = client.conversations.items.list(conversation, order="asc").data
        assert [item.role for item in items] == ["user", "assistant"]
        assert items[1].content[0].text == text
        with client.realtime.connect(model=MODEL, extra_query={"conversation": conversation}) as connection:
            connection.conversation.item.retrieve(item_id=items[0].id)
            kinds = [connection.recv().type, connection.recv().type]
            assert kinds == ["session.created", "conversation.item.retrieved"]
            connection.conversation.item.create(
                item={**said(red_circle), "content": [{"type": "input_text", "text": "And now?"}]}
            )
            connection.response.create()
            while (event := connection.recv()).type != "response.done":
                assert event.type != "error", event
            assert event.response.conversation_id == conversation


@pytest.mark.anyio
async def test_the_async_client_cancels_and_asks_out_of_band(options: dict[str, Any], red_circle: bytes) -> None:
    async with AsyncOpenAI(**options) as client, client.realtime.connect(model=MODEL) as connection:
        assert (await connection.recv()).type == "session.created"
        await connection.response.cancel()
        error = await connection.recv()
        assert (error.type, error.error.code) == ("error", "response_cancel_not_active")
        aside = {"conversation": "none", "input": [said(red_circle)], "metadata": {"topic": "aside"}}
        await connection.response.create(response=aside)
        async for event in connection:
            assert event.type != "error", event
            if event.type == "response.done":
                break
        assert event.response.conversation_id is None
        assert event.response.metadata == {"topic": "aside"}
        assert "red circle" in event.response.output[0].content[0].text


def test_a_model_and_a_conversation_that_are_not_there_are_refused_before_the_upgrade(options: dict[str, Any]) -> None:
    with OpenAI(**options) as client:
        for query in ({"model": "other"}, {"model": MODEL, "extra_query": {"conversation": "conv_x"}}):
            with pytest.raises(InvalidStatus, match="404"), client.realtime.connect(**query) as connection:
                connection.recv()
