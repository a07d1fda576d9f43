"""A made-up market: seeded, endless, without an edge unless one is asked for.

The log price of a symbol is beta times a market path plus a path of its own. Each path is a martingale (but for a pull towards its start
of 0.1 % of the distance a day, so that years do not carry a price off its ticks): first its variance is laid out in time (calm, normal
and storm hours by a Markov chain, the hours of the day, flickering minutes, rare jumps), then a normal walk of that variance is drawn.
Variance knows nothing of direction, so nothing that can be seen tells the sign of the next move; its flicker and jumps make fat tails.
An ``edge`` asked for is a hidden direction of each path, four hours long on average, along which every minute drifts by so many of its standard
deviations within the day: past moves then tell of the next ones.

Any day can be made alone. Where each day starts is settled first: a row of chance per symbol and day (``_Calendar``), from the origin on.
Within the day the walk is pinned to both ends, which leaves its law as it was. Candles are made a day and a symbol at a time, when asked
for; today's and those made ahead are kept, of other days the latest few. How many trades a day has is settled with its variance, so ids
have no hole and any can be found at once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from src.exchange.expansion import BAR_DTYPE, Bars, Floats, Grain, Ints, count_by_liquidity, key_of, spread_by_liquidity
from src.exchange.path import DAY_MS, ExpandedSource, Opening, PathMarket, check_resume, no_bars
from src.exchange.symbols import DEFAULT_UNIVERSE, SymbolSpec, invented_price, spec

BAR_MS = 60_000
MINUTES = 1_440
HISTORY_DAYS = 100
PREPARE_MS = 7_200_000
"""In the last two hours of a day the next one is made, a symbol at a time."""
TURN_MS = 600_000
"""So long after midnight the day before is let go of: a reader's last steps before it must not make that day anew."""
PAST_KEPT = 64
MARKET_DAYS_KEPT = 128
PATH_VERSION = 1
"""Rises when the same seed gives another path; a saved state of another version is refused."""

PULL = 0.001
_CALM, _NORMAL, _STORM = 0, 1, 2
REGIME_VARIANCE = np.array([0.35, 1.0, 5.0])
_STAY_OR_DOWN = np.array([0.0, 0.030, 0.13])
_UP = np.array([0.050, 0.020, 0.0])
"""Chance within an hour to fall to the calmer regime, and to rise to the wilder one."""
HOUR_VARIANCE = np.array([
    1.2, 1.1, 1.0, 0.9, 0.8, 0.75, 0.75, 0.85, 1.0, 1.0, 0.95, 0.9, 1.0, 1.5, 1.8, 1.6, 1.35, 1.15, 1.0, 0.95, 0.9, 0.85, 0.8, 0.9,
])
"""By the hour of the day (UTC)."""
_JUMP_CHANCE = 1 / 4_000
_JUMP_VARIANCE = 60.0
_TURN_CHANCE = 1 / 240
"""With an edge: in a minute its direction turns."""
_FIRST_AGG_ID, _FIRST_RAW_ID = 1_000_000, 2_500_000
_MARKET = "*MARKET*"


@dataclass(frozen=True, slots=True)
class Profile:
    """What a symbol is like. ``price``: USDT at the origin; ``sigma``: daily volatility of its own path in a normal day; ``beta``: share of
    the market's; ``flicker``: spread of log volatility from minute to minute; ``quote_per_minute``: turnover (USDT)."""

    price: float
    sigma: float
    beta: float
    flicker: float
    quote_per_minute: float


_MARKET_PROFILE = Profile(1.0, 0.0175, 1.0, 0.62, 0.0)

_PROFILES = {
    "BTC": (98_000, 0.002, 0.95, 10.0e6), "ETH": (3_400, 0.014, 1.35, 8.0e6), "BNB": (920, 0.010, 0.90, 0.9e6),
    "SOL": (168, 0.022, 1.50, 2.4e6), "XRP": (2.35, 0.022, 1.30, 1.5e6), "DOGE": (0.185, 0.024, 1.60, 1.0e6),
    "ADA": (0.62, 0.025, 1.45, 420e3), "TRX": (0.31, 0.012, 0.50, 160e3), "LINK": (16.2, 0.025, 1.45, 330e3),
    "AVAX": (19.5, 0.027, 1.50, 260e3), "LTC": (97, 0.023, 1.10, 240e3), "BCH": (520, 0.023, 1.10, 180e3),
    "DOT": (3.1, 0.026, 1.40, 130e3), "SUI": (2.3, 0.030, 1.60, 700e3), "NEAR": (2.6, 0.030, 1.50, 150e3),
    "APT": (3.2, 0.030, 1.50, 120e3), "ARB": (0.31, 0.030, 1.55, 170e3), "OP": (0.42, 0.030, 1.55, 110e3),
    "UNI": (6.4, 0.029, 1.45, 190e3), "1000PEPE": (0.0068, 0.033, 1.75, 650e3), "1000SHIB": (0.0098, 0.025, 1.40, 140e3),
    "XLM": (0.28, 0.025, 1.25, 120e3), "HBAR": (0.17, 0.027, 1.35, 120e3), "TAO": (340, 0.032, 1.40, 150e3),
    "AAVE": (200, 0.027, 1.40, 150e3), "XMR": (350, 0.024, 0.60, 60e3), "ZEC": (420, 0.045, 0.80, 600e3),
    "HYPE": (41, 0.033, 1.30, 800e3),
}
"""Start price, own daily volatility, beta, turnover a minute."""


def profile(symbol: SymbolSpec) -> Profile:
    """From the table above; for other symbols by their name: turnover falls with the number, own volatility 2.2 to 3.6 % a day."""
    known = _PROFILES.get(symbol.base)
    if known is not None:
        price, sigma, beta, quote = known
        return Profile(price, sigma, beta, 0.55 if symbol.base == "BTC" else 0.38, quote)
    draw = crc32(f"profile/{symbol.symbol}".encode())
    parts = [(draw >> shift & 0x3FF) / 1024.0 for shift in (0, 10, 20)]
    return Profile(_start_price(symbol), 0.022 + 0.014 * parts[0], 1.1 + 0.6 * parts[1], 0.38, float(10 ** (4.1 + 1.1 * parts[2])))


def _start_price(symbol: SymbolSpec) -> float:
    """Between 2,000 and 20,000 ticks, where real contracts trade."""
    if symbol.symbol.startswith("S") and symbol.base[1:].isdigit():
        return invented_price(symbol.symbol)
    return float(symbol.tick) * 4_000.0


def _chance(seed: int, name: str, purpose: str) -> Generator:
    return Generator(Philox(key=key_of(seed, name, purpose)))


class _Calendar:
    """What is settled about every day since the origin, before any minute of it: regimes, variance, start prices, numbers of trades.

    Rows are days, columns the symbols and, last, the market. ``extend`` adds days, always with the same result.
    """

    def __init__(self, seed: int, names: list[str], profiles: list[Profile]) -> None:
        everyone = [*names, _MARKET]
        self._sigma = np.array([p.sigma for p in profiles] + [_MARKET_PROFILE.sigma])
        self._base_count = np.array([count_by_liquidity(p.quote_per_minute) for p in profiles])
        self._uniform = [_chance(seed, name, "hours") for name in everyone]
        self._normal = [_chance(seed, name, "days") for name in everyone]
        self._regime = np.full(len(everyone), _NORMAL)
        self.hours = np.empty((0, 24, len(everyone)))
        self.variance = np.empty((0, len(everyone)))
        self.start = np.zeros((1, len(everyone)))
        """Log distance from the start price; row d is the start of day d, so there is one row more than days."""
        self.agg_base = np.full((1, len(names)), _FIRST_AGG_ID, np.int64)
        self.raw_base = np.full((1, len(names)), _FIRST_RAW_ID, np.int64)

    @property
    def days(self) -> int:
        return len(self.variance)

    def extend(self, days: int) -> None:
        """Know at least the first ``days`` days."""
        more = days - self.days
        if more <= 0:
            return
        hours = self._regime_variance(np.stack([g.random((more, 24)) for g in self._uniform], axis=-1)) * HOUR_VARIANCE[None, :, None]
        draws = np.stack([g.standard_normal((more, 2)) for g in self._normal], axis=-1)
        variance = self._sigma**2 * hours.mean(axis=1) * np.exp(0.5 * draws[:, 1, :])
        steps = np.sqrt(variance) * draws[:, 0, :]
        starts = [self.start[-1]]
        for step in steps:
            starts.append(starts[-1] * (1.0 - PULL) + step)
        activity = np.clip(np.sqrt(variance[:, :-1] / np.maximum(self._sigma[:-1] ** 2, 1e-12)), 0.75, 1.4)
        counts = (self._base_count * MINUTES * activity).astype(np.int64)
        self.hours = np.concatenate((self.hours, hours))
        self.variance = np.concatenate((self.variance, variance))
        self.start = np.concatenate((self.start, np.array(starts[1:])))
        self.agg_base = np.concatenate((self.agg_base, self.agg_base[-1] + np.cumsum(counts, axis=0)))
        self.raw_base = np.concatenate((self.raw_base, self.raw_base[-1] + np.cumsum(counts * 3, axis=0)))

    def _regime_variance(self, uniform: Floats) -> Floats:
        """Walk the chain through (day, hour, symbol) uniforms; the variance factor of each."""
        out = np.empty_like(uniform)
        for day, hour in np.ndindex(uniform.shape[:2]):
            u = uniform[day, hour]
            down, up = _STAY_OR_DOWN[self._regime], _UP[self._regime]
            self._regime = self._regime - (u < down) + (u > 1.0 - up)
            out[day, hour] = REGIME_VARIANCE[self._regime]
        return out


@dataclass(frozen=True, slots=True)
class _Walk:
    """A path through one day: value at each minute's end relative to the day's start, and each minute's variance (1440 each)."""

    value: Floats
    variance: Floats


def _walk(chance: Generator, hours: Floats, total: float, flicker: float, goal: float, *, drift: Floats | float) -> _Walk:
    """A walk of ``total`` variance from 0 to ``goal``, its variance laid out over the minutes. ``drift``: of a minute, in its standard
    deviations."""
    slow = np.repeat(chance.standard_normal(96), 15)
    shape = np.repeat(hours, 60) * np.exp(2.0 * flicker * (0.5 * slow + 0.866 * chance.standard_normal(MINUTES)))
    shape[chance.random(MINUTES) < _JUMP_CHANCE] *= _JUMP_VARIANCE
    elapsed = np.cumsum(shape)
    variance = shape * (total / elapsed[-1])
    free = np.cumsum(np.sqrt(variance) * (chance.standard_normal(MINUTES) + drift))
    return _Walk(free + elapsed * ((goal - free[-1]) / elapsed[-1]), variance)


def _drift(chance: Generator, edge: float) -> Floats:
    """Along a direction that nobody is told, and that turns now and then."""
    turns = np.cumsum(chance.random(MINUTES) < _TURN_CHANCE) + chance.integers(2)
    return np.where(turns % 2, edge, -edge)


class SyntheticBars:
    """Implements ``path.BarSource``: one-minute candles of every symbol from ``origin_day`` (days since 1970) on, without end."""

    bar_ms = BAR_MS

    def __init__(self, seed: int, symbols: tuple[SymbolSpec, ...], origin_day: int, edge: float) -> None:
        self._seed = seed
        self._edge = edge
        self._symbols = symbols
        self._origin = origin_day
        self.profiles = [profile(s) for s in symbols]
        self._calendar = _Calendar(seed, [s.symbol for s in symbols], self.profiles)
        self._calendar.extend(HISTORY_DAYS + 2)
        self._market: OrderedDict[int, _Walk] = OrderedDict()
        self._past: OrderedDict[tuple[int, int], Bars] = OrderedDict()
        self._live: dict[tuple[int, int], Bars] = {}
        self._today = origin_day + HISTORY_DAYS
        self._ahead = 0
        """Symbols whose tomorrow has been made."""

    def span(self, index: int) -> tuple[int, int | None]:
        return self._origin * DAY_MS, None

    def bars(self, index: int, from_ms: int, to_ms: int) -> Bars:
        from_ms = max(from_ms, self._origin * DAY_MS)
        if to_ms <= from_ms:
            return no_bars()
        first, last = from_ms // DAY_MS, (to_ms - 1) // DAY_MS
        a, b = (from_ms - first * DAY_MS) // BAR_MS, (to_ms - last * DAY_MS) // BAR_MS
        if first == last:
            return self._day(first, index)[a:b]
        inner = [self._day(day, index) for day in range(first + 1, last)]
        return np.concatenate([self._day(first, index)[a:], *inner, self._day(last, index)[:b]])

    def opening_of_id(self, index: int, agg_id: int, before_ms: int) -> int | None:
        self._calendar.extend(before_ms // DAY_MS - self._origin + 1)
        if agg_id >= self._calendar.agg_base[-1, index]:
            return None
        day = max(0, int(np.searchsorted(self._calendar.agg_base[:, index], agg_id, side="right")) - 1)
        bars = self._day(self._origin + day, index)
        return int(bars["open_ms"][max(0, int(np.searchsorted(bars["agg_base"], agg_id, side="right")) - 1)])

    def last_close(self, index: int, before_ms: int) -> int | None:
        found = self.bars(index, before_ms - BAR_MS, before_ms)
        return int(found["close"][-1]) if len(found) else None

    def prepare(self, now_ms: int) -> None:
        """Turn the page soon after midnight; in the last hours of a day, make tomorrow for one symbol."""
        day, inside = divmod(now_ms - TURN_MS, DAY_MS)
        if day != self._today:
            self._today, self._ahead = day, 0
            self._live = {key: bars for key, bars in self._live.items() if key[0] >= day}
        if inside > DAY_MS - PREPARE_MS and self._ahead < len(self._symbols):
            self._day(day + 1, self._ahead)
            self._ahead += 1

    def _day(self, day: int, index: int) -> Bars:
        key = (day, index)
        bars = self._live.get(key)
        if bars is None:
            bars = self._past.pop(key, None)
            if bars is None:
                bars = self._make(day, index)
            if self._today <= day <= self._today + 1:
                self._live[key] = bars
            else:
                self._past[key] = bars
                if len(self._past) > PAST_KEPT:
                    self._past.popitem(last=False)
        return bars

    def _walk_of(self, day: int, column: int, name: str, flicker: float) -> _Walk:
        row, calendar = day - self._origin, self._calendar
        goal = float(calendar.start[row + 1, column] - calendar.start[row, column])
        total = float(calendar.variance[row, column])
        drift = _drift(_chance(self._seed, name, f"edge {day}"), self._edge) if self._edge else 0.0
        return _walk(_chance(self._seed, name, f"day {day}"), calendar.hours[row, :, column], total, flicker, goal, drift=drift)

    def _market_walk(self, day: int) -> _Walk:
        walk = self._market.get(day)
        if walk is None:
            walk = self._market[day] = self._walk_of(day, len(self._symbols), _MARKET, _MARKET_PROFILE.flicker)
            if len(self._market) > MARKET_DAYS_KEPT:
                self._market.popitem(last=False)
        return walk

    def _make(self, day: int, index: int) -> Bars:
        row = day - self._origin
        self._calendar.extend(row + 2)
        symbol, who = self._symbols[index], self.profiles[index]
        own, market = self._walk_of(day, index, symbol.symbol, who.flicker), self._market_walk(day)
        at = np.log(who.price / float(symbol.tick)) + self._calendar.start[row : row + 2] @ self._weights(index)
        level = at[0] + np.r_[0.0, own.value + who.beta * market.value]
        level[-1] = at[1]
        variance = own.variance + who.beta**2 * market.variance
        bars = np.empty(MINUTES, BAR_DTYPE)
        bars["open_ms"] = day * DAY_MS + np.arange(MINUTES) * BAR_MS
        chance = _chance(self._seed, symbol.symbol, f"candles {day}")
        _draw_ranges(bars, chance, level, variance)
        self._draw_flow(bars, chance, variance, row, index)
        return bars

    def _weights(self, index: int) -> Floats:
        weights = np.zeros(len(self._symbols) + 1)
        weights[index], weights[-1] = 1.0, self.profiles[index].beta
        return weights

    def _draw_flow(self, bars: Bars, chance: Generator, variance: Floats, row: int, index: int) -> None:
        """Numbers of trades, volume and the takers' share. Only the share leans on the candle's direction, as much as its path does."""
        symbol, who, calendar = self._symbols[index], self.profiles[index], self._calendar
        usual = (who.sigma**2 + (who.beta * _MARKET_PROFILE.sigma) ** 2) / MINUTES
        wild = np.sqrt(variance / usual)
        for name, base, weight in (("count", "agg_base", np.clip(wild, 0.5, 2.0)), ("trades", "raw_base", np.clip(wild, 0.5, 4.0))):
            starts = calendar.agg_base if base == "agg_base" else calendar.raw_base
            total = int(starts[row + 1, index] - starts[row, index])
            if name == "trades":
                total -= int(bars["count"].sum(dtype=np.int64))
            bars[name] = _share(total, weight) + (bars["count"] if name == "trades" else 0)
            bars[base] = starts[row, index] + np.cumsum(bars[name], dtype=np.int64) - bars[name]
        price = (bars["open"] + bars["close"]) * (0.5 * float(symbol.tick))
        steps = who.quote_per_minute / (price * float(symbol.step))
        noise = chance.standard_normal((2, MINUTES))
        volume = steps * np.clip(wild, 0.15, 12.0) * np.exp(0.45 * noise[0] - 0.1)
        bars["volume"] = np.maximum(volume.astype(np.int64), bars["trades"])
        lean = (bars["close"] - bars["open"]) / np.maximum(bars["high"] - bars["low"], 1)
        bars["taker_volume"] = bars["volume"] * np.clip(0.5 + 0.05 * lean + 0.07 * noise[1], 0.05, 0.95)


def _share(total: int, weight: Floats) -> Ints:
    """``total`` split by weights into whole numbers that add up to it."""
    ends = np.floor(np.cumsum(weight) * (total / weight.sum())).astype(np.int64)
    ends[-1] = total
    parts: Ints = np.diff(ends, prepend=0)
    return parts


def _draw_ranges(bars: Bars, chance: Generator, level: Floats, variance: Floats) -> None:
    """Open, high, low and close (ticks) of a walk through 1441 log levels (of the price in ticks): extremes by the law of a bridge."""
    depth = -2.0 * variance * np.log(1.0 - chance.random((2, MINUTES)))
    move = np.diff(level)
    top = level[:-1] + 0.5 * (move + np.sqrt(move**2 + depth[0]))
    bottom = level[:-1] + 0.5 * (move - np.sqrt(move**2 + depth[1]))
    ticks: NDArray[np.float64] = np.rint(np.exp(np.clip(np.stack((level[:-1], top, bottom, level[1:])), 1.0, 21.0)))
    for name, values in zip(("open", "high", "low", "close"), ticks, strict=True):
        bars[name] = values


def open_synthetic(*, symbols: tuple[str, ...], seed: int, now_ms: int, resume: dict[str, Any] | None, edge: float = 0.0) -> PathMarket:
    """The made-up market whose live trading opens at ``now_ms``, or, resumed, opened when it first did. ``edge``: 0 to ``config.EDGE_MAX``."""
    names = symbols or DEFAULT_UNIVERSE
    identity = {"kind": "synthetic", "path_version": PATH_VERSION, "seed": seed, "symbols": list(names), "edge": edge}
    if resume is not None:
        check_resume({"edge": 0.0} | resume, identity)
    open_ms = now_ms if resume is None else int(resume["open_ms"])
    origin = open_ms // DAY_MS - HISTORY_DAYS if resume is None else int(resume["origin_day"])
    specs = tuple(spec(name) for name in names)
    bars = SyntheticBars(seed, specs, origin, edge)
    grains = [_grain(seed, s, p) for s, p in zip(specs, bars.profiles, strict=True)]
    state = {**identity, "origin_day": origin, "open_ms": open_ms}
    return PathMarket(ExpandedSource(bars, grains), specs, Opening(origin * DAY_MS, open_ms, None), state)


def _grain(seed: int, symbol: SymbolSpec, who: Profile) -> Grain:
    depth = 0.05 * who.quote_per_minute / (who.price * float(symbol.step))
    return Grain(key_of(seed, symbol.symbol, "trades"), spread_by_liquidity(who.quote_per_minute), max(depth, 1.0))
