"""The slots: a pure state machine. Events go in, actions come out; it reads no clock, opens no socket and writes no file.

Invariants: at most ``slots`` symbols are held or in flight, and positions that others opened on the account count; a slot is reserved at
intent; it is free only when its quantity is zero, its orders have ended and both protective orders are gone; a position's quantity is the
sum of its fills, each counted once by (symbol, trade id); an entry is never sent twice; the exit of a slot never exceeds what it holds.

What it cannot know it asks for: an entry without an answer becomes UNKNOWN and is queried until two sources agree that it does not exist.
Protection does not wait for fills: whatever says that an entry executed (an answer, a query, a changed position) puts up the stop, and an
entry of which nobody knows gets one in advance, since the matching engine takes a closing order only where there is something to close.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from src.models import ZERO, AlgoUpdate, Fill, OrderStatus, OrderUpdate, Position, PositionUpdate, Role, Signal
from src.risk import Approved
from src.slots import (
    GUARDS,
    MS_NS,
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
    Patience,
    SendEntry,
    SendExit,
    SendGuard,
    Slot,
    State,
    Word,
    must_leave,
    overdue,
)
from src.venue.orders import ours
from src.venue.user_events import LIQUIDATION_PREFIXES

__all__ = ["MS_NS", "Portfolio", "Verdict"]
FEE_FALLBACK = Decimal("0.0005")
LOST_MAX = 16
"""Entries that were given up are remembered, in case they executed after all."""
STANDS_ALREADY, SAME_ID_STANDS = -4130, -4116
BEYOND = (-2021, -4142)
"""The price is past the trigger already."""
NOTHING_HELD = (-2022, -4509)
KINDS = {Role.STOP: "STOP_MARKET", Role.TARGET: "TAKE_PROFIT_MARKET"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a signal: ``open``, ``rotate`` (close ``victim`` first) or ``refuse`` with the reason."""

    what: str
    reason: str = ""
    victim: str = ""


class Portfolio:
    """The account's slots. ``next_id`` gives client ids; ``cooldown_ms`` is market time, ``naked_ns`` wall time.

    ``foreign``: amounts by symbol that others hold. ``amounts``: the venue's last word on a symbol. ``last_trade``: the highest trade id
    seen of a symbol.
    """

    def __init__(self, slots: int, *, cooldown_ms: int, naked_ns: int, next_id: Callable[[Role], str], taker_rate: Decimal = FEE_FALLBACK,
                 patience: Patience | None = None) -> None:
        self.limit = slots
        self.slots: dict[str, Slot] = {}
        self.foreign: dict[str, Decimal] = {}
        self.amounts: dict[str, Decimal] = {}
        self.last_trade: dict[str, int] = {}
        self.cooldown_until_ms: dict[str, int] = {}
        self._cooldown_ms = cooldown_ms
        self._naked_ns = naked_ns
        self._next_id = next_id
        self._taker = taker_rate
        self._wait = patience or Patience()
        self._waiting: Signal | None = None
        self._lost: dict[str, Slot] = {}

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
        held = [s for s in self.slots.values() if s.state is State.OPEN and s.qty > 0 and s.source == signal.source]
        if not held:
            return Verdict("refuse", "no slot free")
        weakest = min(held, key=lambda s: (s.confidence, s.symbol))
        if signal.confidence <= weakest.confidence:
            return Verdict("refuse", f"not better than {weakest.symbol} ({weakest.confidence:.3f})")
        profit = weakest.net_profit(price_of(weakest.symbol), self._taker)
        if profit <= 0:
            return Verdict("refuse", f"{weakest.symbol} is the weakest and not in profit ({profit:.4f})")
        return Verdict("rotate", victim=weakest.symbol)

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
        slot = Slot(approved.symbol, approved.side, State.EMPTY, approved.stop, approved.target, approved.limit_ms, approved.confidence,
                    approved.source, made_ms=now_ms, entry=entry, floor=self.last_trade.get(approved.symbol, 0))  # fmt: skip
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
        order.asked_ns, order.absent = now_ns, 0
        return self._changed(slot, Event.APPROVED, "") if slot.role_of(order) in GUARDS else []

    def rejected(self, client_id: str, code: int, reason: str, now_ns: int, now_ms: int) -> list[Action]:
        """It does not exist and never will: nothing was executed."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        if slot.role_of(order) in GUARDS:
            return self._guard_refused(slot, order, code, now_ns, now_ms)
        order.word, order.told = Word.GONE, order.filled
        if order is slot.entry:
            return self._entry_ended(slot, reason, now_ns, now_ms)
        slot.exit = None
        return [self._ask_symbol(slot)] if slot.at_stake > 0 else self._settle(slot, now_ms)

    def unknown(self, client_id: str, now_ns: int) -> list[Action]:
        """It may exist. An entry is asked after and never resent, and gets its stop in advance; a guard is sent again with the same id."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word in (Word.GONE, Word.LIVE):
            return []
        order.word = Word.UNKNOWN
        order.asked_ns = now_ns
        in_advance = order is slot.entry and slot.state is State.OPENING and slot.stop is None
        return [self._ask(slot, order), *(self._guard(slot, Role.STOP, now_ns) if in_advance else [])]

    def _guard_refused(self, slot: Slot, order: Order, code: int, now_ns: int, now_ms: int) -> list[Action]:
        """One stands already: somebody else's protects as well. The price is beyond it: leave. Otherwise try again until the naked limit."""
        telling = (STANDS_ALREADY, SAME_ID_STANDS, *BEYOND, *NOTHING_HELD)
        if order.word is Word.LIVE or (order.word is Word.UNKNOWN and code not in telling):
            return []  # the second of two sendings: it says nothing of the first
        order.asked_ns = now_ns
        if code == SAME_ID_STANDS:
            return self.accepted(order.client_id, now_ns)
        if code == STANDS_ALREADY:
            order.word, order.theirs = Word.UNKNOWN, True
            return [self._ask(slot, order)]
        order.word = Word.GONE
        if slot.at_stake <= 0:
            return self._settle(slot, now_ms)
        if code in BEYOND:
            return self.leave(slot.symbol, "stop passed before it stood" if order is slot.stop else "target reached", now_ns)
        return [self._ask_symbol(slot)] if code in NOTHING_HELD else []

    # what the venue tells

    def fill(self, fill: Fill, now_ns: int, now_ms: int) -> list[Action]:
        """One execution on a symbol of ours, whoever ordered it: the venue is the authority. A repeated trade id changes nothing."""
        slot = self.slots.get(fill.symbol) or self._returned(fill, now_ns)
        self.last_trade[fill.symbol] = max(fill.trade_id, self.last_trade.get(fill.symbol, 0))
        if slot is None or fill.trade_id in slot.trades or fill.trade_id <= slot.floor:
            return []
        if slot.state is State.OPENING:
            if fill.client_id != slot.entry.client_id:
                return []  # somebody else's; if our entry executes too, the venue's amount will say so
            slot.naked_since_ns = now_ns
        first = slot.opened == 0
        slot.count(fill)
        if self.amounts.get(slot.symbol, ZERO) == slot.qty * slot.side.sign:
            slot.missing_ns = 0
        actions = self._move(slot, Event.FILL, f"{fill.qty} at {fill.price}")
        if first and slot.opened > 0:
            actions.append(Opened(slot.position(self._taker)))
        if slot.at_stake <= 0:
            return actions + self._flat(slot, fill.client_id, now_ns, now_ms)
        if slot.state is State.OPEN:
            return actions + self._guards(slot, now_ns)
        return actions + self._send_exit(slot, now_ns)

    def _returned(self, fill: Fill, now_ns: int) -> Slot | None:
        """An entry that was given up has executed after all."""
        slot = self._lost.pop(fill.client_id, None)
        if slot is not None:
            slot.state, slot.stop, slot.target, slot.reason = State.EMPTY, None, None, ""
            slot.entry.word, slot.entry.asked_ns, slot.naked_since_ns = Word.LIVE, now_ns, now_ns
            self.foreign.pop(slot.symbol, None)
            self.slots[slot.symbol] = slot
            self._move(slot, Event.ADOPTED, "given up, and executed after all")
        return slot

    def order_update(self, update: OrderUpdate, now_ns: int, now_ms: int) -> list[Action]:
        """The word on one of our plain orders, or on the order an algo order spawned (same client id)."""
        actions = self.fill(update.fill, now_ns, now_ms) if update.fill else []
        slot, order = self._find(update.client_id)
        if slot is None or order is None or order.word is Word.GONE or slot.role_of(order) in GUARDS:
            return actions  # the algo service has the last word on guards
        order.absent = 0
        order.filled = max(order.filled, slot.by_order.get(update.order_id, ZERO))
        order.told = update.executed if update.status.ended else max(order.told, update.executed)
        if not update.status.ended or order.owed > 0:
            order.word, order.asked_ns = Word.LIVE, now_ns
            return actions + self._executed(slot, now_ns)
        if order is slot.entry:
            order.word = Word.GONE
            return actions + self._entry_ended(slot, update.reason or update.status.value.lower(), now_ns, now_ms)
        slot.exit = None
        slot.exit_ns = 0 if update.executed > 0 else slot.exit_ns  # the next piece follows at once
        return actions + (self._send_exit(slot, now_ns) if slot.at_stake > 0 else self._settle(slot, now_ms))

    def _executed(self, slot: Slot, now_ns: int) -> list[Action]:
        """Something is held, as the venue says: protect it now, its fills will follow."""
        if slot.state is not State.OPENING or slot.at_stake <= 0:
            return []
        slot.naked_since_ns = now_ns
        return self._move(slot, Event.ADOPTED, f"executed {slot.at_stake}, as the venue says") + self._guards(slot, now_ns)

    def algo_update(self, update: AlgoUpdate, now_ns: int, now_ms: int) -> list[Action]:
        """The word on one of our stops or targets."""
        slot, order = self._find(update.client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        order.asked_ns, order.absent = now_ns, 0
        if not update.status.ended:
            order.word, order.theirs = Word.LIVE, not ours(order.client_id)
            waits = update.status is OrderStatus.NEW
            order.firing_ns = 0 if waits else order.firing_ns or now_ns
            return []
        order.word = Word.GONE
        if update.executed > 0:
            slot.reason = slot.reason or slot.role_of(order).name.lower()
            slot.missing_ns = slot.missing_ns or now_ns
        if slot.at_stake <= 0:
            return self._settle(slot, now_ms)
        return self._replace_guard(slot, order, now_ns) if update.executed == 0 else []  # else its fills are on their way

    def guards_seen(self, client_id: str, found: AlgoUpdate | None, standing: Sequence[AlgoUpdate], now_ns: int, now_ms: int, *,
                    asked_ns: int, sure: bool = True) -> list[Action]:  # fmt: skip
        """The answer to a question of ``asked_ns`` after a guard: what the query by id says, and what stands on the symbol. ``sure``: both
        were answered. That it was not there before it was sent for the last time says nothing."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        told = found or next((g for g in standing if g.client_id == client_id), None)
        if told is not None:
            return self.algo_update(told, now_ns, now_ms)
        if asked_ns < order.sent_ns:
            return []
        kind = KINDS[slot.role_of(order)]
        for other in standing:
            if (other.order_type, other.side, other.close_position) == (kind, slot.side.opposite, True):
                order.client_id, order.theirs = other.client_id, not ours(other.client_id)
                order.word, order.asked_ns, order.absent = Word.LIVE, now_ns, 0
                return self._changed(slot, Event.ADOPTED, f"protected by {other.client_id}")
        order.absent += sure
        if not sure or (order.absent < 2 and not order.cancel_ns):
            return []  # queries lag
        order.word, order.asked_ns = Word.GONE, now_ns
        return self._settle(slot, now_ms) if slot.at_stake <= 0 else self._replace_guard(slot, order, now_ns)

    def _replace_guard(self, slot: Slot, order: Order, now_ns: int) -> list[Action]:
        """A guard went away and the position did not."""
        return self._guard(slot, slot.role_of(order), now_ns) if slot.state is State.OPEN else []

    def absent(self, client_id: str, now_ns: int, now_ms: int, *, position: Decimal) -> list[Action]:
        """A query said that the order does not exist; ``position`` is the symbol's amount by another source at the same time."""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        order.absent += 1
        if order is slot.exit:
            slot.exit = None
            return self._send_exit(slot, now_ns) if slot.at_stake > 0 else self._settle(slot, now_ms)
        if order is not slot.entry:
            return []
        if position != 0:
            return self._held(slot, position, now_ns)
        if order.absent < 2 or now_ns - order.sent_ns < self._wait.absent_ns:
            return []
        order.word, order.told = Word.GONE, ZERO
        self._lost[client_id] = slot
        while len(self._lost) > LOST_MAX:
            self._lost.pop(next(iter(self._lost)))
        return self._entry_ended(slot, "never reached the venue", now_ns, now_ms)

    def _held(self, slot: Slot, amount: Decimal, now_ns: int) -> list[Action]:
        """The venue holds more than we have seen filled: an entry that has not ended must have executed."""
        entry, more = slot.entry, amount * slot.side.sign - slot.qty
        if entry.word is Word.GONE or more <= 0:
            return []
        entry.told = max(entry.told, min(entry.qty, entry.filled + more))
        return self._executed(slot, now_ns)

    def cancelled(self, client_id: str, now_ms: int) -> list[Action]:
        """A cancel was carried out."""
        slot, order = self._find(client_id)
        if slot is None or order is None:
            return []
        order.word = Word.GONE
        return self._settle(slot, now_ms)

    def not_cancelled(self, client_id: str, now_ns: int) -> list[Action]:
        """The venue says that there is nothing to cancel: how did it end?"""
        slot, order = self._find(client_id)
        if slot is None or order is None or order.word is Word.GONE:
            return []
        order.asked_ns = now_ns
        return [self._ask(slot, order)]

    def seen(self, update: PositionUpdate, now_ns: int, now_ms: int) -> list[Action]:
        """The venue's amount of a symbol. Ours are compared with it; what we did not open counts as a slot and is left alone."""
        self.amounts[update.symbol] = update.amount
        slot = self.slots.get(update.symbol)
        if slot is None:
            self._count_foreign(update.symbol)
            return []
        if update.amount == slot.qty * slot.side.sign:
            slot.missing_ns = 0
            return []
        slot.missing_ns = slot.missing_ns or now_ns
        return self._held(slot, update.amount, now_ns)

    def _count_foreign(self, symbol: str) -> bool:
        """Without a slot of ours whatever is held is somebody else's. True if something is."""
        amount = self.amounts.get(symbol, ZERO)
        if amount == 0:
            self.foreign.pop(symbol, None)
        else:
            self.foreign[symbol] = amount
        return amount != 0

    def corrected(self, symbol: str, amount: Decimal, now_ns: int, now_ms: int) -> list[Action]:
        """After its fills were fetched the venue still holds another amount. Said for 3 s (10 s while the entry is in doubt), it is right."""
        self.amounts[symbol] = amount
        slot = self.slots.get(symbol)
        if slot is None:
            self._count_foreign(symbol)
            return []
        if amount == slot.qty * slot.side.sign:
            slot.missing_ns = slot.odd_ns = 0
            return []
        slot.missing_ns = slot.missing_ns or now_ns
        actions = self._held(slot, amount, now_ns)
        if slot.odd_ns == 0 or slot.odd_amount != amount:
            slot.odd_ns, slot.odd_amount = now_ns, amount
        in_doubt = slot.entry.word is not Word.GONE
        if slot.state is State.OPENING or now_ns - slot.odd_ns < (self._wait.absent_ns if in_doubt else self._wait.twice_ns):
            return actions
        return actions + self._correct(slot, amount, now_ns, now_ms)

    def _correct(self, slot: Slot, amount: Decimal, now_ns: int, now_ms: int) -> list[Action]:
        """At the price of entry, since nobody says at which: profit and commission of what is missing stay unknown."""
        slot.odd_ns = slot.missing_ns = 0
        lost = slot.qty - max(ZERO, amount * slot.side.sign)
        price = slot.entry_price or slot.entry.price
        if lost > 0:
            slot.left, slot.earned, slot.exit = slot.left + lost, slot.earned + lost * price, None
        else:
            slot.opened, slot.paid = slot.opened - lost, slot.paid - lost * price
            slot.entry.filled += slot.entry.owed
        note = self._changed(slot, Event.ADOPTED, f"corrected to the venue's {amount}")
        return note + (self._flat(slot, "", now_ns, now_ms) if slot.at_stake <= 0 else [])

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
        if slot.state is State.OPEN and (reason := must_leave(slot, now_ns, now_ms, self._naked_ns)):
            return self.leave(slot.symbol, reason, now_ns)
        if slot.state is State.CLOSING and slot.at_stake <= 0:
            actions = self._sweep(slot, now_ns) + self._settle(slot, now_ms)
        else:
            actions = self._due_guards(slot, now_ns)
            actions += self._send_exit(slot, now_ns) if slot.state is State.CLOSING else []
        if slot.missing_ns and now_ns - slot.missing_ns > self._wait.ask_ns:
            slot.missing_ns = now_ns
            actions.append(self._ask_symbol(slot))
        for order in slot.orders():
            if overdue(slot, order, now_ns, self._wait):
                if order.word is Word.SENT and order is not slot.exit:
                    actions += self.unknown(order.client_id, now_ns)
                else:
                    order.asked_ns = now_ns
                    actions.append(self._ask(slot, order))
        return actions

    def _due_guards(self, slot: Slot, now_ns: int) -> list[Action]:
        """Guards that are missing, or have no answer, are sent: of an entry in doubt, and of what cannot be left, the stop alone."""
        if slot.at_stake <= 0 and slot.entry.word is not Word.UNKNOWN:
            return []
        if slot.state is State.CLOSING and now_ns - slot.exit_ns < self._wait.ask_ns:
            return []
        actions: list[Action] = []
        for role in GUARDS if slot.state is State.OPEN else GUARDS[:1]:
            order = slot.guard(role)
            wait_ns = self._wait.stop_again_ns if role is Role.STOP else self._wait.target_again_ns
            if slot.state is not State.OPEN:
                wait_ns = max(wait_ns, self._wait.ask_ns)
            if order is None or (order.word is Word.GONE and now_ns - max(order.sent_ns, order.asked_ns) > wait_ns):
                actions += self._guard(slot, role, now_ns)
            elif order.word is Word.UNKNOWN and not order.theirs and now_ns - order.sent_ns > wait_ns:
                order.sent_ns, order.absent = now_ns, 0
                actions.append(SendGuard(slot.symbol, slot.side.opposite, role, order.price, order.client_id, again=True))
        return actions

    # inside

    def _find(self, client_id: str) -> tuple[Slot | None, Order | None]:
        for slot in self.slots.values():
            for order in slot.orders():
                if order.client_id == client_id:
                    return slot, order
        return None, None

    def _ask(self, slot: Slot, order: Order) -> Ask:
        return Ask(slot.symbol, order.client_id, slot.role_of(order), slot.made_ms, min(slot.trades, default=0))

    def _ask_symbol(self, slot: Slot) -> Ask:
        """The position and the fills, whatever made them."""
        return Ask(slot.symbol, "", Role.EXIT, slot.made_ms, min(slot.trades, default=0))

    def _move(self, slot: Slot, event: Event, reason: str) -> list[Action]:
        """The one door: a state changes here or not at all."""
        after = TRANSITIONS.get((slot.state, event))
        assert after is not None, f"{slot.symbol}: {event} in {slot.state}"
        changed = after is not slot.state
        slot.state = after
        return self._changed(slot, event, reason) if changed or event is Event.FILL else []

    def _changed(self, slot: Slot, event: Event, reason: str) -> list[Action]:
        return [Changed(slot.symbol, slot.state, event, reason)]

    def _guards(self, slot: Slot, now_ns: int) -> list[Action]:
        """Stop and target, where they are not up or on their way; the stop first."""
        missing = [role for role in GUARDS if (order := slot.guard(role)) is None or (role is Role.STOP and order.word is Word.GONE)]
        return [action for role in missing for action in self._guard(slot, role, now_ns)]

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
        if slot.at_stake <= 0 or slot.exit is not None or (slot.exit_ns and now_ns - slot.exit_ns < self._wait.exit_again_ns):
            return []
        again, slot.exits = slot.exits > 0, slot.exits + 1
        slot.exit_ns = now_ns
        slot.exit = Order(self._next_id(Role.EXIT), Word.SENT, now_ns, qty=slot.at_stake)
        return [SendExit(slot.symbol, slot.side.opposite, slot.at_stake, slot.exit.client_id, slot.reason, again)]

    def _entry_ended(self, slot: Slot, reason: str, now_ns: int, now_ms: int) -> list[Action]:
        if slot.opened > 0:
            return self._settle(slot, now_ms) if slot.at_stake <= 0 else []
        self.cooldown_until_ms[slot.symbol] = now_ms + self._cooldown_ms
        slot.reason = slot.reason or reason
        if slot.state is State.CLOSING:
            return self._settle(slot, now_ms)
        if slot.state is State.OPEN or slot.stop is not None:
            return self._flat(slot, "", now_ns, now_ms)
        actions = self._move(slot, Event.ENTRY_DEAD, reason)
        return [*actions, *self._free(slot), Died(slot.symbol, slot.entry.client_id, reason)]

    def _flat(self, slot: Slot, client_id: str, now_ns: int, now_ms: int) -> list[Action]:
        """Nothing is held any more: name the cause where it is known, and take the siblings away."""
        names = {o.client_id: slot.role_of(o).name.lower() for o in (slot.stop, slot.target) if o is not None}
        slot.reason = slot.reason or names.get(client_id, "liquidated" if client_id.startswith(LIQUIDATION_PREFIXES) else "")
        actions = self._move(slot, Event.FLAT, slot.reason)
        if slot.exit is not None and slot.exit.filled >= slot.exit.qty > 0:
            slot.exit = None
        for order in (slot.stop, slot.target):
            if order is not None and order.client_id == client_id:
                order.word = Word.GONE
        return actions + self._sweep(slot, now_ns) + self._settle(slot, now_ms)

    def _sweep(self, slot: Slot, now_ns: int) -> list[Action]:
        """Cancel what stands and protects nothing, again and again until it is gone; what is not ours is left to its owner."""
        actions: list[Action] = []
        for order in (slot.stop, slot.target):
            if order is None or order.word is Word.GONE:
                continue
            if order.theirs:
                order.word = Word.GONE
            elif not order.cancel_ns or now_ns - order.cancel_ns > self._wait.exit_again_ns:
                order.cancel_ns = now_ns
                actions.append(CancelGuard(slot.symbol, order.client_id))
        return actions

    def _settle(self, slot: Slot, now_ms: int) -> list[Action]:
        """Free the slot once nothing of it is left on the venue."""
        left = [o for o in slot.orders() if o.word is not Word.GONE]
        if slot.at_stake > 0 or slot.state is not State.CLOSING or left:
            return []
        slot.reason = slot.reason or "closed from outside"
        actions = [*self._move(slot, Event.FREED, slot.reason), *self._free(slot)]
        if slot.opened == 0 or slot.left == 0:
            return [*actions, Died(slot.symbol, slot.entry.client_id, slot.reason)]
        return [*actions, Closed(slot.closed_trade(now_ms))]

    def _free(self, slot: Slot) -> list[Action]:
        """The slot goes; what the venue still holds of the symbol is somebody else's, unless that word is an old one: ask."""
        del self.slots[slot.symbol]
        return [self._ask_symbol(slot)] if self._count_foreign(slot.symbol) else []

    def in_doubt(self, client_id: str) -> bool:
        """Whether a guard may stand, or does, whatever a second sending of it is answered."""
        slot, order = self._find(client_id)
        return slot is not None and order is not None and slot.role_of(order) in GUARDS and order.word in (Word.UNKNOWN, Word.LIVE)

    def in_flight(self) -> bool:
        """Whether an order of ours waits for its answer, a position for its stop or its end, or a guard for its cancel."""
        return any(s.state in (State.OPENING, State.CLOSING) or (s.state is State.OPEN and not s.protected) for s in self.slots.values())

    def positions(self) -> list[Position]:
        return [s.position(self._taker) for s in self.slots.values() if s.qty > 0]

    # recovery

    def adopt(self, slot: Slot, now_ns: int) -> list[Action]:
        """Take over a position of ours that has no slot. Its guards are put up at once."""
        assert slot.symbol not in self.slots, f"{slot.symbol} has a slot"
        self.foreign.pop(slot.symbol, None)
        self.slots[slot.symbol] = slot
        slot.naked_since_ns = now_ns
        return self._move(slot, Event.ADOPTED, "found on the venue") + self._guards(slot, now_ns)
