"""Logs: lines for people, or a JSON object a line, with the id of the request and never with what a user said.

An exception's message may hold anything that was being worked on, so only the types and the places in the code are
written of exceptions that are not ours to word. At level `debug` messages are written too: that is for a developer's
machine.
"""

import asyncio
import json
import logging
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from idefics_chat.server.asker import ASKER

QUIET = ("uvicorn", "alembic", "httpx", "PIL", "asyncio")
"""Loggers of others that are heard from warnings on."""

CLIENT_FAULTS = ("Invalid UTF-8 sequence received from client.", "Invalid HTTP request received.")

_log = logging.getLogger(__name__)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up_logs(form: Literal["text", "json"], level: str) -> None:
    """Log to standard error, replacing what was set up before."""
    show_messages = level == "debug"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(show_messages) if form == "json" else TextLines(show_messages))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    hush_others()


def hush_others() -> None:
    """Hear of other packages' loggers only what is wrong: some log what clients write in addresses."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_no_client_s_fault)


def _is_no_client_s_fault(record: logging.LogRecord) -> bool:
    """What clients do wrong they are told; in the log it would let them fill the disk."""
    return record.msg not in CLIENT_FAULTS


def log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's handler of errors that nobody awaited. asyncio's own would write exceptions' messages."""
    error = context.get("exception")
    info = None if error is None else (type(error), error, error.__traceback__)
    _log.error("the event loop met an error: %s", str(context.get("message")).partition(":")[0], exc_info=info)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, request_id, what the line's `extra` brings in `fields`."""

    def __init__(self, show_messages: bool = False) -> None:
        super().__init__()
        self._show_messages = show_messages

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_request(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = list(error_lines(record.exc_info, self._show_messages))
        return json.dumps(line, ensure_ascii=True, default=str)


class TextLines(logging.Formatter):
    """The same for people."""

    def __init__(self, show_messages: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._show_messages = show_messages

    def format(self, record: logging.LogRecord) -> str:
        # A handler before us may have left its own rendering of the exception, which we would take over.
        record.exc_text = None
        try:
            return super().format(record)
        finally:
            record.exc_text = None

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = {**_request(), **getattr(record, "fields", {})}
        said = "".join(f" {name}={value}" for name, value in fields.items())
        return super().formatMessage(record) + said

    def formatException(self, ei: ExcInfo) -> str:
        return "\n".join(error_lines(ei, self._show_messages))


def error_lines(info: ExcInfo, show_messages: bool) -> Iterator[str]:
    """The exception and its causes, outermost first: type and code of each, then where it came through."""
    error = info[1]
    while error is not None:
        yield _named(error, show_messages)
        for frame in traceback.extract_tb(error.__traceback__):
            yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from error_lines((type(part), part, part.__traceback__), show_messages)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _named(error: BaseException, show_messages: bool) -> str:
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    if show_messages:
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: errno {error.errno}"
    code = getattr(error, "code", None)
    return f"{name}: {code}" if isinstance(code, str) and code.isidentifier() else name


def _request() -> dict[str, object]:
    asker = ASKER.get()
    if asker is None:
        return {}
    owner = {} if asker.owner_id is None else {"owner_id": asker.owner_id}
    return {"request_id": asker.request_id, **owner}
