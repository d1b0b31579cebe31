"""The Response object of a response as it is stored: the same that its last event showed. Pure."""

from idefics_chat.conversation.messages import Message
from idefics_chat.server.recovery import draft_of
from idefics_chat.server.response_object import Json, message_item, response_object
from idefics_chat.storage.values import ResponseRow


def stored_response(row: ResponseRow, answer: Message | None) -> Json:
    """The object of a row; `answer` is the message that the row names as its output, where there is one."""
    output = [] if answer is None else [message_item(answer.id, answer.status, answer.text)]
    return response_object(
        draft_of(row),
        row.status,
        output=output,
        usage=None if row.usage is None else dict(row.usage),
        error=None if row.error is None else dict(row.error),
        incomplete_reason=row.incomplete_reason,
        completed_at=row.completed_at if row.status == "completed" else None,
    )
