"""What the venue does by itself once a market second: funding, liquidation, delivery, expiry of dated orders, the countdown of cancel-all.

Liquidation: when a margin balance is at or below its maintenance margin on mark, open orders go (reason 5; those of all cross symbols, or of
the isolated one), the positions concerned are closed at mark price by an order whose client id begins with ``autoclose-``, the liquidation
fee is taken as far as there is money left, and what is then missing is paid by the insurance fund (INSURANCE_CLEAR). There is no stepwise
reduction.
"""

from __future__ import annotations

from decimal import Decimal

from src.exchange import events
from src.exchange.execution import Execution, closing_side
from src.exchange.ledger import AccountState, Position, book_fill, book_funding
from src.exchange.margin import maintenance
from src.exchange.orders import ZERO, AlgoEvent, Fill, Order, OrderEvent, q8, step
from src.exchange.quotes import HOUR_MS
from src.exchange.state import CLOSED, Standing, State

MARGIN_CALL_RATIO = Decimal("0.8")
"""Of a margin balance: when maintenance needs so much of it, its user is warned."""


class Settlement:
    """Chores of the venue on a :class:`State`."""

    def __init__(self, state: State, execution: Execution) -> None:
        self._state = state
        self._execution = execution
        self._warned: set[tuple[int, str]] = set()

    def second(self) -> None:
        """A market second has passed, marks are fresh."""
        self._expire_dated()
        for symbol in [s for s in self._state.leaving if self._state.standings[s].delivery_ms <= self._state.now_ms]:
            self._deliver(symbol)
        if self._state.now_ms % HOUR_MS == 0:
            self._fund()
        self.check_margins()

    def check_margins(self) -> None:
        for account in self._state.accounts:
            positions = account.live_positions()
            if positions:
                self._liquidate(account)
            if account.cross_wallet < 0 and all(account.setting(p.symbol).isolated for p in positions):
                self._insurance(account, -1, -account.cross_wallet)  # a close far from the mark has cost more than there was

    # ------------------------------------------------------------------ clocks of orders

    def countdown(self, account: int, symbol: int, span_ms: int) -> None:
        """Cancel all orders of the symbol after ``span_ms``, unless called again; 0 stops it."""
        self._state.keep_countdown(account, symbol, self._state.now_ms + span_ms if span_ms else None)

    @property
    def next_countdown_ms(self) -> int | None:
        return min(self._state.countdowns.values(), default=None)

    def run_countdowns(self) -> None:
        for key in [k for k, due in self._state.countdowns.items() if due <= self._state.now_ms]:
            self._state.keep_countdown(*key, None)
            for order in self._state.orders_of(*key):
                self._execution.cancel(order)

    def _expire_dated(self) -> None:
        for mine in self._state.open_orders:
            for order in [o for o in mine.values() if o.gtd_ms and o.gtd_ms <= self._state.now_ms]:
                self._execution.expire(order, 0)

    # ------------------------------------------------------------------ delivery

    def _deliver(self, symbol: int) -> None:
        """A contract ends: its orders expire, positions are settled at mark, nothing trades any more."""
        state = self._state
        for account in state.accounts:
            for order in list(state.orders_of(account.index, symbol)):
                self._execution.expire(order, 7)
            for algo in [a for a in state.open_algos[account.index].values() if a.symbol == symbol]:
                self._execution.end_algo(algo, AlgoEvent.EXPIRE)
            for position in [p for p in account.live_positions() if p.symbol == symbol]:
                self._autoclose(account, position, "settlement_autoclose-")
        state.stand(symbol, Standing(CLOSED, state.standings[symbol].delivery_ms))
        state.leaving.discard(symbol)

    # ------------------------------------------------------------------ funding

    def _fund(self) -> None:
        state = self._state
        due = {i: state.quotes.mark(i) for i in range(len(state.specs)) if state.quotes.settles(i, state.now_ms)}
        state.keep_settled(due)
        for account in state.accounts:
            for position in account.live_positions():
                spec = state.specs[position.symbol]
                if position.symbol not in due:
                    continue
                amount = q8(-position.qty * due[position.symbol] * state.quotes.funding_rate(position.symbol, state.now_ms))
                isolated = account.setting(position.symbol).isolated
                book_funding(account, position, isolated, amount)
                state.touch(account)
                state.keep_income(account.index, "FUNDING_FEE", amount, symbol=position.symbol, info="FUNDING_FEE")
                rows = [position] if isolated else []
                state.say(account.index, events.account_update(state, account, "FUNDING_FEE", rows, change=amount, symbol=spec.symbol))

    # ------------------------------------------------------------------ liquidation

    def _liquidate(self, account: AccountState) -> None:
        state = self._state
        marks = state.quotes.mark
        cross_balance, cross_maint, cross = account.cross_wallet, ZERO, []
        for position in account.live_positions():
            mark = marks(position.symbol)
            if not mark:
                continue  # no price was ever seen: nothing can be said
            maint = maintenance(state.specs[position.symbol].brackets, mark * position.qty)
            if account.setting(position.symbol).isolated:
                balance = position.isolated_wallet + position.unrealised(mark)
                if balance <= maint:
                    self._seize(account, [position], position.isolated_wallet)
                self._warn(account, [position], balance, maint)
            else:
                cross.append(position)
                cross_maint += maint
                cross_balance += position.unrealised(mark)
        if cross and cross_balance <= cross_maint:
            self._seize(account, cross, account.cross_wallet)
        self._warn(account, cross, cross_balance, cross_maint)

    def _warn(self, account: AccountState, positions: list[Position], balance: Decimal, maint: Decimal) -> None:
        """MARGIN_CALL, once each time that most of a margin is needed and it has not been seized."""
        state, live = self._state, [p for p in positions if p.qty]
        isolated = any(account.setting(p.symbol).isolated for p in positions)
        place = account.index, f"{positions[0].symbol}:{positions[0].side}" if isolated else "cross"
        if not live or maint < balance * MARGIN_CALL_RATIO:
            self._warned.discard(place)
        elif place not in self._warned:
            self._warned.add(place)
            state.say(account.index, events.margin_call(state, account, live, isolated))

    def _seize(self, account: AccountState, positions: list[Position], margin: Decimal) -> None:
        """Close positions whose margin (a wallet, before unrealised results) is used up; every order that it stood for goes first."""
        state, own = self._state, positions[0].symbol
        isolated = account.setting(own).isolated
        for order in list(state.open_orders[account.index].values()):
            if order.symbol == own if isolated else not account.setting(order.symbol).isolated:
                self._execution.expire(order, 5)
        left = margin
        for position in positions:
            realised, notional = self._autoclose(account, position)
            left += realised
            fee = q8(min(max(left, ZERO), notional * state.specs[position.symbol].liquidation_fee))
            if fee:
                self._insurance(account, position.symbol, -fee)
                left -= fee
        if left < 0:
            self._insurance(account, positions[0].symbol, -left)

    def _insurance(self, account: AccountState, symbol: int, amount: Decimal) -> None:
        state = self._state
        account.wallet.book("insurance", amount)
        state.keep_income(account.index, "INSURANCE_CLEAR", amount, symbol=symbol, info="INSURANCE_CLEAR")
        state.touch(account)
        state.say(account.index, events.account_update(state, account, "INSURANCE_CLEAR", [], change=amount))

    def _autoclose(self, account: AccountState, position: Position, prefix: str = "autoclose-") -> tuple[Decimal, Decimal]:
        """Close one position at mark (on the tick); returns realised result and notional. No commission is charged."""
        state, spec = self._state, self._state.specs[position.symbol]
        side, qty = closing_side(position), abs(position.qty)
        price = max(spec.tick, state.quotes.mark(position.symbol) // spec.tick * spec.tick)
        order = Order(
            id=state.ids.next("order"), account=account.index, symbol=position.symbol,
            client_id=f"{prefix}{state.ids.order}",
            side=side, type="LIQUIDATION", position_side=position.side, tif="IOC", price=price, qty=qty, ticks=int(price / spec.tick),
            created_ms=state.now_ms, updated_ms=state.now_ms, orig_type="LIMIT", stp="NONE",
        )  # fmt: skip
        state.keep_order(order)
        state.say(account.index, events.order_trade_update(state, order, "NEW"))
        booked = book_fill(account, position, side, price=price, qty=qty, fee_rate=ZERO)
        position.updated_ms = state.now_ms
        fill = Fill(id=state.ids.next("trade"), order_id=order.id, account=account.index, symbol=position.symbol, side=side,
                    position_side=position.side, price=price, qty=qty, realised=booked.realised, commission=ZERO, maker=False,
                    time_ms=state.now_ms)  # fmt: skip
        state.keep_fill(fill)
        state.keep_income(account.index, "REALIZED_PNL", booked.realised, symbol=position.symbol, trade_id=str(fill.id))
        order.executed, order.quote = qty, price * qty
        step(order, OrderEvent.FILL_ALL)
        state.keep_order(order)
        state.touch(account)
        state.say(account.index, events.account_update(state, account, "ORDER", [position]))
        state.say(account.index, events.order_trade_update(state, order, "CALCULATED", fill))
        self._execution.expire_protection(account, position.symbol, position.side)
        return booked.realised, price * qty
