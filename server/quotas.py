"""How much one owner and one address may use: connections, answers under way, turns a minute, tokens and bytes a day.

Pure accounting: it is told of what begins and ends, with its clock as an argument, and refuses what would be too much.
Whoever takes a place gets a `Place` and gives it back once; giving it back again does nothing.

Turns a minute are counted exactly (the times of the last turns, as many as are allowed); tokens and bytes are counted
when they were used, so that the turn which passes the limit is the last one of the day. Libraries for rate limits were
looked at: `limits` reads the machine's clock, starts a timer thread of its own, and keeps an entry for each token.
"""

import ipaddress
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from idefics_chat.server.asker import Asker
from idefics_chat.server.errors import ApiError
from idefics_chat.server.settings import QuotaSettings

MINUTE_S = 60.0
DAY_S = 86_400.0
IPV6_SITE_BITS = 64
"""One site of IPv6 has this many bits of addresses to choose from, and counts as one address."""

SWEEP_AT = 1024
"""Accounts that are kept before those without anything on them are dropped."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one owner, or one address, may use; 0 is no limit."""

    connections: int = 0
    running_turns: int = 0
    turns_per_minute: int = 0
    tokens_per_day: int = 0
    bytes_per_day: int = 0


@dataclass(slots=True)
class Account:
    """What one owner, or one address, uses."""

    connections: int = 0
    running_turns: int = 0
    recent: deque[float] = field(default_factory=deque)
    day: int = 0
    tokens: int = 0
    bytes: int = 0

    def bring_to(self, now_s: float) -> None:
        """Forget the turns of more than a minute ago, and what was used before today (UTC)."""
        while self.recent and self.recent[0] <= now_s - MINUTE_S:
            self.recent.popleft()
        today = int(now_s // DAY_S)
        if today != self.day:
            self.day, self.tokens, self.bytes = today, 0, 0

    @property
    def empty(self) -> bool:
        """Nothing is on it that a new account would not have."""
        return not (self.connections or self.running_turns or self.recent or self.tokens or self.bytes)


class Place:
    """A place that was taken. `give_back` once, and as often as you like."""

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def give_back(self) -> None:
        """The place is free again."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()


class TurnPlace(Place):
    """The place of a turn."""

    __slots__ = ("_uncount",)

    def __init__(self, give_back: Callable[[], None], uncount: Callable[[], None]) -> None:
        super().__init__(give_back)
        self._uncount = uncount

    def take_back(self) -> None:
        """Give the place back as if it had never been taken: the turn is not counted among those of the minute."""
        if self._give_back is not None:
            self._uncount()
        self.give_back()


@dataclass(frozen=True, slots=True)
class Window:
    """One limit as clients are told of it in headers: how much, how much is left, seconds until all of it is."""

    limit: int
    remaining: int
    reset_s: float


class Quotas:
    """The accounts of all owners and addresses. `clock` gives seconds since the epoch. Belongs to one event loop."""

    def __init__(self, settings: QuotaSettings, clock: Callable[[], float]) -> None:
        self._allowances = {"key": _allowance(settings, "key"), "address": _allowance(settings, "address")}
        self._clock = clock
        self._accounts: dict[tuple[str, str], Account] = {}
        self._sweep_at = SWEEP_AT

    def __len__(self) -> int:
        """Accounts that are kept."""
        return len(self._accounts)

    @property
    def counts_tokens(self) -> bool:
        """Whether any limit is on tokens."""
        return any(allowance.tokens_per_day for allowance in self._allowances.values())

    def connect(self, asker: Asker) -> Place:
        """A place for a websocket.

        Raises:
            ApiError: `rate_limit_exceeded`, `quota_exceeded`; nothing was taken.
        """
        self._sweep()
        accounts = list(self._of(asker))
        for who, allowed, account in accounts:
            _refuse_full(account.connections, allowed.connections, f"{who} has {{}} connections open; close one")
            self._refuse_spent(who, "bytes", account.bytes, allowed.bytes_per_day)
        for _, _, account in accounts:
            account.connections += 1

        def give_back() -> None:
            for _, _, account in accounts:
                account.connections -= 1

        return Place(give_back)

    def begin_turn(self, asker: Asker) -> TurnPlace:
        """A place for a turn, counted among those of the minute.

        Raises:
            ApiError: `rate_limit_exceeded`, `quota_exceeded`; nothing was taken.
        """
        self._sweep()
        accounts = list(self._of(asker))
        for who, allowed, account in accounts:
            _refuse_full(
                account.running_turns, allowed.running_turns, f"{who} has {{}} answers under way; wait for one"
            )
            self._refuse_fast(who, allowed, account)
            self._refuse_spent(who, "bytes", account.bytes, allowed.bytes_per_day)
            self._refuse_spent(who, "tokens", account.tokens, allowed.tokens_per_day)
        now = self._clock()
        for _, allowed, account in accounts:
            account.running_turns += 1
            if allowed.turns_per_minute:
                account.recent.append(now)

        def give_back() -> None:
            for _, _, account in accounts:
                account.running_turns -= 1

        def uncount() -> None:
            for _, _, account in accounts:
                if now in account.recent:
                    account.recent.remove(now)

        return TurnPlace(give_back, uncount)

    def check_bytes(self, asker: Asker) -> None:
        """Raises ApiError `quota_exceeded` where the asker has sent its day's bytes. Who has used its day's tokens may
        still read what there is."""
        for who, allowed, account in self._of(asker):
            self._refuse_spent(who, "bytes", account.bytes, allowed.bytes_per_day)

    def spend_tokens(self, asker: Asker, tokens: int) -> None:
        """Count tokens; fewer than none where too many were counted before."""
        for _, allowed, account in self._of(asker):
            if allowed.tokens_per_day:
                account.tokens = max(0, account.tokens + tokens)

    def spend_bytes(self, asker: Asker, count: int) -> None:
        """Count bytes that came from the asker."""
        self._sweep()
        for _, allowed, account in list(self._of(asker)):
            if allowed.bytes_per_day:
                account.bytes += count

    def restore(self, owner_id: str, tokens: int) -> None:
        """Count tokens that the owner used today before the server was started."""
        account = self._account("key", owner_id)
        if self._allowances["key"].tokens_per_day:
            account.tokens += tokens

    def windows(self, asker: Asker) -> dict[str, Window]:
        """The limits that the asker meets first: of `requests` a minute and of `tokens` a day, where there are any."""
        now = self._clock()
        found: dict[str, list[Window]] = {"requests": [], "tokens": []}
        for _, allowed, account in self._of(asker):
            if limit := allowed.turns_per_minute:
                reset = account.recent[-1] + MINUTE_S - now if account.recent else 0.0
                found["requests"].append(Window(limit, max(0, limit - len(account.recent)), reset))
            if limit := allowed.tokens_per_day:
                found["tokens"].append(Window(limit, max(0, limit - account.tokens), _until_tomorrow(now)))
        return {name: min(some, key=lambda window: window.remaining) for name, some in found.items() if some}

    def _of(self, asker: Asker) -> Iterator[tuple[str, Allowance, Account]]:
        """The asker's accounts, brought to now, with what they may hold and how to name them in a sentence."""
        if asker.owner_id is not None:
            yield "Your key", self._allowances["key"], self._account("key", asker.owner_id)
        if asker.address:
            yield "Your address", self._allowances["address"], self._account("address", site_of(asker.address))

    def _account(self, kind: str, name: str) -> Account:
        now = self._clock()
        account = self._accounts.get((kind, name))
        if account is None:
            account = self._accounts[kind, name] = Account(day=int(now // DAY_S))
        account.bring_to(now)
        return account

    def _sweep(self) -> None:
        """Drop empty accounts, whenever there are twice as many as were left the last time. Only while nobody has an
        account in hand that is still empty."""
        if len(self._accounts) < self._sweep_at:
            return
        now = self._clock()
        for account in self._accounts.values():
            account.bring_to(now)
        self._accounts = {name: account for name, account in self._accounts.items() if not account.empty}
        self._sweep_at = max(SWEEP_AT, 2 * len(self._accounts))

    def _refuse_fast(self, who: str, allowed: Allowance, account: Account) -> None:
        limit = allowed.turns_per_minute
        if limit and len(account.recent) >= limit:
            wait = account.recent[-limit] + MINUTE_S - self._clock()
            message = f"{who} has asked for {limit} turns within a minute; try again in {math.ceil(wait)} s."
            raise ApiError("rate_limit_exceeded", message, retry_after_s=wait)

    def _refuse_spent(self, who: str, what: str, used: int, limit: int) -> None:
        if limit and used >= limit:
            message = f"{who} has used its {limit} {what} of today; more are there from 00:00 UTC."
            raise ApiError("quota_exceeded", message, retry_after_s=_until_tomorrow(self._clock()))


def site_of(address: str) -> str:
    """The address under which a peer is counted: itself, or its site's where it is IPv6."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip), IPV6_SITE_BITS), strict=False))


def _allowance(settings: QuotaSettings, whose: str) -> Allowance:
    return Allowance(*(getattr(settings, f"{name}_per_{whose}") for name in Allowance.__slots__))


def _refuse_full(count: int, limit: int, sentence: str) -> None:
    if limit and count >= limit:
        raise ApiError(
            "rate_limit_exceeded", f"{sentence.format(count)}, at most {limit} are allowed.", retry_after_s=1.0
        )


def _until_tomorrow(now_s: float) -> float:
    return (now_s // DAY_S + 1) * DAY_S - now_s
