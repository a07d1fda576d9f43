"""The events of the user data stream, as the venue writes them."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal
from typing import Any

from src.exchange.ledger import AccountState, Position
from src.exchange.margin import maintenance, order_notionals
from src.exchange.orders import E8, ZERO, AlgoOrder, Fill, Order
from src.exchange.state import State


def text(value: Decimal) -> str:
    """A number without exponent, as it is."""
    return format(value, "f")


def money(value: Decimal) -> str:
    """An amount with eight decimals; what is beyond them is cut off, as the venue does."""
    return format(value.quantize(E8, ROUND_DOWN), "f")


def average_text(state: State, symbol: int, value: Decimal) -> str:
    """An average price: some digits more than the symbol's own."""
    digits = max(5, state.specs[symbol].price_precision + 3)
    return format(value.quantize(Decimal(1).scaleb(-digits)), "f") if value else "0"


def order_trade_update(state: State, order: Order, execution: str, fill: Fill | None = None, modify_id: int | None = None) -> dict[str, Any]:
    """``modify_id``: the user's own name for the change that this tells of."""
    bid, ask = order_notionals(state.orders_of(order.account, order.symbol), order.position_side, state.quotes.mark(order.symbol))
    body: dict[str, Any] = {
        "s": state.specs[order.symbol].symbol, "c": order.client_id, "S": order.side, "o": order.type, "f": order.tif,
        "q": text(order.qty), "p": text(order.price), "ap": average_text(state, order.symbol, order.average), "sp": text(order.stop_price),
        "x": execution, "X": order.status, "i": order.id, "l": text(fill.qty) if fill else "0", "z": text(order.executed),
        "L": text(fill.price) if fill else "0", "n": text(fill.commission) if fill else "0", "N": "USDT", "T": state.now_ms,
        "t": fill.id if fill else 0, "b": money(bid), "a": money(ask), "m": fill.maker if fill else False,
        "R": order.reducing, "wt": order.working_type, "ot": order.orig_type or order.type, "ps": order.position_side,
        "cp": order.close_position, "rp": text(fill.realised) if fill else "0", "pP": order.price_protect, "si": 0, "ss": 0,
        "V": order.stp, "pm": order.price_match, "gtd": order.gtd_ms, "er": str(order.expire_reason),
    }  # fmt: skip
    if order.orig_type == "TRAILING_STOP_MARKET" and (algo := state.algos.get(order.algo_id)) is not None:
        body |= {"AP": text(algo.activate_price), "cr": text(algo.callback_rate)}
    if modify_id is not None:
        body["M"] = str(modify_id)
    return {"e": "ORDER_TRADE_UPDATE", "T": state.now_ms, "E": state.now_ms, "o": body}


def trade_lite(state: State, order: Order, fill: Fill) -> dict[str, Any]:
    return {
        "e": "TRADE_LITE", "E": state.now_ms, "T": state.now_ms, "s": state.specs[order.symbol].symbol, "q": text(order.qty),
        "p": text(order.price), "m": fill.maker, "c": order.client_id, "S": order.side, "L": text(fill.price), "l": text(fill.qty),
        "t": fill.id, "i": order.id,
    }  # fmt: skip


def position_row(state: State, account: AccountState, position: Position) -> dict[str, Any]:
    isolated = account.setting(position.symbol).isolated
    return {
        "s": state.specs[position.symbol].symbol, "pa": text(position.qty), "ep": average_text(state, position.symbol, position.entry),
        "bep": average_text(state, position.symbol, position.break_even), "cr": text(position.realised),
        "up": money(position.unrealised(state.quotes.mark(position.symbol))), "mt": "isolated" if isolated else "cross",
        "iw": money(position.isolated_wallet), "ps": position.side, "ma": "USDT",
    }  # fmt: skip


def margin_call(state: State, account: AccountState, positions: list[Position], isolated: bool) -> dict[str, Any]:
    rows = []
    for position in positions:
        mark = state.quotes.mark(position.symbol)
        need = maintenance(state.specs[position.symbol].brackets, mark * position.qty)
        rows.append({
            "s": state.specs[position.symbol].symbol, "ps": position.side, "pa": text(position.qty), "mt": "ISOLATED" if isolated else "CROSSED",
            "iw": money(position.isolated_wallet), "mp": money(mark), "up": money(position.unrealised(mark)), "mm": money(need),
        })  # fmt: skip
    return {"e": "MARGIN_CALL", "E": state.now_ms} | ({} if isolated else {"cw": money(account.cross_wallet)}) | {"p": rows}


def account_update(state: State, account: AccountState, reason: str, positions: list[Position], *, change: Decimal = ZERO,
                   symbol: str = "") -> dict[str, Any]:  # fmt: skip
    """``change`` is the balance change that is neither realised result nor commission."""
    body: dict[str, Any] = {
        "B": [{"a": "USDT", "wb": money(account.wallet.balance), "cw": money(account.cross_wallet), "bc": text(change)}],
        "P": [position_row(state, account, p) for p in positions],
        "m": reason,
    }
    if symbol:
        body["S"] = symbol
    return {"e": "ACCOUNT_UPDATE", "T": state.now_ms, "E": state.now_ms, "a": body}


def algo_update(state: State, algo: AlgoOrder) -> dict[str, Any]:
    order = state.orders.get(algo.order_id)
    body: dict[str, Any] = {
        "caid": algo.client_id, "aid": algo.id, "at": "CONDITIONAL", "o": algo.type, "s": state.specs[algo.symbol].symbol, "S": algo.side,
        "ps": algo.position_side, "f": algo.tif, "q": text(algo.qty), "X": algo.status, "ai": str(algo.order_id) if algo.order_id else "",
        "tp": text(algo.trigger_price), "p": text(algo.price), "V": algo.stp, "wt": algo.working_type, "pm": algo.price_match,
        "cp": algo.close_position, "pP": algo.price_protect, "R": algo.reduce_only, "tt": algo.trigger_ms, "gtd": algo.gtd_ms,
        "rm": algo.reason, "ia": algo.active,
    }  # fmt: skip
    if order is not None:
        body |= {"ap": average_text(state, algo.symbol, order.average), "aq": text(order.executed), "act": order.type}
    return {"e": "ALGO_UPDATE", "T": state.now_ms, "E": state.now_ms, "o": body}


def leverage_update(state: State, symbol: int, leverage: int) -> dict[str, Any]:
    return {"e": "ACCOUNT_CONFIG_UPDATE", "E": state.now_ms, "T": state.now_ms, "ac": {"s": state.specs[symbol].symbol, "l": leverage}}


def multi_assets_update(state: State, on: bool) -> dict[str, Any]:
    return {"e": "ACCOUNT_CONFIG_UPDATE", "E": state.now_ms, "T": state.now_ms, "ai": {"j": on}}
