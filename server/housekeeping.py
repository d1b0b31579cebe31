"""What the server does for the store in the background: ends the answers that nobody runs, removes event logs after
their retention time, files past their time and old batches of tasks, and purges what was deleted longer ago than it
can be taken back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from idefics_chat.server.task_batches import KEPT_S
from idefics_chat.storage.errors import StorageError
from idefics_chat.storage.store import Store

INTERVAL_S = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long to keep what is not needed for the conversations themselves, in seconds."""

    event_logs_s: float
    deleted_s: float


async def keep_house(
    store: Store,
    end_orphans: Callable[[], Awaitable[object]],
    retention: Retention,
    clock: Callable[[], float],
    interval_s: float = INTERVAL_S,
) -> None:
    """Until cancelled. A store that cannot be written now is tried again the next time."""
    while True:
        for work in (end_orphans, partial(clean, store, retention, clock())):
            try:
                await work()
            except StorageError as error:
                _log.warning("what housekeeping would end or remove stays for now: %s", error)
        await asyncio.sleep(interval_s)


async def clean(store: Store, retention: Retention, now_s: float) -> None:
    """Remove once what is past its time."""
    batches = await store.remove_old_batches(now_s - KEPT_S)
    logs = await store.remove_old_logs(now_s - retention.event_logs_s)
    purged = await store.purge_deleted(now_s - retention.deleted_s)
    files = await store.remove_expired_files(now_s)
    if logs or purged.conversations or files or batches:
        _log.info(
            "removed the event logs of %d answers, %d expired files and %d old batches, purged %d conversations",
            logs,
            files,
            batches,
            purged.conversations,
        )
