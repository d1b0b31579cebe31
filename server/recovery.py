"""Ends the responses that nobody runs any more: `incomplete`, with the text up to the last flush."""

import logging

from idefics_chat.conversation.messages import Message, TextPart
from idefics_chat.server.response_events import EventWriter
from idefics_chat.server.response_object import ResponseDraft
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import FinishedResponse, ResponseRow

RESTART = "server_restart"
NOT_STORED = "end_not_stored"
RECOVERED = (RESTART, NOT_STORED)
"""Why a response was ended here: the process that ran it is gone, or could not store its end."""

_log = logging.getLogger(__name__)


async def recover_all(store: Store, now_s: float) -> int:
    """End every response that no process runs any more; how many there were."""
    rows = await store.running_responses()
    for row in rows:
        await recover(store, row, now_s, RESTART)
    if rows:
        _log.warning("%d answers were cut off by the last stop and are kept as incomplete", len(rows))
    return len(rows)


async def recover(store: Store, row: ResponseRow, now_s: float, cause: str) -> None:
    """End one response as incomplete, because of `cause`, and give its conversation the text that was flushed."""
    events = await store.events(row.id)
    writer = EventWriter.resume(draft_of(row), events)
    closing = writer.end("incomplete", completed_at=now_s, incomplete_reason=cause)
    finished = FinishedResponse(row.id, "incomplete", _answer(row, writer.text, now_s), now_s, None, None, cause)
    await store.finish_response(finished, closing)


def draft_of(row: ResponseRow) -> ResponseDraft:
    """What the Response object needs of a stored response."""
    return ResponseDraft(
        row.id, row.conversation_id, row.output_id, row.created_at, row.request, row.previous_response_id
    )


def _answer(row: ResponseRow, text: str, now_s: float) -> Message | None:
    if not row.request["generate"]:
        return None
    parent_id = row.input_ids[-1] if row.input_ids else row.parent_id
    return Message(row.output_id, "assistant", (TextPart(text),), parent_id, "incomplete", now_s)
