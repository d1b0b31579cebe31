"""Rows of the cache: what lies where it is wanted is not copied."""

from typing import Any

import pytest

from idefics_chat.inference.kv_slots import SlotTensors
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

CONTEXT = 200


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that parked prefixes are copied into, as it happens."""
    rows: list[int] = []
    right = SlotTensors.fill

    def noting(tensors: SlotTensors, row: int, *rest: Any) -> None:
        rows.append(row)
        right(tensors, row, *rest)

    monkeypatch.setattr(SlotTensors, "fill", noting)
    return rows


class Talk:
    """A conversation that goes on with what was answered."""

    def __init__(self, kit: Any, start: int) -> None:
        self._kit = kit
        self._tokens = kit.text(range(start, start + 9))
        self.cached: list[int] = []

    def ask(self, scheduler: Scheduler) -> Any:
        self._tokens = [*self._tokens, *self._kit.text([7, 8])]
        self._job = self._kit.job(self._tokens, 6, "group")
        scheduler.submit(self._job)
        return self._job

    def hear(self) -> None:
        (result,) = self._job.sink.results
        assert list(result.token_ids) == self._kit.reference(self._tokens, 6)
        self._tokens = [*self._tokens, *((token, None) for token in result.token_ids)]
        self.cached.append(result.usage.cached_tokens)


def turn(scheduler: Scheduler, *talks: Talk) -> None:
    for talk in talks:
        talk.ask(scheduler)
    while not scheduler.is_idle:
        scheduler.step()
        scheduler.check()
    for talk in talks:
        talk.hear()


def test_a_conversation_alone_goes_on_where_its_cache_lies(idefics_kit: Any, copies: list[int]) -> None:
    scheduler = Scheduler(idefics_kit.family, SchedulerLimits(max_running=4), CONTEXT)
    talk = Talk(idefics_kit, 1)
    for _ in range(4):
        turn(scheduler, talk)
    assert copies == []
    assert all(later > earlier for earlier, later in zip([-1, *talk.cached], talk.cached, strict=False))


def test_a_row_that_another_had_in_between_is_filled_again(idefics_kit: Any, copies: list[int]) -> None:
    scheduler = Scheduler(idefics_kit.family, SchedulerLimits(max_running=4), CONTEXT)
    one, other = Talk(idefics_kit, 1), Talk(idefics_kit, 40)
    for talk in (one, other, one, other):
        turn(scheduler, talk)
    assert copies == [0, 0]
    assert one.cached[1] > 0
    assert other.cached[1] > 0
