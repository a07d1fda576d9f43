"""What an account did and what befell it, as queries list it: changes of orders, liquidations, moved margin, the place in the queue for
deleveraging, and the switches that change nothing here."""

from __future__ import annotations

from typing import Any

from src.exchange import payloads
from src.exchange.call import Call
from src.exchange.entry import ids_of, optional_symbol, symbol_of
from src.exchange.events import money, text
from src.exchange.history import Amendment, MarginMove
from src.exchange.margin import adl_place
from src.exchange.orders import PositionSide
from src.exchange.public import limit_of
from src.exchange.state import State
from src.exchange.trading import span_of

LIQUIDATED, DELEVERAGED = "autoclose-", "adl_autoclose"
CLOSE_TYPES = {"LIQUIDATION": LIQUIDATED, "ADL": DELEVERAGED}


def amendments(call: Call) -> list[dict[str, Any]]:
    """Changes of one order, or of a symbol's orders; the newest first, as there."""
    state, params = call.venue.state, call.params
    symbol, limit = symbol_of(params, state.index), limit_of(params, 50, 100)
    order_id, client_id = ids_of(params, "orderId", "origClientOrderId")
    start, end = params.integer("startTime") or 0, params.integer("endTime")
    rows = [a for a in state.amendments if a.account == call.account_index and a.symbol == symbol and start <= a.time_ms
            and (end is None or a.time_ms <= end) and (a.order_id == order_id if order_id else a.client_id == client_id)]  # fmt: skip
    return [_amendment_row(state, a) for a in reversed(rows[-limit:])]


def _amendment_row(state: State, row: Amendment) -> dict[str, Any]:
    symbol = state.specs[row.symbol].symbol
    change: dict[str, Any] = {
        "price": {"before": text(row.price_before), "after": text(row.price_after)},
        "origQty": {"before": text(row.qty_before), "after": text(row.qty_after)}, "count": row.count,
    }  # fmt: skip
    if row.modify_id is not None:
        change["modifyId"] = row.modify_id
    return {"amendmentId": row.id, "symbol": symbol, "pair": symbol, "orderId": row.order_id, "clientOrderId": row.client_id, "time": row.time_ms,
            "amendment": change}  # fmt: skip


_LIQUIDATION_FIELDS = (
    "orderId", "symbol", "pair", "status", "clientOrderId", "price", "avgPrice", "origQty", "executedQty", "cumQuote", "cumBase", "timeInForce",
    "type", "reduceOnly", "closePosition", "side", "positionSide", "stopPrice", "workingType", "origType", "time", "updateTime",
)  # fmt: skip


def force_orders(call: Call) -> list[dict[str, Any]]:
    """The venue's own orders that closed positions."""
    state, params = call.venue.state, call.params
    symbol, limit = optional_symbol(params, state.index), limit_of(params, 50, 100)
    kind = params.choice("autoCloseType", CLOSE_TYPES, -1130)
    prefixes = (CLOSE_TYPES[kind],) if kind is not None else tuple(CLOSE_TYPES.values())
    start, end = span_of(params, state.now_ms, 7)
    rows = [o for o in state.orders.values() if o.account == call.account_index and o.client_id.startswith(prefixes)
            and (symbol is None or o.symbol == symbol) and start <= o.created_ms <= end]  # fmt: skip
    listed = [payloads.order_row_with_pair(state, o) for o in rows[-limit:]]
    return [{name: row[name] for name in _LIQUIDATION_FIELDS} for row in listed]


def margin_moves(call: Call) -> list[dict[str, Any]]:
    state, params = call.venue.state, call.params
    symbol, limit = symbol_of(params, state.index), limit_of(params, 500, 500)
    kind = params.integer("type", least=1, most=2)
    start, end = span_of(params, state.now_ms, 30)
    rows = [m for m in state.margin_moves if m.account == call.account_index and m.symbol == symbol and start <= m.time_ms <= end
            and (kind is None or (kind == 1) == (m.amount > 0))]  # fmt: skip
    return [_margin_row(state, m) for m in rows[-limit:]]


def _margin_row(state: State, row: MarginMove) -> dict[str, Any]:
    return {
        "symbol": state.specs[row.symbol].symbol, "type": 1 if row.amount > 0 else 2, "deltaType": "USER_ADJUST", "amount": money(abs(row.amount)),
        "asset": "USDT", "time": row.time_ms, "positionSide": row.side,
    }  # fmt: skip


# ---------------------------------------------------------------------- deleveraging


def adl_quantiles(call: Call) -> list[dict[str, Any]]:
    """Of symbols with a position, or of the one asked for."""
    state, account = call.venue.state, call.account
    wanted = optional_symbol(call.params, state.index)
    held = {p.symbol for p in account.live_positions()}
    rows = []
    for symbol in sorted(held) if wanted is None else [wanted]:
        mark = state.quotes.mark(symbol)
        places = dict.fromkeys(PositionSide, 0) | {p.side: adl_place(account, p, mark) for p in account.live_positions() if p.symbol == symbol}
        queue = {"LONG": places[PositionSide.LONG], "SHORT": places[PositionSide.SHORT]}
        queue |= {"HEDGE": 0} if account.hedge else {"BOTH": places[PositionSide.BOTH]}
        rows.append({"symbol": state.specs[symbol].symbol, "adlQuantile": queue})
    return rows


# ---------------------------------------------------------------------- switches and rules


def fee_burn(call: Call) -> dict[str, bool]:
    return {"feeBurn": call.account.fee_burn}


def set_fee_burn(call: Call) -> dict[str, Any]:
    """The switch is kept; without BNB in the wallet it discounts nothing."""
    call.params.need("feeBurn")
    account, on = call.account, bool(call.params.flag("feeBurn"))

    def turn() -> None:
        account.fee_burn = on
        call.venue.state.touch(account)

    call.venue.at_once(turn)
    return {"code": 200, "msg": "success"}


def trading_status(call: Call) -> dict[str, Any]:
    """No quantitative rule has been broken."""
    optional_symbol(call.params, call.venue.state.index)
    return {"indicators": {}, "updateTime": call.venue.state.now_ms}


def sign_agreement(_call: Call) -> dict[str, Any]:
    """On contracts of other markets, of which none is listed."""
    return {"code": 200, "msg": "success"}
