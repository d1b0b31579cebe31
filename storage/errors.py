"""The errors of the storage package.

    StorageError
    ├── NotFound                    also for what is another owner's
    │   ├── OwnerNotFound
    │   ├── ConversationNotFound
    │   ├── ResponseNotFound
    │   ├── ItemNotFound
    │   ├── ImageNotFound
    │   ├── StoredFileNotFound
    │   ├── BatchNotFound
    │   └── KeyNotFound
    ├── ResponseFinished            a second end, or events after the end
    ├── EventOutOfOrder             an event whose number does not follow the last one's
    ├── AlreadyExists               an id that is taken
    ├── InvalidText                 text that no encoding can hold
    ├── InvalidName                 a name of an owner or a key that no list could show
    ├── InvalidExpiry               an end of a key that is past, or never comes
    ├── InvalidMessages             OpenAI-style messages that cannot be imported
    ├── InvalidArchive              an archive that cannot be imported
    ├── QuotaExceeded               more than the owner may have
    ├── TooManyBatches              as many batches of tasks as may be are under way
    ├── ConversationBusy            a turn is already running in the conversation
    ├── IdempotencyConflict         the same key with another request
    ├── DatabaseUnavailable         disk full, read-only, corrupt, locked, closed
    ├── DatabaseTooNew              written by a newer program
    ├── DatabaseTooOld              to be upgraded first
    └── UnknownRevision             not a database of ours, or of a revision that this program does not know

Each has a stable `code`; `str()` is a sentence that says what to do.
"""

from typing import ClassVar


class StorageError(Exception):
    """Base of all errors of this package."""

    code: ClassVar[str] = "storage_error"


class NotFound(StorageError):
    """Base of the errors about something that is not there, or is not this owner's: `id` is how it was asked for."""

    what: ClassVar[str]
    advice: ClassVar[str]

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"There is no {self.what} {self.id!r}; {self.advice}."


class OwnerNotFound(NotFound):
    """No owner of that name."""

    code = "owner_not_found"
    what = "owner"
    advice = "owners come with their first key, and the owners list gives them"


class ConversationNotFound(NotFound):
    """No such conversation, or not this owner's."""

    code = "conversation_not_found"
    what = "conversation"
    advice = "use an id that the conversations list gives"


class ResponseNotFound(NotFound):
    """No such response, or not this owner's."""

    code = "response_not_found"
    what = "response"
    advice = "use an id that a response.created event gave"


class ItemNotFound(NotFound):
    """No such message in the conversation, or not this owner's."""

    code = "item_not_found"
    what = "item"
    advice = "use an id that the conversation's items list gives"


class ImageNotFound(NotFound):
    """No such image, or none that a message or a file of this owner shows. `id` is its digest."""

    code = "file_not_found"
    what = "image"
    advice = "send the image itself"


class StoredFileNotFound(NotFound):
    """No such uploaded file, not this owner's, or expired."""

    code = "file_not_found"
    what = "file"
    advice = "upload it, or use an id that the files list gives"


class BatchNotFound(NotFound):
    """No such batch of tasks, not this owner's, or removed."""

    code = "batch_not_found"
    what = "batch"
    advice = "they are removed some time after their end, and the list gives all"


class KeyNotFound(NotFound):
    """The owner has no key of that name that still works."""

    code = "key_not_found"
    what = "working key"
    advice = "use a name that the keys list gives"


class ResponseFinished(StorageError):
    """A response that has its end already: it takes no second one and no further events."""

    code = "response_finished"

    def __init__(self, response_id: str) -> None:
        super().__init__(response_id)
        self.response_id = response_id

    def __str__(self) -> str:
        return f"The response {self.response_id!r} has ended; begin a new one."


class EventOutOfOrder(StorageError):
    """An event whose `actual` number is not the `expected` one."""

    code = "event_out_of_order"

    def __init__(self, response_id: str, expected: int, actual: int) -> None:
        super().__init__(response_id, expected, actual)
        self.response_id = response_id
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"The log of response {self.response_id!r} goes on at event {self.expected}, not {self.actual}; "
            "append its events in order, each once."
        )


class AlreadyExists(StorageError):
    """An id that is taken: `kind` is what it was to name."""

    code = "already_exists"

    def __init__(self, kind: str, value: str) -> None:
        super().__init__(kind, value)
        self.kind = kind
        self.value = value

    def __str__(self) -> str:
        return f"There is already a {self.kind} {self.value!r}; use another one."


class InvalidText(StorageError):
    """Text with a lone half of a surrogate pair, which UTF-8 cannot hold."""

    code = "invalid_value"

    def __str__(self) -> str:
        return "The text holds half a surrogate pair, which is no character; send whole characters."


class InvalidName(StorageError):
    """A `name` of an owner or a key that is empty, or holds what cannot be printed on one line."""

    code = "invalid_value"

    def __init__(self, name: str) -> None:
        super().__init__(ascii(name))
        self.name = name

    def __str__(self) -> str:
        return f"There can be no name {self.name!a}; use letters, digits and signs, without line breaks."


class InvalidExpiry(StorageError):
    """An end of a key that is past, or never comes."""

    code = "invalid_value"

    def __str__(self) -> str:
        return "A key must expire later than now and before the year 10000; without an end it works for good."


class InvalidMessages(StorageError):
    """OpenAI-style messages that cannot be imported, and so change nothing; `reason` is half a sentence."""

    code = "invalid_value"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The messages cannot be imported: {self.reason}. Give a list of messages with role and content."


class InvalidArchive(StorageError):
    """An archive that cannot be imported, and so changes nothing; `reason` is half a sentence."""

    code = "invalid_archive"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The archive cannot be imported: {self.reason}. Give one that this program exported."


class QuotaExceeded(StorageError):
    """More of `what` ("conversations", "messages" or "image_bytes") than the `limit` that its owner may have."""

    code = "quota_exceeded"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(what, limit)
        self.what = what
        self.limit = limit

    def __str__(self) -> str:
        name = self.what.replace("image_bytes", "bytes of images")
        return f"This would be more than the {self.limit} {name} you may keep; delete some for good first."


class TooManyBatches(StorageError):
    """As many batches of tasks as an owner may have are under way."""

    code = "too_many_batches"

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.limit} batches of yours are under way, as many as may be; wait for one, or cancel it."


class ConversationBusy(StorageError):
    """A turn, `response_id`, is already running in the conversation."""

    code = "conversation_busy"

    def __init__(self, conversation_id: str, response_id: str) -> None:
        super().__init__(conversation_id, response_id)
        self.conversation_id = conversation_id
        self.response_id = response_id

    def __str__(self) -> str:
        return (
            f"The response {self.response_id!r} is still running in this conversation; "
            "wait for its end or cancel it, then send again."
        )


class IdempotencyConflict(StorageError):
    """An idempotency key that was used before, with another request."""

    code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"The idempotency key {self.key!r} was used with another request; use a new key for a new request."


class DatabaseUnavailable(StorageError):
    """The database cannot be used now; nothing of what was asked is stored. `reason` is a sentence."""

    code = "storage_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class DatabaseTooNew(StorageError):
    """A database whose `revision` is newer than `newest`, the newest that this program knows."""

    code = "database_too_new"

    def __init__(self, revision: str, newest: str) -> None:
        super().__init__(revision, newest)
        self.revision = revision
        self.newest = newest

    def __str__(self) -> str:
        return (
            f"The database is at revision {self.revision} and this program knows revisions up to {self.newest}; "
            "install the newer program that wrote it, or give another database file."
        )


class DatabaseTooOld(StorageError):
    """A database at an earlier `revision` than `newest`, where what was asked for needs the newest."""

    code = "database_too_old"

    def __init__(self, revision: str, newest: str) -> None:
        super().__init__(revision, newest)
        self.revision = revision
        self.newest = newest

    def __str__(self) -> str:
        return (
            f"The database is at revision {self.revision}; make a backup and upgrade it (idefics-chat db upgrade) "
            f"to this program's revision, {self.newest}."
        )


class UnknownRevision(StorageError):
    """A database that this program did not make; `found` says what it holds."""

    code = "unknown_revision"

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"The database holds {self.found}, which is not ours; give another database file."
