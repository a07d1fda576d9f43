"""Operations that need no account: market data and the exchange's own description."""

from __future__ import annotations

from decimal import Decimal
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.exchange.call import Call
from src.exchange.candles import DAY_MS, HOUR_MS, INTERVALS, MINUTE_MS, Day, candles, length_of, open_of, rest_rows
from src.exchange.entry import optional_symbol, symbol_of
from src.exchange.errors import ApiError
from src.exchange.events import money
from src.exchange.params import Params
from src.exchange.state import Standing, State
from src.exchange.symbols import SymbolSpec

DEPTH_LIMITS = (5, 10, 20, 50, 100, 500, 1000)
ORDER_TYPES = ("LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET")
AGG_LOOK_BACK_MS = 2 * DAY_MS
OLD_LOOK_BACK_MS = 30 * DAY_MS
SERVER_TIME_STALE_MS = 3 * DAY_MS
ASSETS = (("USDT", "-10000"), ("BTC", "-0.10000000"), ("BNB", "-10"), ("ETH", "-5"), ("USDC", "-10000"), ("FDUSD", "0"), ("BNFCR", "0"),
          ("BFUSD", "0"), ("LDUSDT", "0"), ("RWUSD", "0"), ("USD1", "0"), ("U", "0"))  # fmt: skip


def ping(_call: Call) -> dict[str, Any]:
    return {}


def server_time(call: Call) -> dict[str, int]:
    return {"serverTime": call.venue.told_ms()}


def exchange_info(call: Call) -> dict[str, Any]:
    """The whole universe; serverTime is that of a cached document, days behind."""
    venue = call.venue
    return {
        "timezone": "UTC", "serverTime": venue.clock.t0_ms - SERVER_TIME_STALE_MS, "futuresType": "U_MARGINED",
        "rateLimits": venue.limiter.table(), "exchangeFilters": [],
        "assets": [{"asset": a, "marginAvailable": True, "autoAssetExchange": x} for a, x in ASSETS],
        "symbols": [_symbol_info(spec, standing, venue.options.limits.open_orders_per_symbol)
                    for spec, standing in zip(venue.state.specs, venue.state.standings, strict=True)],
    }  # fmt: skip


def _symbol_info(spec: SymbolSpec, standing: Standing, order_limit: int) -> dict[str, Any]:
    def text(value: Decimal) -> str:
        return format(value, "f")

    lot = {"minQty": text(spec.min_qty), "stepSize": text(spec.step)}
    return {
        "symbol": spec.symbol, "pair": spec.symbol, "contractType": "PERPETUAL", "deliveryDate": standing.delivery_ms,
        "onboardDate": spec.onboard_ms, "status": standing.status, "maintMarginPercent": "2.5000", "requiredMarginPercent": "5.0000",
        "baseAsset": spec.base, "quoteAsset": spec.quote, "marginAsset": spec.quote, "pricePrecision": spec.price_precision,
        "quantityPrecision": spec.quantity_precision, "baseAssetPrecision": 8, "quotePrecision": 8, "underlyingType": "COIN",
        "underlyingSubType": ["Crypto"], "triggerProtect": text(spec.trigger_protect), "liquidationFee": text(spec.liquidation_fee),
        "marketTakeBound": text(spec.band), "maxMoveOrderLimit": 10000, "permissionSets": ["GRID", "COPY", "DCA", "PSB"],
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": text(spec.min_price), "maxPrice": text(spec.max_price), "tickSize": text(spec.tick)},
            {"filterType": "LOT_SIZE", "maxQty": text(spec.max_qty), **lot},
            {"filterType": "MARKET_LOT_SIZE", "maxQty": text(spec.market_max_qty), **lot},
            {"filterType": "MAX_NUM_ORDERS", "limit": order_limit},
            {"filterType": "MIN_NOTIONAL", "notional": text(spec.min_notional)},
            {"filterType": "PERCENT_PRICE", "multiplierUp": f"{1 + spec.band:.4f}", "multiplierDown": f"{1 - spec.band:.4f}",
             "multiplierDecimal": "4"},
            {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
        ],
        "orderTypes": list(ORDER_TYPES), "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
    }  # fmt: skip


# ---------------------------------------------------------------------- books and trades


def limit_of(params: Params, default: int, most: int) -> int:
    limit = params.integer("limit", least=-1)
    if limit is None:
        return default
    if not 1 <= limit <= most:
        raise ApiError(-1130, "limit")
    return limit


def _depth_limit(params: Params, default: int = 500, allowed: tuple[int, ...] = DEPTH_LIMITS) -> int:
    limit = params.integer("limit", least=-1)
    if limit is None:
        return default
    if limit > 1000:
        raise ApiError(-1130, "limit")
    if limit not in allowed:
        raise ApiError(-4021, limit)
    return limit


def depth_weight(params: Params) -> int:
    limit = _depth_limit(params)
    return 2 if limit <= 50 else {100: 5, 500: 10, 1000: 20}[limit]


def order_book(call: Call) -> dict[str, Any]:
    return _book(call, _depth_limit(call.params))


def rpi_book(call: Call) -> dict[str, Any]:
    """Whole or not at all; there are no retail orders to add."""
    return _book(call, _depth_limit(call.params, 1000, (1000,)))


def _book(call: Call, limit: int) -> dict[str, Any]:
    symbol = symbol_of(call.params, call.venue.state.index)
    shown, words = call.venue.shown.of(symbol, limit), call.venue.words
    price, qty = words.price[symbol], words.qty[symbol]
    bids, asks = ([[price(t), qty(s)] for t, s in islice(side.items(), limit)] for side in (shown.bids, shown.asks))
    return {"lastUpdateId": shown.update, "E": call.venue.state.now_ms, "T": shown.time_ms, "bids": bids, "asks": asks}


def trades(call: Call) -> list[dict[str, Any]]:
    symbol = symbol_of(call.params, call.venue.state.index)
    rows = call.venue.core.market.agg_trades(symbol, to_ms=call.venue.state.now_ms, limit=limit_of(call.params, 500, 1000))
    return _trade_rows(call, symbol, rows)


def old_trades(call: Call) -> list[dict[str, Any]]:
    """From a trade's id on, or the last ones."""
    state, market = call.venue.state, call.venue.core.market
    symbol, limit, from_id = symbol_of(call.params, state.index), limit_of(call.params, 100, 500), call.params.integer("fromId")
    if from_id is None:
        return _trade_rows(call, symbol, market.agg_trades(symbol, to_ms=state.now_ms, limit=limit))
    newest = market.agg_trades(symbol, to_ms=state.now_ms, limit=1)
    low, high = 0, int(newest["agg_id"][-1]) + 1 if len(newest) else 0
    while low < high:  # the first aggregate that ends at that id or later
        middle = (low + high) // 2
        found = market.agg_trades(symbol, from_id=middle, to_ms=state.now_ms, limit=1)
        low, high = (low, middle) if len(found) and int(found["last_id"][0]) >= from_id else (middle + 1, high)
    rows = market.agg_trades(symbol, from_id=low, to_ms=state.now_ms, limit=limit)
    return _trade_rows(call, symbol, rows[rows["time_ms"] >= state.now_ms - OLD_LOOK_BACK_MS])


def _trade_rows(call: Call, symbol: int, rows: NDArray[np.void]) -> list[dict[str, Any]]:
    """One row an aggregate trade: nothing finer is known."""
    state, words = call.venue.state, call.venue.words
    return [
        {"id": int(r["last_id"]), "price": words.price[symbol](int(r["price"])), "qty": words.qty[symbol](int(r["qty"])),
         "quoteQty": format(int(r["price"]) * state.specs[symbol].tick * int(r["qty"]) * state.specs[symbol].step, "f"),
         "time": int(r["time_ms"]), "isBuyerMaker": bool(r["buyer_is_maker"]), "isRPITrade": False}
        for r in rows
    ]  # fmt: skip


def agg_trades(call: Call) -> list[dict[str, Any]]:
    state, words, params = call.venue.state, call.venue.words, call.params
    symbol = symbol_of(params, state.index)
    limit = limit_of(params, 500, 1000)
    from_id, start, end = params.integer("fromId"), params.integer("startTime"), params.integer("endTime")
    if from_id is not None and (start is not None or end is not None):
        raise ApiError(-1128)
    if start is not None and end is not None:
        if start > end:
            raise ApiError(-1023)
        if end - start > HOUR_MS:
            raise ApiError(-1127)
    oldest = state.now_ms - AGG_LOOK_BACK_MS
    if start is not None or end is not None:
        start = max(start or 0, oldest) if start is not None else None
    until = state.now_ms if end is None else min(state.now_ms, end + 1)
    rows = call.venue.core.market.agg_trades(symbol, from_ms=start, to_ms=until, from_id=from_id, limit=limit)
    price, qty = words.price[symbol], words.qty[symbol]
    return [
        {"a": int(r["agg_id"]), "p": price(int(r["price"])), "q": qty(int(r["qty"])), "nq": qty(int(r["qty"])), "f": int(r["first_id"]),
         "l": int(r["last_id"]), "T": int(r["time_ms"]), "m": bool(r["buyer_is_maker"])}
        for r in rows[rows["time_ms"] >= oldest]
    ]  # fmt: skip


# ---------------------------------------------------------------------- candles


def kline_weight(params: Params) -> int:
    limit = params.integer("limit", least=-1) or 500
    return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10


def _klines(call: Call, symbol: int, intervals: tuple[str, ...]) -> list[list[Any]]:
    params, now = call.params, call.venue.state.now_ms
    interval = params.need("interval")
    if interval not in intervals:
        raise ApiError(-1120)
    limit = limit_of(params, 500, 1500)
    start, end = params.integer("startTime"), params.integer("endTime")
    if start is not None and end is not None and start > end:
        raise ApiError(-1023)
    until = min(end if end is not None else now, now)
    market = call.venue.core.market
    if start is None:
        from_ms = open_of(interval, max(0, until - (limit - 1) * length_of(interval)))
        rows = candles(market, symbol, interval, from_ms=max(from_ms, market.start_ms - 40 * DAY_MS), to_ms=until, now_ms=now)[-limit:]
    else:
        rows = _candles_from(call, symbol, interval, from_ms=start, to_ms=until)[:limit]
    return rest_rows(call.venue.words, symbol, interval, rows)


def _candles_from(call: Call, symbol: int, interval: str, *, from_ms: int, to_ms: int) -> NDArray[np.void]:
    """As many as are asked for, and maybe more, from a time on, or from the first one that there is."""
    market, now, length = call.venue.core.market, call.venue.state.now_ms, length_of(interval)
    limit = limit_of(call.params, 500, 1500)

    def rows_from(start: int) -> NDArray[np.void]:
        until = to_ms if interval in ("1M", "1w") else min(to_ms, -(-start // length) * length + (limit - 1) * length)
        return candles(market, symbol, interval, from_ms=max(start, market.start_ms - 40 * DAY_MS), to_ms=until, now_ms=now)

    rows = rows_from(from_ms)
    if len(rows) and int(rows["open_ms"][0]) <= from_ms + length:
        return rows
    first = market.agg_trades(symbol, from_ms=market.start_ms, to_ms=now, limit=1)
    return rows_from(open_of(interval, int(first["time_ms"][0]))) if len(first) and first["time_ms"][0] > from_ms else rows


def klines(call: Call) -> list[list[Any]]:
    return _klines(call, symbol_of(call.params, call.venue.state.index), tuple(INTERVALS))


def continuous_klines(call: Call) -> list[list[Any]]:
    pair = call.params.need("pair")
    if pair not in call.venue.state.index:
        raise ApiError(-4144)
    if call.params.need("contractType") != "PERPETUAL":
        raise ApiError(-4104)
    return _klines(call, call.venue.state.index[pair], ("1s", *INTERVALS))


def price_klines(call: Call) -> list[list[Any]]:
    """Mark and index candles: the contract's own without volumes (the mark is a smoothed last price)."""
    params = call.params
    name = "symbol" if "symbol" in params else "pair"
    rows = _klines(call, symbol_of(params, call.venue.state.index, name), tuple(INTERVALS))
    return [[*row[:5], "0", row[6], "0", row[8], "0", "0", "0"] for row in rows]


def premium_klines(call: Call) -> list[list[Any]]:
    """Nothing but zeros: the index is the contract's own."""
    rows = _klines(call, symbol_of(call.params, call.venue.state.index), tuple(INTERVALS))
    zero = money(Decimal(0))
    return [[row[0], zero, zero, zero, zero, "0", row[6], "0", row[8], "0", "0", "0"] for row in rows]


# ---------------------------------------------------------------------- mark, funding


def _premium(state: State, symbol: int) -> dict[str, Any]:
    spec, mark = state.specs[symbol], money(state.quotes.mark(symbol))
    upcoming = state.quotes.next_funding_ms(symbol, state.now_ms)
    return {
        "symbol": spec.symbol, "markPrice": mark, "indexPrice": mark, "estimatedSettlePrice": mark,
        "lastFundingRate": format(state.quotes.funding_rate(symbol, upcoming), "f"), "interestRate": "0.00010000", "nextFundingTime": upcoming,
        "time": state.now_ms,
    }  # fmt: skip


def one_or_all(call: Call, row: Any) -> Any:
    """The row of one symbol as an object, or of all as an array."""
    symbol = optional_symbol(call.params, call.venue.state.index)
    if symbol is not None:
        return row(symbol)
    return [row(i) for i in range(len(call.venue.state.specs))]


def premium_index(call: Call) -> Any:
    return one_or_all(call, lambda i: _premium(call.venue.state, i))


def funding_rates(call: Call) -> list[dict[str, Any]]:
    state, params = call.venue.state, call.params
    symbol = optional_symbol(params, state.index)
    limit = limit_of(params, 100, 1000)
    start, end = params.integer("startTime"), params.integer("endTime")
    if start is not None and end is not None and start > end:
        raise ApiError(-1023)
    until = min(state.now_ms, end if end is not None else state.now_ms)
    rows = []
    for i in range(len(state.specs)) if symbol is None else (symbol,):
        every = state.specs[i].funding_interval_hours * HOUR_MS
        last = until // every
        earliest = -(-max(start or 0, call.venue.core.market.start_ms) // every)
        if start is not None:
            span = range(earliest, min(last, earliest + limit - 1) + 1)
        else:
            span = range(max(earliest, last - limit + 1), last + 1)
        rows += [(n * every, i) for n in span]
    rows.sort()
    rows = rows[:limit] if start is not None else rows[-limit:]
    return [_funding_row(call, i, at) for at, i in rows]


def _funding_row(call: Call, symbol: int, at_ms: int) -> dict[str, Any]:
    """With the mark that was charged; of settlements before this run, the last price of the minute before."""
    state = call.venue.state
    spec, settled = state.specs[symbol], state.settled_marks.get((symbol, at_ms))
    if settled is None:
        bar = call.venue.core.market.klines(symbol, MINUTE_MS, at_ms - MINUTE_MS, at_ms, state.now_ms)
        settled = int(bar["close"][0]) * spec.tick if len(bar) else None
    mark = money(settled) if settled is not None else ""
    return {
        "symbol": spec.symbol, "fundingTime": at_ms, "fundingRate": format(state.quotes.funding_rate(symbol, at_ms), "f"), "markPrice": mark,
        "rateType": "Regular",
    }  # fmt: skip


def funding_info(call: Call) -> list[dict[str, Any]]:
    """Only what deviates from eight hours."""
    return [
        {"symbol": s.symbol, "adjustedFundingRateCap": "0.02000000", "adjustedFundingRateFloor": "-0.02000000",
         "fundingIntervalHours": s.funding_interval_hours, "disclaimer": False, "updateTime": None}
        for s in call.venue.state.specs if s.funding_interval_hours != 8
    ]  # fmt: skip


# ---------------------------------------------------------------------- tickers


def ticker_24hr(call: Call) -> Any:
    def row(i: int) -> dict[str, Any]:
        day = call.venue.days.rolling(i, call.venue.state.now_ms)
        return ticker_row(call, i, day or Day(call.venue.state.now_ms - DAY_MS, 0, 0, 0, 0, 0, 0.0, 0, -1, -1))

    return one_or_all(call, row)


def ticker_row(call: Call, i: int, day: Day) -> dict[str, Any]:
    state, price, qty = call.venue.state, call.venue.words.price[i], call.venue.words.qty[i]
    spec = state.specs[i]
    volume = day.volume * float(spec.step)
    change = (day.last / day.open - 1) * 100 if day.open else 0.0
    average = Decimal(repr(day.quote / volume)).quantize(spec.tick) if volume else Decimal(0)
    return {
        "symbol": spec.symbol, "priceChange": price(day.last - day.open) if day.last >= day.open else "-" + price(day.open - day.last),
        "priceChangePercent": f"{change:.3f}", "weightedAvgPrice": format(average, "f"), "lastPrice": price(day.last),
        "lastQty": qty(int(state.quotes.last_qty[i])), "openPrice": price(day.open), "highPrice": price(day.high),
        "lowPrice": price(day.low),
        "volume": qty(day.volume), "quoteVolume": f"{day.quote:.2f}", "openTime": day.open_ms, "closeTime": state.now_ms,
        "firstId": day.first_id, "lastId": day.last_id, "count": day.trades,
    }  # fmt: skip


def ticker_price(call: Call) -> Any:
    state, words = call.venue.state, call.venue.words

    def row(i: int) -> dict[str, Any]:
        return {"symbol": state.specs[i].symbol, "price": words.price[i](int(state.quotes.last[i])), "time": int(state.quotes.traded_ms[i])}

    return one_or_all(call, row)


def ticker_book(call: Call) -> Any:
    state, words = call.venue.state, call.venue.words
    quotes = state.quotes

    def row(i: int) -> dict[str, Any]:
        price, qty = words.price[i], words.qty[i]
        return {
            "symbol": state.specs[i].symbol, "bidPrice": price(int(quotes.bid[i])), "bidQty": qty(int(quotes.bid_qty[i])),
            "askPrice": price(int(quotes.ask[i])), "askQty": qty(int(quotes.ask_qty[i])), "time": int(quotes.time_ms[i]),
            "lastUpdateId": quotes.update(i),
        }  # fmt: skip

    return one_or_all(call, row)


def open_interest(call: Call) -> dict[str, Any]:
    symbol = symbol_of(call.params, call.venue.state.index)
    spec = call.venue.state.specs[symbol]
    return {"symbol": spec.symbol, "openInterest": format(open_interest_of(spec), "f"), "time": call.venue.state.now_ms}


def open_interest_of(spec: SymbolSpec) -> Decimal:
    """A constant: nobody counts the positions of others."""
    return spec.market_max_qty * 100
