"""The event log of a response that no longer runs: as it was streamed, or, once that was removed after its retention
time, made again from the response and its message. The text is then one delta; what the events say is the same."""

from idefics_chat.server.recovery import draft_of
from idefics_chat.server.response_events import EventWriter
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Event, ResponseRow


async def stored_log(store: Store, owner_id: str, row: ResponseRow) -> list[Event]:
    """All events of an ended response, in order."""
    if (events := await store.events(row.id)) or row.status == "in_progress":
        return events
    text = (await store.item(owner_id, row.output_id))[1].text if row.answered else ""
    return rebuilt_log(row, text)


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
