"""What the local exchange lists: filters, brackets and names of its contracts.

``spec`` gives the venue's own numbers for the contracts of the table below (the filters of October 2025, brought to 2026: BTC's minimum
notional is 50). ``derived_spec`` makes filters for a replayed symbol whose data does not fit them, and says so in ``derived``.
``scaled_universe`` names as many contracts as asked for; names beyond the table are invented (S038USDT …), with plausible filters.

Invariants: step and tick are positive and every other filter is a whole multiple of them; the digits of ``tick`` are written as the
venue writes them (0.10, 0.0010); ``cum`` of the brackets follows cum(n) = floor(n)·(mmr(n) − mmr(n−1)) + cum(n−1), so margin has no jump.
Write a Decimal for the wire with ``format(x, "f")``: ``str`` turns 0.0000001 into 1E-7.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from zlib import crc32

from src.error_handler import Fatal

UNIVERSE_MAX = 600
QUOTE = "USDT"
_QUOTES = (QUOTE, "USDC", "FDUSD", "BUSD", "USD1")


@dataclass(frozen=True, slots=True)
class Bracket:
    """A tier of position notional up to ``cap`` (USDT): maintenance margin rate, highest leverage, and the amount to take off."""

    cap: Decimal
    mmr: Decimal
    max_leverage: int
    cum: Decimal


@dataclass(frozen=True, slots=True)
class SymbolSpec:
    """A perpetual contract's filters. ``band``: how far a limit price may be from mark (0.05 = 5 %). Quantities are in base asset."""

    symbol: str
    base: str
    price_precision: int
    quantity_precision: int
    tick: Decimal
    step: Decimal
    min_price: Decimal
    max_price: Decimal
    min_qty: Decimal
    max_qty: Decimal
    market_max_qty: Decimal
    min_notional: Decimal
    band: Decimal
    liquidation_fee: Decimal
    trigger_protect: Decimal
    onboard_ms: int
    brackets: tuple[Bracket, ...]
    funding_interval_hours: int = 8
    derived: bool = False
    quote: str = QUOTE

    def __post_init__(self) -> None:
        assert self.tick > 0 and self.step > 0, self.symbol
        for value, unit in ((self.min_price, self.tick), (self.max_price, self.tick), (self.min_qty, self.step),
                            (self.max_qty, self.step), (self.market_max_qty, self.step)):
            assert value > 0 and value % unit == 0, (self.symbol, value, unit)

    @property
    def max_leverage(self) -> int:
        return self.brackets[0].max_leverage


def brackets(*tiers: tuple[str, str, int]) -> tuple[Bracket, ...]:
    """Brackets from (cap, maintenance margin rate, max leverage) in rising order; the recurrence fills in ``cum``."""
    rows: list[Bracket] = []
    cum, floor, before = Decimal(0), Decimal(0), Decimal(0)
    for cap, rate, leverage in tiers:
        mmr = Decimal(rate)
        cum = cum + floor * (mmr - before) if rows else Decimal(0)
        rows.append(Bracket(Decimal(cap), mmr, leverage, Decimal(format(cum.normalize(), "f"))))
        floor, before = Decimal(cap), mmr
    assert all(a.cap < b.cap and a.mmr < b.mmr for a, b in pairwise(rows))
    return tuple(rows)


_SMALL_TOP = (("10000000", "0.05", 10), ("20000000", "0.1", 5), ("25000000", "0.125", 4), ("50000000", "0.25", 2), ("100000000", "0.5", 1))

DEFAULT_BRACKETS = brackets(("10000", "0.005", 75), ("50000", "0.01", 50), ("200000", "0.015", 40), ("1000000", "0.02", 25),
                            ("2000000", "0.025", 20), *_SMALL_TOP)
"""For every contract that has no table of its own: the tiers of a large alt coin (75× at the bottom)."""

_BRACKETS = {
    "BTC": brackets(("300000", "0.004", 150), ("800000", "0.005", 100), ("3000000", "0.0065", 75), ("12000000", "0.01", 50),
                    ("70000000", "0.02", 25), ("100000000", "0.025", 20), ("230000000", "0.05", 10), ("480000000", "0.1", 5),
                    ("600000000", "0.125", 4), ("800000000", "0.15", 3), ("1200000000", "0.25", 2), ("1800000000", "0.5", 1)),
    "ETH": brackets(("300000", "0.004", 150), ("800000", "0.005", 100), ("3000000", "0.0065", 75), ("12000000", "0.01", 50),
                    ("50000000", "0.02", 25), ("65000000", "0.025", 20), ("150000000", "0.05", 10), ("320000000", "0.1", 5),
                    ("400000000", "0.125", 4), ("530000000", "0.15", 3), ("800000000", "0.25", 2), ("1200000000", "0.5", 1)),
    "SOL": brackets(("50000", "0.005", 100), ("400000", "0.0065", 75), ("1000000", "0.01", 50), ("4000000", "0.02", 25),
                    ("8000000", "0.025", 20), ("40000000", "0.05", 10), ("80000000", "0.1", 5), ("100000000", "0.125", 4),
                    ("200000000", "0.25", 2), ("400000000", "0.5", 1)),
    "XRP": brackets(("40000", "0.005", 100), ("80000", "0.006", 75), ("150000", "0.01", 50), ("400000", "0.0125", 40),
                    ("1000000", "0.02", 25), ("2000000", "0.025", 20), *_SMALL_TOP),
    "DOGE": brackets(("80000", "0.0065", 75), ("150000", "0.01", 50), ("750000", "0.0125", 40), ("2000000", "0.02", 25),
                     ("4000000", "0.025", 20), ("20000000", "0.05", 10), ("40000000", "0.1", 5), ("50000000", "0.125", 4),
                     ("100000000", "0.25", 2), ("200000000", "0.5", 1)),
}

_TABLE = """\
BTC      2 3 0.10      0.001 556.80    4529764 1000      120       50 0.05 0.012500 0.0500 1569398400000 8
ETH      2 3 0.01      0.001 39.86     306177  10000     2000      20 0.05 0.012500 0.0500 1569398400000 8
BNB      3 2 0.010     0.01  6.600     100000  100000    2000      5  0.05 0.012500 0.0500 1569398400000 8
SOL      4 2 0.0100    0.01  0.4200    6857    1000000   6000      5  0.05 0.015000 0.0500 1569398400000 8
XRP      4 1 0.0001    0.1   0.0143    100000  10000000  2000000   5  0.05 0.012500 0.0500 1569398400000 8
DOGE     6 0 0.000010  1     0.002440  30      50000000  30000000  5  0.10 0.015000 0.1000 1569398400000 8
ADA      5 0 0.00010   1     0.01740   20000   6000000   1300000   5  0.05 0.012500 0.0500 1569398400000 8
TRX      5 0 0.00001   1     0.00132   20000   10000000  5000000   5  0.05 0.012500 0.0500 1569398400000 8
LINK     3 2 0.001     0.01  0.464     100000  200000    50000     20 0.10 0.012500 0.1000 1569398400000 8
AVAX     4 0 0.0010    1     0.3500    2403    100000    30000     5  0.10 0.015000 0.1000 1569398400000 8
LTC      2 3 0.01      0.001 3.61      100000  20000     5000      20 0.05 0.012500 0.0500 1569398400000 8
BCH      2 3 0.01      0.001 13.93     100000  10000     2000      20 0.05 0.012500 0.0500 1569398400000 8
DOT      3 1 0.001     0.1   0.001     2398    1000000   100000    5  0.05 0.012500 0.0500 1569398400000 8
SUI      6 1 0.000100  0.1   0.000100  2000    10000000  600000    5  0.15 0.015000 0.1500 1683072000000 8
NEAR     4 0 0.0010    1     0.0480    1000    10000000  110000    5  0.10 0.015000 0.1000 1569398400000 8
APT      5 1 0.00010   0.1   0.00100   20000   1000000   100000    5  0.10 0.015000 0.1000 1666076400000 8
ARB      6 1 0.000100  0.1   0.000100  2000    5000000   1000000   5  0.15 0.015000 0.1500 1679554800000 8
OP       7 1 0.0001000 0.1   0.0001000 200     10000000  400000    5  0.10 0.015000 0.1000 1654066800000 8
UNI      4 0 0.0010    1     0.0010    2684    10000000  35000     5  0.10 0.015000 0.1000 1569398400000 8
1000PEPE 7 0 0.0000001 1     0.0000001 200     800000000 100000000 5  0.15 0.015000 0.1500 1683244800000 8
TON      7 1 0.0001000 0.1   0.0001000 200     1000000   100000    5  0.15 0.015000 0.1500 1709296200000 4
ATOM     3 2 0.001     0.01  0.001     100000  1000000   100000    5  0.10 0.015000 0.1000 1569398400000 8
ETC      3 2 0.001     0.01  0.001     100000  100000    20000     20 0.10 0.012500 0.1000 1569398400000 8
FIL      3 1 0.001     0.1   0.001     10000   10000000  200000    5  0.10 0.015000 0.1000 1569398400000 8
AAVE     3 1 0.010     0.1   4.340     38702   1000000   1250      5  0.10 0.015000 0.1000 1569398400000 8
XLM      5 0 0.00001   1     0.00648   20000   10000000  2000000   5  0.05 0.012500 0.0500 1569398400000 8
HBAR     5 0 0.00001   1     0.00279   20000   10000000  3000000   5  0.10 0.015000 0.1000 1615964400000 8
1000SHIB 6 0 0.000001  1     0.000157  2000    800000000 50000000  5  0.10 0.015000 0.1000 1620630000000 8
HYPE     5 2 0.00100   0.01  0.00100   20000   200000    20000     5  0.15 0.020000 0.1500 1748601000000 4
WIF      7 1 0.0001000 0.1   0.0001000 1000    1000000   200000    5  0.15 0.015000 0.1500 1705587300000 4
ENA      7 0 0.0001000 1     0.0010000 200     10000000  1000000   5  0.15 0.015000 0.1500 1712061000000 4
ZEC      2 3 0.01      0.001 2.85      100000  6000      2000      5  0.10 0.015000 0.1000 1569398400000 8
INJ      6 1 0.001000  0.1   0.001000  2000    1000000   25000     5  0.10 0.015000 0.1000 1660633200000 8
WLD      7 0 0.0001000 1     0.0001000 200     1250000   300000    5  0.15 0.015000 0.1500 1690200000000 8
XMR      2 3 0.01      0.001 4.36      100000  10000     1200      5  0.05 0.020000 0.0500 1569398400000 8
ICP      6 0 0.001000  1     0.001000  2000    500000    100000    5  0.10 0.015000 0.1000 1627628400000 8
TAO      2 3 0.01      0.001 0.01      100000  5000      1000      5  0.15 0.015000 0.1500 1712845800000 4
"""
"""base, price and quantity precision, tick, step (= least quantity), least and highest price, largest limit and market quantity, least
notional, band, liquidation fee, trigger protection, onboard time, funding interval (hours)."""


def _row(line: str) -> SymbolSpec:
    base, price_digits, qty_digits, *texts, onboard, hours = line.split()
    tick, step, low, high, largest, market_largest, notional, band, fee, protect = map(Decimal, texts)
    return SymbolSpec(base + QUOTE, base, int(price_digits), int(qty_digits), tick, step, min_price=low, max_price=high, min_qty=step,
                      max_qty=largest, market_max_qty=market_largest, min_notional=notional, band=band, liquidation_fee=fee,
                      trigger_protect=protect, onboard_ms=int(onboard), brackets=_BRACKETS.get(base, DEFAULT_BRACKETS),
                      funding_interval_hours=int(hours))


TABLE: dict[str, SymbolSpec] = {row.symbol: row for row in map(_row, _TABLE.splitlines())}
"""The venue's real contracts, most traded first. Read only."""

DEFAULT_UNIVERSE: tuple[str, ...] = tuple(TABLE)[:20]


def spec(symbol: str) -> SymbolSpec:
    """The contract's filters: from the table, or invented for a name of ``scaled_universe``. Any other name is Fatal."""
    known = TABLE.get(symbol)
    if known is not None:
        return known
    if symbol.startswith("S") and symbol[1:-len(QUOTE)].isdigit() and symbol.endswith(QUOTE):
        return _invented(symbol)
    raise Fatal(f"symbol {symbol!r} is not one the local exchange knows; use a name like BTCUSDT from its table of {len(TABLE)}, "
                "or S038USDT for an invented one", setting="SYMBOLS", value=symbol)


def scaled_universe(count: int) -> tuple[str, ...]:
    """``count`` names: the real contracts first, invented ones (S038USDT …) after them. Fatal outside 1 to 600."""
    if not 1 <= count <= UNIVERSE_MAX:
        raise Fatal(f"{count} symbols asked of the local exchange; it lists 1 to {UNIVERSE_MAX}", value=count)
    return (tuple(TABLE) + tuple(f"S{i:03d}{QUOTE}" for i in range(len(TABLE) + 1, count + 1)))[:count]


def invented_price(symbol: str) -> float:
    """The start price (USDT) of an invented contract: 0.02 to 200, by its name."""
    return float(10.0 ** (-1.7 + 4.0 * (crc32(symbol.encode()) % 1000) / 1000.0))


def _invented(symbol: str) -> SymbolSpec:
    price = invented_price(symbol)
    digits = max(0, 4 - _magnitude(price))
    return _made(symbol, Decimal(1).scaleb(-digits), _step_by_price(price), derived=False)


def derived_spec(symbol: str, *, price: float, price_digits: int, quantity_digits: int | None) -> SymbolSpec:
    """Filters out of a recording: the tick is its prices' last digit, the step its volumes' last digit, or (None: the volumes carry noise)
    the power of ten worth about one USDT at ``price``. What the table knows besides (brackets, fees, least notional) is kept."""
    step = _step_by_price(price) if quantity_digits is None else Decimal(1).scaleb(-quantity_digits)
    made = _made(symbol, Decimal(1).scaleb(-price_digits), step, derived=True)
    known = TABLE.get(symbol)
    if known is None:
        return made
    return replace(made, min_notional=known.min_notional, band=known.band, liquidation_fee=known.liquidation_fee, brackets=known.brackets,
                   trigger_protect=known.trigger_protect, funding_interval_hours=known.funding_interval_hours, onboard_ms=known.onboard_ms)


def _made(symbol: str, tick: Decimal, step: Decimal, *, derived: bool) -> SymbolSpec:
    quote = next((q for q in _QUOTES if symbol.endswith(q)), QUOTE)
    base = symbol.removesuffix(quote)
    largest = step * 10_000_000
    return SymbolSpec(symbol, base, _digits(tick), _digits(step), tick, step, min_price=tick, max_price=tick * 100_000_000, min_qty=step,
                      max_qty=largest, market_max_qty=largest / 10, min_notional=Decimal(5), band=Decimal("0.15"),
                      liquidation_fee=Decimal("0.015000"), trigger_protect=Decimal("0.1500"), onboard_ms=1_640_995_200_000,
                      brackets=_BRACKETS.get(base, DEFAULT_BRACKETS), funding_interval_hours=4, derived=derived, quote=quote)


def _digits(unit: Decimal) -> int:
    exponent = unit.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _magnitude(price: float) -> int:
    """The power of ten at or below a price: 2 for 340, −3 for 0.0012."""
    return Decimal(repr(price)).adjusted()


def _step_by_price(price: float) -> Decimal:
    return Decimal(1).scaleb(-max(0, _magnitude(price)))
