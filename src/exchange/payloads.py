"""REST and WS API answers about orders, trades, algo orders and income, as the venue shapes them since July 2026.

Answers to placing, changing and cancelling carry no average price and no cumulated quote; queries do.
"""

from __future__ import annotations

from decimal import Decimal
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
        "pair": state.specs[order.symbol].symbol, "cumBase": "0",
    }  # fmt: skip


def trade_row(state: State, fill: Fill) -> dict[str, Any]:
    symbol = state.specs[fill.symbol].symbol
    return {
        "symbol": symbol, "pair": symbol, "id": fill.id, "orderId": fill.order_id, "side": fill.side, "positionSide": fill.position_side,
        "buyer": fill.side == "BUY", "maker": fill.maker, "price": text(fill.price), "qty": text(fill.qty), "quoteQty": text(fill.quote),
        "baseQty": "0", "realizedPnl": text(fill.realised), "commission": text(fill.commission), "commissionAsset": "USDT",
        "marginAsset": "USDT", "time": fill.time_ms,
    }  # fmt: skip


def _or_none(value: Decimal) -> str | None:
    return text(value) if value else None


def algo_answer(state: State, algo: AlgoOrder) -> dict[str, Any]:
    """The answer to placing an algo order."""
    return {
        "algoId": algo.id, "clientAlgoId": algo.client_id, "algoType": "CONDITIONAL", "orderType": algo.type,
        "symbol": state.specs[algo.symbol].symbol, "side": algo.side, "positionSide": algo.position_side, "timeInForce": algo.tif,
        "quantity": text(algo.qty), "algoStatus": algo.status, "triggerPrice": text(algo.trigger_price), "price": text(algo.price),
        "icebergQuantity": None, "selfTradePreventionMode": algo.stp, "workingType": algo.working_type, "priceMatch": algo.price_match,
        "closePosition": algo.close_position, "priceProtect": algo.price_protect, "reduceOnly": algo.reduce_only,
        "activatePrice": _or_none(algo.activate_price), "callbackRate": _or_none(algo.callback_rate), "createTime": algo.created_ms,
        "updateTime": algo.updated_ms, "triggerTime": algo.trigger_ms, "goodTillDate": algo.gtd_ms,
    }  # fmt: skip


def algo_row(state: State, algo: AlgoOrder) -> dict[str, Any]:
    """The answer to a query: with what became of the order it spawned."""
    order = state.orders.get(algo.order_id)
    return algo_answer(state, algo) | {
        "actualOrderId": str(algo.order_id) if algo.order_id else "",
        "actualPrice": average_text(state, algo.symbol, order.average) if order else "0",
        "actualType": order.type if order else "", "actualQty": text(order.executed) if order else "0",
        "tpTriggerPrice": "0", "tpPrice": "0", "slTriggerPrice": "0", "slPrice": "0", "tpOrderType": "", "slOrderType": "",
        "failReason": algo.reason,
    }  # fmt: skip


def income_row(state: State, row: Income) -> dict[str, Any]:
    return {
        "symbol": state.specs[row.symbol].symbol if row.symbol >= 0 else "", "incomeType": row.type, "income": money(row.amount),
        "asset": "USDT",
        "info": row.info or row.trade_id, "time": row.time_ms, "tranId": row.id, "tradeId": row.trade_id,
    }  # fmt: skip
