"""A response's events: their order, their numbers, and that the SDK's types hold them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.inference.requests import TokenLogprob, Usage
from idefics_chat.server.json_text import compact
from idefics_chat.server.response_events import EventWriter, FinalStatus
from idefics_chat.server.response_object import ResponseDraft, error_object, usage_object
from idefics_chat.storage.values import Event
from tests.server.openai_types import check_frame

DRAFT = ResponseDraft(
    "resp_1",
    "conv_1",
    "msg_1",
    1234.5,
    {
        "model": "m",
        "temperature": 0.0,
        "top_p": 1.0,
        "truncation": "auto",
        "instructions": None,
        "max_output_tokens": 5,
        "metadata": {"a": "b"},
        "context": {"max_tokens": 9, "dropped_items": 0, "dropped_item_ids": []},
    },
    "resp_0",
)

ENDINGS: dict[FinalStatus, dict[str, Any]] = {
    "completed": {"usage": usage_object(Usage(9, 4, 1, 3))},
    "incomplete": {"usage": usage_object(Usage(9, 0, 0, 5)), "incomplete_reason": "max_output_tokens"},
    "cancelled": {"incomplete_reason": "cancelled"},
    "failed": {"error": error_object("storage_unavailable", "The disk is full.")},
}
endings = st.sampled_from(sorted(ENDINGS))
pieces = st.lists(st.text(min_size=1, max_size=8), max_size=6)


def write(said: list[str], status: FinalStatus, *, with_item: bool = True) -> list[Event]:
    writer = EventWriter(DRAFT)
    events = writer.begin(with_item=with_item)
    if with_item:
        events += [writer.delta(piece) for piece in said]
    return events + writer.end(status, completed_at=1240.0, **ENDINGS[status])


def parsed(events: list[Event]) -> list[dict[str, Any]]:
    return [json.loads(event.payload) for event in events]


@given(pieces, endings)
def test_every_event_is_held_by_the_sdk_s_type(said: list[str], status: FinalStatus) -> None:
    for frame in parsed(write(said, status)):
        check_frame(frame)


@given(pieces, endings, st.booleans())
def test_numbers_are_contiguous_from_zero_and_one_terminal_event_ends_the_log(
    said: list[str], status: FinalStatus, with_item: bool
) -> None:
    frames = parsed(write(said, status, with_item=with_item))
    assert [frame["sequence_number"] for frame in frames] == list(range(len(frames)))
    terminal = [f for f in frames if f["type"] in ("response.completed", "response.incomplete", "response.failed")]
    assert terminal == frames[-1:]
    assert frames[-1]["response"]["status"] == status


@given(pieces, endings)
def test_every_event_is_written_as_all_json_is(said: list[str], status: FinalStatus) -> None:
    for event in write(said, status):
        body = json.loads(event.payload)
        assert event.payload == compact(body)
        assert (body["type"], body["sequence_number"]) == (event.type, event.sequence_number)


def test_a_delta_carries_its_tokens_log_probabilities() -> None:
    writer = EventWriter(DRAFT)
    writer.begin()
    token = TokenLogprob(7, b" cat", -0.5, (TokenLogprob(8, b" dog", -1.5),))
    event = writer.delta(" cat", [token])
    body = json.loads(event.payload)
    assert body["logprobs"] == [
        {"token": " cat", "logprob": -0.5, "top_logprobs": [{"token": " dog", "logprob": -1.5}]}
    ]
    assert event.payload == compact(body)
    check_frame(body)


@given(pieces)
def test_deltas_add_up_to_the_final_text(said: list[str]) -> None:
    frames = parsed(write(said, "completed"))
    text = "".join(said)
    assert "".join(frame.get("delta", "") for frame in frames) == text
    assert [f["text"] for f in frames if f["type"] == "response.output_text.done"] == [text]
    assert frames[-1]["response"]["output"][0]["content"][0]["text"] == text


def test_the_order_is_the_protocol_s() -> None:
    assert [event.type for event in write(["a", "b"], "completed")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_a_created_response_has_no_output_yet() -> None:
    created = parsed(write([], "completed"))[0]["response"]
    assert created["output"] == []
    assert created["status"] == "in_progress"


def test_a_failed_response_has_no_output() -> None:
    assert parsed(write(["said"], "failed"))[-1]["response"]["output"] == []


def test_the_item_s_status_follows_the_response_s() -> None:
    for status, expected in (("completed", "completed"), ("incomplete", "incomplete"), ("cancelled", "incomplete")):
        frames = parsed(write(["x"], status))  # type: ignore[arg-type]
        assert frames[-2]["item"]["status"] == expected
        assert frames[-1]["response"]["output"][0]["status"] == expected


def test_after_the_end_nothing_can_be_written() -> None:
    writer = EventWriter(DRAFT)
    writer.begin()
    writer.end("completed", completed_at=1.0)
    for move in (lambda: writer.delta("x"), lambda: writer.end("failed", completed_at=1.0), writer.begin):
        with pytest.raises(RuntimeError, match="out of order"):
            move()


def test_without_an_item_there_are_no_deltas() -> None:
    writer = EventWriter(DRAFT)
    writer.begin(with_item=False)
    with pytest.raises(RuntimeError, match="out of order"):
        writer.delta("x")


@given(pieces, st.data())
def test_a_log_cut_anywhere_after_its_opening_is_ended_as_if_never_cut(said: list[str], data: st.DataObject) -> None:
    whole = EventWriter(DRAFT)
    events = whole.begin() + [whole.delta(piece) for piece in said]
    cut = data.draw(st.integers(4, len(events)))
    resumed = EventWriter.resume(DRAFT, events[:cut])
    frames = parsed(events[:cut] + resumed.end("incomplete", completed_at=1.0, incomplete_reason="server_restart"))
    assert [frame["sequence_number"] for frame in frames] == list(range(len(frames)))
    assert frames[-1]["response"]["output"][0]["content"][0]["text"] == "".join(said[: cut - 4])
    for frame in frames:
        check_frame(frame)
