"""REST and WS API answers about orders, trades, algo orders and income, as the venue shapes them since July 2026.

Answers to placing, changing and cancelling carry no average price and no cumulated quote; queries do.
"""

from __future__ import annotations

from typing import Any

from src.exchange.events import average_text, money, text
from src.exchange.orders import AlgoOrder, Fill, Income, Order
from src.exchange.state import State


def _order_core(state: State, order: Order) -> dict[str, Any]:
    return {
        "orderId": order.id, "symbol": state.specs[order.symbol].symbol, "status": order.status, "clientOrderId": order.client_id,
        "price": text(order.price), "origQty": text(order.qty), "executedQty": text(order.executed), "timeInForce": order.tif,
        "type": order.type, "origType": order.orig_type or order.type, "reduceOnly": order.reduce_only,
        "closePosition": order.close_position,
        "side": order.side, "positionSide": order.position_side, "stopPrice": text(order.stop_price), "workingType": order.working_type,
        "priceProtect": order.price_protect, "priceMatch": order.price_match, "selfTradePreventionMode": order.stp,
        "goodTillDate": order.gtd_ms, "updateTime": order.updated_ms,
    }  # fmt: skip


def order_answer(state: State, order: Order, *, acknowledge: bool = False) -> dict[str, Any]:
    """The answer to place, modify or cancel. ``acknowledge``: as if nothing had been executed yet."""
    row = _order_core(state, order) | {"cumQty": text(order.executed)}
    if acknowledge:
        row |= {"status": "NEW", "executedQty": "0", "cumQty": "0", "updateTime": order.created_ms}
    return row


def order_row(state: State, order: Order) -> dict[str, Any]:
    """The answer to a query."""
    return _order_core(state, order) | {
        "avgPrice": average_text(state, order.symbol, order.average), "cumQuote": text(order.quote), "time": order.created_ms,
    }  # fmt: skip


def order_row_with_pair(state: State, order: Order) -> dict[str, Any]:
    """As the lists of all orders and of liquidations have it."""
    return order_row(state, order) | {"pair": state.specs[order.symbol].symbol, "cumBase": "0"}


def trade_row(state: State, fill: Fill) -> dict[str, Any]:
    symbol = state.specs[fill.symbol].symbol
    return {
        "symbol": symbol, "pair": symbol, "id": fill.id, "orderId": fill.order_id, "side": fill.side, "positionSide": fill.position_side,
        "buyer": fill.side == "BUY", "maker": fill.maker, "price": text(fill.price), "qty": text(fill.qty), "quoteQty": text(fill.quote),
        "baseQty": "0", "realizedPnl": text(fill.realised), "commission": text(fill.commission), "commissionAsset": "USDT",
        "marginAsset": "USDT", "time": fill.time_ms,
    }  # fmt: skip


def _algo_core(state: State, algo: AlgoOrder) -> dict[str, Any]:
    return {
        "algoId": algo.id, "clientAlgoId": algo.client_id, "algoType": "CONDITIONAL", "orderType": algo.type,
        "symbol": state.specs[algo.symbol].symbol, "side": algo.side, "positionSide": algo.position_side, "timeInForce": algo.tif,
        "quantity": text(algo.qty), "algoStatus": algo.status, "triggerPrice": text(algo.trigger_price), "price": text(algo.price),
        "icebergQuantity": None, "selfTradePreventionMode": algo.stp, "workingType": algo.working_type, "priceMatch": algo.price_match,
        "closePosition": algo.close_position, "priceProtect": algo.price_protect, "reduceOnly": algo.reduce_only,
        "createTime": algo.created_ms, "updateTime": algo.updated_ms, "triggerTime": algo.trigger_ms, "goodTillDate": algo.gtd_ms,
    }  # fmt: skip


def algo_answer(state: State, algo: AlgoOrder) -> dict[str, Any]:
    """The answer to placing an algo order."""
    row = _algo_core(state, algo)
    if algo.type == "TRAILING_STOP_MARKET":
        row |= {"activatePrice": text(algo.activate_price), "callbackRate": text(algo.callback_rate)}
    return row


def _spawned(state: State, algo: AlgoOrder) -> dict[str, Any]:
    order = state.orders.get(algo.order_id)
    price = average_text(state, algo.symbol, order.average) if order else "0"
    return _algo_core(state, algo) | {"actualOrderId": str(algo.order_id) if algo.order_id else "", "actualPrice": price, "tpOrderType": ""}


def algo_row(state: State, algo: AlgoOrder) -> dict[str, Any]:
    """The answer to a query: with what became of the order it spawned, once there is one."""
    order = state.orders.get(algo.order_id)
    row = _spawned(state, algo)
    if order is not None:
        row["actualType"] = order.type
        if order.executed:
            row["actualQty"] = text(order.executed)
    return row


def algo_list_row(state: State, algo: AlgoOrder) -> dict[str, Any]:
    """As lists have it: with fields of a pair of exits, which are always empty."""
    return _spawned(state, algo) | {"tpTriggerPrice": "0", "tpPrice": "0", "slTriggerPrice": "0", "slPrice": "0"}


def income_row(state: State, row: Income) -> dict[str, Any]:
    return {
        "symbol": state.specs[row.symbol].symbol if row.symbol >= 0 else "", "incomeType": row.type, "income": money(row.amount),
        "asset": "USDT",
        "info": row.info or row.trade_id, "time": row.time_ms, "tranId": row.id, "tradeId": row.trade_id,
    }  # fmt: skip
