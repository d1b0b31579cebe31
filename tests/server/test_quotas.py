"""What one owner and one address may use: never more than allowed, never less, and every place comes back."""

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from idefics_chat.server.asker import Asker
from idefics_chat.server.errors import ApiError
from idefics_chat.server.quotas import SWEEP_AT, Place, Quotas, site_of
from idefics_chat.server.settings import QuotaSettings


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def quotas(clock: Time, **limits: int) -> Quotas:
    return Quotas(QuotaSettings(**dict.fromkeys(QuotaSettings.model_fields, 0) | limits), clock)


def asker(owner: str = "ann", address: str = "10.0.0.1") -> Asker:
    return Asker("req_x", address, owner)


def refusal(call: Any, *arguments: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        call(*arguments)
    assert refused.value.message.endswith(".")
    assert refused.value.status == 429
    return refused.value


@pytest.mark.parametrize("whose", ["key", "address"])
def test_connections_are_limited_by_key_and_by_address(whose: str) -> None:
    limited = quotas(Time(), **{f"connections_per_{whose}": 2})
    others = [asker("bob", "10.0.0.1"), asker("ann", "10.0.0.2")]
    same, other = others if whose == "address" else others[::-1]
    first, second = limited.connect(asker()), limited.connect(same)
    assert refusal(limited.connect, asker()).code == "rate_limit_exceeded"
    limited.connect(other)
    first.give_back()
    first.give_back()
    third = limited.connect(asker())
    refusal(limited.connect, same)
    second.give_back()
    third.give_back()


def test_a_refused_turn_takes_nothing_from_either_account() -> None:
    limited = quotas(Time(), running_turns_per_key=1, running_turns_per_address=1)
    place = limited.begin_turn(asker("ann", "10.0.0.1"))
    refusal(limited.begin_turn, asker("ann", "10.0.0.2"))
    refusal(limited.begin_turn, asker("bob", "10.0.0.1"))
    with limited.begin_turn(asker("bob", "10.0.0.2")):
        place.give_back()
        with limited.begin_turn(asker("ann", "10.0.0.1")):
            pass


def test_turns_a_minute_are_counted_over_any_minute_and_the_wait_is_told() -> None:
    clock = Time()
    limited = quotas(clock, turns_per_minute_per_key=2)
    limited.begin_turn(asker()).give_back()
    clock.now += 40
    limited.begin_turn(asker()).give_back()
    refused = refusal(limited.begin_turn, asker())
    assert refused.retry_after_s == pytest.approx(20)
    clock.now += 19.9
    refusal(limited.begin_turn, asker())
    clock.now += 0.2
    limited.begin_turn(asker()).give_back()
    assert limited.windows(asker())["requests"].remaining == 0


def test_a_turn_that_is_taken_back_was_never_counted() -> None:
    clock = Time()
    limited = quotas(clock, turns_per_minute_per_key=2, running_turns_per_key=1)
    limited.begin_turn(asker()).give_back()
    clock.now += 30
    for _ in range(3):
        place = limited.begin_turn(asker())
        place.take_back()
        place.take_back()
        place.give_back()
    assert limited.windows(asker())["requests"].remaining == 1
    clock.now += 29
    late = limited.begin_turn(asker())
    clock.now += 61
    late.take_back()
    assert limited.windows(asker())["requests"].remaining == 2


def test_a_place_that_was_given_back_is_not_taken_back() -> None:
    limited = quotas(Time(), turns_per_minute_per_key=2)
    place = limited.begin_turn(asker())
    place.give_back()
    place.take_back()
    assert limited.windows(asker())["requests"].remaining == 1


def test_tokens_and_bytes_of_a_day_come_back_at_midnight() -> None:
    clock = Time()
    limited = quotas(clock, tokens_per_day_per_key=100, bytes_per_day_per_address=10)
    limited.spend_tokens(asker(), 99)
    limited.begin_turn(asker()).give_back()
    limited.spend_tokens(asker(), 50)
    refused = refusal(limited.begin_turn, asker())
    assert refused.code == "quota_exceeded"
    assert refused.retry_after_s == pytest.approx(86_400 - clock.now % 86_400)
    limited.connect(asker())
    limited.check_bytes(asker())
    limited.begin_turn(asker("bob"))
    limited.spend_bytes(asker("bob"), 10)
    refusal(limited.connect, asker("bob"))
    assert refusal(limited.check_bytes, asker("bob")).code == "quota_exceeded"
    clock.now += refused.retry_after_s or 0
    limited.check_bytes(asker("bob"))
    limited.begin_turn(asker())


def test_an_owner_s_tokens_of_before_the_start_are_counted() -> None:
    limited = quotas(Time(), tokens_per_day_per_key=100)
    limited.restore("ann", 100)
    refusal(limited.begin_turn, asker())
    limited.begin_turn(asker("bob"))


def test_a_site_s_ipv6_addresses_are_one_address() -> None:
    assert site_of("2001:db8:1:2:3::4") == site_of("2001:db8:1:2:ffff::1")
    assert site_of("2001:db8:1:2::1") != site_of("2001:db8:1:3::1")
    assert site_of("::ffff:10.0.0.1") == site_of("10.0.0.1") == "10.0.0.1"
    assert site_of("unix") == "unix"


def test_accounts_of_strangers_who_left_are_dropped() -> None:
    clock = Time()
    limited = quotas(clock, turns_per_minute_per_address=5)
    kept = limited.begin_turn(asker("ann", "10.9.9.9"))
    for number in range(5 * SWEEP_AT):
        clock.now += 1
        limited.begin_turn(asker(f"owner {number}", f"address {number}")).give_back()
    assert len(limited) <= 2 * SWEEP_AT
    kept.give_back()


class Accounting(RuleBasedStateMachine):
    """Whatever comes and goes in whatever order, the accounts are what is there."""

    @initialize(connections=st.integers(0, 3), turns=st.integers(0, 3), minute=st.integers(0, 4))
    def begin(self, connections: int, turns: int, minute: int) -> None:
        self.clock = Time()
        self.limits = {"connections": connections, "running_turns": turns}
        self.minute = minute
        named = {f"{name}_per_{who}": n for name, n in self.limits.items() for who in ("key", "address")}
        self.quotas = quotas(self.clock, turns_per_minute_per_key=minute, **named)
        self.open: list[tuple[str, Asker, Place]] = []
        self.begun: list[tuple[str | None, float]] = []
        self.random = random.Random(0)

    @rule(
        owner=st.sampled_from("ab"),
        address=st.sampled_from("xy"),
        kind=st.sampled_from(["connections", "running_turns"]),
    )
    def take(self, owner: str, address: str, kind: str) -> None:
        who = Asker("req_x", address, owner)
        limit = self.limits[kind]
        held = [by for what, by, _ in self.open if what == kind]
        full = limit and (
            sum(by.owner_id == owner for by in held) >= limit or sum(by.address == address for by in held) >= limit
        )
        recent = [at for by, at in self.begun if by == owner and at > self.clock.now - 60]
        fast = kind == "running_turns" and self.minute and len(recent) >= self.minute
        take = self.quotas.connect if kind == "connections" else self.quotas.begin_turn
        if full or fast:
            refusal(take, who)
            return
        self.open.append((kind, who, take(who)))
        if kind == "running_turns":
            self.begun.append((owner, self.clock.now))

    @rule(index=st.integers(0, 100), twice=st.booleans())
    def give_back(self, index: int, twice: bool) -> None:
        if self.open:
            _, _, place = self.open.pop(index % len(self.open))
            place.give_back()
            if twice:
                place.give_back()

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def accounts_are_what_is_there(self) -> None:
        if not hasattr(self, "quotas"):
            return
        for (kind, name), account in self.quotas._accounts.items():
            mine = [what for what, by, _ in self.open if (by.owner_id if kind == "key" else by.address) == name]
            assert account.connections == mine.count("connections")
            assert account.running_turns == mine.count("running_turns")


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
