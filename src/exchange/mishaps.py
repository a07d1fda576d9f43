"""Faults that begin at a moment and may end at another: what befalls the whole venue, a route, a contract or the market, by the clock.

What holds at the moment is worked out anew from the list of all that goes on, so that mishaps may overlap and end in any order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import msgspec

from src.clock import SECOND_NS, monotonic_ns, seeded
from src.error_handler import Fatal, failure, lifecycle
from src.exchange.algo import USUAL, Doom, Fate
from src.exchange.errors import TEXTS
from src.exchange.faults import REQUESTS, RULES_MAX, SPAN_MAX_S, STOPS, TIMED, Active, Kind, Rule, parse_rule
from src.exchange.orders import AlgoOrder
from src.exchange.rest import ENDPOINTS
from src.exchange.state import CLOSED, Standing
from src.exchange.streams import MARKET, PRIVATE, PUBLIC, Streams
from src.exchange.venue import Shut, Venue
from src.exchange.ws_api import METHODS

ROUTES = (MARKET, PUBLIC, PRIVATE)
RESTRICTED_TEXT = ("Service unavailable from a restricted location according to 'b. Eligibility' in https://www.binance.com/en/terms. "
                   "Please contact customer service if you believe you received this message in error.")  # fmt: skip
SHUT = {
    Kind.MAINTENANCE: Shut(503, b"<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>", "text/html"),
    Kind.RESTRICTED: Shut(451, msgspec.json.encode({"code": 0, "msg": RESTRICTED_TEXT}), "application/json"),
}
OF_ROUTES = frozenset({Kind.SLOW_FRAMES, Kind.CUT})
DOORS = frozenset({*METHODS, *(f"{method} {path}" for method, path in ENDPOINTS)})
CHAOS_LEAST_S = 0.01
OF_A_CONTRACT = frozenset({Kind.HALT, Kind.DELIST, Kind.GAP, Kind.FLASH_CRASH, Kind.VANISH})
LASTING = frozenset({Kind.MUTE, Kind.SLOW_FRAMES, Kind.MAINTENANCE, Kind.RESTRICTED, Kind.CLOCK_SKEW, Kind.HALT})
"""Those that hold for a while; the others of ``TIMED`` happen, and are over."""
CHAOS = (
    "unknown_after,door=order.place", "unknown_after,door=POST v1/order", "timeout_before,door=order.place",
    "timeout_after,door=POST v1/algoOrder", "reset_during,door=POST v1/order", "reset_after,door=order.place",
    "silent_after,door=algoOrder.place", "gateway_after,count=2", "unavailable,count=5", "throttled,count=3", "internal,count=2",
    "stale,door=GET v1/order,count=3", "lag,door=GET v1/openAlgoOrders,delay_s=30,for_s=30", "slow,delay_s=2,count=3",
    "drop,rate=0.2,for_s=20", "duplicate,rate=0.3,for_s=20", "reorder,rate=0.5,for_s=20", "delay,rate=0.3,delay_s=2,for_s=20",
    "unknown_field,for_s=20", "malformed,rate=0.1,for_s=10", "mute,door=private,for_s=30", "mute,door=market,for_s=15",
    "slow_frames,delay_s=0.5,for_s=15", "cut", "expire_listen_keys", "lost_stop", "rejected_stop,code=-2022", "maintenance,for_s=5",
)  # fmt: skip
"""What chance draws from, in ``chaos``."""


class Going:
    """One mishap: waiting for its moment, then going on where it lasts, or striking where it happens."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.on = False
        self.timer: asyncio.TimerHandle | None = None
        self.script: Active | None = None

    @property
    def hits(self) -> int:
        return self.on + (self.script.hits if self.script is not None else 0)


class Mishaps:
    """Orders faults of every kind. What it does not carry out itself it hands to ``venue.faults``."""

    def __init__(self, venue: Venue, streams: Streams, cut_ws_api: Callable[[], None]) -> None:
        self._venue = venue
        self._streams = streams
        self._cut_ws_api = cut_ws_api
        self._going: list[Going] = []
        self._muted: set[str] = set()
        self._chaos: asyncio.TimerHandle | None = None
        venue.core.algo.fate = self._fate

    def start(self) -> None:
        """With the exchange: what its options order."""
        for rule in self._venue.options.faults:
            try:
                self.order(rule)
            except ValueError as error:
                raise Fatal(f"the fault {rule.kind}: {error}", setting="FAULT", value=rule.door) from None
        if self._venue.options.chaos is not None:
            self.chaos(self._venue.options.chaos)

    # ------------------------------------------------------------------ orders

    def order(self, rule: Rule) -> None:
        """One fault more. ValueError: it names what there is not, or there are too many."""
        self._check_door(rule)
        if rule.kind in (Kind.GAP, Kind.FLASH_CRASH) and self._venue.core.market.recorded is not None:
            raise ValueError("the market is a recording's raw frames: its prices cannot be moved")
        if len(self._going) >= RULES_MAX:
            raise ValueError(f"there are {RULES_MAX} faults already")
        if rule.kind not in TIMED:
            self._venue.faults.add(rule)
            self._streams.respoil()
            return
        going = Going(rule)
        self._going.append(going)
        if rule.after_s:
            going.timer = asyncio.get_running_loop().call_later(rule.after_s, self._begin, going)
        else:
            self._begin(going)

    def _check_door(self, rule: Rule) -> None:
        """Where a name can be told from a misspelt one; streams may be of any name."""
        symbols: Collection[str] = self._venue.state.index
        for kinds, doors, what in ((OF_A_CONTRACT | STOPS, symbols, "symbol"), (OF_ROUTES, ROUTES, "route"), (REQUESTS, DOORS, "door")):
            whole = rule.door == "*" and rule.kind not in OF_A_CONTRACT - {Kind.VANISH}
            if rule.kind in kinds and rule.door not in doors and not whole:
                known = "such as POST v1/order or order.place" if doors is DOORS else f"but {', '.join([*doors][:3])}"
                raise ValueError(f"there is no {what} {rule.door!r}, {known}")

    def mute(self, route: str, on: bool) -> None:
        """A route goes silent, or speaks again, until told otherwise. ValueError: no such route."""
        if route not in ROUTES:
            raise ValueError(f"no route {route!r}")
        (self._muted.add if on else self._muted.discard)(route)
        self._settle()

    def told(self) -> list[dict[str, object]]:
        """Every fault in force, and how often it has struck."""
        timed = [msgspec.structs.asdict(g.rule) | {"hits": g.hits} for g in self._going]
        return self._venue.faults.told() + timed

    def clear(self) -> None:
        """Nothing more goes wrong; what has happened has happened."""
        for going in self._going:
            if going.timer is not None:
                going.timer.cancel()
        over, self._going = self._going, []
        for going in over:
            if going.on:
                self._end_of(going)
        self._muted.clear()
        if self._chaos is not None:
            self._chaos.cancel()
            self._chaos = None
        self._venue.faults.clear()
        for limiter in (self._venue.limiter, self._venue.ws_limiter):
            limiter.pardon()
        self._streams.respoil()
        self._settle()

    def chaos(self, seed: int, every_s: float = 20.0) -> None:
        """From now on something goes wrong about every so many seconds; the same seed draws the same sequence, in the place of any other.

        ValueError: that is no span.
        """
        if not CHAOS_LEAST_S <= every_s <= SPAN_MAX_S:
            raise ValueError(f"every_s of {every_s}: it is from {CHAOS_LEAST_S} to {SPAN_MAX_S:,}")
        if self._chaos is not None:
            self._chaos.cancel()
        rng = seeded(seed)

        def strike() -> None:
            words = rng.choice(CHAOS)
            rule = msgspec.structs.replace(parse_rule(words), seed=rng.randrange(1 << 32))
            lifecycle(f"chaos {seed}: {words}", kind=rule.kind)
            self._chaos = asyncio.get_running_loop().call_later(rng.uniform(0.5, 1.5) * every_s, strike)
            try:
                self.order(rule)
            except ValueError as error:  # nobody came to their doors
                lifecycle(f"chaos {seed}: {error}", kind=rule.kind)

        self._chaos = asyncio.get_running_loop().call_later(rng.uniform(0.5, 1.5) * every_s, strike)

    # ------------------------------------------------------------------ beginnings and ends

    def _begin(self, going: Going) -> None:
        try:
            self._strike(going)
        except Exception as error:  # the end of a chore: the exchange lives on
            failure(f"the fault {going.rule.kind}", error)
            self._going = [g for g in self._going if g is not going]

    def _strike(self, going: Going) -> None:
        rule, loop = going.rule, asyncio.get_running_loop()
        if rule.kind in LASTING:
            going.on = True
            self._settle()
            self._start_of(going)
            going.timer = loop.call_later(rule.for_s, self._end, going) if rule.for_s else None
            return
        if going.script is None:
            going.script = Active(msgspec.structs.replace(rule, after_s=0.0))
        if going.script.hit(monotonic_ns()):
            _HAPPENS[rule.kind](self, rule)
        if rule.delay_s and rule.kind is not Kind.DELIST and not going.script.over(monotonic_ns() + int(rule.delay_s * SECOND_NS)):
            going.timer = loop.call_later(rule.delay_s, self._begin, going)
        else:
            self._going.remove(going)

    def _end(self, going: Going) -> None:
        self._going.remove(going)
        self._end_of(going)
        self._settle()

    def _start_of(self, going: Going) -> None:
        if going.rule.kind in SHUT:
            self._streams.cut_all()
            self._cut_ws_api()
        if going.rule.kind is Kind.HALT:
            self._stand(going.rule.door, "SETTLING")

    def _end_of(self, going: Going) -> None:
        """A contract trades again when no other fault halts it, unless it has been closed meanwhile."""
        if going.rule.kind is Kind.HALT and not any(g.on and g.rule.kind is Kind.HALT and g.rule.door == going.rule.door for g in self._going):
            self._stand(going.rule.door, "TRADING")

    def _settle(self) -> None:
        """Work out what holds now."""
        venue, on = self._venue, [g.rule for g in self._going if g.on]
        venue.shut = next((SHUT[r.kind] for r in on if r.kind in SHUT), None)
        venue.skew_ms = int(1000 * sum(r.size for r in on if r.kind is Kind.CLOCK_SKEW))
        mute = {r.door for r in on if r.kind is Kind.MUTE} | self._muted
        if "*" in mute:
            mute |= set(ROUTES)
        self._streams.mute(mute & set(ROUTES), mute - set(ROUTES))
        slow = {route: max((r.delay_s for r in on if r.kind is Kind.SLOW_FRAMES and r.door in (route, "*")), default=0.0) for route in ROUTES}
        self._streams.slow(slow)

    # ------------------------------------------------------------------ what happens

    def _cut(self, rule: Rule) -> None:
        self._streams.cut_all(rule.door if rule.door != "*" else None)

    def _expire_listen_keys(self, _rule: Rule) -> None:
        self._venue.listen_keys.age()
        self._streams.expire_keys()

    def _vanish(self, rule: Rule) -> None:
        """Conditional orders that rest are gone, and nobody is told."""
        core = self._venue.core
        wanted = None if rule.door == "*" else self._venue.state.index[rule.door]
        self._venue.at_once(lambda: core.algo.vanish_all(wanted))

    def _ban(self, rule: Rule) -> None:
        for limiter in (self._venue.limiter, self._venue.ws_limiter):
            limiter.ban(self._venue.wall_ms(), int(1000 * (rule.for_s or 120)))

    def _gap(self, rule: Rule) -> None:
        core, index = self._venue.core, self._venue.state.index[rule.door]
        self._venue.at_once(lambda: core.jump(index, core.part_of_price(index, rule.size)))

    def _crash(self, rule: Rule) -> None:
        core, index = self._venue.core, self._venue.state.index[rule.door]
        span_ms = int(1000 * (rule.for_s or 10.0) * self._venue.clock.speed)
        self._venue.at_once(lambda: core.crash(index, rule.size, span_ms))

    def _delist(self, rule: Rule) -> None:
        self._stand(rule.door, None, self._venue.now_ms() + int(1000 * rule.delay_s * self._venue.clock.speed))

    def _stand(self, symbol: str, status: str | None, delivery_ms: int | None = None) -> None:
        """What is left out stays; a contract that is closed stays closed."""
        state = self._venue.state
        was = state.standings[state.index[symbol]]
        if was.status != CLOSED:
            state.stand(state.index[symbol], Standing(status or was.status, was.delivery_ms if delivery_ms is None else delivery_ms))

    # ------------------------------------------------------------------ conditional orders

    def _fate(self, algo: AlgoOrder, placed: bool) -> Fate:
        """What is to become of a conditional order that has just been placed, or has triggered."""
        faults = self._venue.faults
        if not faults:
            return USUAL
        doors = (self._venue.state.specs[algo.symbol].symbol, "*")
        rule = faults.take(doors, {Kind.LOST_STOP} if placed else STOPS - {Kind.LOST_STOP})
        if rule is None:
            return USUAL
        if rule.kind is Kind.REJECTED_STOP:
            return Fate(Doom.REJECTED, TEXTS.get(rule.code, TEXTS[-2022]))
        return Fate(Doom.LOST if placed else Doom.STUCK, delay_ms=int(1000 * rule.delay_s * self._venue.clock.speed))


_HAPPENS: dict[Kind, Callable[[Mishaps, Rule], None]] = {
    Kind.CUT: Mishaps._cut, Kind.EXPIRE_LISTEN_KEYS: Mishaps._expire_listen_keys, Kind.VANISH: Mishaps._vanish, Kind.BANNED: Mishaps._ban,
    Kind.GAP: Mishaps._gap, Kind.FLASH_CRASH: Mishaps._crash, Kind.DELIST: Mishaps._delist,
}  # fmt: skip
assert LASTING | _HAPPENS.keys() == TIMED
