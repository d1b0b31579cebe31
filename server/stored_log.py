"""The event log of a response that no longer runs: as it was streamed, or, once that was removed after its retention
time, made again from the response and its message. The text is then one delta; what the events say is the same."""

from dataclasses import dataclass

from idefics_chat.server.recovery import RECOVERED, draft_of
from idefics_chat.server.response_events import EventWriter
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Event, ResponseRow

_CLOSING = ("response.output_text.done", "response.completed", "response.incomplete", "response.failed")


@dataclass(frozen=True, slots=True)
class StoredLog:
    """All events of a response, in order. `as_streamed`: under the numbers under which readers saw them. They may have
    seen others where a crash took the last pieces, or where the log was made again."""

    events: list[Event]
    as_streamed: bool

    def start(self, after: int) -> int:
        """Where a reader that has seen events up to number `after` reads on. Where its numbers cannot be these it sees
        the closing events at least, of which the first tells the whole text that stands."""
        if self.as_streamed and after < len(self.events):
            return after
        closing = (event.sequence_number for event in self.events if event.type in _CLOSING)
        return min(after, next(closing, len(self.events)) - 1)


async def stored_log(store: Store, owner_id: str, row: ResponseRow) -> StoredLog:
    """The log of an ended response."""
    if events := await store.events(row.id):
        return StoredLog(events, as_streamed=row.incomplete_reason not in RECOVERED)
    text = (await store.item(owner_id, row.output_id))[1].text if row.answered else ""
    return StoredLog(rebuilt_log(row, text), as_streamed=False)


def rebuilt_log(row: ResponseRow, text: str) -> list[Event]:
    """The events of an ended response that said `text`."""
    if row.status == "in_progress":
        raise ValueError(f"the response {row.id} has not ended")
    writer = EventWriter(draft_of(row))
    events = writer.begin(with_item=bool(row.request["generate"]))
    if text:
        events.append(writer.delta(text))
    return events + writer.end(
        row.status,
        completed_at=row.completed_at or row.created_at,
        usage=None if row.usage is None else dict(row.usage),
        error=None if row.error is None else dict(row.error),
        incomplete_reason=row.incomplete_reason,
    )
