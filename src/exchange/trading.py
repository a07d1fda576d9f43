"""Operations on orders and algo orders. Whatever reaches the book does so after the latency; queries answer at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from src.exchange import payloads
from src.exchange.call import Call
from src.exchange.entry import OrderEntry, ids_of, optional_symbol, parse_algo, parse_modify, parse_order, symbol_of
from src.exchange.errors import ApiError
from src.exchange.orders import AlgoOrder, Order, OrderStatus
from src.exchange.params import INT64_MAX, Params
from src.exchange.public import limit_of
from src.exchange.reading import algo_as_of, order_as_of

DAY_MS = 86_400_000
UNFILLED_KEPT_MS = 3 * DAY_MS
ORDERS_KEPT_MS = 90 * DAY_MS
BATCH_MAX = 5
CANCEL_BATCH_MAX = 10


def _parsed_order(call: Call, params: Params) -> OrderEntry:
    state = call.venue.state
    return parse_order(params, state.index, state.specs, hedge=call.account.hedge, now_ms=call.venue.now_ms())


def _placer(call: Call, params: Params) -> Callable[[], Any]:
    entry = _parsed_order(call, params)

    def at_book() -> Any:
        call.check_engine_window()
        order = call.venue.core.placing.place(call.account, entry)
        return payloads.order_answer(call.venue.state, order, acknowledge=not entry.result)

    return at_book


def place(call: Call) -> Awaitable[Any]:
    return call.venue.at_book(_placer(call, call.params))


async def place_test(call: Call) -> Any:
    entry = _parsed_order(call, call.params)
    order = call.venue.core.placing.place(call.account, entry, dry=True)
    return payloads.order_row(call.venue.state, order) if call.venue.options.switches.order_test_body else {}


def _modifier(call: Call, params: Params) -> Callable[[], Any]:
    entry = parse_modify(params, call.venue.state.index, call.venue.state.specs)

    def at_book() -> Any:
        call.check_engine_window()
        order = call.venue.core.placing.modify(call.account, entry)
        answer = payloads.order_answer(call.venue.state, order) | {"pair": call.venue.state.specs[order.symbol].symbol}
        return answer | ({"modifyId": entry.modify_id} if entry.modify_id is not None else {})

    return at_book


def modify(call: Call) -> Awaitable[Any]:
    return call.venue.at_book(_modifier(call, call.params))


def _canceller(call: Call, symbol: int, order_id: int, client_id: str) -> Callable[[], Any]:
    def at_book() -> Any:
        return payloads.order_answer(call.venue.state, call.venue.core.placing.cancel(call.account, symbol, order_id, client_id))

    return at_book


def cancel(call: Call) -> Awaitable[Any]:
    symbol = symbol_of(call.params, call.venue.state.index)
    return call.venue.at_book(_canceller(call, symbol, *ids_of(call.params, "orderId", "origClientOrderId")))


def cancel_all(call: Call) -> Awaitable[Any]:
    symbol = symbol_of(call.params, call.venue.state.index)
    return call.venue.at_book(lambda: call.venue.core.placing.cancel_all(call.account, symbol))


def countdown(call: Call) -> Any:
    symbol = symbol_of(call.params, call.venue.state.index)
    if call.params.get("countdownTime") is None:
        raise ApiError(-1102, "countdownTime")
    span = call.params.integer("countdownTime", most=10**12) or 0
    call.venue.at_once(lambda: call.venue.core.settlement.countdown(call.account_index, symbol, span))
    return {"symbol": call.venue.state.specs[symbol].symbol, "countdownTime": str(span)}


# ---------------------------------------------------------------------- batches


def _batch(call: Call) -> list[Params]:
    try:
        rows = msgspec.json.decode(call.params.need("batchOrders"))
    except msgspec.DecodeError:
        raise ApiError(-1102, "batchOrders") from None
    if not isinstance(rows, list) or not 1 <= len(rows) <= BATCH_MAX:
        raise ApiError(-4082)
    if not all(isinstance(row, dict) for row in rows):
        raise ApiError(-1102, "batchOrders")
    return [Params({str(k): as_text(v) for k, v in row.items() if v is not None}) for row in rows]


def _unsaid(call: Call, params: Params) -> Params:
    """With the self-trade prevention that stands where none is named, if that is another one here."""
    if call.venue.options.switches.stp_default_everywhere or "selfTradePreventionMode" in params:
        return params
    return params.also("selfTradePreventionMode", "NONE")


def as_text(value: Any) -> str:
    """A JSON value as the text that the same parameter has in a query."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


async def _each(makers: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Every item's answer or refusal, in its place. All are on their way before the first is waited for."""
    waiting: list[Awaitable[Any] | ApiError] = []
    for make in makers:
        try:
            waiting.append(make())
        except ApiError as refusal:
            waiting.append(refusal)
    answers: list[Any] = []
    for item in waiting:
        try:
            answers.append(item.body() if isinstance(item, ApiError) else await item)
        except ApiError as refusal:
            answers.append(refusal.body())
    return answers


def place_batch(call: Call) -> Awaitable[Any]:
    return _each([lambda row=row: call.venue.at_book(_placer(call, _unsaid(call, row))) for row in _batch(call)])  # type: ignore[misc]


def modify_batch(call: Call) -> Awaitable[Any]:
    return _each([lambda row=row: call.venue.at_book(_modifier(call, row)) for row in _batch(call)])  # type: ignore[misc]


def cancel_batch(call: Call) -> Awaitable[Any]:
    symbol = symbol_of(call.params, call.venue.state.index)
    numbers = call.params.get("orderIdList") or call.params.get("orderidlist")  # clients send both spellings, and the venue takes both
    names = call.params.get("origClientOrderIdList") or call.params.get("origclientorderidlist")
    if numbers is None and names is None:
        raise ApiError(-1102, "orderIdList")
    try:
        items: list[Any] = msgspec.json.decode(numbers or names or "", type=list[int] if numbers else list[str])
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise ApiError(-1102, "orderIdList" if numbers else "origClientOrderIdList") from None
    if not 1 <= len(items) <= CANCEL_BATCH_MAX:
        raise ApiError(-4082)
    pairs = [(item, "") if numbers else (0, item) for item in items]
    return _each([lambda i=i, c=c: call.venue.at_book(_canceller(call, symbol, i, c)) for i, c in pairs])  # type: ignore[misc]


# ---------------------------------------------------------------------- queries


def _visible(order: Order, now_ms: int) -> bool:
    """What ended without a fill is shown for three days, the rest for ninety."""
    if order.open:
        return True
    age = now_ms - order.created_ms
    gone = order.status in (OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.EXPIRED_IN_MATCH) and not order.executed
    return age < (UNFILLED_KEPT_MS if gone else ORDERS_KEPT_MS)


def _mine(call: Call) -> list[Order]:
    """The account's orders; as they were, where reading lags."""
    rows = [o for o in call.venue.state.orders.values() if o.account == call.account_index]
    return [seen for o in rows if (seen := _as_read(call, o)) is not None] if call.lag_ms else rows


def _as_read(call: Call, order: Order) -> Order | None:
    return order_as_of(order, call.venue.state.fills[order.account], call.read_ms) if call.lag_ms else order


def _my_algos(call: Call) -> list[AlgoOrder]:
    rows = [a for a in call.venue.state.algos.values() if a.account == call.account_index and not a.lost]
    return [seen for a in rows if (seen := algo_as_of(a, call.read_ms)) is not None] if call.lag_ms else rows


def _found(call: Call) -> Order:
    symbol = symbol_of(call.params, call.venue.state.index)
    order = call.venue.core.placing.find(call.account, symbol, *ids_of(call.params, "orderId", "origClientOrderId"))
    order = order and _as_read(call, order)
    if order is None or not _visible(order, call.venue.state.now_ms):
        raise ApiError(-2013)
    return order


def query(call: Call) -> Any:
    return payloads.order_row(call.venue.state, _found(call))


def query_open(call: Call) -> Any:
    order = _found(call)
    if not order.open:
        raise ApiError(-2013)
    return payloads.order_row(call.venue.state, order)


def open_orders(call: Call) -> Any:
    state = call.venue.state
    symbol = optional_symbol(call.params, state.index)
    rows = _mine(call) if call.lag_ms else state.open_orders[call.account_index].values()
    return [payloads.order_row(state, o) for o in rows if o.open and (symbol is None or o.symbol == symbol)]


def span_of(params: Params, now_ms: int, days: int) -> tuple[int, int]:
    """startTime and endTime, at most ``days`` apart; the last ``days`` where neither is given."""
    start, end = params.integer("startTime"), params.integer("endTime")
    if start is not None and end is not None and start > end:
        raise ApiError(-1023)
    span = days * DAY_MS
    if start is not None and end is not None and end - start > span:
        raise ApiError(-4165, days)
    if start is None:
        start = (end if end is not None else now_ms) - span
    return start, end if end is not None else min(start + span, INT64_MAX)


def all_orders(call: Call) -> Any:
    state, params = call.venue.state, call.params
    symbol = optional_symbol(params, state.index)
    limit, first = limit_of(params, 500, 1000), params.integer("orderId")
    start, end = (0, INT64_MAX) if first is not None else span_of(params, state.now_ms, 7)
    rows = [o for o in _mine(call) if (symbol is None or o.symbol == symbol)
            and o.id >= (first or 0) and start <= o.created_ms <= end and _visible(o, state.now_ms)]  # fmt: skip
    rows = rows[:limit] if first is not None or params.get("startTime") is not None else rows[-limit:]
    return [payloads.order_row_with_pair(state, o) for o in rows]


def user_trades(call: Call) -> Any:
    state, params = call.venue.state, call.params
    symbol = symbol_of(params, state.index)
    limit, order_id, from_id = limit_of(params, 500, 1000), params.integer("orderId"), params.integer("fromId")
    timed = params.get("startTime") is not None or params.get("endTime") is not None
    if from_id is not None and timed:
        raise ApiError(-1128)
    start, end = (0, INT64_MAX) if from_id is not None or (order_id is not None and not timed) else span_of(params, state.now_ms, 7)
    rows = [f for f in state.fills[call.account_index] if f.symbol == symbol and f.id >= (from_id or 0) and start <= f.time_ms <= end
            and f.time_ms <= call.read_ms and (order_id is None or f.order_id == order_id)]  # fmt: skip
    rows = rows[:limit] if from_id is not None or params.get("startTime") is not None else rows[-limit:]
    return [payloads.trade_row(state, f) for f in rows]


# ---------------------------------------------------------------------- the algo service


def place_algo(call: Call) -> Awaitable[Any]:
    state = call.venue.state
    entry = parse_algo(_unsaid(call, call.params), state.index, state.specs, hedge=call.account.hedge, now_ms=call.venue.now_ms())

    def at_book() -> Any:
        call.check_engine_window()
        return payloads.algo_answer(state, call.venue.core.algo.place(call.account, entry))

    return call.venue.at_book(at_book)


def cancel_algo(call: Call) -> Awaitable[Any]:
    ids = ids_of(call.params, "algoId", "clientAlgoId")

    def at_book() -> Any:
        algo = call.venue.core.algo.cancel(call.account, *ids)
        return {"algoId": algo.id, "clientAlgoId": algo.client_id, "code": "200", "msg": "success"}

    return call.venue.at_book(at_book)


def cancel_all_algos(call: Call) -> Awaitable[Any]:
    symbol = symbol_of(call.params, call.venue.state.index)
    return call.venue.at_book(lambda: call.venue.core.algo.cancel_all(call.account, symbol))


def query_algo(call: Call) -> Any:
    algo = call.venue.core.algo.find(call.account, *ids_of(call.params, "algoId", "clientAlgoId"))
    if algo is not None and call.lag_ms:
        algo = algo_as_of(algo, call.read_ms)
    if algo is None:
        raise ApiError(-2013)
    return payloads.algo_row(call.venue.state, algo)


def open_algos(call: Call) -> Any:
    state = call.venue.state
    symbol, algo_id = optional_symbol(call.params, state.index), call.params.integer("algoId")
    call.params.choice("algoType", ("CONDITIONAL",), -1130)
    rows = _my_algos(call) if call.lag_ms else state.open_algos[call.account_index].values()
    return [payloads.algo_list_row(state, a) for a in rows
            if a.open and (symbol is None or a.symbol == symbol) and (algo_id is None or a.id == algo_id)]  # fmt: skip


def all_algos(call: Call) -> Any:
    state, params = call.venue.state, call.params
    symbol, limit, first = symbol_of(params, state.index), limit_of(params, 500, 1000), params.integer("algoId")
    start, end = (0, INT64_MAX) if first is not None else span_of(params, state.now_ms, 7)
    rows = [a for a in _my_algos(call) if a.symbol == symbol and a.id >= (first or 0)
            and start <= a.created_ms <= end]  # fmt: skip
    rows = rows[:limit] if first is not None or params.get("startTime") is not None else rows[-limit:]
    return [payloads.algo_list_row(state, a) for a in rows]
