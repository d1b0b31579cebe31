"""Client frames: what they mean, and what is said of those that mean nothing."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.inference.errors import InvalidSampling
from idefics_chat.server.client_json import parse_json
from idefics_chat.server.errors import CODES, ApiError
from idefics_chat.server.responses_request import (
    CancelCommand,
    CreateCommand,
    ResumeCommand,
    SubscribeCommand,
    UnsubscribeCommand,
    parse_event,
)
from idefics_chat.server.turns import ImageLink, InputImage, InputMessage, UploadedImage


def create(**fields: Any) -> CreateCommand:
    command = parse_event({"type": "response.create", "input": "Hi", **fields})
    assert isinstance(command, CreateCommand)
    return command


def refused(event: dict[str, Any], frames: tuple[bytes, ...] = ()) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse_event(event, frames)
    assert error.value.message.endswith((".", "!"))
    return error.value


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_string_is_a_user_s_message() -> None:
    assert create().turn.input == (InputMessage("user", ("Hi",)),)


def test_images_come_as_data_urls_and_as_binary_frames() -> None:
    url = "data:image/png;base64," + base64.b64encode(b"bytes").decode()
    event = {
        "type": "response.create",
        "input": user(
            {"type": "input_image", "image_url": url, "detail": "auto"},
            {"type": "input_image", "image_url": "frame:1"},
            {"type": "input_text", "text": "Which?"},
        ),
    }
    command = parse_event(event, (b"zero", b"one"))
    assert isinstance(command, CreateCommand)
    first, second, text = command.turn.input[0].parts
    assert isinstance(first, InputImage)
    assert isinstance(second, InputImage)
    assert (first.data, second.data, text) == (b"bytes", b"one", "Which?")


def test_developers_speak_as_the_system_and_answers_can_be_given() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    ]
    assert [message.role for message in create(input=items).turn.input] == ["system", "assistant", "user"]


def test_what_clients_send_beside_is_ignored() -> None:
    command = create(stream=True, tools=[{"type": "function"}], client_metadata={"a": "b"}, reasoning=None, unknown=[1])
    assert command.turn.input


def test_sampling_is_greedy_unless_asked() -> None:
    sampling = create(temperature=1, top_p=0.5, seed=3, top_k=4, min_p=0.1, repetition_penalty=1.2).turn.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.top_k) == (1, 0.5, 3, 4)
    assert create().turn.sampling.temperature == 0


def test_conversations_are_named_by_id_or_by_the_embedder_s_key() -> None:
    assert create(conversation="conv_1").turn.conversation_id == "conv_1"
    assert create(conversation={"id": "conv_1"}).turn.conversation_id == "conv_1"
    assert create(conversation={"key": "telegram:42"}).turn.conversation_key == "telegram:42"


def test_the_other_commands() -> None:
    assert parse_event({"type": "response.cancel", "response_id": "r"}) == CancelCommand("r")
    resume = {"type": "response.resume", "response_id": "r", "starting_after": 4, "stream_id": "s"}
    assert parse_event(resume) == ResumeCommand("r", 4, "s")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": ""}, "empty_input", "input"),
        ({"input": []}, "empty_input", "input"),
        ({"input": [{"role": "user", "content": " \n"}]}, "empty_input", "input"),
        ({"input": 3}, "invalid_value", "input"),
        ({"input": [{"content": "x"}]}, "missing_required_parameter", "input[0].role"),
        ({"input": [{"role": "robot", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({"input": [{"type": "reasoning"}]}, "unsupported_value", "input[0].type"),
        ({"input": user({"type": "input_text"})}, "missing_required_parameter", "input[0].content[0].text"),
        ({"input": user({"type": "input_audio"})}, "unsupported_value", "input[0].content[0].type"),
        ({"input": user({"type": "input_image"})}, "missing_required_parameter", "input[0].content[0].image_url"),
        (
            {"input": user({"type": "input_image", "image_url": "data:image/png;base64,@@"})},
            "invalid_base64_image",
            "input[0].content[0].image_url",
        ),
        (
            {"input": user({"type": "input_image", "image_url": "data:image/png,abc"})},
            "invalid_base64_image",
            "input[0].content[0].image_url",
        ),
        (
            {"input": user({"type": "input_image", "image_url": "ftp://127.0.0.1/a.png"})},
            "invalid_image_url",
            "input[0].content[0].image_url",
        ),
        (
            {"input": user({"type": "input_image", "image_url": "frame:0"})},
            "invalid_image_url",
            "input[0].content[0].image_url",
        ),
        (
            {"input": user({"type": "input_image", "image_url": "frame:0", "detail": "blurred"})},
            "invalid_value",
            "input[0].content[0].detail",
        ),
        ({"temperature": "warm"}, "invalid_value", "temperature"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"max_output_tokens": True}, "invalid_value", "max_output_tokens"),
        ({"stop": [""]}, "invalid_value", "stop"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"truncation": "sometimes"}, "invalid_value", "truncation"),
        ({"conversation": "c", "previous_response_id": "r"}, "invalid_value", "previous_response_id"),
        ({"conversation": {}}, "invalid_value", "conversation"),
        ({"previous_item_id": "m"}, "missing_required_parameter", "conversation"),
        ({"store": False, "conversation": "c"}, "unsupported_value", "conversation"),
        ({"store": False, "idempotency_key": "k"}, "unsupported_value", "idempotency_key"),
        ({"continuation_of": "resp_1"}, "invalid_value", "input"),
        ({"input": None, "continuation_of": "r", "conversation": "c"}, "invalid_value", "conversation"),
        ({"input": None, "continuation_of": "r", "generate": False}, "invalid_value", "generate"),
        ({"on_disconnect": "sulk"}, "invalid_value", "on_disconnect"),
        ({"on_disconnect": -1}, "invalid_value", "on_disconnect"),
        ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"metadata": {str(n): "a" for n in range(17)}}, "invalid_value", "metadata"),
        ({"background": True}, "unsupported_value", "background"),
        ({"metadata": {"a": 1}}, "invalid_value", "metadata.a"),
    ],
)
def test_a_wrong_create_is_refused_with_a_code_and_its_parameter(fields: dict[str, Any], code: str, param: str) -> None:
    error = refused({"type": "response.create", "input": "Hi", **fields})
    assert (error.code, error.param) == (code, param)


def test_sampling_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(InvalidSampling) as error:
        create(temperature=9)
    assert error.value.param == "temperature"


def test_unknown_and_missing_events_are_refused() -> None:
    assert refused({"type": "response.dance"}).code == "unknown_event"
    assert refused({}).code == "missing_required_parameter"
    assert refused({"type": "response.cancel"}).param == "response_id"
    assert refused({"type": ["list"]}).code == "unknown_event"


@pytest.mark.parametrize(
    "text", ["", "{", "nul", "[1]", '"x"', "3", "NaN", '{"a": Infinity}', "[" * 100_000, "1" * 9999]
)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_json(text)
    assert error.value.code == "invalid_json"


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_a_character() -> None:
    with pytest.raises(ApiError, match="Unicode"):
        parse_json('{"input": "\\ud83d"}')
    assert parse_json('{"input": "\\ud83d\\ude00"}') == {"input": "😀"}


def test_the_same_request_has_the_same_hash_whatever_lane_or_spelling_it_came_by() -> None:
    hashes = {
        create(idempotency_key="k", stream_id=lane, stream=stream).turn.request_hash
        for lane in (None, "a")
        for stream in (True, False)
    }
    assert len(hashes) == 1
    assert create(idempotency_key="k", input="Bye").turn.request_hash not in hashes
    assert create().turn.request_hash is None


def test_the_hash_knows_the_frames() -> None:
    event = {
        "type": "response.create",
        "idempotency_key": "k",
        "input": user({"type": "input_image", "image_url": "frame:0"}),
    }
    one, two = (parse_event(event, (frame,)) for frame in (b"a", b"b"))
    assert isinstance(one, CreateCommand)
    assert isinstance(two, CreateCommand)
    assert one.turn.request_hash != two.turn.request_hash


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "input", "conversation", "previous_response_id", "previous_item_id", "temperature", "top_k", "seed", "stop",
    "max_output_tokens", "truncation", "metadata", "generate", "stream_id", "idempotency_key", "response_id",
]  # fmt: skip


@given(st.sampled_from(["response.create", "response.cancel", "response.resume"]), st.data())
def test_any_values_in_any_fields_give_a_command_or_a_listed_code(kind: str, data: st.DataObject) -> None:
    event = data.draw(st.dictionaries(st.sampled_from(FIELDS), json_values))
    try:
        parse_event(json.loads(json.dumps({"type": kind, **event})))
    except (ApiError, InvalidSampling) as error:
        assert error.code in CODES


def test_an_image_may_be_a_link_or_an_upload_that_is_looked_at_later() -> None:
    part = {"type": "input_image", "detail": "high"}
    content = [part | {"image_url": "HTTPS://h/a.png"}, part | {"file_id": "file_1", "image_url": None}]
    command = parse_event({"type": "response.create", "input": [{"role": "user", "content": content}]})
    assert isinstance(command, CreateCommand)
    (message,) = command.turn.input
    assert message.parts == (
        ImageLink("HTTPS://h/a.png", "input[0].content[0].image_url"),
        UploadedImage("file_1", "input[0].content[1].file_id"),
    )


def test_what_a_turn_may_ask_for_besides() -> None:
    fields = {"store": False, "on_disconnect": 30, "bad_words": ["cat"], "num_beams": 4, "length_penalty": 0.5}
    command = parse_event({"type": "response.create", "input": "Hi", **fields})
    assert isinstance(command, CreateCommand)
    turn = command.turn
    assert (turn.store, turn.on_disconnect, turn.bad_words, turn.logprobs) == (False, 30, ("cat",), None)
    assert (turn.sampling.num_beams, turn.sampling.length_penalty) == (4, 0.5)
    for asked, logprobs in (({"top_logprobs": 3}, 3), ({"include": ["message.output_text.logprobs"]}, 0)):
        command = parse_event({"type": "response.create", "input": "Hi", **asked})
        assert isinstance(command, CreateCommand)
        assert command.turn.logprobs == logprobs


def test_a_subscription_names_its_conversation_and_where_it_begins() -> None:
    event = {"type": "conversation.subscribe", "conversation": "conv_1", "starting_after": "msg_7", "stream_id": "a"}
    assert parse_event(event) == SubscribeCommand("conv_1", "msg_7", "a")
    assert parse_event({"type": "conversation.unsubscribe", "conversation": "conv_1"}) == UnsubscribeCommand("conv_1")
    assert refused({"type": "conversation.subscribe"}).param == "conversation"
