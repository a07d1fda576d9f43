"""The slots: a pure state machine. Events go in, actions come out; it reads no clock, opens no socket and writes no file.

Invariants: at most ``slots`` symbols are held or in flight, and positions that others opened on the account count; a slot is reserved at
intent; it is free only when its quantity is zero, its entry has ended and both protective orders are gone; a position's quantity is the sum
of its fills, each counted once by (symbol, trade id); an entry is never sent twice; the exit of a slot never exceeds what it holds.

What it cannot know it asks for: an entry without an answer becomes UNKNOWN and is queried until two sources agree that it does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from src.models import ZERO, AlgoUpdate, ClosedTrade, Fill, OrderStatus, OrderUpdate, Position, PositionUpdate, Role, Signal
from src.risk import Approved
from src.slots import (
    TRANSITIONS,
    Action,
    Ask,
    CancelGuard,
    Changed,
    Closed,
    Died,
    Event,
    Opened,
    Order,
    SendEntry,
    SendExit,
    SendGuard,
    Slot,
    State,
    Word,
)

MS_NS = 1_000_000
ANSWER_NS = 2_000 * MS_NS
"""An order without a word for this long (wall) is asked after."""
ASK_NS = 1_000 * MS_NS
ABSENT_NS = 10_000 * MS_NS
"""The venue's reads lag: 'it does not exist' counts only when it is said, by two sources, over this long."""
LOOKUP_NS = 10_000 * MS_NS
"""An open position's stop is looked up on the venue this often."""
EXIT_AGAIN_NS = 1_500 * MS_NS
TWICE_NS = 3_000 * MS_NS
GUARD_AGAIN_NS = {Role.STOP: 400 * MS_NS, Role.TARGET: 5_000 * MS_NS}
"""A refused guard is tried again after this; a stop only until the naked limit."""
FEE_FALLBACK = Decimal("0.0005")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a signal: ``open``, ``rotate`` (close ``victim`` first) or ``refuse`` with the reason."""

    what: str
    reason: str = ""
    victim: str = ""


class Portfolio:
    """The account's slots. ``next_id`` gives client ids; ``cooldown_ms`` is market time, ``naked_ns`` wall time."""

    def __init__(self, slots: int, *, cooldown_ms: int, naked_ns: int, next_id: Callable[[Role], str],
                 taker_rate: Decimal = FEE_FALLBACK) -> None:
        self.limit = slots
        self.slots: dict[str, Slot] = {}
        self.foreign: dict[str, Decimal] = {}
        self.cooldown_until_ms: dict[str, int] = {}
        self._cooldown_ms = cooldown_ms
        self._naked_ns = naked_ns
        self._next_id = next_id
        self._taker = taker_rate
        self._waiting: Signal | None = None

    # signals

    def consider(self, signal: Signal, now_ms: int, price_of: Callable[[str], Decimal]) -> Verdict:
        """The owner's rules: a free slot opens; a full house rotates out its weakest, only for a better one, and only in profit."""
        if signal.symbol in self.slots or signal.symbol in self.foreign:
            return Verdict("refuse", "already held")
        if now_ms < self.cooldown_until_ms.get(signal.symbol, 0):
            return Verdict("refuse", "cooling down")
        if len(self.slots) + len(self.foreign) < self.limit:
            waiting = self._waiting is not None and self._waiting.symbol != signal.symbol
            return Verdict("refuse", "the free slot is reserved for a rotation") if waiting else Verdict("open")
        if self._waiting is not None:
            return Verdict("refuse", "a rotation is under way")
        held = [s for s in self.slots.values() if s.state is State.OPEN and s.source == signal.source]
        if not held:
            return Verdict("refuse", "no slot free")
        weakest = min(held, key=lambda s: (s.confidence, s.symbol))
        if signal.confidence <= weakest.confidence:
            return Verdict("refuse", f"not better than {weakest.symbol} ({weakest.confidence:.3f})")
        profit = self.net_profit(weakest, price_of(weakest.symbol))
        if profit <= 0:
            return Verdict("refuse", f"{weakest.symbol} is the weakest and not in profit ({profit:.4f})")
        return Verdict("rotate", victim=weakest.symbol)

    def net_profit(self, slot: Slot, price: Decimal) -> Decimal:
        """What closing at ``price`` would leave after both commissions. 0 where no price is known."""
        if price <= 0:
            return ZERO
        gross = slot.realised + (price - slot.entry_price) * slot.qty * slot.side.sign
        return gross - slot.commission - slot.qty * price * self._taker

    def rotate(self, victim: str, signal: Signal, now_ns: int) -> list[Action]:
        """Close the victim; the signal waits for its slot and is asked for again with ``take_waiting``."""
        self._waiting = signal
        return self.leave(victim, "rotated", now_ns)

    def take_waiting(self) -> Signal | None:
        """The signal whose rotation has freed a slot, once."""
        if self._waiting is None or len(self.slots) + len(self.foreign) >= self.limit:
            return None
        signal, self._waiting = self._waiting, None
        return signal

    def forget_waiting(self, now_ns: int, age_ns: int) -> None:
        """A rotation's signal that is too old by now waits no longer."""
        if self._waiting is not None and now_ns - self._waiting.received_ns > age_ns:
            self._waiting = None

    def open(self, approved: Approved, now_ns: int, now_ms: int) -> list[Action]:
        """Reserve the slot and send the entry, once."""
        assert isinstance(approved, Approved), "only risk approves"
        assert approved.symbol not in self.slots and approved.symbol not in self.foreign, f"{approved.symbol} is already held"
        assert len(self.slots) + len(self.foreign) < self.limit, f"{self.limit} slots are taken"
        entry = Order(self._next_id(Role.ENTRY), Word.SENT, now_ns, approved.price, approved.qty)
        slot = Slot(approved.symbol, approved.side, State.EMPTY, approved.stop, approved.target, approved.limit_ms,
                    approved.confidence, approved.source, made_ms=now_ms, entry=entry)  # fmt: skip
        self.slots[slot.symbol] = slot
        return [*self._move(slot, Event.APPROVED, f"confidence {approved.confidence:.3f}"), SendEntry(approved, entry.client_id)]

    def leave(self, symbol: str, reason: str, now_ns: int) -> list[Action]:
        """Close what is held, at market, reduce-only. Again and again until it is flat."""
        slot = self.slots[symbol]
        slot.reason = slot.reason or reason
        actions = self._move(slot, Event.EXIT_WANTED, reason)
        return actions + self._send_exit(slot, now_ns)

    # answers to what we sent

    def accepted(self, client_id: str, now_ns: int) -> list[Action]:
        """The venue took the order. For a guard it means that it stands."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        order.word = Word.LIVE
        order.asked_ns = now_ns
        return self._changed(slot, Event.APPROVED, "") if order in (slot.stop, slot.target) else []

    def rejected(self, client_id: str, code: int, reason: str, now_ns: int, now_ms: int) -> list[Action]:
        """It does not exist and never will: nothing was executed."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        order.word = Word.GONE
        if order is slot.entry:
            return self._entry_ended(slot, reason, now_ms)
        if order is slot.exit:
            slot.exit = None
            return [Ask(slot.symbol, client_id, Role.EXIT, slot.made_ms)] if slot.qty > 0 else self._settle(slot, now_ms)
        return self._guard_refused(slot, order, code, reason, now_ns)

    def unknown(self, client_id: str, now_ns: int) -> list[Action]:
        """It may exist. An entry is asked after and never resent; what only reduces may be sent again with the same id."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        order.word = Word.UNKNOWN
        order.asked_ns = now_ns
        return [self._ask(slot, order)]

    def _guard_refused(self, slot: Slot, order: Order, code: int, reason: str, now_ns: int) -> list[Action]:
        """-4130: one stands already. -2021, -4142: the price is beyond it, so leave. Otherwise try again until the naked limit."""
        if code == -4130:
            order.word = Word.UNKNOWN
            return [self._ask(slot, order)]
        if order is slot.stop and code in (-2021, -4142):
            return self.leave(slot.symbol, "stop passed before it stood", now_ns)
        beyond = order is slot.target and code in (-2021, -4142)
        return self.leave(slot.symbol, "target reached", now_ns) if beyond else []

    # what the venue tells

    def fill(self, fill: Fill, now_ns: int, now_ms: int) -> list[Action]:
        """One execution on a symbol of ours, whoever ordered it: the venue is the authority. A repeated trade id changes nothing."""
        slot = self.slots.get(fill.symbol)
        if slot is None or fill.trade_id in slot.trades:
            return []
        self._count(slot, fill)
        first = slot.state is State.OPENING
        if first:
            slot.naked_since_ns = now_ns
        actions = self._move(slot, Event.FILL, f"{fill.qty} at {fill.price}")
        if first:
            actions.append(Opened(self.position(slot)))
            actions += self._guard(slot, Role.STOP, now_ns) + self._guard(slot, Role.TARGET, now_ns)
        if slot.qty <= 0:
            return actions + self._flat(slot, fill.client_id, now_ms)
        if slot.state is State.CLOSING and slot.exit is None:
            actions += self._send_exit(slot, now_ns)
        return actions

    def _count(self, slot: Slot, fill: Fill) -> None:
        slot.trades.add(fill.trade_id)
        slot.entry_time_ms = slot.entry_time_ms or fill.time_ms
        if fill.side is slot.side:
            slot.opened += fill.qty
            slot.paid += fill.qty * fill.price
        else:
            slot.left += fill.qty
            slot.earned += fill.qty * fill.price
        slot.realised += fill.realised
        slot.commission += fill.commission
        slot.missing_ns = 0
        for order in slot.orders():
            if order.client_id == fill.client_id:
                order.filled += fill.qty

    def order_update(self, update: OrderUpdate, now_ns: int, now_ms: int) -> list[Action]:
        """The word on one of our plain orders, or on the order an algo order spawned (same client id)."""
        actions = self.fill(update.fill, now_ns, now_ms) if update.fill else []
        slot, order = self._find(update.client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return actions
        if order in (slot.stop, slot.target):
            return actions  # the algo service has the last word on these
        if not update.status.ended:
            order.word = Word.LIVE
            return actions
        if update.executed > order.filled:  # it executed more than we have seen: fetch the fills before it counts as ended
            return [*actions, self._ask(slot, order)]
        if order is slot.entry:
            order.word = Word.GONE
            return actions + self._entry_ended(slot, update.reason or update.status.value.lower(), now_ms)
        slot.exit = None
        return actions + (self._send_exit(slot, now_ns) if slot.qty > 0 else self._settle(slot, now_ms))

    def algo_update(self, update: AlgoUpdate, now_ns: int, now_ms: int) -> list[Action]:
        """The word on one of our stops or targets."""
        slot, order = self._find(update.client_id)
        if slot is None or order is None:
            return []
        if not update.status.ended:
            order.word = Word.LIVE if update.status is OrderStatus.NEW else order.word
            order.asked_ns, order.absent = now_ns, 0
            return [CancelGuard(slot.symbol, order.client_id)] if order.cancelling else []
        order.word = Word.GONE
        if slot.qty <= 0:
            return self._settle(slot, now_ms)
        if update.executed > order.filled:
            slot.missing_ns = slot.missing_ns or now_ns  # its fills are on their way; fetched if they do not come
            return []
        return self._replace_guard(slot, order, now_ns)

    def absent(self, client_id: str, now_ns: int, now_ms: int, *, position: Decimal) -> list[Action]:
        """A query said that the order does not exist; ``position`` is the symbol's amount by another source at the same time."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        order.absent += 1
        if order in (slot.stop, slot.target):
            return self._guard_absent(slot, order, now_ns, now_ms)
        if order is slot.exit:
            slot.exit = None
            return self._send_exit(slot, now_ns) if slot.qty > 0 else self._settle(slot, now_ms)
        if position == 0 and order.absent >= 2 and now_ns - order.sent_ns >= ABSENT_NS:
            order.word = Word.GONE
            return self._entry_ended(slot, "never reached the venue", now_ms)
        return []

    def _guard_absent(self, slot: Slot, order: Order, now_ns: int, now_ms: int) -> list[Action]:
        """Seen twice as gone: it is. (Algo queries lag; a second stop beside a live one is refused with -4130, which says so.)"""
        if order.absent < 2 and not order.cancelling:
            return []
        order.word = Word.GONE
        return self._settle(slot, now_ms) if slot.qty <= 0 else self._replace_guard(slot, order, now_ns)

    def _replace_guard(self, slot: Slot, order: Order, now_ns: int) -> list[Action]:
        """A guard went away and the position did not."""
        if slot.state is not State.OPEN:
            return []
        return self._guard(slot, Role.STOP if order is slot.stop else Role.TARGET, now_ns)

    def cancelled(self, client_id: str, now_ms: int) -> list[Action]:
        """A cancel was carried out, or the venue says that there is nothing to cancel."""
        slot, order = self._find(client_id)
        if slot is None or order is None:
            return []
        order.word = Word.GONE
        return self._settle(slot, now_ms)

    def seen(self, update: PositionUpdate, now_ns: int, now_ms: int) -> list[Action]:
        """The venue's amount of a symbol. Ours are compared with it; what we did not open counts as a slot and is left alone."""
        slot = self.slots.get(update.symbol)
        if slot is None:
            if update.amount == 0:
                self.foreign.pop(update.symbol, None)
            else:
                self.foreign[update.symbol] = update.amount
            return []
        if update.amount == slot.qty * slot.side.sign:
            slot.missing_ns = 0
        elif slot.missing_ns == 0:
            slot.missing_ns = now_ns
        return []

    def corrected(self, symbol: str, amount: Decimal, now_ns: int, now_ms: int) -> list[Action]:
        """After its fills were fetched the venue still holds another amount. Said twice, 3 s apart, it is the authority."""
        slot = self.slots.get(symbol)
        if slot is None or slot.state is State.OPENING or amount == slot.qty * slot.side.sign:
            return []
        if slot.odd_ns == 0 or slot.odd_amount != amount:
            slot.odd_ns, slot.odd_amount = now_ns, amount
            return []
        if now_ns - slot.odd_ns < TWICE_NS:
            return []
        slot.odd_ns = slot.missing_ns = 0
        lost = slot.qty - max(ZERO, amount * slot.side.sign)
        price = slot.entry_price
        if lost > 0:
            slot.left, slot.earned = slot.left + lost, slot.earned + lost * price
        else:
            slot.opened, slot.paid = slot.opened - lost, slot.paid - lost * price
        note = self._changed(slot, Event.ADOPTED, f"corrected to the venue's {amount}")
        return note + (self._flat(slot, "", now_ms) if slot.qty == 0 else [])

    # time

    def tick(self, now_ns: int, now_ms: int, *, contact: bool = True) -> list[Action]:
        """What is due: naked positions, time limits, answers that do not come, look-ups of stops.

        Without ``contact`` to the venue the naked time does not run: protection is the first write after it.
        """
        actions: list[Action] = []
        for slot in list(self.slots.values()):
            if slot.protected:
                slot.naked_since_ns = 0
            elif slot.naked_since_ns == 0 or not contact:
                slot.naked_since_ns = now_ns
            actions += self._due(slot, now_ns, now_ms) if contact else []
        return actions

    def _due(self, slot: Slot, now_ns: int, now_ms: int) -> list[Action]:
        actions: list[Action] = []
        if slot.state is State.OPEN:
            if not slot.protected and now_ns - slot.naked_since_ns > self._naked_ns:
                return self.leave(slot.symbol, "naked", now_ns)
            if now_ms >= slot.limit_ms:
                return self.leave(slot.symbol, "time limit", now_ns)
            for role, order in ((Role.STOP, slot.stop), (Role.TARGET, slot.target)):
                if order is None or (order.word is Word.GONE and now_ns - order.sent_ns > GUARD_AGAIN_NS[role]):
                    actions += self._guard(slot, role, now_ns)
        if slot.state is State.CLOSING and slot.qty > 0 and slot.exit is None:
            actions += self._send_exit(slot, now_ns)
        if slot.missing_ns and now_ns - slot.missing_ns > ANSWER_NS:
            slot.missing_ns = now_ns
            actions.append(Ask(slot.symbol, "", Role.EXIT, slot.made_ms))
        for order in slot.orders():
            if self._overdue(slot, order, now_ns):
                order.asked_ns = now_ns
                actions.append(self._ask(slot, order))
        return actions

    def _overdue(self, slot: Slot, order: Order, now_ns: int) -> bool:
        since = max(order.sent_ns, order.asked_ns)
        match order.word:
            case Word.SENT:
                return now_ns - since > ANSWER_NS
            case Word.UNKNOWN:
                return now_ns - since > ASK_NS
            case Word.LIVE:
                guard = order in (slot.stop, slot.target)
                return now_ns - since > (LOOKUP_NS if guard and not order.cancelling else EXIT_AGAIN_NS)
        return False

    # inside

    def _find(self, client_id: str) -> tuple[Slot | None, Order | None]:
        for slot in self.slots.values():
            for order in slot.orders():
                if order.client_id == client_id:
                    return slot, order
        return None, None

    def _ask(self, slot: Slot, order: Order) -> Ask:
        role = {id(slot.entry): Role.ENTRY, id(slot.stop): Role.STOP, id(slot.target): Role.TARGET}.get(id(order), Role.EXIT)
        return Ask(slot.symbol, order.client_id, role, slot.made_ms)

    def _move(self, slot: Slot, event: Event, reason: str) -> list[Action]:
        """The one door: a state changes here or not at all."""
        after = TRANSITIONS.get((slot.state, event))
        assert after is not None, f"{slot.symbol}: {event} in {slot.state}"
        changed = after is not slot.state
        slot.state = after
        return self._changed(slot, event, reason) if changed or event is Event.FILL else []

    def _changed(self, slot: Slot, event: Event, reason: str) -> list[Action]:
        return [Changed(slot.symbol, slot.state, event, reason)]

    def _guard(self, slot: Slot, role: Role, now_ns: int) -> list[Action]:
        """A stop or target for the whole position, whatever its size becomes."""
        price = slot.stop_price if role is Role.STOP else slot.target_price
        order = Order(self._next_id(role), Word.SENT, now_ns, price)
        if role is Role.STOP:
            slot.stop = order
        else:
            slot.target = order
        return [SendGuard(slot.symbol, slot.side.opposite, role, price, order.client_id)]

    def _send_exit(self, slot: Slot, now_ns: int) -> list[Action]:
        if slot.qty <= 0 or slot.exit is not None or (slot.exit_ns and now_ns - slot.exit_ns < EXIT_AGAIN_NS):
            return []
        slot.exit_ns = now_ns
        slot.exit = Order(self._next_id(Role.EXIT), Word.SENT, now_ns, qty=slot.qty)
        return [SendExit(slot.symbol, slot.side.opposite, slot.qty, slot.exit.client_id, slot.reason)]

    def _entry_ended(self, slot: Slot, reason: str, now_ms: int) -> list[Action]:
        if slot.opened > 0:
            return self._settle(slot, now_ms)
        self.cooldown_until_ms[slot.symbol] = now_ms + self._cooldown_ms
        if slot.state is State.CLOSING:
            return self._settle(slot, now_ms)
        actions = self._move(slot, Event.ENTRY_DEAD, reason)
        del self.slots[slot.symbol]
        return [*actions, Died(slot.symbol, slot.entry.client_id, reason)]

    def _flat(self, slot: Slot, client_id: str, now_ms: int) -> list[Action]:
        """Nothing is held any more: name the cause, and take the siblings away."""
        names = {o.client_id: n for o, n in ((slot.stop, "stop"), (slot.target, "target")) if o is not None}
        outside = "liquidated" if client_id.startswith(("autoclose-", "adl_")) else "closed from outside"
        slot.reason = slot.reason or names.get(client_id, outside)
        actions = self._move(slot, Event.FLAT, slot.reason)
        for order in (slot.stop, slot.target):
            if order is not None and order.word is not Word.GONE and order.client_id != client_id:
                order.cancelling = True
                actions.append(CancelGuard(slot.symbol, order.client_id))
            elif order is not None:
                order.word = Word.GONE
        return actions + self._settle(slot, now_ms)

    def _settle(self, slot: Slot, now_ms: int) -> list[Action]:
        """Free the slot once nothing of it is left on the venue."""
        left = [o for o in (slot.entry, slot.stop, slot.target) if o is not None and o.word is not Word.GONE]
        if slot.qty > 0 or slot.state is not State.CLOSING or left:
            return []
        actions = self._move(slot, Event.FREED, slot.reason)
        del self.slots[slot.symbol]
        if slot.opened == 0:
            return [*actions, Died(slot.symbol, slot.entry.client_id, slot.reason)]
        return [*actions, Closed(ClosedTrade(
            slot.symbol, slot.side, slot.opened, slot.entry_price, slot.earned / slot.left, slot.entry_time_ms, now_ms,
            slot.realised, slot.commission, slot.confidence, slot.source, slot.reason))]  # fmt: skip

    def position(self, slot: Slot) -> Position:
        """The owner's metadata of a position."""
        closing = slot.qty * slot.entry_price * self._taker
        return Position(slot.symbol, slot.side, slot.qty, slot.entry_price, slot.confidence, slot.source, slot.entry_time_ms,
                        slot.commission, slot.commission + closing, slot.realised)  # fmt: skip

    def in_flight(self) -> bool:
        """Whether an order of ours waits for its answer, or a position for its stop."""
        return any(s.state is State.OPENING or (s.state is State.OPEN and not s.protected) for s in self.slots.values())

    def positions(self) -> list[Position]:
        return [self.position(s) for s in self.slots.values() if s.qty > 0]

    # recovery

    def adopt(self, slot: Slot, now_ns: int) -> list[Action]:
        """Take over a slot after a restart: from the journal, corrected by the venue. Its guards are looked up or placed at once."""
        self.slots[slot.symbol] = slot
        slot.naked_since_ns = now_ns
        actions: list[Action] = []
        for role, order in ((Role.STOP, slot.stop), (Role.TARGET, slot.target)):
            if order is None and slot.state is State.OPEN and slot.qty > 0:
                actions += self._guard(slot, role, now_ns)
        return actions
