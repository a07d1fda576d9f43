"""Which symbols a run trades: a pure choice from the venue's rules and the volumes of the last 24 hours.

Invariants
  * Only USDT perpetuals that are trading and are not leaving: a delivery date that has moved closer announces a delisting.
  * TradFi perpetuals only where they are asked for.
  * The order is by volume, then by name, so equal inputs give equal tables; a symbol's place in the table is its index for the whole run.
  * What was named and does not exist is an error that says what was meant, never an empty universe.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    RANK = "beyond the size of the universe"


@dataclass(frozen=True, slots=True)
class Terms:
    """What is wanted. ``include``, ``exclude``: names or patterns (``*``, ``?``); an empty ``include`` wants all but TradFi."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    quote: str = "USDT"
    min_quote_volume: Decimal = ZERO
    min_age_days: int = 0


def judge(rules: SymbolRules, volume: Decimal, terms: Terms, now_ms: int) -> Reason | None:
    """None: this symbol may be traded."""
    asked = _matches(rules.symbol, terms.include)
    tests = (
        (bool(terms.include) and not asked, Reason.NOT_ASKED_FOR),
        (_matches(rules.symbol, terms.exclude), Reason.EXCLUDED),
        (rules.contract_type == "TRADIFI_PERPETUAL" and not asked, Reason.TRADFI),
        (rules.contract_type not in ("PERPETUAL", "TRADIFI_PERPETUAL"), Reason.NOT_PERPETUAL),
        (rules.quote != terms.quote, Reason.OTHER_QUOTE),
        (rules.status != "TRADING", Reason.NOT_TRADING),
        (rules.delivery_ms < PERPETUAL_END_MS, Reason.LEAVING),
        (now_ms - rules.onboard_ms < terms.min_age_days * DAY_MS, Reason.YOUNG),
        (volume < terms.min_quote_volume, Reason.THIN),
    )
    return next((reason for applies, reason in tests if applies), None)


def select(rules: Mapping[str, SymbolRules], volumes: Mapping[str, Decimal], *, size: int, include: Sequence[str] = (),
           exclude: Sequence[str] = (), min_quote_volume: Decimal = ZERO, min_age_days: int = 0, now_ms: int) -> tuple[SymbolRules, ...]:
    """The table of a run: at most ``size`` symbols, but all that ``include`` names without a pattern. ``volumes``: quote asset, 24 h.

    Fatal, naming SYMBOLS: a name that does not exist, or nothing that may be traded.
    """
    terms = Terms(tuple(include), tuple(exclude), min_quote_volume=min_quote_volume, min_age_days=min_age_days)
    return chosen(rules, volumes, terms, size=size, now_ms=now_ms)[0]


def chosen(rules: Mapping[str, SymbolRules], volumes: Mapping[str, Decimal], terms: Terms, *, size: int,
           now_ms: int) -> tuple[tuple[SymbolRules, ...], Counter[Reason]]:
    """As ``select``, and how many were left out for which reason."""
    _check_names(rules, terms.include)
    left_out: Counter[Reason] = Counter()
    able: list[SymbolRules] = []
    for one in rules.values():
        reason = judge(one, volumes.get(one.symbol, ZERO), terms, now_ms)
        if reason is None:
            able.append(one)
        else:
            left_out[reason] += 1
    if not able:
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in left_out.most_common())
        raise Fatal(f"SYMBOLS={','.join(terms.include)!r}: nothing to trade among {len(rules)} symbols ({reasons})", setting="SYMBOLS",
                    value=",".join(terms.include))
    able.sort(key=lambda one: (-volumes.get(one.symbol, ZERO), one.symbol))
    named = {name.upper() for name in terms.include if not _is_pattern(name)}
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
