"""The way out for orders: what ``trade`` decided, as requests over the WS API, or over REST where that is down before the send.

Invariants: a method has put the bytes on the transport, or begun the REST call, when it returns; an entry that may have left is never
sent a second time, on either road; only what cannot add exposure (guards, exits, cancels) is tried again, by its caller, with what it
knows, and then takes the other road: over REST. Answers come as futures whose errors are ours (Rejected, Retryable, Unknown, ...).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from src.clock import monotonic_ns
from src.error_handler import AegisError
from src.models import ZERO, AlgoUpdate, Fill, OrderUpdate, PositionUpdate, Role, Side, SymbolRules
from src.risk import Approved
from src.slots import GUARDS, Ask, SendExit, SendGuard
from src.venue import orders, queries
from src.venue.governor import Priority
from src.venue.rest import Rest
from src.venue.user_events import order_status
from src.venue.ws_api import WsApi

CONTACT_NS = 5_000_000_000
ENTRY_WINDOW_MS = 2_000
"""An entry that reaches the venue later than this is refused there: its signal is stale."""
REDUCE_WINDOW_MS = 5_000
LOOK_BACK_MS = 60_000
Call = asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the venue says when asked: the order or the guard (None: it does not exist), the guards that stand on the symbol; the symbol's
    amount and its fills since then, and all positions (None where a guard was asked for)."""

    order: OrderUpdate | None = None
    guard: AlgoUpdate | None = None
    standing: tuple[AlgoUpdate, ...] = ()
    amount: Decimal = ZERO
    fills: tuple[Fill, ...] = ()
    positions: tuple[PositionUpdate, ...] | None = None


class Gateway:
    """One per process. ``rules``: by symbol. ``working_type``: the price that triggers guards."""

    def __init__(self, rest: Rest, ws: WsApi, rules: Mapping[str, SymbolRules], working_type: str) -> None:
        self.rest = rest
        self.ws = ws
        self._rules = dict(rules)
        self._working_type = working_type
        self._heard_ns = 0
        self._probe: asyncio.Task[None] | None = None

    def learn_rules(self, rules: Mapping[str, SymbolRules]) -> None:
        """Symbols that are held, but are not of this run."""
        self._rules.update(rules)

    def knows(self, symbol: str) -> bool:
        return symbol in self._rules

    def entry(self, approved: Approved, client_id: str) -> Call:
        params = orders.entry(self._rules[approved.symbol], approved.side, approved.qty, approved.price, client_id)
        return self._write("order.place", "POST", "/fapi/v1/order", params, entry=True)

    def guard(self, action: SendGuard) -> Call:
        build = orders.stop if action.role is Role.STOP else orders.target
        params = build(self._rules[action.symbol], action.side, action.price, action.client_id, working_type=self._working_type)
        return self._write("algoOrder.place", "POST", "/fapi/v1/algoOrder", params, by_rest=action.again)

    def exit(self, action: SendExit) -> Call:
        """At most what one market order may hold; the slot asks again for the rest."""
        rules = self._rules[action.symbol]
        qty = orders.split_market(rules, action.qty)[0]
        params = orders.market_exit(rules, action.side, qty, action.client_id)
        return self._write("order.place", "POST", "/fapi/v1/order", params, by_rest=action.again)

    def cancel_guard(self, client_id: str) -> Call:
        return self._write("algoOrder.cancel", "DELETE", "/fapi/v1/algoOrder", orders.cancel_algo(client_id))

    def _write(self, method: str, verb: str, path: str, params: Mapping[str, str], *, entry: bool = False, by_rest: bool = False) -> Call:
        window_ms = ENTRY_WINDOW_MS if entry else REDUCE_WINDOW_MS
        call: Call | None = None
        if self.ws.is_up and not by_rest:
            try:
                call = self.ws.call(method, params, recv_window_ms=window_ms)
            except AegisError as error:  # not a byte has left
                if entry:
                    call = asyncio.get_running_loop().create_future()
                    call.set_exception(error)
        if call is None:
            priority = Priority.TRADE if entry else Priority.PROTECT
            call = asyncio.ensure_future(self.rest.send(verb, path, params, recv_window_ms=window_ms, priority=priority))
        call.add_done_callback(self._heard)
        return call

    def _heard(self, call: Call) -> None:
        error = None if call.cancelled() else call.exception()
        if not call.cancelled() and (error is None or (isinstance(error, AegisError) and error.fields.get("code"))):
            self._heard_ns = monotonic_ns()

    def contact(self, now_ns: int) -> bool:
        """Whether the venue answers: the WS API is up, or REST spoke within 5 s. Without either it is probed once a call."""
        if self.ws.is_up or now_ns - self._heard_ns < CONTACT_NS:
            return True
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._ping())
        return False

    async def _ping(self) -> None:
        try:
            await self.rest.get("/fapi/v1/ping", weight=1, priority=Priority.PROTECT, timeout_s=2.0)
        except AegisError:
            return  # still no contact: the next call probes again
        self._heard_ns = monotonic_ns()

    async def ask(self, ask: Ask) -> Answer:
        """The evidence about an order, from independent sources: a guard by its id and among those that stand; an entry or exit by its id,
        by the position and by the fills."""
        if ask.role in GUARDS:
            found, standing = await asyncio.gather(
                queries.algo_order(self.rest, ask.client_id), queries.open_algo_orders(self.rest, ask.symbol))
            self._heard_ns = monotonic_ns()
            return Answer(guard=found, standing=tuple(standing))
        order, fills, held = await asyncio.gather(self._order(ask), self._fills(ask), queries.positions(self.rest))
        self._heard_ns = monotonic_ns()
        return Answer(order, amount=amount_of(held, ask.symbol), fills=tuple(fills), positions=tuple(held))

    async def _order(self, ask: Ask) -> OrderUpdate | None:
        return await queries.order(self.rest, ask.symbol, ask.client_id) if ask.client_id else None

    async def _fills(self, ask: Ask) -> list[Fill]:
        """By trade id where one is known: a time reaches seven days at most."""
        if ask.first_trade:
            return await queries.user_trades(self.rest, ask.symbol, from_id=ask.first_trade)
        return await queries.user_trades(self.rest, ask.symbol, start_ms=max(0, ask.since_ms - LOOK_BACK_MS))


def outcome_of(answer: Any) -> OrderUpdate | None:
    """What the answer to a placement says of its order: the final state, as RESULT was asked for. None where it is no order."""
    try:
        executed = Decimal(answer["executedQty"])
        return OrderUpdate(answer["symbol"], answer["clientOrderId"], int(answer["orderId"]), Side(answer["side"]),
                           order_status(answer["status"], executed), Decimal(answer["origQty"]), executed, int(answer["updateTime"]))
    except (KeyError, TypeError, ValueError, InvalidOperation):
        return None  # a guard's answer, or one that says less: the stream and the queries say the rest


def amount_of(positions: list[PositionUpdate], symbol: str) -> Decimal:
    """The signed amount held of a symbol; 0 where it is not listed."""
    return sum((p.amount for p in positions if p.symbol == symbol), ZERO)
