"""Chat completions: answers that are not stored, whole and in chunks, cancelled when nobody is there."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from idefics_chat.conversation.prompt import ImageRun
from idefics_chat.inference.errors import InvalidSampling
from idefics_chat.inference.requests import Choice, GenerationResult, TextDelta, TokenLogprob, Usage
from idefics_chat.server.app import create_app
from idefics_chat.server.chat_completion_objects import CompletionHead, completion_object
from idefics_chat.server.chat_completions_request import parse_completion
from idefics_chat.server.errors import ApiError
from idefics_chat.server.http_chat_completions import completion_frames
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState, Services
from idefics_chat.server.turns import InputImage, InputMessage
from tests.server.http_world import Json, answer, http_client, refused
from tests.server.world import World

PATH = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
PNG = "data:image/png;base64,aGVsbG8="


def parsed(*content: Any, role: str = "user") -> InputMessage:
    return parse_completion({"messages": [{"role": role, "content": list(content)}]}).turn.input[0]


def wrong(body: Json) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as error:
        parse_completion(body)
    return error.value.code, error.value.param


def test_texts_and_images_keep_their_order_and_a_url_may_stand_bare() -> None:
    text = {"type": "text", "text": "Which?"}
    for url in (PNG, {"url": PNG, "detail": "low"}):
        message = parsed({"type": "image_url", "image_url": url}, text)
        assert message.parts == (InputImage(b"hello", "messages[0].content[0].image_url"), "Which?")


def test_all_roles_of_a_talk_are_taken_and_an_empty_answer_is_history() -> None:
    said = [{"role": role, "content": role} for role in ("system", "developer", "user", "assistant")]
    turn = parse_completion({"messages": [*said, {"role": "assistant", "content": None}]}).turn
    assert [message.role for message in turn.input] == ["system", "system", "user", "assistant", "assistant"]


def test_the_newer_name_of_the_limit_goes_before_the_older() -> None:
    assert parse_completion(HI | {"max_tokens": 5}).turn.max_output_tokens == 5
    assert parse_completion(HI | {"max_tokens": 5, "max_completion_tokens": 7}).turn.max_output_tokens == 7


def test_sampling_stops_and_unknown_fields_are_read_as_in_responses() -> None:
    request = parse_completion(
        HI
        | {
            "temperature": 0.5,
            "top_p": 0.9,
            "presence_penalty": 1.5,
            "seed": 7,
            "stop": "\n",
            "tools": [],
            "user": "x",
            "logprobs": None,
        }
    )
    sampling = request.turn.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, request.turn.stop) == (0.5, 0.9, 7, ("\n",))
    assert sampling.presence_penalty == 1.5
    with pytest.raises(InvalidSampling):
        parse_completion(HI | {"temperature": 3.0})


def test_what_is_wrong_is_named() -> None:
    part = {"type": "image_url", "image_url": PNG}
    for body, code, param in (
        ({}, "missing_required_parameter", "messages"),
        ({"messages": []}, "empty_input", "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty_input", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unsupported_value", "messages[0].role"),
        ({"messages": [{"role": "system", "content": [part]}]}, "invalid_value", "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "unsupported_value", None),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "missing_required_parameter", None),
        ({"messages": [{"role": "user", "content": [part | {"image_url": "ftp://h/x"}]}]}, "invalid_image_url", None),
        ({"messages": [{"role": "user", "content": 7}]}, "invalid_value", "messages[0].content"),
        (HI | {"n": "2"}, "invalid_value", "n"),
        (HI | {"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        (HI | {"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        (HI | {"max_tokens": 0}, "invalid_value", "max_tokens"),
        (HI | {"stop": [""]}, "invalid_value", "stop"),
    ):
        found = wrong(body)
        assert found[0] == code, (body, found)
        assert param is None or found[1] == param, (body, found)


def test_the_reason_of_the_end_is_given_and_a_broken_off_answer_is_none() -> None:
    head = CompletionHead("chatcmpl_1", "m", 1.5)
    for reason, said in (("stop", "stop"), ("length", "length"), ("cancelled", "stop")):
        made = completion_object(head, GenerationResult("x", (1,), reason, Usage(3, 1, 2, 4)))  # type: ignore[arg-type]
        completion = ChatCompletion.model_validate(made)
        assert completion.choices[0].finish_reason == said
        assert completion.usage is not None
        assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (3, 7)
    with pytest.raises(ApiError) as error:
        completion_object(head, GenerationResult("x", (1,), "stopped", Usage()))
    assert error.value.code == "server_stopping"


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(world) as opened:
        yield opened


async def complete(client: httpx.AsyncClient, world: World, *words: str, **fields: Any) -> httpx.Response:
    number = len(world.engine.asked)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.post(PATH, json={**HI, **fields}))
        group.create_task(answer(world, number, *words))
    return asked.result()


def chunks_of(stream: str) -> list[Json]:
    *frames, end, rest = stream.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    chunks: list[Json] = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    return chunks


@pytest.mark.anyio
async def test_an_answer_is_given_whole_and_nothing_is_stored(world: World, client: httpx.AsyncClient) -> None:
    given = (await complete(client, world, "Hel", "lo", max_tokens=9)).json()
    completion = ChatCompletion.model_validate(given)
    assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == ("Hello", "stop")
    assert completion.usage is not None
    assert (completion.usage.completion_tokens, completion.model) == (2, "scripted")
    request = world.engine.asked[0].request
    assert (request.max_output_tokens, request.cache_key) == (9, world.owner_id)
    assert (await world.store.conversations(world.owner_id)).items == ()


@pytest.mark.anyio
async def test_an_answer_is_streamed_in_chunks(world: World, client: httpx.AsyncClient) -> None:
    plain = chunks_of((await complete(client, world, "Hel", "lo", stream=True)).text)
    assert plain[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in plain) == "Hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in plain] == [None, None, None, "stop"]
    assert not any("usage" in chunk for chunk in plain)
    options = {"include_usage": True}
    *pieces, last = chunks_of((await complete(client, world, "Hi", stream=True, stream_options=options)).text)
    assert all(chunk["usage"] is None for chunk in pieces)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 1)
    assert len({chunk["id"] for chunk in (*pieces, last)}) == 1


@pytest.mark.anyio
async def test_the_model_is_shown_the_images_of_the_request(
    world: World, client: httpx.AsyncClient, png: bytes
) -> None:
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Look"}]
    assert (await complete(client, world, "Yes", messages=[{"role": "user", "content": content}])).status_code == 200
    request = world.engine.asked[0].request
    [digest] = [run.digest for run in request.prompt.runs if isinstance(run, ImageRun)]
    assert await request.load_image(digest) == png


@pytest.mark.anyio
async def test_what_is_wrong_is_an_http_error_before_the_first_byte(world: World, client: httpx.AsyncClient) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": PNG}]}]
    for stream in (False, True):
        for fields, status, code, param in (
            ({"model": "other"}, 404, "model_not_found", "model"),
            ({"messages": image}, 400, "invalid_image", "messages[0].content[0].image_url"),
            ({"messages": [{"role": "user", "content": "word " * 300}]}, 400, "context_length_exceeded", None),
            ({"top_p": 2.0}, 400, "invalid_value", "top_p"),
        ):
            given = await client.post(PATH, json={**HI, **fields, "stream": stream})
            refused(given, status, code, param)
    assert world.engine.asked == []


@pytest.mark.anyio
async def test_a_failure_is_an_http_error_or_where_the_stream_has_begun_its_last_frame(
    world: World, client: httpx.AsyncClient
) -> None:
    for number, stream in enumerate((False, True)):
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(client.post(PATH, json={**HI, "stream": stream}))
            (await world.engine.turn(number)).fail()
        given = asked.result()
        if stream:
            *_, last, end = given.text.split("\n\n")
            assert end == ""
            assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        else:
            assert given.status_code >= 500


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [(), ("Hel",)])
async def test_an_answer_is_cancelled_when_its_client_goes_away(
    world: World, stream: bool, said: tuple[str, ...]
) -> None:
    app = create_app(ServerState(Settings(), Services(world.store, world.chat)))
    body = json.dumps({**HI, "stream": stream}).encode()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    arriving: asyncio.Queue[Any] = asyncio.Queue()
    arriving.put_nowait({"type": "http.request", "body": body, "more_body": False})
    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }
    served = asyncio.create_task(app(scope, arriving.get, sent.put))
    generation = await world.engine.turn(0)
    generation.say(*said)
    cancelled = asyncio.Event()
    finish = generation.cancel
    generation.cancel = lambda: (finish(), cancelled.set())  # type: ignore[method-assign, assignment, func-returns-value]
    await asyncio.sleep(0.05)
    assert not cancelled.is_set()
    arriving.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(5):
        await cancelled.wait()
        await served


def several() -> GenerationResult:
    """Two answers, the first with log-probabilities."""
    likely = TokenLogprob(1, b"a", -0.1, (TokenLogprob(2, b"\xff", -0.5),))
    first, second = Choice("a", (1,), "stop", (likely,)), Choice("b", (2,), "length")
    return GenerationResult("a", (1,), "stop", Usage(3, 0, 0, 2), (first, second))


def test_several_answers_are_given_with_their_log_probabilities() -> None:
    made = completion_object(CompletionHead("chatcmpl_1", "m", 1.5), several(), with_logprobs=True)
    completion = ChatCompletion.model_validate(made)
    assert [(choice.index, choice.message.content, choice.finish_reason) for choice in completion.choices] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]
    assert completion.choices[0].logprobs is not None
    (token,) = completion.choices[0].logprobs.content or ()
    assert (token.token, token.bytes, token.logprob) == ("a", [97], -0.1)
    assert [(likely.token, likely.bytes) for likely in token.top_logprobs] == [("\ufffd", [255])]


@pytest.mark.anyio
async def test_several_answers_are_streamed_each_under_its_number() -> None:
    class Pieces:
        async def __aiter__(self) -> AsyncIterator[TextDelta | GenerationResult]:
            yield TextDelta("b", 1)
            yield TextDelta("a", 0, several().choices[0].logprobs)
            yield several()

        def cancel(self) -> None:
            """It has ended."""

    asked = parse_completion(HI | {"n": 2, "logprobs": True, "stream": True})
    frames = [frame async for frame in completion_frames(Pieces(), CompletionHead("chatcmpl_1", "m", 1.5), asked)]
    assert frames.pop() == b"data: [DONE]\n\n"
    chunks = [ChatCompletionChunk.model_validate_json(frame.removeprefix(b"data: ")) for frame in frames]
    said = {0: "", 1: ""}
    ends = {}
    for chunk in chunks:
        (choice,) = chunk.choices
        said[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason
    assert (said, ends) == ({0: "a", 1: "b"}, {0: "stop", 1: "length"})
    assert [len(c.choices[0].logprobs.content or ()) for c in chunks if c.choices[0].logprobs] == [0, 1]
