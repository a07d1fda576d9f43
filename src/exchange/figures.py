"""What the venue publishes around its market: statistics, indices, its insurance fund, risk of deleveraging, sessions of other markets.

All of it is public and has the venue's shapes. Where nothing stands behind a figure here it is a stated stand-in: there is one asset, the
index of a contract is its own mark price, nobody but our accounts has positions, and the contracts of other markets are not listed.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.exchange.call import Call
from src.exchange.candles import DAY_MS, INTERVALS
from src.exchange.entry import symbol_of
from src.exchange.errors import ApiError
from src.exchange.events import money
from src.exchange.public import ASSETS, limit_of, one_or_all, open_interest_of
from src.exchange.state import State

PERIODS = ("5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d")
LOOK_BACK_MS = 30 * DAY_MS
FUND = Decimal(1_000_000_000)
"""The insurance fund at the beginning, USDT."""
BUFFER, AUTO_BUFFER = Decimal("0.05"), Decimal("0.01")
"""What an asset counts less as margin, and is exchanged for less."""
SESSIONS = {
    "EQUITY": "EquityUpdate", "COMMODITY": "CommodityUpdate", "KR_EQUITY": "KR_EquityUpdate", "HK_EQUITY": "HK_EquityUpdate",
    "CN_EQUITY": "CN_EquityUpdate", "FX": "FXUpdate",
}  # fmt: skip
"""The other markets, with the event of each."""


# ---------------------------------------------------------------------- statistics of a symbol


class _Span:
    """The periods that a request asks for."""

    def __init__(self, call: Call, name: str = "symbol") -> None:
        params, state = call.params, call.venue.state
        self.call, self.symbol = call, symbol_of(params, state.index, name)
        period = params.need("period")
        if period not in PERIODS:
            raise ApiError(-1130, "period")
        limit, start, end = limit_of(params, 30, 500), params.integer("startTime"), params.integer("endTime")
        if start is not None and end is not None and start > end:
            raise ApiError(-1023)
        self.period, self.length = period, INTERVALS[period]
        last = (min(end if end is not None else state.now_ms, state.now_ms) // self.length - 1) * self.length
        first = max(start or 0, last - (limit - 1) * self.length, state.now_ms - LOOK_BACK_MS, call.venue.core.market.start_ms)
        self.first, self.last = -(-first // self.length) * self.length, last

    def candles(self) -> NDArray[np.void]:
        market, now = self.call.venue.core.market, self.call.venue.state.now_ms
        return market.klines(self.symbol, self.length, self.first, self.last, now) if self.first <= self.last else np.empty(0, np.void)

    def opens(self) -> range:
        return range(self.first, self.last + 1, self.length)


def open_interest_history(call: Call) -> list[dict[str, Any]]:
    span = _Span(call)
    spec = call.venue.state.specs[span.symbol]
    amount = open_interest_of(spec)
    return [
        {"symbol": spec.symbol, "sumOpenInterest": money(amount), "sumOpenInterestValue": money(amount * int(row["close"]) * spec.tick),
         "CMCCirculatingSupply": "0.00000000", "timestamp": int(row["open_ms"]) + span.length}
        for row in span.candles()
    ]  # fmt: skip


def long_short_ratio(call: Call) -> list[dict[str, Any]]:
    """A fixed function of symbol and time: a third to two thirds of the accounts are long."""
    span = _Span(call)
    name, rows = call.venue.state.specs[span.symbol].symbol, []
    for at in span.opens():
        digest = hashlib.blake2b(f"ratio:{name}:{at}".encode(), digest_size=4).digest()
        long = (Decimal(int.from_bytes(digest, "big") % 3334) + 3333) / 10_000
        rows.append({"symbol": name, "longAccount": format(long, "f"), "longShortRatio": format((long / (1 - long)).quantize(Decimal("0.0001")), "f"),
                     "shortAccount": format(1 - long, "f"), "timestamp": at + span.length})  # fmt: skip
    return rows


def taker_volume(call: Call) -> list[dict[str, Any]]:
    span = _Span(call)
    step, rows = call.venue.state.specs[span.symbol].step, []
    for row in span.candles():
        bought, sold = int(row["taker_volume"]) * step, int(row["volume"] - row["taker_volume"]) * step
        ratio = (bought / sold).quantize(Decimal("0.0001")) if sold else Decimal(0)
        volumes = {"sellVol": format(sold, "f"), "buyVol": format(bought, "f")}
        rows.append({"buySellRatio": format(ratio, "f")} | volumes | {"timestamp": int(row["open_ms"])})
    return rows


def basis(call: Call) -> list[dict[str, Any]]:
    """None: the index price is the contract's own."""
    if call.params.need("contractType") != "PERPETUAL":
        raise ApiError(-4104)
    span = _Span(call, "pair")
    spec = call.venue.state.specs[span.symbol]
    return [
        {"indexPrice": price, "contractType": "PERPETUAL", "basisRate": "0.0000", "futuresPrice": price, "annualizedBasisRate": "", "basis": "0.0",
         "pair": spec.symbol, "timestamp": int(row["open_ms"])}
        for row in span.candles() for price in [format(int(row["close"]) * spec.tick, "f")]
    ]  # fmt: skip


def delivery_prices(call: Call) -> list[dict[str, Any]]:
    """Perpetual contracts are never delivered."""
    symbol_of(call.params, call.venue.state.index, "pair")
    return []


# ---------------------------------------------------------------------- indices


def constituents(call: Call) -> dict[str, Any]:
    state = call.venue.state
    symbol = symbol_of(call.params, state.index)
    name = state.specs[symbol].symbol
    part = {"exchange": "binance", "symbol": name, "price": money(state.quotes.mark(symbol)), "weight": "1.00000000"}
    return {"symbol": name, "time": state.now_ms, "constituents": [part]}


def index_info(_call: Call) -> list[Any]:
    """No contract on a composite index is listed."""
    return []


def index_assets(state: State) -> dict[str, int]:
    """Assets with an index: the symbol of the contract that prices it, -1 for USDT itself."""
    known = {name for name, _ in ASSETS}
    return {"USDT": -1} | {s.base: i for i, s in enumerate(state.specs) if s.base in known and s.quote == "USDT"}


def asset_rates(state: State, symbol: int) -> tuple[str, ...]:
    """Index, then rates to sell and to buy as margin, then the same for automatic exchange."""
    index = state.quotes.mark(symbol) if symbol >= 0 else Decimal(1)
    return tuple(money(index * x) for x in (Decimal(1), 1 - BUFFER, 1 + BUFFER, 1 - AUTO_BUFFER, 1 + AUTO_BUFFER))


def asset_index(call: Call) -> Any:
    state = call.venue.state
    assets = index_assets(state)

    def row(asset: str) -> dict[str, Any]:
        index, bid, ask, auto_bid, auto_ask = asset_rates(state, assets[asset])
        return {
            "symbol": f"{asset}USD", "time": state.now_ms, "index": index, "bidBuffer": money(BUFFER), "askBuffer": money(BUFFER), "bidRate": bid,
            "askRate": ask, "autoExchangeBidBuffer": money(AUTO_BUFFER), "autoExchangeAskBuffer": money(AUTO_BUFFER),
            "autoExchangeBidRate": auto_bid, "autoExchangeAskRate": auto_ask,
        }  # fmt: skip

    wanted = call.params.get("symbol")
    if wanted is None:
        return [row(asset) for asset in assets]
    if wanted.removesuffix("USD") not in assets or not wanted.endswith("USD"):
        raise ApiError(-1121)
    return row(wanted.removesuffix("USD"))


# ---------------------------------------------------------------------- risk


def insurance_balance(call: Call) -> Any:
    """One fund for all symbols: what it began with, and what it has given and taken since."""
    state = call.venue.state
    balance = FUND - sum((a.wallet.insurance for a in state.accounts), Decimal(0))
    row = {
        "symbols": [s.symbol for s in state.specs],
        "assets": [{"asset": "USDT", "marginBalance": money(balance), "updateTime": state.now_ms}],
    }
    if call.params.get("symbol") is None:
        return [row]
    symbol_of(call.params, state.index)
    return row


def adl_risk(call: Call) -> Any:
    """Always low: nobody is deleveraged here."""
    state = call.venue.state
    return one_or_all(call, lambda i: {"symbol": state.specs[i].symbol, "adlRisk": "low", "updateTime": state.now_ms})


# ---------------------------------------------------------------------- other markets


def session_of(now_ms: int) -> tuple[int, int, str]:
    """Start, end and kind of the present session of every other market: none, the whole day."""
    start = now_ms // DAY_MS * DAY_MS
    return start, start + DAY_MS, "NO_TRADING"


def trading_schedule(call: Call) -> dict[str, Any]:
    start, end, kind = session_of(call.venue.state.now_ms)
    session = {"startTime": start, "endTime": end, "type": kind}
    return {"updateTime": call.venue.state.now_ms, "marketSchedules": {market: {"sessions": [session]} for market in SESSIONS}}
