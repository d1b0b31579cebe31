"""Requests on their way from event loops to the engine's thread, and the places in the queue that they take."""

import threading
import time
from collections.abc import Sequence

from idefics_chat.inference.errors import EngineBusy, EngineStopped
from idefics_chat.inference.job import Job
from idefics_chat.inference.scheduler import Scheduler

GATHER_S = 0.1
"""How long an engine with nothing to do waits for requests that are being made ready, so that what is asked together
begins together: images are encoded in one forward then, and rows decode in step."""


class RequestQueue:
    """What event loops put in and one worker thread takes out, for one scheduler.

    A request has a place from `reserve` on, while it is made ready beside the queue, so that it is refused before any
    work on it: at most `most_waiting` are made ready, or wait, at any moment.
    """

    def __init__(self, scheduler: Scheduler, most_waiting: int) -> None:
        self._scheduler = scheduler
        self._most_waiting = most_waiting
        self._arrived: list[Job] = []
        self._forgotten: list[str] = []
        self._reserved = 0
        self._changed = threading.Condition()
        self._stopping = False

    # -- for event loops

    def reserve(self, most: int = 1) -> int:
        """Take so many places, or as many as there are; how many. Each is given back with `put` or `give_back`.

        Raises:
            EngineBusy: there is none.
            EngineStopped
        """
        with self._changed:
            if self._stopping:
                raise EngineStopped
            ahead = self._scheduler.waiting + len(self._arrived) + self._reserved
            places = min(most, self._most_waiting - ahead)
            if places < 1:
                raise EngineBusy(self._scheduler.expected_wait_s(ahead))
            self._reserved += places
            return places

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue jobs together, in their places. Raises EngineStopped."""
        with self._changed:
            if self._stopping:
                raise EngineStopped
            self._arrived += jobs
            self._changed.notify_all()

    def give_back(self, places: int) -> None:
        """Requests are queued, or never will be."""
        with self._changed:
            self._reserved -= places
            self._changed.notify_all()

    def forget(self, group: str) -> None:
        """Have dropped what is kept for a group that nobody will ask for again, and what still runs for it leave
        nothing."""
        with self._changed:
            self._forgotten.append(group)
            self._changed.notify_all()

    def wake(self) -> None:
        """Have the worker look again: a request was cancelled."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Take no more requests."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    # -- for the worker thread

    def hand_over(self) -> bool:
        """Wait until there is work, and hand new requests to the scheduler; False when it is time to stop."""
        with self._changed:
            while not (self._stopping or self._arrived or self._forgotten or not self._scheduler.is_idle):
                self._changed.wait()
            if self._scheduler.is_idle:
                self._gather()
            for job in self._arrived:
                self._scheduler.submit(job)
            self._arrived.clear()
            for group in self._forgotten:
                self._scheduler.forget(group)
            self._forgotten.clear()
            return not self._stopping

    def _gather(self) -> None:
        """Wait a moment for requests that are being made ready."""
        deadline = time.monotonic() + GATHER_S
        while self._reserved and not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._changed.wait(left)
