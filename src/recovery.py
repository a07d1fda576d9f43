"""Starting is recovering: the journal, then the venue's positions and orders, then stops verified or placed. There is no clean start.

The same work is done after every reconnect of the user stream, since the stream replays nothing. Invariants: nothing opens from the moment
it is asked for until it has passed; protection is the first write, before fills are fetched; orders that do not bear our prefix are never
touched; what is acted on was seen on the venue, not assumed from the journal; no limit is judged before the statement has said what was
deposited and withdrawn meanwhile. A position that our entry opened and that has no slot (power was lost, or the journal) is taken over, with
the stop of its intent or, where nothing is known, one at ``EMERGENCY_DISTANCE``.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from src.clock import Clock, monotonic_ns
from src.error_handler import AegisError, Fatal, Halt, Retryable, info, lifecycle, warn
from src.gateway import Gateway
from src.journal import Journal, Reader
from src.models import ZERO, Account, AlgoUpdate, Fill, PositionUpdate, Role, Side, SymbolRules
from src.portfolio import KINDS, Portfolio
from src.slots import GUARDS, Ask, CancelGuard, Order, Slot, State, Word, recall
from src.trade import Trade
from src.transfers import AHEAD_MS
from src.transfers import KIND as TRANSFER
from src.venue import queries
from src.venue.orders import ours, parse, round_tick

ORPHAN_S = 3.0
TRIES = 5
AGAIN_S = 5.0
EMERGENCY_DISTANCE = Decimal("0.02")
"""From the entry price: where the stop (and, on the other side, the target) of a position goes whose plan is lost."""
EMERGENCY_LIMIT_MS = 24 * 3600 * 1000
"""Such a position is closed after this time at the latest."""


async def recover(trade: Trade, journal: Journal, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> None:
    """At boot: adopt the journal's slots, then compare with the venue. Raises what the venue's refusal maps to, where it does not even say
    what is held."""
    slots = {symbol: recall(body, monotonic_ns()) for symbol, body in journal.slots().items()}
    portfolio.last_trade |= dict(Reader(journal.path.parent).rows("SELECT symbol, max(trade_id) FROM fills GROUP BY symbol"))
    for slot in slots.values():
        portfolio.slots[slot.symbol] = slot
        info(f"journal: {slot.symbol} {slot.state}", qty=slot.qty)
    trade.on_doubt = lambda: trade.spawn(reconcile(trade, portfolio, gateway, clock))
    trade.hold_for_reconciliation()
    async with trade.reconciling:
        try:
            await _reconcile(trade, portfolio, gateway, clock)
            await _read_statement(trade, gateway, clock)
            trade.reconciled()
        except (Fatal, Halt):
            raise
        except AegisError as error:
            if not trade.view.known:
                raise
            warn(f"nothing opens until the venue has said everything: {error}")  # what is held is protected, and can be managed without it
            trade.spawn(_until_passed(trade, portfolio, gateway, clock))
    trade.tick()  # the limits begin with what was found, before anything can move it
    if slots:
        left = ", ".join(f"{s.symbol} {s.qty * s.side.sign}" for s in portfolio.slots.values() if s.qty > 0) or "none"
        lifecycle(f"♻️ Recovered {len(slots)} slots from the journal; still open: {left}")


def reconcile(trade: Trade, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> Coroutine[Any, Any, None]:
    """Positions, orders and stops of the venue against ours; then opening is allowed again. Nothing opens from this call on, not only from
    the first step of what it returns. Tried again until it passes; of several that wait only the last is done."""
    trade.hold_for_reconciliation()
    return _until_passed(trade, portfolio, gateway, clock)


async def _until_passed(trade: Trade, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> None:
    while True:
        try:
            return await _pass(trade, portfolio, gateway, clock)
        except (Fatal, Halt):
            raise
        except AegisError as error:
            warn(f"not reconciled, tried again: {error}")
            await asyncio.sleep(max(AGAIN_S, float(error.fields.get("retry_after_s") or 0.0)))


async def _pass(trade: Trade, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> None:
    async with trade.reconciling:
        if trade.reconciliations_wanted == 1:
            await _reconcile(trade, portfolio, gateway, clock)
            await _read_statement(trade, gateway, clock)
        trade.reconciled()


async def _reconcile(trade: Trade, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> None:
    asked_ns = monotonic_ns()
    account, guards = await _snapshot(gateway)
    strays = [g for g in guards if g.client_id not in {o.client_id for s in portfolio.slots.values() for o in s.orders()}]
    await _learn_rules(gateway, {*portfolio.slots, *[p.symbol for p in account.positions]})
    trade.view.read(account, asked_ns, clock.market_ms())
    account = trade.account
    _protect(trade, portfolio, account, guards, clock, asked_ns=asked_ns)
    standing = {g.client_id for g in guards}
    failed = [error for slot in list(portfolio.slots.values()) if (error := await _catch_up(trade, portfolio, gateway, slot, standing))]
    unclear = {p.symbol for p in account.positions
               if p.symbol not in portfolio.slots and not await _judge(trade, portfolio, gateway, p, guards, clock)}  # fmt: skip
    await _cancel_orphans(trade, portfolio, gateway, [g for g in strays if g.symbol not in unclear])
    trade.run(portfolio.tick(monotonic_ns(), clock.market_ms(), contact=gateway.contact(monotonic_ns())))
    if failed:
        raise failed[0]


async def _read_statement(trade: Trade, gateway: Gateway, clock: Clock) -> None:
    """What was deposited and withdrawn while nobody told it, and the wallet that has it: the same before and after, else one of the two may
    know of more than the other."""
    for _ in range(TRIES):
        asked_ns, now_ms = monotonic_ns(), gateway.rest.timestamp()
        account = await queries.account(gateway.rest)
        rows = await queries.income(gateway.rest, trade.limits.transfers.from_ms(now_ms), now_ms + AHEAD_MS, kind=TRANSFER)
        if (await queries.account(gateway.rest)).wallet == account.wallet:
            trade.view.read(account, asked_ns, clock.market_ms())
            return trade.stated(rows, now_ms)
    raise Retryable("the wallet moves whenever it is read")


async def _snapshot(gateway: Gateway) -> tuple[Account, list[AlgoUpdate]]:
    for attempt in range(TRIES):
        try:
            return await queries.account(gateway.rest), await queries.open_algo_orders(gateway.rest)
        except Retryable as error:
            if attempt == TRIES - 1:
                raise
            warn(f"the venue does not answer yet: {error}")
            await asyncio.sleep(0.5 * 2**attempt)
    raise AssertionError("the last try returns or raises")


async def _learn_rules(gateway: Gateway, symbols: set[str]) -> None:
    """Of what is held, but is not of this run any more."""
    unknown = [s for s in symbols if gateway.rules_of(s) is None]
    if unknown:
        rules, _ = await queries.symbol_rules(gateway.rest)
        gateway.learn_rules({s: rules[s] for s in unknown if s in rules})


def _protect(trade: Trade, portfolio: Portfolio, account: Account, guards: Sequence[AlgoUpdate], clock: Clock, *,
             asked_ns: int) -> None:  # fmt: skip
    """The first write: what is held and has no stop among those that stand gets one (a second beside one that does is refused)."""
    held = {p.symbol: p for p in account.positions}
    flat = [PositionUpdate(s, ZERO, ZERO, ZERO, True, "BOTH", account.as_of_ms) for s in {*portfolio.slots, *portfolio.foreign} - set(held)]
    for position in (*account.positions, *flat):
        trade.run(portfolio.seen(position, monotonic_ns(), clock.market_ms()))
    for slot in list(portfolio.slots.values()):
        standing = [g for g in guards if g.symbol == slot.symbol]
        for role in GUARDS if slot.symbol in held else ():
            for _ in range(2):  # seen twice as gone: it is put up again at once
                order = slot.guard(role)
                if order is not None and order.word is Word.UNKNOWN:
                    trade.run(portfolio.guards_seen(order.client_id, None, standing, monotonic_ns(), clock.market_ms(), asked_ns=asked_ns))
    trade.run(portfolio.tick(monotonic_ns(), clock.market_ms()))


async def _catch_up(trade: Trade, portfolio: Portfolio, gateway: Gateway, slot: Slot, standing: set[str]) -> AegisError | None:
    """Its entry and its fills, then what became of guards that do not stand. The error, where the venue does not say."""
    sure = True
    try:
        for role in (Role.ENTRY, *GUARDS):
            order = slot.entry if role is Role.ENTRY else slot.guard(role)
            if slot.symbol in portfolio.slots and order is not None and (role is Role.ENTRY or _in_question(order, standing)):
                ask = Ask(slot.symbol, order.client_id, role, slot.made_ms, min(slot.trades, default=0))
                asked_ns = monotonic_ns()
                answer = await gateway.ask(ask)
                trade.learn(ask, answer, asked_ns)
                sure = sure and answer.sure
    except (Fatal, Halt):
        raise
    except AegisError as error:
        return error
    return None if sure else Retryable(f"the venue did not say everything about {slot.symbol}")


def _in_question(guard: Order, standing: set[str]) -> bool:
    return guard.word is Word.UNKNOWN or (guard.word is Word.LIVE and guard.client_id not in standing)


# what has no slot


async def _judge(trade: Trade, portfolio: Portfolio, gateway: Gateway, position: PositionUpdate, guards: Sequence[AlgoUpdate],
                 clock: Clock) -> bool:  # fmt: skip
    """A position without a slot: ours where our entry opened it, else somebody else's, which takes a slot and is left alone. False where
    the venue's trades do not say who opened it: then a guard of ours that stands may be all that protects it."""
    symbol = position.symbol
    orders, fills = await gateway.history(symbol)
    names = {o.order_id: o.client_id for o in orders}
    named = [replace(f, client_id=names.get(f.order_id, "")) for f in opening_of(position.amount, fills)]
    opener = parse(named[0].client_id) if named else None
    rules = gateway.rules_of(symbol)
    ours_here = opener is not None and opener[2] is Role.ENTRY and opener[0] <= trade.epoch_ms
    if symbol in portfolio.slots or symbol not in portfolio.foreign:
        return True  # it moved meanwhile
    if not ours_here or rules is None:
        if opener is not None and opener[0] > trade.epoch_ms:
            trade.newer_copy(named[0].client_id)
        who = "was not opened by this daemon" if named else "was opened by somebody whom the venue's trades do not tell"
        warn(f"{symbol} {position.amount} {who}: it takes a slot and is left alone")
        return bool(named)
    slot = _slot_of(position, named, guards, rules, _plan(trade, named[0].client_id), clock)
    for fill in named:
        trade.on_fill(fill)
    lifecycle(f"♻️ {symbol} {position.amount} is ours by its orders and had no slot: taken over", entry=named[0].client_id,
              stop=slot.stop_price, target=slot.target_price)  # fmt: skip
    trade.run(portfolio.adopt(slot, monotonic_ns()))
    return True


def opening_of(amount: Decimal, fills: Sequence[Fill]) -> list[Fill]:
    """The fills since the symbol was flat, oldest first, which make up ``amount``; none where they do not reach that far."""
    left = amount
    for i in range(len(fills) - 1, -1, -1):
        left -= fills[i].qty * fills[i].side.sign
        if left == 0:
            return list(fills[i:])
    return []


def _plan(trade: Trade, client_id: str) -> dict[str, Any]:
    """What the entry's intent says, where the journal still has it."""
    try:
        rows = Reader(trade.journal.path.parent).rows("SELECT body FROM intents WHERE client_id=?", (client_id,))
    except sqlite3.Error as error:
        warn(f"the intent of {client_id} cannot be read: {error}")
        return {}
    return dict(json.loads(rows[0][0])) if rows else {}


def _slot_of(position: PositionUpdate, fills: Sequence[Fill], guards: Sequence[AlgoUpdate], rules: SymbolRules, plan: dict[str, Any],
             clock: Clock) -> Slot:  # fmt: skip
    """From the fills; prices from our guards that stand, else from the plan, else at the emergency distance."""
    side, now_ns = (Side.BUY if position.amount > 0 else Side.SELL), monotonic_ns()
    entry = Order(fills[0].client_id, Word.UNKNOWN, now_ns, fills[0].price, abs(position.amount))
    slot = Slot(position.symbol, side, State.EMPTY, ZERO, ZERO, int(plan.get("limit_ms") or clock.market_ms() + EMERGENCY_LIMIT_MS),
                float(plan.get("confidence") or 0.0), str(plan.get("source") or "adopted"), fills[0].time_ms, entry,
                floor=fills[0].trade_id - 1)  # fmt: skip
    for fill in fills:
        slot.count(fill)
    away = slot.entry_price * EMERGENCY_DISTANCE * side.sign
    prices = {Role.STOP: Decimal(plan.get("stop") or round_tick(rules, slot.entry_price - away, up=side is Side.SELL)),
              Role.TARGET: Decimal(plan.get("target") or round_tick(rules, slot.entry_price + away, up=side is Side.BUY))}  # fmt: skip
    for role, price in prices.items():
        stands = next((g for g in guards if g.symbol == slot.symbol and ours(g.client_id) and g.close_position
                       and (g.order_type, g.side) == (KINDS[role], side.opposite)), None)  # fmt: skip
        order = None if stands is None else Order(stands.client_id, Word.LIVE, now_ns, stands.trigger_price)
        if role is Role.STOP:
            slot.stop, slot.stop_price = order, order.price if order else price
        else:
            slot.target, slot.target_price = order, order.price if order else price
    return slot


async def _cancel_orphans(trade: Trade, portfolio: Portfolio, gateway: Gateway, strays: Sequence[AlgoUpdate]) -> None:
    """Guards of ours, not of a newer copy, that belonged to no slot, seen twice: cancelled, since they could only surprise."""
    orphans = {g.client_id: g for g in strays if g.symbol not in portfolio.slots
               and (made := parse(g.client_id)) is not None and made[0] <= trade.epoch_ms}  # fmt: skip
    if not orphans:
        return
    await asyncio.sleep(ORPHAN_S)
    again = {g.client_id for g in await queries.open_algo_orders(gateway.rest)}
    for client_id, guard in orphans.items():
        if client_id in again and guard.symbol not in portfolio.slots:
            warn(f"cancelling {client_id} on {guard.symbol}: it protects nothing of ours")
            trade.run([CancelGuard(guard.symbol, client_id)])
