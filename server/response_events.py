"""The events of one response, in their order, with contiguous numbers. Pure: states in, events out.

The order is that of PROTOCOL: created, in_progress, output_item.added, content_part.added, output_text.delta..., then
output_text.done, content_part.done, output_item.done, and exactly one of completed, incomplete, failed. A response that
only stores and prefills has no item. `EventWriter` holds the order; asking for a move out of order raises.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from idefics_chat.inference.requests import TokenLogprob
from idefics_chat.server.json_text import compact
from idefics_chat.server.logprob_objects import streamed_logprobs, whole_logprobs
from idefics_chat.server.response_object import Json, ResponseDraft, message_item, response_object, text_part
from idefics_chat.storage.values import Event

FinalStatus = Literal["completed", "incomplete", "cancelled", "failed"]

DELTA = "response.output_text.delta"

_TERMINAL_EVENT: Mapping[FinalStatus, str] = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


class EventWriter:
    """Writes a response's events.

    After a restart the writer goes on where the stored log ends (`resume`).
    """

    def __init__(self, draft: ResponseDraft) -> None:
        self._draft = draft
        self._next = 0
        self._item_open = False
        self._ended = False
        self._logprobs: Sequence[TokenLogprob] = ()
        self._pieces: list[str] = []
        self._delta_place = compact(self._place())[1:-1]

    @classmethod
    def resume(cls, draft: ResponseDraft, events: list[Event]) -> "EventWriter":
        """A writer that goes on after `events`, the log so far."""
        writer = cls(draft)
        writer._next = len(events)
        writer._item_open = any(event.type == "response.content_part.added" for event in events)
        writer._pieces = [json.loads(e.payload)["delta"] for e in events if e.type == DELTA]
        return writer

    @property
    def text(self) -> str:
        """What the answer's deltas add up to so far."""
        return "".join(self._pieces)

    def begin(self, *, with_item: bool = True) -> list[Event]:
        """The opening events; `with_item` False for a response that generates nothing."""
        self._require(self._next == 0)
        response = response_object(self._draft, "in_progress")
        events = [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]
        if with_item:
            self._item_open = True
            item = message_item(self._draft.output_id, "in_progress", None)
            events.append(self._event("response.output_item.added", output_index=0, item=item))
            events.append(self._part_event("response.content_part.added", part=text_part("")))
        return events

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Event:
        """A piece of the answer, with the log-probabilities of its tokens where they were asked for."""
        self._require(self._item_open and not self._ended)
        self._pieces.append(text)
        number = self._number()
        said = f'"delta":{compact(text)},"logprobs":{compact(streamed_logprobs(logprobs)) if logprobs else "[]"}'
        # One for each token: only what differs is made anew.
        return Event(number, DELTA, f'{{"type":"{DELTA}","sequence_number":{number},{self._delta_place},{said}}}')

    def end(
        self,
        status: FinalStatus,
        *,
        completed_at: float,
        usage: Json | None = None,
        error: Json | None = None,
        incomplete_reason: str | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> list[Event]:
        """The closing events, the terminal one last. A failed response has no output: it leaves no trace."""
        self._require(not self._ended)
        self._logprobs = logprobs
        events = self._close_item(status) if self._item_open and status != "failed" else []
        output = [self._item(status)] if events else []
        response = response_object(
            self._draft,
            status,
            output=output,
            usage=usage,
            error=error,
            incomplete_reason=incomplete_reason,
            completed_at=completed_at if status == "completed" else None,
        )
        events.append(self._event(_TERMINAL_EVENT[status], response=response))
        self._ended = True
        return events

    def _close_item(self, status: FinalStatus) -> list[Event]:
        text = self.text
        return [
            self._part_event("response.output_text.done", text=text, logprobs=streamed_logprobs(self._logprobs)),
            self._part_event("response.content_part.done", part=text_part(text, whole_logprobs(self._logprobs))),
            self._event("response.output_item.done", output_index=0, item=self._item(status)),
        ]

    def _item(self, status: FinalStatus) -> Json:
        item_status = "completed" if status == "completed" else "incomplete"
        return message_item(self._draft.output_id, item_status, self.text, whole_logprobs(self._logprobs))

    def _place(self) -> Json:
        return {"item_id": self._draft.output_id, "output_index": 0, "content_index": 0}

    def _part_event(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, **self._place(), **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._require(not self._ended)
        number = self._number()
        body = {"type": kind, "sequence_number": number, **fields}
        return Event(number, kind, compact(body))

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _require(self, legal: bool) -> None:
        if not legal:
            raise RuntimeError(f"event out of order in response {self._draft.id} at {self._next}")
