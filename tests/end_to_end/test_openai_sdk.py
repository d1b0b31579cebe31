"""The `openai` package's own clients, unmodified, against the real server: sync and async, over HTTP and websocket.

The clients check every answer against their types as strictly as they can.
"""

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response

from tests.end_to_end.client import ENDS, message
from tests.end_to_end.server_process import ServerProcess

QUESTION = "What is in this image?"
MODEL = "idefics-shapes"
Ramble = dict[str, Any]


def options(server: ServerProcess) -> dict[str, Any]:
    return {
        "base_url": f"http://{server.address}/v1",
        "api_key": "unused",
        "max_retries": 0,
        "timeout": 60,
        "_strict_response_validation": True,
    }


@pytest.fixture
def sdk(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(**options(server)) as client:
        yield client


@pytest.fixture
async def async_sdk(server: ServerProcess) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(**options(server)) as client:
        yield client


def url_of(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def chat_messages(*parts: str | bytes) -> list[Any]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": url_of(part)}}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def rambling(sdk: OpenAI, image: bytes, ramble: Ramble, **fields: Any) -> Response:
    """An answer in the background that takes its time."""
    limit = ramble["max_output_tokens"]
    sampling = {name: value for name, value in ramble.items() if name != "max_output_tokens"}
    return sdk.responses.create(
        input=[message(QUESTION, image)],  # type: ignore[list-item]
        background=True,
        max_output_tokens=limit,
        extra_body=sampling,
        **fields,
    )


def test_the_model_is_listed_and_found(sdk: OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("owner/other")


def test_a_response_is_asked_for_chained_and_found_again(sdk: OpenAI, red_circle: bytes) -> None:
    first = sdk.responses.create(model=MODEL, input=[message(QUESTION, red_circle)])  # type: ignore[list-item]
    assert "red circle" in first.output_text.lower()
    second = sdk.responses.create(model=MODEL, input="What color is the circle?", previous_response_id=first.id)
    assert "red" in second.output_text.lower()
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert sdk.responses.retrieve(second.id) == second
    assert second._request_id is not None


def test_a_stream_adds_up_and_is_read_on_from_any_number(sdk: OpenAI, red_circle: bytes) -> None:
    with sdk.responses.create(input=[message(QUESTION, red_circle)], stream=True) as stream:  # type: ignore[list-item]
        events = list(stream)
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.completed"
    assert said == events[-1].response.output_text
    for after in (0, 3, len(events) - 2, len(events) - 1):
        with sdk.responses.retrieve(events[-1].response.id, stream=True, starting_after=after) as again:
            assert list(again) == events[after + 1 :]


def test_the_stream_helper_gives_the_final_response(sdk: OpenAI, blue_square: bytes) -> None:
    with sdk.responses.stream(model=MODEL, input=[message(QUESTION, blue_square)]) as stream:  # type: ignore[list-item]
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == said
    assert "blue square" in said.lower()


def test_a_dropped_stream_goes_on_and_is_read_to_its_end(sdk: OpenAI, red_circle: bytes, ramble: Ramble) -> None:
    started = rambling(sdk, red_circle, ramble)
    with sdk.responses.retrieve(started.id, stream=True) as stream:
        seen = [event for event, _ in zip(stream, range(8), strict=False)]
    with sdk.responses.retrieve(started.id, stream=True, starting_after=seen[-1].sequence_number) as stream:
        events = seen + list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == sdk.responses.retrieve(started.id).output_text


def test_a_foreground_stream_that_is_dropped_goes_on(sdk: OpenAI, red_circle: bytes, ramble: Ramble) -> None:
    body = {**ramble, "input": [message(QUESTION, red_circle)]}
    with sdk.responses.create(stream=True, extra_body=body) as stream:
        first = next(iter(stream))
    assert first.type == "response.created"
    with sdk.responses.retrieve(first.response.id, stream=True) as again:
        assert list(again)[-1].type in ENDS
    assert len(sdk.responses.retrieve(first.response.id).output_text) > 100


def test_a_background_response_is_cancelled_and_keeps_what_was_said(
    sdk: OpenAI, red_circle: bytes, ramble: Ramble
) -> None:
    started = rambling(sdk, red_circle, ramble)
    assert (started.status, started.background) == ("in_progress", True)
    cancelled = sdk.responses.cancel(started.id)
    assert cancelled.status == "cancelled"
    assert sdk.responses.cancel(started.id) == cancelled
    ended = sdk.responses.create(input="Hello")
    with pytest.raises(openai.ConflictError) as error:
        sdk.responses.cancel(ended.id)
    assert error.value.code == "response_not_active"


def test_the_same_idempotency_key_gives_the_same_response(sdk: OpenAI) -> None:
    headers = {"Idempotency-Key": "sdk-1"}
    first, second = (sdk.responses.create(input="Hello", extra_headers=headers) for _ in range(2))
    assert first == second


def test_input_items_give_the_image_back_as_it_was_sent(sdk: OpenAI, red_circle: bytes) -> None:
    response = sdk.responses.create(input=[message("one"), message("two"), message(QUESTION, red_circle)])  # type: ignore[list-item]
    everything = list(sdk.responses.input_items.list(response.id, limit=1, order="asc"))
    assert [item.content[0].text for item in everything] == ["one", "two", QUESTION]  # type: ignore[union-attr]
    [newest] = sdk.responses.input_items.list(response.id, limit=1, include=["message.input_image.image_url"]).data
    assert newest.content[1].image_url == url_of(red_circle)  # type: ignore[union-attr]


def test_input_tokens_are_those_of_the_turn(sdk: OpenAI, red_circle: bytes) -> None:
    asked = [message(QUESTION, red_circle)]
    counted = sdk.responses.input_tokens.count(model=MODEL, input=asked)  # type: ignore[arg-type]
    usage = sdk.responses.create(input=asked).usage  # type: ignore[arg-type]
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


def test_a_conversation_is_led_renamed_listed_and_deleted(sdk: OpenAI, red_circle: bytes) -> None:
    asked: Any = [message(QUESTION, red_circle)]
    conversation = sdk.conversations.create(metadata={"topic": "shapes"}, items=asked)
    answer = sdk.responses.create(conversation=conversation.id, input="What color is the circle?")
    assert "red" in answer.output_text.lower()
    assert sdk.conversations.update(conversation.id, metadata={"topic": "colors"}).metadata == {"topic": "colors"}
    assert sdk.conversations.retrieve(conversation.id).metadata == {"topic": "colors"}
    items = list(sdk.conversations.items.list(conversation.id, order="asc", limit=1))
    assert [item.role for item in items] == ["user", "user", "assistant"]  # type: ignore[union-attr]
    added = sdk.conversations.items.create(conversation.id, items=[{"role": "user", "content": "Thanks."}])
    assert added.data[0].content[0].text == "Thanks."  # type: ignore[union-attr]
    found = sdk.conversations.items.retrieve(
        str(items[0].id), conversation_id=conversation.id, include=["message.input_image.image_url"]
    )
    assert found.content[1].image_url == url_of(red_circle)  # type: ignore[union-attr]
    assert sdk.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.conversations.retrieve(conversation.id)


def test_chat_completions_see_images_and_know_what_was_said(sdk: OpenAI, red_circle: bytes) -> None:
    said = chat_messages(red_circle, QUESTION)
    first = sdk.chat.completions.create(model=MODEL, messages=said)
    text = first.choices[0].message.content
    assert text is not None
    assert "red circle" in text.lower()
    said += [{"role": "assistant", "content": text}, {"role": "user", "content": "What color is the circle?"}]
    second = sdk.chat.completions.create(model=MODEL, messages=said, max_completion_tokens=30)
    assert "red" in str(second.choices[0].message.content).lower()
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_chat_completions_stream_with_usage(sdk: OpenAI, blue_square: bytes) -> None:
    stream = sdk.chat.completions.create(
        model=MODEL,
        messages=chat_messages(QUESTION, blue_square),
        stream=True,
        stream_options={"include_usage": True},
    )
    with stream:
        *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "blue square" in text.lower()
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens > 3


def test_errors_are_the_sdk_s_own_with_code_and_parameter(sdk: OpenAI) -> None:
    link: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:1/x.png"}]}]
    cases: list[tuple[type[openai.APIStatusError], Any, str, str | None]] = [
        (openai.NotFoundError, lambda: sdk.responses.create(model="gpt", input="Hi"), "model_not_found", "model"),
        (openai.BadRequestError, lambda: sdk.responses.create(input=""), "empty_input", "input"),
        (
            openai.BadRequestError,
            lambda: sdk.responses.create(input=link, stream=True),
            "invalid_image_url",
            "input[0].content[0].image_url",
        ),
        (openai.NotFoundError, lambda: sdk.responses.retrieve("resp_x"), "response_not_found", None),
        (openai.BadRequestError, lambda: sdk.conversations.items.list("conv_x", limit=0), "invalid_value", "limit"),
        (
            openai.BadRequestError,
            lambda: sdk.chat.completions.create(model=MODEL, messages=[]),
            "empty_input",
            "messages",
        ),
    ]
    for kind, ask, code, param in cases:
        with pytest.raises(kind) as error:
            ask()
        assert (error.value.code, error.value.param) == (code, param)
        assert str(error.value.request_id).startswith("req_")


def test_the_websocket_of_the_sdk_answers_and_chains(sdk: OpenAI, red_circle: bytes) -> None:
    with sdk.responses.connect() as connection:
        ended = None
        for asked in ([message(QUESTION, red_circle)], [message("What color is the circle?")]):
            previous = {"previous_response_id": ended.id} if ended else {}
            connection.response.create(model=MODEL, input=asked, **previous)  # type: ignore[arg-type]
            for event in connection:
                assert event.type != "error", event
                if event.type == "response.completed":
                    ended = event.response
                    break
        assert ended is not None
        assert "red" in ended.output_text.lower()
    assert sdk.responses.retrieve(ended.id).output_text == ended.output_text


@pytest.mark.anyio
async def test_the_async_client_streams_and_finds(async_sdk: AsyncOpenAI, red_circle: bytes) -> None:
    async with await async_sdk.responses.create(input=[message(QUESTION, red_circle)], stream=True) as stream:  # type: ignore[list-item]
        events = [event async for event in stream]
    assert events[-1].type == "response.completed"
    assert "red circle" in events[-1].response.output_text.lower()
    assert await async_sdk.responses.retrieve(events[-1].response.id) == events[-1].response


@pytest.mark.anyio
async def test_the_async_client_leads_a_conversation_and_chats(async_sdk: AsyncOpenAI, blue_square: bytes) -> None:
    conversation = await async_sdk.conversations.create()
    asked: Any = [message(QUESTION, blue_square)]
    answer = await async_sdk.responses.create(conversation=conversation.id, input=asked)
    assert "blue square" in answer.output_text.lower()
    items = [item async for item in async_sdk.conversations.items.list(conversation.id, limit=1)]
    assert [item.role for item in items] == ["assistant", "user"]  # type: ignore[union-attr]
    stream = await async_sdk.chat.completions.create(
        model=MODEL, messages=chat_messages(QUESTION, blue_square), stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert "blue square" in text.lower()


@pytest.mark.anyio
async def test_the_websocket_of_the_async_sdk_answers(async_sdk: AsyncOpenAI, red_circle: bytes) -> None:
    async with async_sdk.responses.connect() as connection:
        await connection.response.create(model=MODEL, input=[message(QUESTION, red_circle)])  # type: ignore[list-item]
        async for event in connection:
            assert event.type != "error", event
            if event.type == "response.completed":
                assert "red circle" in event.response.output_text.lower()
                break
