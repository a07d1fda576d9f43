"""The way out for orders: what ``trade`` decided, as requests over the WS API, or over REST where that is down before the send.

Invariants: a method has put the bytes on the transport, or begun the REST call, when it returns; an entry that may have left is never
sent a second time, on either road; only what cannot add exposure (guards, exits, cancels) is tried again, by its caller, with what it
knows, and then takes the other road: over REST. Answers come as futures whose errors are ours (Rejected, Retryable, Unknown, ...).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from src.clock import monotonic_ns
from src.error_handler import AegisError, Fatal, Halt, Retryable, Throttle, failure
from src.models import ZERO, AlgoUpdate, Fill, OrderUpdate, PositionUpdate, Role, Side, SymbolRules
from src.risk import Approved
from src.slots import GUARDS, Ask, SendExit, SendGuard
from src.venue import answers, orders, queries
from src.venue.errors import CLOCK_SKEW, code_of
from src.venue.governor import Priority
from src.venue.rest import Rest
from src.venue.user_events import order_status
from src.venue.ws_api import WsApi

CONTACT_NS = 5_000_000_000
SILENCE_NS = 1_500_000_000
ENTRY_WINDOW_MS = 2_000
"""An entry that reaches the venue later than this is refused there: its signal is stale."""
REDUCE_WINDOW_MS = 5_000
LOOK_BACK_MS = 60_000
ASK_S = 1.5
Call = asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the venue says when asked, from several sources. ``order``, ``guard``: None where it does not exist, as far as its source
    answered; ``standing``: the guards on the symbol; ``fills``: the symbol's since then; ``positions``: all, None where that source did not
    answer or was not asked. ``sure``: every source answered, so that absence is absence.
    """

    order: OrderUpdate | None = None
    guard: AlgoUpdate | None = None
    standing: tuple[AlgoUpdate, ...] = ()
    fills: tuple[Fill, ...] = ()
    positions: tuple[PositionUpdate, ...] | None = None
    sure: bool = True

    def amount(self, symbol: str) -> Decimal:
        """The signed amount held; 0 where it is not listed."""
        return sum((p.amount for p in self.positions or () if p.symbol == symbol), ZERO)


@dataclass(frozen=True, slots=True)
class _Part:
    came: bool = False
    value: Any = None


class Gateway:
    """One per process. ``rules``: by symbol. ``working_type``: the price that triggers guards."""

    def __init__(self, rest: Rest, ws: WsApi, rules: Mapping[str, SymbolRules], working_type: str) -> None:
        self.rest = rest
        self.ws = ws
        self._rules = dict(rules)
        self._working_type = working_type
        self._asking: set[tuple[str, str]] = set()
        self._throttle = Throttle(5.0)
        self._heard_ns = 0
        self._failed_ns = 0
        self._unanswered: dict[Call, int] = {}
        self._probe: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None

    def learn_rules(self, rules: Mapping[str, SymbolRules]) -> None:
        """Symbols that are held, but are not of this run."""
        self._rules.update(rules)

    def rules_of(self, symbol: str) -> SymbolRules | None:
        return self._rules.get(symbol)

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
        return self._write("algoOrder.cancel", "DELETE", "/fapi/v1/algoOrder", orders.cancel_algo(client_id), weight=1)

    def _write(self, method: str, verb: str, path: str, params: Mapping[str, str], *, entry: bool = False, by_rest: bool = False,
               weight: int = 0) -> Call:  # fmt: skip
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
            call = asyncio.ensure_future(
                self.rest.send(verb, path, params, weight=weight, recv_window_ms=window_ms, priority=priority, now_or_never=entry))
        self._unanswered[call] = monotonic_ns()
        call.add_done_callback(self._answered)
        return call

    def _answered(self, call: Call) -> None:
        self._unanswered.pop(call, None)
        if not call.cancelled():
            error = call.exception()
            self._note(error)
            if isinstance(error, AegisError) and code_of(error) == CLOCK_SKEW and (self._syncing is None or self._syncing.done()):
                self._syncing = asyncio.ensure_future(self._sync())

    async def _sync(self) -> None:
        """The venue says that our clock is off: set it right for what comes next."""
        try:
            await self.rest.sync_time()
        except AegisError as error:
            failure("the venue's time was not measured", error)

    def _note(self, error: BaseException | None) -> None:
        """The venue spoke (a refusal with a code is an answer), or did not. Of what we held back ourselves it knows nothing."""
        if isinstance(error, AegisError) and error.fields.get("held_back"):
            return
        if error is None or (isinstance(error, AegisError) and error.fields.get("code")):
            self._heard_ns = monotonic_ns()
        else:
            self._failed_ns = monotonic_ns()

    def contact(self, now_ns: int) -> bool:
        """Whether the venue answers: the WS API is up, or it spoke within 5 s and no try has failed since. While an order waits for longer
        than 1.5 s it must have spoken within that time. Otherwise it is probed; while it takes no questions, its last word counts."""
        waits_ns = now_ns - min(self._unanswered.values(), default=now_ns)
        spoke_ns = now_ns - self._heard_ns if self._heard_ns > self._failed_ns else CONTACT_NS
        if spoke_ns < SILENCE_NS or (waits_ns < SILENCE_NS and (self.ws.is_up or spoke_ns < CONTACT_NS)):
            return True
        if self.rest.governor.only_protection and self._heard_ns > self._failed_ns:
            return True
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._ping())
        return False

    async def _ping(self) -> None:
        try:
            await self.rest.get("/fapi/v1/ping", weight=1, priority=Priority.PROTECT, timeout_s=2.0)
        except AegisError as error:
            return self._note(error)  # still no contact: the next call probes again
        return self._note(None)

    async def ask_once(self, ask: Ask) -> Answer | None:
        """As ``ask``; None where the same question is out already, or nobody answered (which is logged now and then). Raises Fatal and Halt."""
        key = (ask.symbol, ask.client_id)
        if key in self._asking:
            return None
        self._asking.add(key)
        try:
            return await self.ask(ask)
        except (Fatal, Halt):
            raise
        except AegisError as error:
            if self._throttle.due(monotonic_ns()):
                failure(f"asking after {ask.client_id or ask.symbol}", error)
            return None
        finally:
            self._asking.discard(key)

    async def ask(self, ask: Ask) -> Answer:
        """The evidence about an order, from independent sources at once: a guard by its id and among those that stand; an entry or exit by
        its id, by the fills and by the position. Within 1.5 s; what has not answered by then is left out. Raises where nothing has."""
        if self.rest.governor.only_protection:
            raise Retryable("the venue takes no questions for now", retry_after_s=self.rest.governor.blocked_s(), held_back=True)
        if ask.role in GUARDS:
            guard, standing = await self._together(
                queries.algo_order(self.rest, ask.client_id), queries.open_algo_orders(self.rest, ask.symbol))
            return Answer(guard=guard.value, standing=tuple(standing.value or ()), sure=guard.came and standing.came)
        order, fills, held = await self._together(self._order(ask), self._fills(ask), queries.positions(self.rest))
        return Answer(order.value, fills=tuple(fills.value or ()), positions=tuple(held.value) if held.came else None,
                      sure=order.came and fills.came and held.came)

    async def _together(self, *questions: Coroutine[Any, Any, Any]) -> list[_Part]:
        tasks = [asyncio.ensure_future(question) for question in questions]
        try:
            await asyncio.wait(tasks, timeout=ASK_S)
        finally:
            for task in tasks:
                task.cancel()  # nothing to one that is done
        errors = [error for task in tasks if task.done() and not task.cancelled() and (error := task.exception()) is not None]
        for error in errors:
            if not isinstance(error, AegisError) or isinstance(error, Fatal | Halt):
                raise error
        parts = [_Part(True, task.result()) if task.done() and not task.exception() else _Part() for task in tasks]
        came = any(part.came for part in parts)
        self._note(None if came else errors[0] if errors else Retryable(f"no answer within {ASK_S:g} s"))
        if not came:
            raise errors[0] if errors else Retryable(f"no answer within {ASK_S:g} s")
        return parts

    async def _order(self, ask: Ask) -> OrderUpdate | None:
        return await queries.order(self.rest, ask.symbol, ask.client_id) if ask.client_id else None

    async def _fills(self, ask: Ask) -> list[Fill]:
        """By trade id where one is known: a time reaches seven days at most."""
        if ask.first_trade:
            return await queries.user_trades(self.rest, ask.symbol, from_id=ask.first_trade)
        return await queries.user_trades(self.rest, ask.symbol, start_ms=max(0, ask.since_ms - LOOK_BACK_MS))

    async def history(self, symbol: str) -> tuple[list[OrderUpdate], list[Fill]]:
        """Everybody's orders and fills of a symbol in the last seven days, oldest first. Weight 10."""
        found: tuple[list[OrderUpdate], list[Fill]] = await asyncio.gather(
            self.rest.get("/fapi/v1/allOrders", {"symbol": symbol, "limit": queries.PAGE}, weight=5, signed=True, priority=Priority.PROTECT,
                          decode=answers.orders), queries.user_trades(self.rest, symbol))
        return found


def outcome_of(answer: Any) -> OrderUpdate | None:
    """What the answer to a placement says of its order: the final state, as RESULT was asked for. None where it is no order."""
    try:
        executed = Decimal(answer["executedQty"])
        return OrderUpdate(answer["symbol"], answer["clientOrderId"], int(answer["orderId"]), Side(answer["side"]),
                           order_status(answer["status"], executed), Decimal(answer["origQty"]), executed, int(answer["updateTime"]))
    except (KeyError, TypeError, ValueError, InvalidOperation):
        return None  # a guard's answer, or one that says less: the stream and the queries say the rest
