"""The slots as tables of events: what is opened, protected, rotated, closed, and what happens when the venue is rude."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal as D
from itertools import count

import pytest

from src.models import AlgoUpdate, Fill, OrderStatus, OrderUpdate, PositionUpdate, Quote, Role, Side, Signal, SymbolRules
from src.portfolio import MS_NS, Portfolio
from src.risk import Approved, Limit, View, approve
from src.slots import Ask, CancelGuard, Closed, Died, Opened, SendEntry, SendExit, SendGuard, State, Word, recall, remember

SECOND = 1_000 * MS_NS
RULES = SymbolRules("BTCUSDT", D("0.1"), D("0.001"), D("0.001"), D(1000), D(120), D(50), D("1.05"), D("0.95"))
LIMIT = Limit(D("0.02"), D("0.55"), D(5), D(10), 3, 3, 10, 1500, 5000, False)


def signal(symbol: str = "BTCUSDT", confidence: float = 0.7, side: Side = Side.BUY, received_ns: int = 0) -> Signal:
    stop, target = (98.0, 102.0) if side is Side.BUY else (102.0, 98.0)
    return Signal(1, symbol, side, 100.0, stop, target, 10_000_000, confidence, "teacher", 1000, received_ns, 99.9, 100.0)


def approved(symbol: str = "BTCUSDT", confidence: float = 0.7, side: Side = Side.BUY) -> Approved:
    quote = Quote(99.95, 100.0, 100.0, 100.0, 1.0, 1.0, 1.0, True)
    view = View(D(10000), D(10000), D(0), replace(RULES, symbol=symbol), quote, D("0.0002"), D("0.0005"), D("0.01"), 0, 1.0)
    decision = approve(signal(symbol, confidence, side), LIMIT, view)
    assert isinstance(decision, Approved), decision
    return decision


class Bench:
    """A portfolio with a hand-turned clock. ``trade`` numbers fills."""

    def __init__(self, slots: int = 3) -> None:
        ids = count(1)
        self.p = Portfolio(slots, cooldown_ms=60_000, naked_ns=2 * SECOND, next_id=lambda role: f"aegis-1-{next(ids)}-{role.value}")
        self.ns, self.ms, self.trade = SECOND, 1_000, count(1)

    def open(self, symbol: str = "BTCUSDT", confidence: float = 0.7, side: Side = Side.BUY) -> str:
        actions = self.p.open(approved(symbol, confidence, side), self.ns, self.ms)
        return next(a.client_id for a in actions if isinstance(a, SendEntry))

    def fill(self, client_id: str, qty: str, price: str = "100", symbol: str = "BTCUSDT", side: Side = Side.BUY, realised: str = "0") -> list:
        fill = Fill(symbol, next(self.trade), client_id, 7, side, D(price), D(qty), D("0.05"), "USDT", D(realised), False, self.ms)
        return self.p.fill(fill, self.ns, self.ms)

    def ended(self, client_id: str, executed: str, status: OrderStatus = OrderStatus.FILLED, symbol: str = "BTCUSDT") -> list:
        update = OrderUpdate(symbol, client_id, 7, Side.BUY, status, D(executed), D(executed), self.ms)
        return self.p.order_update(update, self.ns, self.ms)

    def algo(self, client_id: str, status: OrderStatus, executed: str = "0", symbol: str = "BTCUSDT") -> list:
        update = AlgoUpdate(symbol, client_id, 9, Side.SELL, "STOP_MARKET", status, D(98), True, self.ms, D(executed))
        return self.p.algo_update(update, self.ns, self.ms)

    def opened(self, symbol: str = "BTCUSDT", confidence: float = 0.7) -> tuple[str, str]:
        """An open, protected position; returns the ids of its stop and target."""
        entry = self.open(symbol, confidence)
        actions = self.fill(entry, "1", symbol=symbol)
        guards = {a.role: a.client_id for a in actions if isinstance(a, SendGuard)}
        self.ended(entry, "1", symbol=symbol)
        for client_id in guards.values():
            self.p.accepted(client_id, self.ns)
        return guards[Role.STOP], guards[Role.TARGET]

    def later(self, seconds: float) -> list:
        self.ns += int(seconds * SECOND)
        self.ms += int(seconds * 1000)
        return self.p.tick(self.ns, self.ms)


def only(actions: list, kind: type) -> list:
    return [a for a in actions if isinstance(a, kind)]


def test_the_first_fill_asks_for_stop_and_target_at_once() -> None:
    b = Bench()
    actions = b.fill(b.open(), "0.4")
    assert [a.role for a in only(actions, SendGuard)] == [Role.STOP, Role.TARGET]
    assert only(actions, Opened)[0].position.qty == D("0.4")
    assert not only(b.fill("aegis-1-1-e", "0.6"), SendGuard), "closePosition guards cover what comes later"
    assert b.p.slots["BTCUSDT"].qty == 1


def test_a_fill_told_twice_counts_once() -> None:
    b = Bench()
    entry = b.open()
    fill = Fill("BTCUSDT", 5, entry, 7, Side.BUY, D(100), D(1), D(0), "USDT", D(0), False, 1)
    b.p.fill(fill, b.ns, b.ms)
    assert b.p.fill(fill, b.ns, b.ms) == [] and b.p.slots["BTCUSDT"].qty == 1


def test_an_entry_that_expires_unfilled_frees_the_slot_and_cools_the_symbol_down() -> None:
    b = Bench()
    actions = b.ended(b.open(), "0", OrderStatus.EXPIRED)
    assert only(actions, Died) and not b.p.slots
    assert b.p.consider(signal(), b.ms, lambda _: D(100)).reason == "cooling down"
    assert b.p.consider(signal(), b.ms + 60_000, lambda _: D(100)).what == "open"


def test_slots_in_flight_and_positions_of_others_count() -> None:
    b = Bench()
    b.open("BTCUSDT")
    b.open("ETHUSDT")
    b.p.seen(PositionUpdate("XRPUSDT", D(5), D(1), D(0), True, "BOTH", 0), b.ns, b.ms)
    assert b.p.consider(signal("SOLUSDT"), b.ms, lambda _: D(100)).what == "refuse"
    assert b.p.consider(signal("XRPUSDT"), b.ms, lambda _: D(100)).reason == "already held"
    with pytest.raises(AssertionError):
        b.p.open(approved("SOLUSDT"), b.ns, b.ms)


@pytest.mark.parametrize(
    ("confidence", "price", "what"),
    [(0.65, "101", "rotate"), (0.60, "101", "refuse"), (0.65, "100.05", "refuse"), (0.65, "99", "refuse"), (0.65, "0", "refuse")],
)
def test_only_a_better_signal_rotates_out_only_a_winner(confidence: float, price: str, what: str) -> None:
    b = Bench()
    for symbol, c in (("BTCUSDT", 0.9), ("ETHUSDT", 0.6), ("XRPUSDT", 0.8)):
        b.opened(symbol, c)
    verdict = b.p.consider(signal("SOLUSDT", confidence), b.ms, lambda _: D(price))
    assert verdict.what == what and (what != "rotate" or verdict.victim == "ETHUSDT")


def test_a_rotation_opens_the_newcomer_only_when_the_victim_is_gone() -> None:
    b = Bench(1)
    stop, target = b.opened()
    newcomer = signal("SOLUSDT", 0.9, received_ns=b.ns)
    exit_id = only(b.p.rotate("BTCUSDT", newcomer, b.ns), SendExit)[0].client_id
    assert b.p.take_waiting() is None
    actions = b.fill(exit_id, "1", "101", side=Side.SELL, realised="1")
    assert {a.client_id for a in only(actions, CancelGuard)} == {stop, target} and b.p.take_waiting() is None
    b.p.cancelled(stop, b.ms)
    closed = only(b.p.cancelled(target, b.ms), Closed)[0].trade
    assert closed.reason == "rotated" and closed.net == D("0.90")
    assert b.p.take_waiting() == newcomer and b.p.take_waiting() is None


def test_a_stop_that_fills_takes_its_sibling_away_before_the_slot_is_free() -> None:
    b = Bench()
    stop, target = b.opened()
    actions = b.fill(stop, "1", "98", side=Side.SELL, realised="-2")
    assert [a.client_id for a in only(actions, CancelGuard)] == [target]
    assert b.p.slots["BTCUSDT"].state is State.CLOSING
    trade = only(b.algo(target, OrderStatus.EXPIRED), Closed)[0].trade
    assert (trade.reason, trade.realised, trade.exit_price) == ("stop", D(-2), D(98)) and not b.p.slots


def test_a_stop_that_vanishes_is_replaced_at_once() -> None:
    b = Bench()
    stop, _ = b.opened()
    again = only(b.algo(stop, OrderStatus.EXPIRED), SendGuard)
    assert [a.role for a in again] == [Role.STOP] and again[0].client_id != stop


def test_a_stop_is_looked_up_and_absence_counts_when_seen_twice() -> None:
    b = Bench()
    stop, _ = b.opened()
    asks = only(b.later(10.1), Ask)
    assert stop in [a.client_id for a in asks]
    assert b.p.guards_seen(stop, None, (), b.ns, b.ms, asked_ns=b.ns) == []
    assert [a.role for a in only(b.p.guards_seen(stop, None, (), b.ns, b.ms, asked_ns=b.ns), SendGuard)] == [Role.STOP]


def test_a_position_without_a_stop_is_flattened_at_the_naked_limit() -> None:
    b = Bench()
    b.fill(b.open(), "1")
    assert not only(b.later(1.9), SendExit)
    exits = only(b.later(0.2), SendExit)
    assert [(e.qty, e.reason) for e in exits] == [(D(1), "naked")]


def test_without_contact_the_naked_time_does_not_run() -> None:
    b = Bench()
    b.fill(b.open(), "1")
    b.ns += 10 * SECOND
    assert b.p.tick(b.ns, b.ms, contact=False) == []
    assert not only(b.later(0.5), SendExit)


@pytest.mark.parametrize("code", [-2021, -4142])
def test_a_stop_that_would_trigger_at_once_means_leave(code: int) -> None:
    b = Bench()
    stop = only(b.fill(b.open(), "1"), SendGuard)[0].client_id
    assert only(b.p.rejected(stop, code, "would trigger", b.ns, b.ms), SendExit)


def test_a_duplicate_stop_means_protected_not_naked() -> None:
    b = Bench()
    stop = only(b.fill(b.open(), "1"), SendGuard)[0].client_id
    actions = b.p.rejected(stop, -4130, "exists", b.ns, b.ms)
    assert [a.client_id for a in only(actions, Ask)] == [stop]
    b.algo(stop, OrderStatus.NEW)
    assert b.p.slots["BTCUSDT"].protected


def test_an_entry_without_an_answer_is_asked_after_and_never_resent() -> None:
    b = Bench()
    entry = b.open()
    sent: list = []
    sent += b.p.unknown(entry, b.ns)
    for _ in range(30):
        for guard in only(sent, SendGuard):
            b.p.rejected(guard.client_id, -4509, "no position", b.ns, b.ms)
        sent += b.later(0.5)
        sent += b.p.absent(entry, b.ns, b.ms, position=D(0)) if entry in [o.client_id for s in b.p.slots.values() for o in s.orders()] else []
    assert not only(sent, SendEntry) and only(sent, Ask)
    assert only(sent, Died) and not b.p.slots


def test_an_entry_in_doubt_gets_its_stop_in_advance_and_loses_it_when_it_proves_dead() -> None:
    b = Bench()
    entry = b.open()
    stop = only(b.p.unknown(entry, b.ns), SendGuard)[0]
    assert stop.role is Role.STOP
    b.p.accepted(stop.client_id, b.ns)
    actions = b.ended(entry, "0", OrderStatus.EXPIRED)
    assert [a.client_id for a in only(actions, CancelGuard)] == [stop.client_id] and b.p.slots
    assert only(b.p.cancelled(stop.client_id, b.ms), Died) and not b.p.slots
    assert b.p.consider(signal(), b.ms, lambda _: D(100)).reason == "cooling down"


def test_a_stop_put_up_in_advance_serves_the_position_that_is_found() -> None:
    b = Bench()
    entry = b.open()
    stop = only(b.p.unknown(entry, b.ns), SendGuard)[0].client_id
    b.p.accepted(stop, b.ns)
    assert [a.role for a in only(b.fill(entry, "1"), SendGuard)] == [Role.TARGET]
    assert b.p.slots["BTCUSDT"].protected


def test_a_position_of_which_the_entry_knows_nothing_is_protected() -> None:
    """The order query lags, the position does not: absence is not believed, and nobody waits for the fills."""
    b = Bench()
    entry = b.open()
    b.p.unknown(entry, b.ns)
    b.ns += 20 * SECOND
    actions = b.p.absent(entry, b.ns, b.ms, position=D("0.4"))
    slot = b.p.slots["BTCUSDT"]
    assert slot.state is State.OPEN and slot.at_stake == D("0.4") and slot.qty == 0
    assert {a.role for a in only(actions, SendGuard)} <= {Role.STOP, Role.TARGET} and slot.stop is not None
    for _ in range(5):
        b.ns += 5 * SECOND
        b.p.absent(entry, b.ns, b.ms, position=D("0.4"))
    assert b.p.slots["BTCUSDT"] is slot and slot.state is State.OPEN
    assert only(b.fill(entry, "0.4"), Opened) and slot.at_stake == slot.qty == D("0.4")


@pytest.mark.parametrize("word", ["answer", "account"])
def test_protection_does_not_wait_for_the_fill_when_the_venue_says_that_it_executed(word: str) -> None:
    b = Bench()
    entry = b.open()
    if word == "answer":
        actions = b.ended(entry, "1")
    else:
        actions = b.p.seen(PositionUpdate("BTCUSDT", D(1), D(100), D(0), True, "BOTH", 0), b.ns, b.ms)
    assert [a.role for a in only(actions, SendGuard)] == [Role.STOP, Role.TARGET]
    assert [a.client_id for a in only(b.later(1.1), Ask) if a.role in (Role.ENTRY, Role.EXIT)][:1] in ([entry], [""])
    assert only(b.fill(entry, "1"), Opened) and not only(b.ended(entry, "1"), SendGuard)
    assert b.p.slots["BTCUSDT"].entry.word is Word.GONE


def test_an_entry_that_executed_and_whose_fills_do_not_come_is_left_at_the_naked_limit_for_what_it_executed() -> None:
    b = Bench()
    b.ended(b.open(), "0.7")
    assert [a.qty for a in only(b.later(2.1), SendExit)] == [D("0.7")]


def test_questions_do_not_follow_each_other_at_once_while_fills_are_missing() -> None:
    b = Bench()
    entry = b.open()
    asks = [a for _ in range(20) for a in [*b.ended(entry, "1"), *b.later(0.05)] if isinstance(a, Ask) and a.role is Role.ENTRY]
    assert len(asks) <= 2


def test_fills_of_the_position_before_are_not_counted_again() -> None:
    """A question brings the trades of the last minute along, those of an earlier slot of the symbol too."""
    b = Bench()
    stop, target = b.opened()
    b.fill(stop, "1", "98", side=Side.SELL)
    b.algo(target, OrderStatus.EXPIRED)
    entry = b.open()
    for old in (1, 2):
        assert b.p.fill(Fill("BTCUSDT", old, entry, 7, Side.BUY, D(100), D(1), D(0), "USDT", D(0), False, 1), b.ns, b.ms) == []
    assert b.p.slots["BTCUSDT"].qty == 0
    b.fill(entry, "1")
    assert b.p.slots["BTCUSDT"].qty == 1


def test_what_others_trade_on_the_symbol_while_our_entry_is_on_its_way_is_not_ours() -> None:
    b = Bench()
    entry = b.open()
    b.fill("web_x", "3")
    assert b.p.slots["BTCUSDT"].state is State.OPENING
    b.p.seen(PositionUpdate("BTCUSDT", D(3), D(100), D(0), True, "BOTH", 0), b.ns, b.ms)
    for guard in only(b.ended(entry, "0", OrderStatus.EXPIRED), CancelGuard):
        b.p.cancelled(guard.client_id, b.ms)
    assert not b.p.slots and b.p.foreign == {"BTCUSDT": D(3)}


def test_a_guard_without_an_answer_is_sent_again_with_the_same_id() -> None:
    b = Bench()
    entry = b.open()
    stop = only(b.fill(entry, "1"), SendGuard)[0].client_id
    b.ended(entry, "1")
    b.p.unknown(stop, b.ns)
    again = [a for a in only(b.later(0.5), SendGuard) if a.role is Role.STOP]
    assert [(a.client_id, a.again) for a in again] == [(stop, True)]
    b.p.rejected(stop, -4116, "duplicate", b.ns, b.ms)
    assert b.p.slots["BTCUSDT"].protected
    b.p.unknown(stop, b.ns)
    b.p.rejected(stop, -1000, "the second of two", b.ns, b.ms)
    assert b.p.slots["BTCUSDT"].protected, "the first one stands"


def test_that_a_stop_was_not_there_before_it_was_sent_again_says_nothing() -> None:
    """A second stop would be refused, and what stands would be another than the slot knows."""
    b = Bench()
    entry = b.open()
    stop = only(b.fill(entry, "1"), SendGuard)[0].client_id
    b.ended(entry, "1")
    b.p.unknown(stop, b.ns)
    asked_ns = b.ns
    assert not b.p.guards_seen(stop, None, (), b.ns, b.ms, asked_ns=asked_ns)
    assert [a.client_id for a in only(b.later(0.5), SendGuard) if a.role is Role.STOP] == [stop]
    for _ in range(3):
        assert not b.p.guards_seen(stop, None, (), b.ns, b.ms, asked_ns=asked_ns), "asked before it was sent again"
    b.ns += 1
    assert not b.p.guards_seen(stop, None, (), b.ns, b.ms, asked_ns=b.ns), "once after it: queries lag"
    assert [a.role for a in only(b.p.guards_seen(stop, None, (), b.ns, b.ms, asked_ns=b.ns), SendGuard)] == [Role.STOP]


def test_another_guard_that_stood_before_ours_was_sent_again_is_not_taken_for_it() -> None:
    b = Bench()
    entry = b.open()
    stop = only(b.fill(entry, "1"), SendGuard)[0].client_id
    b.ended(entry, "1")
    b.p.unknown(stop, b.ns)
    asked_ns = b.ns
    b.later(0.5)
    theirs = AlgoUpdate("BTCUSDT", "web_1", 3, Side.SELL, "STOP_MARKET", OrderStatus.NEW, D(90), True, b.ms)
    assert not b.p.guards_seen(stop, None, (theirs,), b.ns, b.ms, asked_ns=asked_ns) and not b.p.slots["BTCUSDT"].protected
    ours = replace(theirs, client_id=stop)
    b.p.guards_seen(stop, None, (theirs, ours), b.ns, b.ms, asked_ns=asked_ns)
    assert b.p.slots["BTCUSDT"].protected, "but where it stood it stands"


def test_somebody_elses_stop_protects_and_is_never_touched() -> None:
    b = Bench()
    entry = b.open()
    stop, target = (a.client_id for a in only(b.fill(entry, "1"), SendGuard))
    b.ended(entry, "1")
    b.p.accepted(target, b.ns)
    b.p.rejected(stop, -4130, "exists", b.ns, b.ms)
    assert not only(b.later(3), SendExit) and b.p.slots["BTCUSDT"].protected
    theirs = AlgoUpdate("BTCUSDT", "web_1", 3, Side.SELL, "STOP_MARKET", OrderStatus.NEW, D(90), True, b.ms)
    b.p.guards_seen(stop, None, (theirs,), b.ns, b.ms, asked_ns=b.ns)
    assert b.p.slots["BTCUSDT"].protected and not only(b.later(5), SendExit)
    left = b.fill("web_2", "1", side=Side.SELL)
    assert [a.client_id for a in only(left, CancelGuard)] == [target]
    assert only(b.p.cancelled(target, b.ms), Closed)


def test_somebody_elses_stop_that_goes_is_replaced_by_ours() -> None:
    b = Bench()
    stop, _ = b.opened()
    b.algo(stop, OrderStatus.CANCELED)
    second = b.p.slots["BTCUSDT"].stop
    assert second is not None
    b.p.rejected(second.client_id, -4130, "exists", b.ns, b.ms)
    theirs = AlgoUpdate("BTCUSDT", "web_1", 3, Side.SELL, "STOP_MARKET", OrderStatus.NEW, D(90), True, b.ms)
    b.p.guards_seen(second.client_id, None, (theirs,), b.ns, b.ms, asked_ns=b.ns)
    assert [a.role for a in only(b.algo("web_1", OrderStatus.CANCELED), SendGuard)] == [Role.STOP]


def test_a_guard_that_triggers_and_does_not_execute_is_helped() -> None:
    b = Bench()
    stop, _ = b.opened()
    b.algo(stop, OrderStatus.TRIGGERING)
    assert not only(b.later(1.9), SendExit)
    assert [a.reason for a in only(b.later(0.2), SendExit)] == ["stop triggered and did not execute"]


def test_the_next_piece_of_a_large_exit_follows_at_once() -> None:
    b = Bench()
    b.opened()
    exit_id = only(b.p.leave("BTCUSDT", "time limit", b.ns), SendExit)[0].client_id
    b.fill(exit_id, "0.4", side=Side.SELL)
    assert [a.qty for a in only(b.ended(exit_id, "0.4"), SendExit)] == [D("0.6")]


def test_a_slot_is_not_free_while_its_exit_may_still_be_on_its_way() -> None:
    """It would close the next position of the symbol."""
    b = Bench()
    stop, target = b.opened()
    exit_id = only(b.p.leave("BTCUSDT", "time limit", b.ns), SendExit)[0].client_id
    b.p.unknown(exit_id, b.ns)
    b.fill(stop, "1", "98", side=Side.SELL)
    b.p.cancelled(target, b.ms)
    assert b.p.slots["BTCUSDT"].state is State.CLOSING
    assert only(b.p.rejected(exit_id, -2022, "nothing to reduce", b.ns, b.ms), Closed)


def test_an_entry_that_was_given_up_and_executed_after_all_comes_back() -> None:
    b = Bench()
    entry = b.open()
    b.p.absent(entry, b.ns, b.ms, position=D(0))
    b.ns += 11 * SECOND
    assert only(b.p.absent(entry, b.ns, b.ms, position=D(0)), Died)
    b.p.seen(PositionUpdate("BTCUSDT", D(1), D(100), D(0), True, "BOTH", 0), b.ns, b.ms)
    assert b.p.foreign
    actions = b.fill(entry, "1")
    assert [a.role for a in only(actions, SendGuard)] == [Role.STOP, Role.TARGET] and only(actions, Opened)
    assert b.p.slots["BTCUSDT"].state is State.OPEN and not b.p.foreign


def test_what_is_cancelled_is_cancelled_until_it_is_gone() -> None:
    b = Bench()
    stop, target = b.opened()
    b.fill(stop, "1", "98", side=Side.SELL)
    assert [a.client_id for a in only(b.later(1.6), CancelGuard)] == [target]
    assert [a.client_id for a in only(b.p.not_cancelled(target, b.ns), Ask)] == [target]
    assert only(b.p.guards_seen(target, None, (), b.ns, b.ms, asked_ns=b.ns), Closed)


def test_what_is_left_of_a_symbol_when_its_slot_goes_is_somebody_elses() -> None:
    b = Bench()
    stop, target = b.opened()
    b.p.seen(PositionUpdate("BTCUSDT", D(-2), D(98), D(0), True, "BOTH", 0), b.ns, b.ms)
    b.fill("web_1", "3", "98", side=Side.SELL)
    b.p.cancelled(stop, b.ms)
    actions = b.p.cancelled(target, b.ms)
    assert only(actions, Closed) and only(actions, Ask) and b.p.foreign == {"BTCUSDT": D(-2)}
    b.p.corrected("BTCUSDT", D(0), b.ns, b.ms)
    assert not b.p.foreign


def test_a_restart_forgets_no_cancel() -> None:
    b = Bench()
    stop, target = b.opened()
    b.fill(stop, "1", "98", side=Side.SELL)
    slot = recall(remember(b.p.slots["BTCUSDT"]), b.ns)
    b.p.slots["BTCUSDT"] = slot
    b.algo(target, OrderStatus.NEW)
    assert [a.client_id for a in only(b.later(0.1), CancelGuard)] == [target]


def test_the_time_limit_closes() -> None:
    b = Bench()
    b.opened()
    b.ms = 10_000_000
    assert only(b.later(0), SendExit)[0].reason == "time limit"


def test_an_exit_refused_for_want_of_a_position_is_not_hammered() -> None:
    b = Bench()
    b.opened()
    exit_id = only(b.p.leave("BTCUSDT", "time limit", b.ns), SendExit)[0].client_id
    assert only(b.p.rejected(exit_id, -2022, "no position", b.ns, b.ms), Ask)
    assert not only(b.later(0.3), SendExit) and only(b.later(1.5), SendExit)


def test_a_late_entry_fill_while_closing_is_closed_too() -> None:
    b = Bench()
    entry = b.open()
    b.fill(entry, "0.5")
    exit_id = only(b.p.leave("BTCUSDT", "stop asked", b.ns), SendExit)[0].client_id
    b.fill(entry, "0.5")
    b.fill(exit_id, "0.5", side=Side.SELL)
    b.ns += 2 * SECOND
    actions = b.ended(exit_id, "0.5")
    assert [a.qty for a in only(actions, SendExit)] == [D("0.5")]


def test_what_the_venue_says_twice_corrects_a_slot() -> None:
    b = Bench()
    b.opened()
    b.p.seen(PositionUpdate("BTCUSDT", D(0), D(0), D(0), True, "BOTH", 0), b.ns, b.ms)
    assert [a.client_id for a in only(b.later(2.1), Ask) if not a.client_id] == [""]
    assert b.p.corrected("BTCUSDT", D(0), b.ns, b.ms) == []
    b.ns += 3 * SECOND
    guards = only(b.p.corrected("BTCUSDT", D(0), b.ns, b.ms), CancelGuard)
    assert b.p.slots["BTCUSDT"].qty == 0 and len(guards) == 2
    closed = [a for g in guards for a in only(b.p.cancelled(g.client_id, b.ms), Closed)]
    assert closed[0].trade.reason == "closed from outside"


def test_a_slot_survives_the_journal() -> None:
    b = Bench()
    b.opened()
    slot = b.p.slots["BTCUSDT"]
    again = recall(remember(slot), 5)
    assert remember(again) | {"stop": 0, "target": 0} == remember(slot) | {"stop": 0, "target": 0}
    assert again.stop is not None and again.stop.word is Word.UNKNOWN and again.qty == slot.qty


def test_a_symbol_cannot_be_opened_twice() -> None:
    b = Bench()
    b.opened()
    with pytest.raises(AssertionError):
        b.p.open(approved("BTCUSDT"), b.ns, b.ms)


def test_what_an_entry_may_still_fill_counts_until_it_has_ended() -> None:
    b = Bench()
    entry = b.open()
    whole = b.p.slots["BTCUSDT"].entry.qty
    assert b.p.slots["BTCUSDT"].at_most == whole
    b.fill(entry, "0.4")
    assert b.p.slots["BTCUSDT"].state is State.OPEN and b.p.slots["BTCUSDT"].at_most == whole
    b.ended(entry, "0.4", OrderStatus.EXPIRED)
    assert b.p.slots["BTCUSDT"].at_most == D("0.4")
