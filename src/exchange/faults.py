"""The ways in which the venue is known to misbehave, on order of a test (control door, options at start): nothing happens here unasked.

A rule names a kind and a door: ``POST v1/order`` for REST, ``order.place`` for the WS API, an event's name for the private stream, a
stream's name or ``market`` or ``public`` for market data, a symbol for what happens to a contract; ``*`` is any door of that kind of
thing. It hits by rate (``rate``, ``seed``), by script (``after`` so many that pass, ``count`` in all) and by the clock (``after_s``,
``for_s``). Rules are asked in the order in which they were given, and the first that hits decides. The same seed and the same requests
give the same faults.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from src.clock import SECOND_NS, monotonic_ns, seeded
from src.error_handler import Fatal
from src.exchange.errors import TEXTS, ApiError
from src.exchange.params import Params

UNKNOWN_TEXT = "Unknown error, please check your request or try again later."
LIMITED_TEXT = "Too many requests; current limit of IP is {} requests per minute."
RULES_MAX = 1000
COUNT_MAX = 10**9
SPAN_MAX_S = 366 * 86_400


class Kind(StrEnum):
    """``…_before``: nothing is executed; ``…_after``: it is, and the client does not learn it."""

    UNKNOWN_BEFORE = "unknown_before"
    UNKNOWN_AFTER = "unknown_after"
    TIMEOUT_BEFORE = "timeout_before"
    TIMEOUT_AFTER = "timeout_after"
    RESET_BEFORE = "reset_before"
    RESET_DURING = "reset_during"  # cut while the request is on its way to the book, which it reaches
    RESET_AFTER = "reset_after"
    SILENT_AFTER = "silent_after"  # executed, and never answered
    GATEWAY_BEFORE = "gateway_before"
    GATEWAY_AFTER = "gateway_after"
    UNAVAILABLE = "unavailable"
    THROTTLED = "throttled"
    INTERNAL = "internal"
    LIMITED = "limited"
    REFUSED = "refused"
    STALE = "stale"  # a query that lags: the order is not there yet
    LAG = "lag"
    SLOW = "slow"  # the answer takes ``delay_s`` longer, the request is executed at once
    CUT_ANSWER = "cut_answer"
    ODD_ANSWER = "odd_answer"

    DROP = "drop"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    REORDER = "reorder"
    MALFORMED = "malformed"
    UNKNOWN_FRAME = "unknown_frame"
    UNKNOWN_FIELD = "unknown_field"
    MUTE = "mute"
    SLOW_FRAMES = "slow_frames"
    CUT = "cut"
    EXPIRE_LISTEN_KEYS = "expire_listen_keys"

    LOST_STOP = "lost_stop"
    VANISH = "vanish"
    STUCK_STOP = "stuck_stop"
    REJECTED_STOP = "rejected_stop"

    MAINTENANCE = "maintenance"
    RESTRICTED = "restricted"
    BANNED = "banned"
    CLOCK_SKEW = "clock_skew"
    HALT = "halt"
    DELIST = "delist"
    GAP = "gap"
    FLASH_CRASH = "flash_crash"


_ALL = tuple(Kind)
REQUESTS = frozenset(_ALL[: _ALL.index(Kind.DROP)])
"""What happens to a request at its door."""
FRAMES = frozenset({Kind.DROP, Kind.DUPLICATE, Kind.DELAY, Kind.MALFORMED, Kind.UNKNOWN_FRAME, Kind.UNKNOWN_FIELD})
"""What happens to one frame: an event of the private stream, or of a market stream."""
STOPS = frozenset({Kind.LOST_STOP, Kind.STUCK_STOP, Kind.REJECTED_STOP})
"""What happens to a conditional order; its door is a symbol."""
SPANS_OF_THEIR_OWN = frozenset({Kind.BANNED, Kind.FLASH_CRASH})
"""Each of these lasts ``for_s``."""
TIMED = frozenset(_ALL) - REQUESTS - FRAMES - STOPS - {Kind.REORDER}
"""What begins at a moment, and may end at another."""
BEFORE = frozenset({Kind.UNKNOWN_BEFORE, Kind.TIMEOUT_BEFORE, Kind.RESET_BEFORE, Kind.GATEWAY_BEFORE, Kind.UNAVAILABLE, Kind.THROTTLED,
                    Kind.INTERNAL, Kind.LIMITED, Kind.REFUSED, Kind.STALE})  # fmt: skip
THROTTLED_DOORS = ("POST v1/order", "POST v1/order/test", "POST v1/batchOrders", "order.place")


class Rule(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One fault as it is ordered. ``count``: how often in all; 0 without end; left out, once, or without end where a rate or a span is given.

    ``delay_s``, ``code``, ``status`` and ``size`` mean what the kind makes of them. Spans are wall time.
    """

    kind: Kind
    door: str = "*"
    count: int | None = None
    after: int = 0
    rate: float = 1.0
    seed: int = 1
    after_s: float = 0.0
    for_s: float = 0.0
    delay_s: float = 0.0
    code: int = 0
    status: int = 0
    size: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"a rate of {self.rate}: it is from 0 to 1")
        if not (0 <= (self.count or 0) <= COUNT_MAX and 0 <= self.after <= COUNT_MAX):
            raise ValueError(f"a count of {self.count} after {self.after}: both are from 0 to {COUNT_MAX:,}")
        for name in ("after_s", "for_s", "delay_s"):
            if not 0 <= getattr(self, name) <= SPAN_MAX_S:
                raise ValueError(f"{name} of {getattr(self, name)}: it is from 0 to {SPAN_MAX_S:,}, a year of seconds")
        if not -SPAN_MAX_S <= self.size <= SPAN_MAX_S:
            raise ValueError(f"a size of {self.size}: it is at most {SPAN_MAX_S:,} either way")
        if self.kind in (Kind.GAP, Kind.FLASH_CRASH) and not -1.0 < self.size < 10.0:
            raise ValueError(f"a size of {self.size}: the price moves by a part of itself, such as -0.1")
        if self.kind is Kind.REFUSED and self.code not in TEXTS:
            raise ValueError(f"no refusal has the code {self.code}")
        if self.status and not 400 <= self.status <= 599:
            raise ValueError(f"a status of {self.status}: it is from 400 to 599")

    @property
    def times(self) -> int:
        """``count``, with what it is where it was left out."""
        if self.count is None:
            return 0 if self.rate < 1.0 or (self.for_s and self.kind not in SPANS_OF_THEIR_OWN) else 1
        return self.count


def parse_rule(text: str) -> Rule:
    """``kind,name=value,…``, as on the command line. ValueError, with the reason."""
    kind, *pairs = text.split(",")
    words: dict[str, Any] = {"kind": kind.strip()}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is not name=value")
        words[name.strip()] = value.strip()
    try:
        return msgspec.convert(words, Rule, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def read_rules(data: bytes) -> tuple[Rule, ...]:
    """A JSON list of rules. Fatal, with the reason."""
    try:
        return msgspec.json.decode(data, type=tuple[Rule, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Fatal(f"these are no faults: {error}") from None


class Active:
    """A rule in force, and how far it has come."""

    __slots__ = ("_begins_ns", "_chance", "_ends_ns", "_passed", "hits", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.hits = 0
        self._passed = 0
        self._chance = seeded(rule.seed)
        self._begins_ns = monotonic_ns() + int(rule.after_s * SECOND_NS)
        spanned = rule.for_s and rule.kind not in SPANS_OF_THEIR_OWN
        self._ends_ns = self._begins_ns + int(rule.for_s * SECOND_NS) if spanned else None

    def over(self, now_ns: int) -> bool:
        times = self.rule.times
        return (times and self.hits >= times) or (self._ends_ns is not None and now_ns >= self._ends_ns)

    def hit(self, now_ns: int) -> bool:
        """Whether it strikes what has come to its door."""
        if now_ns < self._begins_ns:
            return False
        if self._passed < self.rule.after:
            self._passed += 1
            return False
        if self.rule.rate < 1.0 and self._chance.random() >= self.rule.rate:
            return False
        self.hits += 1
        return True


class Reset(Exception):
    """The connection is to be cut instead of an answer."""


class Silence(Exception):
    """No answer is to be given."""


class Page(Exception):
    """Something in front of the venue answers with a page of HTML."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"HTTP {status}")


class Spoiled(Exception):
    """The answer is given, but not as it should be."""

    def __init__(self, kind: Kind, value: Any) -> None:
        self.kind = kind
        self.value = value
        super().__init__(kind)


class Faults:
    """The rules in force. ``timeout_status``: the HTTP status of -1007 where a rule names none."""

    def __init__(self, timeout_status: int) -> None:
        self._timeout_status = timeout_status
        self._active: list[Active] = []
        self._on_the_way: set[asyncio.Future[Any]] = set()

    def add(self, rule: Rule) -> None:
        """ValueError: there are too many."""
        self._prune()
        if len(self._active) >= RULES_MAX:
            raise ValueError(f"there are {RULES_MAX} faults already")
        if rule.kind in (Kind.TIMEOUT_BEFORE, Kind.TIMEOUT_AFTER) and not rule.status:
            rule = msgspec.structs.replace(rule, status=self._timeout_status)
        self._active.append(Active(rule))

    def clear(self) -> None:
        self._active.clear()

    def __bool__(self) -> bool:
        return bool(self._active)

    @property
    def left(self) -> int:
        """How many faults are still to come; what is without end counts as one."""
        return sum(max(1, a.rule.times - a.hits) for a in self._active)

    def told(self) -> list[dict[str, Any]]:
        """Every rule in force with how often it has struck."""
        self._prune()
        return [msgspec.structs.asdict(a.rule) | {"hits": a.hits} for a in self._active]

    def wanted(self, kinds: Collection[Kind], doors: Collection[str]) -> bool:
        """Whether some rule of these kinds stands at one of these doors, now or later."""
        return any(a.rule.kind in kinds and a.rule.door in doors for a in self._active)

    def take(self, doors: Collection[str], kinds: Collection[Kind]) -> Rule | None:
        """The fault for what has come to these doors, used up by the asking."""
        if not self._active:
            return None
        now_ns = monotonic_ns()
        for active in self._active:
            rule = active.rule
            if rule.kind in kinds and rule.door in doors and not active.over(now_ns) and active.hit(now_ns):
                self._prune()
                return rule
        return None

    def _prune(self) -> None:
        now_ns = monotonic_ns()
        self._active = [a for a in self._active if not a.over(now_ns)]

    def lag_s(self, door: str) -> float:
        """How far behind the present a query at this door reads; wall seconds."""
        rule = self.take((door, "*"), (Kind.LAG,))
        return rule.delay_s if rule is not None else 0.0

    def keep(self, future: asyncio.Future[Any]) -> None:
        """What is on its way to the book though nobody waits for it any more."""
        self._on_the_way.add(future)
        future.add_done_callback(self._arrived)

    def _arrived(self, future: asyncio.Future[Any]) -> None:
        self._on_the_way.discard(future)
        if not future.cancelled():
            future.exception()


_BEFORE_OR_AFTER: Mapping[Kind, Callable[[Rule], Exception]] = {
    Kind.RESET_BEFORE: lambda _: Reset(),
    Kind.RESET_AFTER: lambda _: Reset(),
    Kind.SILENT_AFTER: lambda _: Silence(),
    Kind.GATEWAY_BEFORE: lambda rule: Page(rule.status or 504),
    Kind.GATEWAY_AFTER: lambda rule: Page(rule.status or 504),
    Kind.UNKNOWN_BEFORE: lambda _: ApiError(-1000, msg=UNKNOWN_TEXT, status=503),
    Kind.UNKNOWN_AFTER: lambda _: ApiError(-1000, msg=UNKNOWN_TEXT, status=503),
    Kind.TIMEOUT_BEFORE: lambda rule: ApiError(-1007, status=rule.status),
    Kind.TIMEOUT_AFTER: lambda rule: ApiError(-1007, status=rule.status),
    Kind.UNAVAILABLE: lambda _: ApiError(-1000, msg="Service Unavailable.", status=503),
    Kind.THROTTLED: lambda _: ApiError(-1008),
    Kind.INTERNAL: lambda _: ApiError(-1001),
    Kind.LIMITED: lambda rule: ApiError(-1003, msg=LIMITED_TEXT.format(2400), retry_after_s=max(1, round(rule.delay_s))),
    Kind.REFUSED: lambda rule: ApiError(rule.code, *("?",) * 3, status=rule.status or None),
    Kind.STALE: lambda _: ApiError(-2013),
}


def exempt(params: Params) -> bool:
    """Whether the venue's protection lets an order pass: what only reduces."""
    side, position = params.raw("side"), params.raw("positionSide")
    reducing = params.raw("reduceOnly") == "true" and position in ("", "BOTH")
    return reducing or params.raw("closePosition") == "true" or (position, side) in (("LONG", "SELL"), ("SHORT", "BUY"))


_AT_THE_DOOR = REQUESTS - {Kind.LAG}
_UNTHROTTLED = _AT_THE_DOOR - {Kind.THROTTLED}


async def carried_out(faults: Faults, door: str, params: Params, operation: Callable[[], Any]) -> Any:
    """An operation's value, with the fault that its door is due."""
    rule = None
    if faults:
        throttled = door in THROTTLED_DOORS and not exempt(params)
        rule = faults.take((door, "*"), _AT_THE_DOOR if throttled else _UNTHROTTLED)
    if rule is None:
        value = operation()
        return await value if inspect.isawaitable(value) else value
    if rule.kind in BEFORE:
        raise _BEFORE_OR_AFTER[rule.kind](rule)
    value = operation()
    if rule.kind is Kind.RESET_DURING:
        if inspect.isawaitable(value):
            faults.keep(asyncio.ensure_future(_whole(value)))
        raise Reset
    if inspect.isawaitable(value):
        value = await value
    await asyncio.sleep(rule.delay_s)
    if rule.kind in (Kind.CUT_ANSWER, Kind.ODD_ANSWER):
        raise Spoiled(rule.kind, value)
    if rule.kind is not Kind.SLOW:
        raise _BEFORE_OR_AFTER[rule.kind](rule)
    return value


async def _whole(value: Awaitable[Any]) -> Any:
    return await value
