"""Plain-Python twin of src/smc.py: the definitions over whole lists, with no shared code and no fixed places.

An event is (kind, side, origin bar, known bar, end bar or None, near, deep).
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEFT, RIGHT = 3, 3
LEG_MAX, ZONE_MAX, SWEEP_MAX = 120, 150, 20
KEPT = 8
GAP_MIN = 0.2


@dataclass
class Event:
    kind: str
    side: int
    origin: int
    known: int
    near: float
    deep: float
    end: int | None = None
    entry: float = 0.0
    far: float = 0.0
    touched: int | None = None
    alive: bool = True


@dataclass
class Bars:
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]

    def top(self, side: int, k: int) -> float:
        """The extreme on that side: highs for +1, lows for -1."""
        return self.high[k] if side > 0 else self.low[k]


@dataclass
class Twin:
    bars: Bars
    atr: list[float]
    events: list[Event] = field(default_factory=list)
    trend: int = 0
    last_pivot: dict[int, Event] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)

    def run(self) -> Twin:
        for t in range(len(self.bars.close)):
            self._age(t)
            self._sweeps(t)
            self._breaks(t)
            self._gaps(t)
            self._pivots(t)
        return self

    def _living(self, kind: str, side: int | None = None) -> list[Event]:
        return [e for e in self.events if e.kind == kind and e.alive and side in (None, e.side)]

    def _age(self, t: int) -> None:
        b = self.bars
        for zone in [e for e in self.events if e.alive and e.kind in ("order block", "fair value gap", "zone of sweep")]:
            reached = b.top(-zone.side, t)
            if zone.touched is None and zone.side * (reached - zone.entry) <= 0:
                zone.touched = t
            if zone.kind == "fair value gap":
                over = zone.side * (reached - zone.deep) <= 0
            else:
                over = zone.side * (b.close[t] - zone.far) < 0
            if over or t - zone.known >= (SWEEP_MAX if zone.kind == "zone of sweep" else ZONE_MAX):
                zone.alive, zone.end = False, t

    def _add_zone(self, zone: Event) -> None:
        """Eight of a kind; the oldest touched one goes first, then the oldest."""
        others = self._living(zone.kind)
        if len(others) == KEPT:
            touched = [e for e in others if e.touched is not None]
            gone = min(touched or others, key=lambda e: e.known)
            gone.alive, gone.end = False, zone.known
        self.events.append(zone)

    def _sweeps(self, t: int) -> None:
        b = self.bars
        for side in (1, -1):
            inside = []
            for pivot in self._living("pivot", side):
                if side * (b.top(side, t) - pivot.near) > 0:
                    pivot.alive, pivot.end = False, t
                    if side * (b.close[t] - pivot.near) < 0:
                        inside.append(pivot.near)
            if inside:
                price, wick = side * max(side * p for p in inside), b.top(side, t)
                self.events.append(Event("sweep", -side, t, t, price, wick))
                self._add_zone(Event("zone of sweep", -side, t, t, price, wick, entry=price, far=wick))

    def _breaks(self, t: int) -> None:
        b = self.bars
        for side in (1, -1):
            pivot = self.last_pivot.get(side)
            if pivot is None or pivot.origin in self.broken_of(side) or side * (b.close[t] - pivot.near) <= 0:
                continue
            self.broken.add(side * (pivot.origin + 1))
            kind = "CHoCH" if self.trend == -side else "BOS"
            self.trend = side
            self.events.append(Event(kind, side, pivot.origin, t, pivot.near, b.close[t], end=t))
            self._block(t, side, pivot)

    def broken_of(self, side: int) -> set[int]:
        return {abs(x) - 1 for x in self.broken if x * side > 0}

    def _block(self, t: int, side: int, pivot: Event) -> None:
        b = self.bars
        leg = range(max(pivot.origin + 1, t - LEG_MAX), t)
        opposite = [k for k in leg if side * (b.close[k] - b.open[k]) < 0]
        if opposite:
            candle = max(opposite, key=lambda k: (-side * b.top(-side, k), k))
        else:
            candle = max(leg, key=lambda k: (-side * b.top(-side, k), -k))
        if any(e.origin == candle for e in self._living("order block", side)):
            return
        near, deep = b.top(side, candle), b.top(-side, candle)
        block = Event("order block", side, candle, t, near, deep, entry=near, far=deep)
        block.touched = t if side * (b.close[t] - near) <= 0 else None
        self._add_zone(block)

    def _gaps(self, t: int) -> None:
        b = self.bars
        if t < 2:
            return
        for side in (1, -1):
            near, deep = b.top(-side, t), b.top(side, t - 2)
            if side * (near - deep) > 0 and not side * (near - deep) < GAP_MIN * self.atr[t]:
                far = side * min(side * b.top(-side, t - 2), side * b.top(-side, t - 1))
                self._add_zone(Event("fair value gap", side, t - 1, t, near, deep, entry=(near + deep) / 2, far=far))

    def _pivots(self, t: int) -> None:
        b, at = self.bars, t - RIGHT
        if at < LEFT:
            return
        for side in (1, -1):
            price = side * b.top(side, at)
            before = [side * b.top(side, k) for k in range(at - LEFT, at)]
            after = [side * b.top(side, k) for k in range(at + 1, t + 1)]
            if price > max(before) and price >= max(after):
                others = self._living("pivot", side)
                if len(others) == KEPT:
                    others[0].alive = False
                pivot = Event("pivot", side, at, t, side * price, side * price)
                self.events.append(pivot)
                self.last_pivot[side] = pivot
