"""Starting is recovering: the journal, then the venue's positions and orders, then stops verified or placed. There is no clean start.

The same work is done after every reconnect of the user stream, since the stream replays nothing. Invariants: nothing opens until it has
passed; orders that do not bear our prefix are never touched; what is acted on was seen on the venue, not assumed from the journal.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

from src.clock import Clock, monotonic_ns
from src.error_handler import AegisError, Retryable, info, lifecycle, warn
from src.gateway import Gateway
from src.journal import Journal
from src.models import ZERO, Account, AlgoUpdate, PositionUpdate, Role
from src.portfolio import Portfolio
from src.slots import Ask, CancelGuard, Slot, recall
from src.trade import Trade
from src.venue import queries
from src.venue.orders import ours

ORPHAN_S = 3.0
TRIES = 5


async def recover(trade: Trade, journal: Journal, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> None:
    """At boot: adopt the journal's slots, then compare with the venue. Raises what the venue's refusal maps to."""
    slots = {symbol: recall(body, monotonic_ns()) for symbol, body in journal.slots().items()}
    for slot in slots.values():
        portfolio.slots[slot.symbol] = slot
        info(f"journal: {slot.symbol} {slot.state}", qty=slot.qty)
    await reconcile(trade, portfolio, gateway, clock)
    if slots:
        left = ", ".join(f"{s.symbol} {s.qty * s.side.sign}" for s in portfolio.slots.values() if s.qty > 0) or "none"
        lifecycle(f"♻️ Recovered {len(slots)} slots from the journal; still open: {left}")


async def reconcile(trade: Trade, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> None:
    """Positions, orders and stops of the venue against ours; then opening is allowed again. One at a time."""
    trade.holds["reconcile"] = "reconciling with the venue"
    async with trade.reconciling:
        await _reconcile(trade, portfolio, gateway, clock)
    trade.holds.pop("reconcile", None)
    trade.holds.pop("start", None)


async def _reconcile(trade: Trade, portfolio: Portfolio, gateway: Gateway, clock: Clock) -> None:
    account, guards = await _snapshot(gateway)
    trade.account = replace(account, as_of_ms=account.as_of_ms or clock.market_ms())
    amounts = {p.symbol: p.amount for p in account.positions if p.amount != 0}
    for slot in list(portfolio.slots.values()):
        await _reconcile_slot(trade, portfolio, gateway, slot, amounts.get(slot.symbol, ZERO), guards)
    _count_foreign(trade, portfolio, account.positions, clock)
    await _cancel_orphans(trade, portfolio, gateway, guards)
    trade.run(portfolio.tick(monotonic_ns(), clock.market_ms(), contact=gateway.contact(monotonic_ns())))


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


async def _reconcile_slot(trade: Trade, portfolio: Portfolio, gateway: Gateway, slot: Slot, amount: Decimal,
                          guards: list[AlgoUpdate]) -> None:  # fmt: skip
    """Its fills and its entry first, then its guards: a guard that stands is live, one that does not is asked for and replaced."""
    entry = Ask(slot.symbol, slot.entry.client_id, Role.ENTRY, slot.made_ms)
    trade.learn(entry, await gateway.ask(entry))
    standing = {g.client_id: g for g in guards}
    for role, order in ((Role.STOP, slot.stop), (Role.TARGET, slot.target)):
        if order is None or slot.symbol not in portfolio.slots:
            continue
        if order.client_id in standing:
            trade.on_event(standing[order.client_id])
            continue
        ask = Ask(slot.symbol, order.client_id, role, slot.made_ms)
        trade.learn(ask, await gateway.ask(ask))
    now = portfolio.slots.get(slot.symbol)
    if now is not None and now.qty * now.side.sign != amount:
        now.missing_ns = now.missing_ns or monotonic_ns()


def _count_foreign(trade: Trade, portfolio: Portfolio, positions: tuple[PositionUpdate, ...], clock: Clock) -> None:
    """Positions that are not ours take slots and are left alone."""
    listed = {p.symbol for p in positions}
    for symbol in [s for s in portfolio.foreign if s not in listed]:
        del portfolio.foreign[symbol]
    for position in positions:
        known = position.symbol in portfolio.slots or position.symbol in portfolio.foreign
        trade.run(portfolio.seen(position, monotonic_ns(), clock.market_ms()))
        if position.amount != 0 and not known:
            warn(f"{position.symbol} {position.amount} was not opened by this daemon: it takes a slot and is left alone")


async def _cancel_orphans(trade: Trade, portfolio: Portfolio, gateway: Gateway, guards: list[AlgoUpdate]) -> None:
    """Guards of ours that belong to no slot, seen twice: cancelled, since they could only surprise."""
    mine = {o.client_id for s in portfolio.slots.values() for o in s.orders()}
    orphans = {g.client_id: g for g in guards if ours(g.client_id) and g.client_id not in mine}
    if not orphans:
        return
    await asyncio.sleep(ORPHAN_S)
    try:
        again = {g.client_id for g in await queries.open_algo_orders(gateway.rest)}
    except AegisError as error:
        warn(f"orphaned orders were not looked up again: {error}")
        return
    held = set(portfolio.slots) | set(portfolio.foreign)
    for client_id, guard in orphans.items():
        if client_id in again and guard.symbol not in held:
            warn(f"cancelling {client_id} on {guard.symbol}: it protects nothing")
            trade.run([CancelGuard(guard.symbol, client_id)])
