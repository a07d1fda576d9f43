"""Trade: hears signals, asks risk, and carries out what the slots ask for. Synchronous but for the answers it waits for.

Invariants: nothing is sent without an ``Approved``; every order stands in the journal before its first byte leaves (a journal that cannot
be written stops entries; protective orders still go out, are kept in memory and written later); every fill is journalled once; nothing
opens while ``halted`` says a reason. Only this module sends orders.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from src.account_view import AccountView
from src.bus import EventBus, Topic
from src.clock import Clock, monotonic_ns, utc_day
from src.counters import HOLDS, Block
from src.error_handler import (
    AegisError,
    Degraded,
    Fatal,
    Halt,
    Rejected,
    Retryable,
    Unknown,
    critical,
    failure,
    info,
    lifecycle,
    warn,
)
from src.gateway import Answer, Call, Gateway, outcome_of
from src.journal import Intent, Journal
from src.late_writes import LateWrites, read_or
from src.models import ZERO, Account, AccountUpdate, AlgoUpdate, Fill, OrderUpdate, Quote, Role, Side, Signal, SymbolRules
from src.portfolio import Portfolio
from src.risk import Limit, Limits, Refusal, View, approve
from src.slots import GUARDS, Action, Ask, CancelGuard, Changed, Closed, Died, Opened, SendEntry, SendExit, SendGuard, remember, symbol_of
from src.venue.answers import Income
from src.venue.orders import ClientIds, parse
from src.venue.user_events import ConfigUpdate, MarginCall

HOLD_NS = 60_000_000_000
"""An older copy of the daemon was seen trading: entries wait this long."""
ORDER_IDS_MAX = 1000
MISSED_MS = 5_000
"""A fill that is found by asking, and is older than this (wall), should have been told."""
VENUE_HOLD_NS = 15 * 60_000_000_000
UNSURE = {"start", "reconcile", "recheck"}
"""Holds during which what is held and what was moved is not compared with the venue yet."""
NOTHING_TO_CANCEL = (-2011, -2013)


@dataclass(frozen=True, slots=True)
class Desk:
    """What Trade is given to work with. ``quote_of`` answers for any symbol; ``fee``: (maker, taker); ``maintenance``: margin ratio."""

    clock: Clock
    journal: Journal
    portfolio: Portfolio
    gateway: Gateway
    bus: EventBus
    block: Block
    limit: Limit
    limits: Limits
    ids: ClientIds
    rules: dict[str, SymbolRules]
    quote_of: Callable[[str], Quote]
    fee: tuple[Decimal, Decimal] = (Decimal("0.0002"), Decimal("0.0005"))
    maintenance: Callable[[str], Decimal] = lambda _symbol: Decimal("0.05")


class Trade:
    """Made once in the Brain. ``on_fatal`` is told of what ends the process, ``on_doubt`` of what asks for a reconciliation, ``on_missed`` of
    events that the user stream should have told and did not."""

    def __init__(self, desk: Desk, on_fatal: Callable[[AegisError], None]) -> None:
        self._desk = desk
        self._on_fatal = on_fatal
        self.view = AccountView()
        self.holds: dict[str, str] = {"start": "starting: not reconciled yet", "stream": "the user stream is not connected yet"}
        self.prepared: set[str] = set()
        self.leverage, self.epoch_ms = 0, desk.ids.epoch_ms
        self.evidence = False
        self.recovering = False
        self.reconciling = asyncio.Lock()
        self.reconciliations_wanted = 0
        self.latches: dict[str, str] = desk.journal.latches()
        self._order_ids: dict[int, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._hold_until_ns = 0
        self._late = LateWrites(partial(desk.block.add, "queue_full"))
        day = utc_day(desk.clock.market_ms())
        self._realised_day = (day, desk.journal.realised_since(day * 86_400_000))
        self._venue_hold_ns = 0
        self.on_doubt: Callable[[], None] = lambda: None
        self.on_missed: Callable[[str], None] = lambda reason: None
        desk.bus.subscribe(Topic.SIGNAL_GENERATED, self.on_signal)

    @property
    def halted(self) -> str:
        """Why nothing may open now; empty when it may."""
        return "; ".join(self.holds.values())

    @property
    def account(self) -> Account:
        return self.view.account

    @property
    def limits(self) -> Limits:
        return self._desk.limits

    @property
    def journal(self) -> Journal:
        return self._desk.journal

    def hold_for_reconciliation(self) -> None:
        """Nothing opens until as many reconciliations as were asked for have passed."""
        self.reconciliations_wanted += 1
        self.holds["reconcile"] = "reconciling with the venue"

    def reconciled(self) -> None:
        self.reconciliations_wanted -= 1
        if self.reconciliations_wanted == 0:
            self.holds.pop("reconcile", None)
            self.holds.pop("start", None)
            self._judge(self.equity)  # before anything can open

    def stated(self, rows: Sequence[Income], now_ms: int) -> None:
        """The account's statement of transfers, from where ``limits`` know it to now, together with the wallet that it makes."""
        untold = self.limits.stated(rows, now_ms)
        if untold:
            lifecycle(f"💸 Deposited or withdrawn, and not told: {untold:+f}; no profit and no loss")

    @property
    def equity(self) -> Decimal:
        return self.account.wallet + self.unrealised()

    def unrealised(self) -> Decimal:
        """Of all the account's positions, whoever opened them: at the mark price where we know one, else as the venue last said.

        By the amounts that came with the wallet, not by the slots: the fill that is to follow must not count twice meanwhile.
        """
        total = ZERO
        for position in self.account.positions:
            mark = self._mark_price(position.symbol)
            total += (mark - position.entry_price) * position.amount if mark > 0 else position.unrealised
        return total

    def _mark_price(self, symbol: str) -> Decimal:
        """0 where none is known."""
        mark = self._desk.quote_of(symbol).mark if symbol in self._desk.rules else 0.0
        return Decimal(repr(mark)) if mark > 0 else ZERO

    # signals

    def on_signal(self, signal: Signal) -> None:
        self._guarded(self._decide, signal)

    def _decide(self, signal: Signal) -> None:
        desk = self._desk
        verdict = desk.portfolio.consider(signal, desk.clock.market_ms(), self._price_of)
        if verdict.what == "refuse":
            return self._refused(signal, verdict.reason)
        decision = approve(signal, desk.limit, self._view(signal, without=verdict.victim))
        if isinstance(decision, Refusal):
            return self._refused(signal, str(decision))
        now_ns = monotonic_ns()
        if verdict.what == "rotate":
            info(f"rotation: {verdict.victim} makes room for {signal.symbol}", confidence=round(signal.confidence, 3))
            return self.run(desk.portfolio.rotate(verdict.victim, signal, now_ns))
        return self.run(desk.portfolio.open(decision, now_ns, desk.clock.market_ms()))

    def _refused(self, signal: Signal, reason: str) -> None:
        self._desk.block.add("rejected_signals")
        info(f"refused {signal.side} {signal.symbol}: {reason}", confidence=round(signal.confidence, 3))
        self._desk.bus.publish(Topic.ORDER_REJECTED, (signal.symbol, reason))

    def _price_of(self, symbol: str) -> Decimal:
        """What it could be left at; 0 where no price is known, as for symbols that are not of this run."""
        quote, slot = self._desk.quote_of(symbol) if symbol in self._desk.rules else None, self._desk.portfolio.slots.get(symbol)
        price = 0.0 if quote is None else quote.bid if slot is not None and slot.side is Side.BUY else quote.ask
        return Decimal(repr(price)) if price > 0 else ZERO

    def _view(self, signal: Signal, *, without: str = "") -> View:
        """``without``: a position that makes room first."""
        desk, now_ns = self._desk, monotonic_ns()
        symbol = signal.symbol
        notional = self._notional(without)
        return View(
            equity=self.equity, available=self.view.free() - notional / desk.limit.leverage(signal.source), notional=notional,
            rules=desk.rules[symbol], quote=desk.quote_of(symbol), maker_rate=desk.fee[0], taker_rate=desk.fee[1],
            maintenance=desk.maintenance(symbol), now_ns=now_ns, speed=desk.clock.speed, latches=tuple(self.latches), evidence=self.evidence,
            halted=self.halted or ("an older copy was trading a moment ago" if now_ns < self._hold_until_ns else ""),
            prepared=symbol in self.prepared)  # fmt: skip

    def _notional(self, without: str) -> Decimal:
        """Of all that is held or in flight on the account."""
        total = ZERO
        for slot in self._desk.portfolio.slots.values():
            if slot.symbol != without:
                total += slot.at_most * (slot.entry_price or slot.entry.price)
        return total + self.view.notional_of(self._desk.portfolio.foreign)

    # actions

    def run(self, actions: list[Action]) -> None:
        """Store every slot that was touched, then carry out what the slots asked for, in order."""
        self._store(dict.fromkeys(symbol_of(action) for action in actions))
        for action in [] if self._closed else actions:
            match action:
                case SendEntry():
                    self._send_entry(action)
                case SendGuard():
                    self._send_guard(action)
                case SendExit():
                    self._send_exit(action)
                case CancelGuard():
                    self._watch(self._desk.gateway.cancel_guard(action.client_id), action.client_id, self._cancelled)
                case Ask():
                    self.spawn(self._ask(action))
                case Opened() | Closed() | Died() | Changed():
                    self._tell(action)
        waiting = self._desk.portfolio.take_waiting()
        if waiting is not None:
            self.on_signal(waiting)

    def _store(self, symbols: Iterable[str]) -> None:
        for symbol in symbols:
            slot = self._desk.portfolio.slots.get(symbol)
            journal = self._desk.journal
            write = partial(journal.drop_slot, symbol) if slot is None else partial(journal.save_slot, symbol, remember(slot))
            self._write(write, key=f"slot {symbol}")

    def _write(self, write: Callable[[], Any], *, key: str = "") -> bool:
        """Into the journal, or into memory until the disk takes it again; then nothing opens. True: it is on disk."""
        written = self._late.write(write, key)
        if not written:
            self.holds["journal"] = "the journal cannot be written"
        return written

    def _write_later(self) -> None:
        """Try again what the disk refused."""
        if self._late.again() and "journal" in self.holds:
            del self.holds["journal"]
            lifecycle("✅ The journal is written again")

    def _send_entry(self, action: SendEntry) -> None:
        order, desk = action.approved, self._desk
        now_ms = desk.clock.market_ms()
        body = json.dumps({"stop": str(order.stop), "target": str(order.target), "confidence": order.confidence, "source": order.source,
                           "limit_ms": order.limit_ms, "risk": str(order.risk)})  # fmt: skip
        intent = Intent(action.client_id, order.symbol, Role.ENTRY, order.side, order.qty, order.price, now_ms, body=body)
        if not self._write(partial(desk.journal.intend, intent), key=action.client_id):
            self._late.drop(action.client_id)  # an entry that was not written is not sent, and so needs no entry in the journal
            return self.run(desk.portfolio.rejected(action.client_id, 0, "the journal cannot be written", monotonic_ns(), now_ms))
        desk.bus.publish(Topic.ORDER_REQUEST, order)
        desk.block.add("orders_sent")
        self._watch(desk.gateway.entry(order, action.client_id), action.client_id, self._placed)
        lifecycle(f"📤 {order.side} {order.symbol} {order.qty} at most {order.price}", stop=order.stop, target=order.target,
                  confidence=round(order.confidence, 3), source=order.source, risk=f"{order.risk:.2f}", order=action.client_id)
        return None

    def _send_guard(self, action: SendGuard) -> None:
        intent = Intent(action.client_id, action.symbol, action.role, action.side, ZERO, action.price, self._desk.clock.market_ms())
        if not action.again:
            self._write(partial(self._desk.journal.intend, intent))
        self._watch(self._desk.gateway.guard(action), action.client_id, self._placed)

    def _send_exit(self, action: SendExit) -> None:
        now_ms = self._desk.clock.market_ms()
        intent = Intent(action.client_id, action.symbol, Role.EXIT, action.side, action.qty, ZERO, now_ms, reason=action.reason)
        self._write(partial(self._desk.journal.intend, intent))
        self._desk.block.add("orders_sent")
        self._watch(self._desk.gateway.exit(action), action.client_id, self._placed)
        lifecycle(f"📤 close {action.symbol} {action.qty} at market: {action.reason}", order=action.client_id)

    def _tell(self, action: Opened | Closed | Died | Changed) -> None:
        desk = self._desk
        match action:
            case Opened(position):
                lifecycle(f"📈 opened {position.side} {position.symbol} {position.qty} at {position.entry_price:.8g}")
                desk.bus.publish(Topic.POSITION_OPENED, position)
            case Closed(trade):
                self._write(partial(desk.journal.closed, trade))
                day = utc_day(trade.exit_time_ms)
                self._realised_day = (day, (self._realised_day[1] if self._realised_day[0] == day else ZERO) + trade.net)
                prices = f"{trade.entry_price:.8g} → {trade.exit_price:.8g}"
                lifecycle(f"📉 closed {trade.side} {trade.symbol} {trade.qty} {prices}: {trade.reason}", net=f"{trade.net:+.4f}",
                          commission=f"{trade.commission:.4f}", wallet=f"{self.account.wallet:.2f}")
                desk.bus.publish(Topic.POSITION_CLOSED, trade)
            case Died(symbol, client_id, reason):
                self._write(partial(desk.journal.mark, client_id, "dead", reason=reason, now_ms=desk.clock.market_ms()))
                lifecycle(f"↩️ {symbol}: the order ended without a position: {reason}", order=client_id)
                desk.bus.publish(Topic.ORDER_REJECTED, (symbol, reason))
            case Changed(symbol, state, event, reason):
                info(f"{symbol} is {state}: {event}" + (f" ({reason})" if reason else ""))

    # answers

    def _watch(self, call: Call, client_id: str, done: Callable[[str, Any, AegisError | None], None]) -> None:
        def take(answer: Any, error: AegisError | None) -> None:
            """A bug here would end in the event loop's own log: it latches."""
            try:
                self._guarded(done, client_id, answer, error)
            except Exception as bug:
                failure("a bug while taking an answer", bug)
                self.latch("halt", f"{type(bug).__name__}: {bug}")
                self.on_doubt()

        def answered(future: Call) -> None:
            if future.cancelled():
                return take(None, Unknown("nobody waits for the answer any more"))
            error = future.exception()
            if error is not None and not isinstance(error, AegisError):
                failure("a bug while sending an order", error)
                if "stop" not in self.holds:
                    self.latch("halt", f"{type(error).__name__}: {error}")
                error = Unknown(f"{type(error).__name__}: {error}")  # it may have left all the same
            return take(None if error else future.result(), error)

        call.add_done_callback(answered)

    def _placed(self, client_id: str, answer: Any, error: AegisError | None) -> None:
        desk, now_ns, now_ms = self._desk, monotonic_ns(), self._desk.clock.market_ms()
        if error is None:
            self._mark(client_id, "live")
            self.run(desk.portfolio.accepted(client_id, now_ns))
            outcome = outcome_of(answer)
            return self._on_outcome(outcome) if outcome is not None else None
        if isinstance(error, Rejected | Retryable | Degraded | Halt | Fatal):
            desk.block.add("orders_rejected")
            warn(f"the venue refused {client_id}: {error}")
            if not desk.portfolio.in_doubt(client_id):
                self._mark(client_id, "dead", str(error))
            self.run(desk.portfolio.rejected(client_id, int(error.fields.get("code", 0)), str(error), now_ns, now_ms))
            return self._grave(error)
        desk.block.add("orders_unknown")
        warn(f"no word on {client_id}: {error}")
        self._mark(client_id, "unknown", str(error))
        return self.run(desk.portfolio.unknown(client_id, now_ns))

    def _on_outcome(self, update: OrderUpdate) -> None:
        """An order as an answer or a query shows it; its fills come by another way."""
        self._remember_number(update)
        if update.status.ended:
            self._mark(update.client_id, "done", update.reason or update.status.value)
        self.run(self._desk.portfolio.order_update(update, monotonic_ns(), self._desk.clock.market_ms()))

    def _remember_number(self, update: OrderUpdate) -> None:
        self._order_ids[update.order_id] = update.client_id
        while len(self._order_ids) > ORDER_IDS_MAX:
            self._order_ids.pop(next(iter(self._order_ids)))

    def _cancelled(self, client_id: str, _answer: Any, error: AegisError | None) -> None:
        portfolio = self._desk.portfolio
        if error is None:
            self._mark(client_id, "done", "cancelled")
            self.run(portfolio.cancelled(client_id, self._desk.clock.market_ms()))
        elif int(error.fields.get("code", 0)) in NOTHING_TO_CANCEL:
            self.run(portfolio.not_cancelled(client_id, monotonic_ns()))
        else:
            warn(f"{client_id} was not cancelled: {error}")  # it is tried again until it is gone

    def _grave(self, error: AegisError) -> None:
        """What an answer says about more than its order. Of a hold that the venue puts on us nobody tells the end: it is tried again later."""
        if isinstance(error, Halt):
            self.latch("halt", str(error))
        elif isinstance(error, Fatal):
            self._on_fatal(error)
        elif isinstance(error, Degraded):
            self.holds["venue"] = str(error)
            self._venue_hold_ns = monotonic_ns() + VENUE_HOLD_NS

    def _mark(self, client_id: str, state: str, reason: str = "") -> None:
        self._write(partial(self._desk.journal.mark, client_id, state, reason=reason, now_ms=self._desk.clock.market_ms()))

    # what the venue tells by itself

    def on_event(self, event: object) -> None:
        """From the user stream, in its order."""
        match event:
            case OrderUpdate():
                self._guarded(self._on_order, event)
            case AlgoUpdate():
                self._guarded(self._on_algo, event)
            case AccountUpdate():
                self._guarded(self._on_account, event)
            case ConfigUpdate():
                self._on_config(event)
            case MarginCall():
                critical(f"⚠️ The venue calls for margin: {', '.join(event.symbols)} may be liquidated")

    def _guarded(self, work: Callable[..., Any], *args: Any) -> None:
        """A failed assertion in the money path: reduce only from now on, and what is held is compared with the venue."""
        try:
            work(*args)
        except AssertionError as error:
            failure("an assertion failed in the money path", error)
            self.latch("halt", f"AssertionError: {error}")
            self.on_doubt()

    def _on_config(self, update: ConfigUpdate) -> None:
        """Somebody changed leverage or the asset mode at the venue."""
        if update.symbol is not None and update.leverage != self.leverage:
            self.prepared.discard(update.symbol)
        if update.multi_assets is not None:
            self.holds.pop("mode", None)
        if update.multi_assets:
            critical("the account was switched to multi-asset mode: nothing opens until it is in single-asset mode again")
            self.holds["mode"] = "the account is in multi-asset mode"

    def _on_order(self, update: OrderUpdate) -> None:
        self._look_for_copies(update)
        if update.fill is not None:
            self.on_fill(update.fill)
        self._on_outcome(update)

    def on_fill(self, fill: Fill) -> bool:
        """Journal it; True if it is new. While the journal cannot be written, that is what neither stands there nor waits for it."""
        wrote: list[bool] = []
        key, known = f"fill {fill.symbol} {fill.trade_id}", partial(self.journal.has_fill, fill.symbol, fill.trade_id)
        if self._late and (key in self._late or read_or(known, False)):
            return False
        if self._write(lambda: wrote.append(self.journal.fill(fill)), key=key) and not wrote[0]:
            return False
        self._desk.block.add("fills")
        info(f"fill {fill.side} {fill.symbol} {fill.qty} at {fill.price}", order=fill.client_id, trade=fill.trade_id)
        self._desk.bus.publish(Topic.ORDER_FILLED, fill)
        return True

    def _on_algo(self, update: AlgoUpdate) -> None:
        if update.status.ended:
            self._mark(update.client_id, "done", update.reason or update.status.value)
        self.run(self._desk.portfolio.algo_update(update, monotonic_ns(), self._desk.clock.market_ms()))

    def _on_account(self, update: AccountUpdate) -> None:
        self.view.tell(update, monotonic_ns())
        if update.wallet is not None:
            self.limits.told(update.transfer, update.time_ms)
            self._write(partial(self._desk.journal.money, update.time_ms, update.reason, update.wallet, update.transfer))
            if update.transfer and self.limits.transfers.full:
                self.on_doubt()
        for position in update.positions:
            self.run(self._desk.portfolio.seen(position, monotonic_ns(), self._desk.clock.market_ms()))

    def _look_for_copies(self, update: OrderUpdate) -> None:
        """Our prefix with another epoch: a newer copy of the daemon ends our opening for good, an older one makes us wait."""
        parsed = parse(update.client_id)
        if parsed is None or parsed[0] == self.epoch_ms or read_or(partial(self.journal.known, update.client_id), True):
            return
        if parsed[0] > self.epoch_ms:
            self.newer_copy(update.client_id)
        else:
            self._hold_until_ns = monotonic_ns() + HOLD_NS

    def newer_copy(self, client_id: str) -> None:
        """Its order was seen."""
        if "copy" not in self.holds:
            critical("a newer copy of the daemon trades this account: this one opens nothing more", order=client_id)
        self.holds["copy"] = "a newer copy of the daemon trades this account"

    # asking

    async def _ask(self, ask: Ask) -> None:
        asked_ns = monotonic_ns()
        answer = await self._desk.gateway.ask_once(ask)
        if answer is None:
            return
        late_ms = self._desk.clock.market_ms() - MISSED_MS * self._desk.clock.speed
        if [fill for fill in self.learn(ask, answer, asked_ns) if fill.time_ms < late_ms]:
            self.on_missed("fills were found that it did not tell")

    def learn(self, ask: Ask, answer: Answer, asked_ns: int) -> list[Fill]:
        """What the venue answered to a question of ``asked_ns``: fills first, then the order that made them, then whether the position is their sum.

        Returns the fills that nobody had told of.
        """
        portfolio, now_ns, now_ms = self._desk.portfolio, monotonic_ns(), self._desk.clock.market_ms()
        if ask.role in GUARDS:
            if answer.guard is not None and answer.guard.status.ended:
                self._mark(ask.client_id, "done", answer.guard.reason or answer.guard.status.value)
            self.run(portfolio.guards_seen(ask.client_id, answer.guard, answer.standing, now_ns, now_ms, asked_ns=asked_ns,
                                           sure=answer.sure))  # fmt: skip
            return []
        if answer.order is not None:
            self._remember_number(answer.order)
        named = [replace(fill, client_id=fill.client_id or self._order_ids.get(fill.order_id, "")) for fill in answer.fills]
        new = []
        for fill in named:
            new += [fill] if self.on_fill(fill) else []
            self.run(portfolio.fill(fill, now_ns, now_ms))
        if answer.positions is not None:
            answer = replace(answer, positions=self.view.read_positions(answer.positions, asked_ns))
        amount = answer.amount(ask.symbol)
        if answer.order is not None:
            self._on_outcome(answer.order)
        elif ask.client_id and answer.positions is not None and (answer.sure or amount != 0):
            self.run(portfolio.absent(ask.client_id, now_ns, now_ms, position=amount))
        if answer.positions is not None:
            self.run(portfolio.corrected(ask.symbol, amount, now_ns, now_ms))
        return new

    # time and commands

    def tick(self) -> None:
        """Every 100 ms or so, once the venue has said what is held: what is due, the limits, and the figures for the others."""
        desk, now_ns, now_ms = self._desk, monotonic_ns(), self._desk.clock.market_ms()
        if not self.view.known:
            return
        self._write_later()
        if "venue" in self.holds and now_ns > self._venue_hold_ns:
            del self.holds["venue"]
        self._guarded(lambda: self.run(desk.portfolio.tick(now_ns, now_ms, contact=desk.gateway.contact(now_ns))))
        desk.portfolio.forget_waiting(now_ns, desk.limit.signal_age_ms * 1_000_000)
        equity = self.equity
        self._judge(equity)
        self._show(equity, self._realised_day[1] if self._realised_day[0] == utc_day(now_ms) else ZERO)

    def _judge(self, equity: Decimal) -> None:
        """The limits; not while wallet and transfers may be of different moments. Nothing opens then."""
        if not self.holds.keys() & UNSURE:
            for name, reason in self.limits.update(equity, self._desk.clock.market_ms()):
                self.latch(name, reason)

    def _show(self, equity: Decimal, realised_today: Decimal) -> None:
        """The figures the other processes see."""
        block, held = self._desk.block, [s for s in self._desk.portfolio.slots.values() if s.qty > 0]
        block.set("positions_open", len(held))
        block.set("positions_unprotected", sum(not s.protected for s in held))
        block.set("latched", len(self.latches))
        block.set("reconciled_ok", int(not self.holds.keys() & UNSURE))
        block.set("holds", sum(1 << HOLDS.index(name) for name in self.holds))
        block.set("foreign_positions", len(self._desk.portfolio.foreign))
        for name, money in (("equity", equity), ("wallet", self.account.wallet), ("unrealised", equity - self.account.wallet),
                            ("realised_today", realised_today)):  # fmt: skip
            block.set(name, float(money))

    def latch(self, name: str, reason: str) -> None:
        """Stop opening, across restarts, until the operator releases it."""
        if name in self.latches:
            return
        self.latches[name] = reason
        critical(f"🛑 {name} latched: {reason}. Nothing opens until `python -m src.main release`.")
        self._write(partial(self._desk.journal.latch, name, reason, self._desk.clock.market_ms()))

    def flatten(self, reason: str) -> None:
        """Close everything that is ours."""
        for symbol in list(self._desk.portfolio.slots):
            self._guarded(lambda symbol=symbol: self.run(self._desk.portfolio.leave(symbol, reason, monotonic_ns())))

    def remember(self) -> None:
        """Once a second: what the next start needs of the limits; and whether the operator has released a latch."""
        released = set() if self._late else set(self.latches) - set(read_or(self.journal.latches, self.latches))
        for name in sorted(released):
            del self.latches[name]
            self.limits.forget(name)
            lifecycle(f"🔓 Released by the operator: {name}")
        self._write(partial(self._desk.journal.remember, "limits", self.limits.memory()), key="limits")

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """A background task whose error is not lost."""
        if self._closed:
            return work.close()
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return None

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        failure("a task of Trade ended", error)
        if isinstance(error, Fatal):
            self._on_fatal(error)
        elif "stop" not in self.holds and (isinstance(error, Halt) or not isinstance(error, AegisError)):
            self.latch("halt", f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Nobody answers any more: what waits is given up, nothing more is sent, and the next start asks."""
        self._closed = True
        self.holds["stop"] = "stopping"
        for task in self._tasks:
            task.cancel()
