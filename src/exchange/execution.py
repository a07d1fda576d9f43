"""What happens to orders and positions once a price is agreed: fills, endings, and what they drag along.

Invariants: a fill books first, then speaks (TRADE_LITE, ACCOUNT_UPDATE, ORDER_TRADE_UPDATE); a reduce-only order never turns a position
around; resting reduce-only orders never add up to more than the position; a GTE_GTC algo order does not outlive the position it closes.
"""

from __future__ import annotations

from decimal import Decimal

from src.exchange import events
from src.exchange.ledger import AccountState, Position, book_fill
from src.exchange.orders import ZERO, AlgoEvent, AlgoOrder, Fill, Order, OrderEvent, PositionSide, Side, algo_step, step
from src.exchange.state import State


def closing_side(position: Position) -> Side:
    """The side of an order that would reduce this position."""
    return Side.SELL if position.qty > 0 else Side.BUY


def closable(account: AccountState, symbol: int, position_side: PositionSide, side: Side) -> Decimal:
    """How much of a position an order of that side could close; 0 when it would add."""
    held = account.held(symbol, position_side)
    return abs(held) if held * side.sign < 0 else ZERO


class Execution:
    """Books fills and ends orders on a :class:`State`."""

    def __init__(self, state: State) -> None:
        self._state = state

    # ------------------------------------------------------------------ fills

    def fill(self, order: Order, *, price: Decimal, qty: Decimal, maker: bool) -> None:
        """Book one trade of ours and everything that follows from it."""
        state = self._state
        account = state.accounts[order.account]
        if order.reducing:
            qty = min(qty, closable(account, order.symbol, order.position_side, order.side))
            if not qty:
                return
        assert ZERO < qty <= order.remaining, (qty, order.remaining)
        position = account.position(order.symbol, order.position_side)
        before = position.qty
        rate = state.options.maker_fee if maker else state.options.taker_fee
        booked = book_fill(account, position, order.side, price=price, qty=qty, fee_rate=rate)
        position.updated_ms = state.now_ms
        state.touch(account)
        fill = Fill(id=state.ids.next("trade"), order_id=order.id, account=account.index, symbol=order.symbol, side=order.side,
                    position_side=order.position_side, price=price, qty=qty, realised=booked.realised, commission=booked.commission,
                    maker=maker, time_ms=state.now_ms)  # fmt: skip
        state.keep_fill(fill)
        if booked.realised:
            state.keep_income(account.index, "REALIZED_PNL", booked.realised, symbol=order.symbol, trade_id=str(fill.id))
        if booked.commission:
            state.keep_income(account.index, "COMMISSION", -booked.commission, symbol=order.symbol, trade_id=str(fill.id))
        order.executed += qty
        order.quote += price * qty
        order.updated_ms = state.now_ms
        step(order, OrderEvent.FILL_PART if order.remaining else OrderEvent.FILL_ALL)
        state.keep_order(order)
        state.say(account.index, events.trade_lite(state, order, fill))
        state.say(account.index, events.account_update(state, account, "ORDER", [position]))
        state.say(account.index, events.order_trade_update(state, order, "TRADE", fill))
        if not order.open:
            self.finish_algo(order)
        if booked.closed:
            self._after_reduction(account, position, before, order)

    def _after_reduction(self, account: AccountState, position: Position, before: Decimal, cause: Order) -> None:
        if cause.open and cause.reducing and not closable(account, position.symbol, position.side, cause.side):
            self.expire(cause, 4)
        self._trim_reduce_only(account, position, cause)
        if position.qty * before <= 0:
            self.expire_protection(account, position.symbol, position.side)

    def _trim_reduce_only(self, account: AccountState, position: Position, cause: Order) -> None:
        """Expire resting reduce-only orders, newest first, that no longer fit the position."""
        state = self._state
        mine = [o for o in state.orders_of(account.index, position.symbol)
                if o.reducing and o.position_side == position.side and o.id != cause.id]  # fmt: skip
        for side in Side:
            room = closable(account, position.symbol, position.side, side)
            if cause.open and cause.side is side and cause.reducing:
                room -= cause.remaining
            for order in sorted((o for o in mine if o.side is side), key=lambda o: o.id):
                if order.remaining > room:
                    self.expire(order, 4)
                else:
                    room -= order.remaining

    def expire_protection(self, account: AccountState, symbol: int, position_side: PositionSide) -> None:
        """The position is gone or has turned: what was to close it and may not outlive it expires."""
        state = self._state
        survives = state.options.switches.gtc_close_position_survives
        for algo in list(state.open_algos[account.index].values()):
            if algo.symbol != symbol or algo.position_side != position_side:
                continue
            dies = algo.tif == "GTE_GTC" or (algo.close_position and not survives)
            if dies and not closable(account, symbol, position_side, algo.side):
                self.end_algo(algo, AlgoEvent.EXPIRE)

    # ------------------------------------------------------------------ endings

    def expire(self, order: Order, reason: int) -> None:
        self._end(order, OrderEvent.EXPIRE, "EXPIRED", reason)

    def expire_in_match(self, order: Order, reason: int) -> None:
        self._end(order, OrderEvent.EXPIRE_IN_MATCH, "EXPIRED", reason)

    def cancel(self, order: Order) -> None:
        self._end(order, OrderEvent.CANCEL, "CANCELED", 0)

    def _end(self, order: Order, event: OrderEvent, execution: str, reason: int) -> None:
        state = self._state
        step(order, event)
        order.expire_reason = reason
        order.updated_ms = state.now_ms
        state.keep_order(order)
        state.say(order.account, events.order_trade_update(state, order, execution))
        self.finish_algo(order)

    def finish_algo(self, order: Order) -> None:
        """The order that an algo order spawned has ended: so does the algo order."""
        algo = self._state.algos.get(order.algo_id) if order.algo_id else None
        if algo is not None and (algo.status, AlgoEvent.FINISH) in _FINISHABLE:
            self.end_algo(algo, AlgoEvent.FINISH)

    def end_algo(self, algo: AlgoOrder, event: AlgoEvent, reason: str = "") -> None:
        """Take an algo order one step on and say so."""
        state = self._state
        algo_step(algo, event)
        algo.reason = reason
        algo.updated_ms = state.now_ms
        state.keep_algo(algo)
        state.say(algo.account, events.algo_update(state, algo))


_FINISHABLE = {("TRIGGERED", AlgoEvent.FINISH)}
