"""Which symbols a run trades: a pure choice from the venue's rules and the volumes of the last 24 hours.

Invariants
  * Only USDT perpetuals that are trading and are not leaving: a delivery date that has moved closer announces a delisting.
  * TradFi perpetuals only where they are asked for.
  * A symbol that is in stays in with three quarters of what is asked of a new one, so that ranks that flutter change nothing.
  * The order is by volume, then by name, so equal inputs give equal tables; a symbol's place in the table is its index for the whole run.
  * What was named and does not exist is an error that says what was meant, never an empty universe.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase

from src.error_handler import Fatal
from src.models import ZERO, SymbolRules

SYMBOLS_MAX = 65_536
"""A symbol's index is 16 bits in the ring."""
PERPETUAL_END_MS = 4_133_404_800_000
"""The venue's delivery date of a contract that is not going to end."""
DAY_MS = 86_400_000
ENDING = frozenset({"PRE_DELIVERING", "DELIVERING", "DELIVERED", "PRE_SETTLE", "SETTLING", "CLOSE"})
"""Statuses of a contract whose end has begun."""
SPARE_MIN = 32
AT_ONCE_MS = 1
"""As the time of a contract's end: it has come."""
SLACK = Decimal("0.75")
"""A member needs this part of the least volume that is asked of a new one, and may rank as much further back."""

_FALLBACK = """
BTCUSDT  0.10     0.001  1000      120       100  1.05  0.95
ETHUSDT  0.01     0.001  10000     2000      20   1.05  0.95
BNBUSDT  0.01     0.01   100000    2000      5    1.05  0.95
SOLUSDT  0.01     0.01   1000000   6000      5    1.05  0.95
XRPUSDT  0.0001   0.1    10000000  2000000   5    1.05  0.95
DOGEUSDT 0.00001  1      50000000  30000000  5    1.10  0.90
ADAUSDT  0.0001   1      6000000   1300000   5    1.05  0.95
TRXUSDT  0.00001  1      10000000  5000000   5    1.05  0.95
LINKUSDT 0.001    0.01   200000    50000     20   1.10  0.90
AVAXUSDT 0.001    1      100000    30000     5    1.10  0.90
SUIUSDT  0.0001   0.1    10000000  600000    5    1.15  0.85
LTCUSDT  0.01     0.001  20000     5000      20   1.05  0.95
BCHUSDT  0.01     0.001  10000     2000      20   1.05  0.95
DOTUSDT  0.001    0.1    1000000   100000    5    1.05  0.95
NEARUSDT 0.001    1      10000000  110000    5    1.10  0.90
APTUSDT  0.0001   0.1    1000000   100000    5    1.10  0.90
UNIUSDT  0.001    1      10000000  35000     5    1.10  0.90
ARBUSDT  0.0001   0.1    5000000   1000000   5    1.15  0.85
OPUSDT   0.0001   0.1    10000000  400000    5    1.10  0.90
ATOMUSDT 0.001    0.01   1000000   100000    5    1.10  0.90
"""


def _row(line: str) -> SymbolRules:
    name, *numbers = line.split()
    tick, step, most, market_most, notional, up, down = map(Decimal, numbers)
    return SymbolRules(name, tick, step, step, most, market_most, notional, up, down)


FALLBACK: tuple[SymbolRules, ...] = tuple(_row(line) for line in _FALLBACK.split("\n") if line)
"""Twenty pairs for when the venue does not answer at the start, with the grids and limits it had in October 2025."""


class Reason(StrEnum):
    """Why a symbol is left out; the first that applies."""

    NOT_ASKED_FOR = "not asked for"
    EXCLUDED = "excluded"
    NOT_PERPETUAL = "not a perpetual"
    TRADFI = "TradFi, and not asked for"
    OTHER_QUOTE = "quoted in another asset"
    NOT_TRADING = "not trading"
    LEAVING = "leaving"
    YOUNG = "too young"
    THIN = "too little volume"
    WIDE = "too wide a spread"
    RANK = "beyond the size of the universe"


@dataclass(frozen=True, slots=True)
class Terms:
    """What is wanted. ``include``, ``exclude``: names or patterns (``*``, ``?``); an empty ``include`` wants all, but TradFi only where
    ``tradfi`` says so. ``max_spread_bps``: in 0.01 %; 0 is any, and a spread that is not known is none."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    quote: str = "USDT"
    min_quote_volume: Decimal = ZERO
    min_age_days: int = 0
    tradfi: bool = False
    max_spread_bps: Decimal = ZERO

    def of_members(self) -> Terms:
        """What is asked of symbols that are in already."""
        return replace(self, min_quote_volume=self.min_quote_volume * SLACK, max_spread_bps=ZERO)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the venue lists, by symbol. ``volumes``: quote asset, 24 h. ``spreads``: in 0.01 %, where they were asked for."""

    rules: Mapping[str, SymbolRules]
    volumes: Mapping[str, Decimal]
    spreads: Mapping[str, Decimal] = field(default_factory=dict)


def judge(rules: SymbolRules, volume: Decimal, terms: Terms, now_ms: int, spread: Decimal | None = None) -> Reason | None:
    """None: this symbol may be traded."""
    asked = _matches(rules.symbol, terms.include)
    tests = (
        (bool(terms.include) and not asked, Reason.NOT_ASKED_FOR),
        (_matches(rules.symbol, terms.exclude), Reason.EXCLUDED),
        (rules.contract_type == "TRADIFI_PERPETUAL" and not (asked or terms.tradfi), Reason.TRADFI),
        (rules.contract_type not in ("PERPETUAL", "TRADIFI_PERPETUAL"), Reason.NOT_PERPETUAL),
        (rules.quote != terms.quote, Reason.OTHER_QUOTE),
        (rules.status != "TRADING", Reason.NOT_TRADING),
        (rules.delivery_ms < PERPETUAL_END_MS, Reason.LEAVING),
        (now_ms - rules.onboard_ms < terms.min_age_days * DAY_MS, Reason.YOUNG),
        (volume < terms.min_quote_volume, Reason.THIN),
        (terms.max_spread_bps > 0 and (spread is None or spread > terms.max_spread_bps), Reason.WIDE),
    )
    return next((reason for applies, reason in tests if applies), None)


def chosen(offer: Offer, terms: Terms, *, size: int, now_ms: int) -> tuple[tuple[SymbolRules, ...], Counter[Reason]]:
    """The table of a run: at most ``size`` symbols, but all that ``include`` names without a pattern; and how many were left out for which
    reason. Fatal, naming SYMBOLS: a name that does not exist, or nothing that may be traded.
    """
    rules, volumes = offer.rules, offer.volumes
    _check_names(rules, terms.include)
    left_out: Counter[Reason] = Counter()
    able: list[SymbolRules] = []
    for one in rules.values():
        reason = judge(one, volumes.get(one.symbol, ZERO), terms, now_ms, offer.spreads.get(one.symbol))
        if reason is None:
            able.append(one)
        else:
            left_out[reason] += 1
    if not able:
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in left_out.most_common())
        raise Fatal(f"SYMBOLS={','.join(terms.include)!r}: nothing to trade among {len(rules)} symbols ({reasons})", setting="SYMBOLS",
                    value=",".join(terms.include))
    able.sort(key=lambda one: _rank(one.symbol, volumes))
    named = _named(terms)
    room = min(size, SYMBOLS_MAX) - sum(one.symbol in named for one in able)
    kept: list[SymbolRules] = []
    for one in able:
        if one.symbol in named:
            kept.append(one)
        elif room > 0:
            room -= 1
            kept.append(one)
        else:
            left_out[Reason.RANK] += 1
    return tuple(kept), left_out


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a member stands. ``tradable``: it may be entered. ``leave_ms``: market time at which its contract ends; 0: it does not."""

    tradable: bool
    leave_ms: int = 0


def spare_for(size: int) -> int:
    """Places kept for symbols that begin while it runs."""
    return max(SPARE_MIN, size // 2)


def standing(rules: SymbolRules | None, wanted: bool = True) -> Standing:
    """``rules`` None: the venue does not list it any more. A halt without an end is no reason to leave, only to open nothing."""
    if rules is None or rules.status in ENDING:
        return Standing(False, AT_ONCE_MS)
    if rules.delivery_ms < PERPETUAL_END_MS:
        return Standing(False, max(AT_ONCE_MS, rules.delivery_ms))
    return Standing(wanted and rules.tradable)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a look at the venue brings. ``begin``: symbols that are to be streamed from now on, the most traded first. ``end``: members that
    are not. ``standings``: of all the other members."""

    begin: tuple[SymbolRules, ...]
    end: tuple[str, ...]
    standings: Mapping[str, Standing]


def renewed(members: Mapping[str, SymbolRules], offer: Offer, terms: Terms, *, size: int, held: Collection[str], now_ms: int) -> Renewal:
    """Who begins and who ends, now that the venue offers this. ``held``: members that are traded just now stay whatever happens.

    A member ends when it may not be traded any more or is beyond the size of the universe by a third; only what is free goes to new ones,
    the most traded first. A member whose step has changed ends and begins anew.
    """
    order = sorted(offer.rules, key=lambda symbol: _rank(symbol, offer.volumes))
    named, slack = _named(terms), terms.of_members()
    able = [s for s in order if judge(offer.rules[s], offer.volumes.get(s, ZERO), slack if s in members else terms, now_ms,
                                      offer.spreads.get(s)) is None]  # fmt: skip
    within = int(size / SLACK)
    wanted = {s for place, s in enumerate(able) if s in members and (place < within or s in named)}
    regridded = {s for s in able if s in members and offer.rules[s].step != members[s].step}
    kept = {s for s in members if s in wanted or s in held} - regridded
    fresh = [s for s in able if s not in kept]
    room = max(0, min(size, SYMBOLS_MAX) - len(kept))
    first = [s for s in fresh if s in named or s in regridded]
    begin = {*first, *[s for s in fresh if s not in first][:max(0, room - len(first))]}
    return Renewal(
        tuple(offer.rules[s] for s in fresh if s in begin), tuple(s for s in members if s not in kept),
        {s: standing(offer.rules.get(s), s in wanted) for s in members if s in kept})


def _rank(symbol: str, volumes: Mapping[str, Decimal]) -> tuple[Decimal, str]:
    return -volumes.get(symbol, ZERO), symbol


def _named(terms: Terms) -> set[str]:
    """Symbols that were asked for by name, and not by a pattern."""
    return {name.upper() for name in terms.include if not _is_pattern(name)}


def _check_names(rules: Mapping[str, SymbolRules], include: Iterable[str]) -> None:
    """A name or pattern that means nothing is an error with what may have been meant."""
    for name in include:
        found = any(_matches(symbol, (name,)) for symbol in rules) if _is_pattern(name) else name.upper() in rules
        if not found:
            near = difflib.get_close_matches(name.upper(), list(rules), 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise Fatal(f"SYMBOLS={name!r}: the venue has no such symbol{hint}", setting="SYMBOLS", value=name, near=near)


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _matches(symbol: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(symbol, pattern.upper()) for pattern in patterns)
