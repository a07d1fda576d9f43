"""Orders reach the book: checks that need book and ledger, taking, resting, changing, cancelling, and fills of what rests.

Market orders and crossing limit orders walk the modelled book (``depth``). A resting order fills when the market trades through its
price, as far as the other side of the book comes to stand at or beyond it, and at its price once the size in front of it has traded.
Our accounts trade against the market, never against each other.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from src.exchange import depth, events
from src.exchange.clients import generated_id
from src.exchange.entry import ModifyEntry, OrderEntry
from src.exchange.errors import ApiError
from src.exchange.execution import Execution, closable
from src.exchange.filters import band, check_notional, check_percent_price
from src.exchange.history import Amendment
from src.exchange.ledger import AccountState, Position
from src.exchange.margin import exposure, max_notional, order_notionals
from src.exchange.orders import ZERO, AlgoEvent, AlgoOrder, Order, OrderEvent, PositionSide, Side, hedge_closing, step
from src.exchange.quotes import QUOTE, Print
from src.exchange.state import State

_MATCH_LEVEL = {"OPPONENT": 0, "OPPONENT_5": 4, "QUEUE": 0, "QUEUE_5": 4, "QUEUE_10": 9, "QUEUE_20": 19}
MODIFY_MAX = 10_000


class Placing:
    """The matching engine for our accounts' orders."""

    def __init__(self, state: State, execution: Execution) -> None:
        self._state = state
        self._execution = execution

    # ------------------------------------------------------------------ place

    def place(self, account: AccountState, entry: OrderEntry, algo: AlgoOrder | None = None, *, dry: bool = False) -> Order:
        """An order arrives at the book: it is refused (ApiError, nothing has happened), or an order row with all its consequences."""
        state, spec = self._state, self._state.specs[entry.symbol]
        if entry.symbol in state.closed:
            raise ApiError(-4141)
        if not state.quotes.known(entry.symbol):
            raise ApiError(-4131)
        if not state.quotes.seen(entry.symbol):
            raise ApiError(-1112)
        if not entry.reducing and state.standings[entry.symbol].status != "TRADING":
            raise ApiError(-4140)
        price = self._matched_price(entry)
        qty = entry.qty
        mark = state.quotes.mark(entry.symbol)
        self._check_identity(account, entry)
        if entry.reducing:
            qty = self._reducing_qty(account, entry)
        elif algo is None:
            check_notional(spec, price or mark, qty)
        if entry.type == "LIMIT":
            check_percent_price(spec, buy=entry.side is Side.BUY, price=price, mark=mark)
        else:
            self._check_cap(entry)
        if not entry.reducing:
            self._check_margin(account, entry.symbol, entry.side, entry.position_side, price=price, qty=qty)
        ticks = int(price / spec.tick)
        if entry.tif == "GTX" and self._crosses(entry.symbol, entry.side, ticks):
            raise ApiError(-5022)
        if entry.tif == "FOK" and sum(s for _, s in self._pieces(entry.symbol, entry.side, ticks, qty)) * spec.step < qty:
            raise ApiError(-5021)
        order = Order(
            id=0 if dry else state.ids.next("order"), account=account.index, symbol=entry.symbol,
            client_id=entry.client_id or generated_id(state.ids.order, account.index), side=entry.side, type=entry.type,
            position_side=entry.position_side, tif=entry.tif, price=price, qty=qty, ticks=ticks, created_ms=state.now_ms,
            updated_ms=state.now_ms, reduce_only=entry.reduce_only, close_position=entry.close_position, price_match=entry.price_match,
            stp=entry.stp, gtd_ms=entry.gtd_ms, orig_type=algo.type if algo else entry.type,
        )  # fmt: skip
        if dry:
            return order
        if algo is not None:
            order.algo_id, order.stop_price = algo.id, algo.trigger_price
            order.working_type, order.price_protect = algo.working_type, algo.price_protect
            algo.order_id = order.id
        self._announce(order, algo)
        self._work(order)
        return order

    def _announce(self, order: Order, algo: AlgoOrder | None) -> None:
        state = self._state
        state.keep_order(order)
        first = state.options.switches.triggered_before_new
        if algo is not None and first:
            self._execution.end_algo(algo, AlgoEvent.SPAWN)
        state.say(order.account, events.order_trade_update(state, order, "NEW"))
        if algo is not None and not first:
            self._execution.end_algo(algo, AlgoEvent.SPAWN)

    def _work(self, order: Order) -> None:
        """Take what can be taken now; rest, or expire the remainder."""
        self._prevent_self_trade(order)
        if order.open:
            self._take(order)
        if not order.open:
            return
        if order.type == "MARKET":
            self._execution.expire(order, 9)
        elif order.tif in ("IOC", "FOK"):
            self._execution.expire(order, 2)
        else:
            own, direction = self._own_side(order.symbol, order.side)
            order.queue_steps = depth.queue_ahead(own, direction, order.ticks)

    def _take(self, order: Order) -> None:
        state, spec = self._state, self._state.specs[order.symbol]
        quotes = state.quotes
        pieces = self._pieces(order.symbol, order.side, order.ticks if order.type == "LIMIT" else None, order.remaining)
        for ticks, steps in pieces:
            if not order.open:
                break
            taken = quotes.taken_ask if order.side is Side.BUY else quotes.taken_bid
            taken[order.symbol] += steps
            self._execution.fill(order, price=ticks * spec.tick, qty=steps * spec.step, maker=False)

    def _pieces(self, symbol: int, side: Side, ticks: int | None, qty: Decimal) -> list[tuple[int, int]]:
        """What the book gives an order of that side; a MARKET order (``ticks`` None) stops at the price cap."""
        spec, quotes = self._state.specs[symbol], self._state.quotes
        limit = ticks
        if limit is None:
            low, high = band(spec, quotes.mark(symbol))
            limit = int((high if side is Side.BUY else low) / spec.tick)
        top, direction, taken = (
            (quotes.asks(symbol), 1, int(quotes.taken_ask[symbol])) if side is Side.BUY else (quotes.bids(symbol), -1, int(quotes.taken_bid[symbol]))
        )
        return depth.walk(top, direction, taken, int(qty / spec.step), limit)

    def _own_side(self, symbol: int, side: Side) -> tuple[depth.Top, int]:
        quotes = self._state.quotes
        return (quotes.bids(symbol), -1) if side is Side.BUY else (quotes.asks(symbol), 1)

    def _crosses(self, symbol: int, side: Side, ticks: int) -> bool:
        quotes = self._state.quotes
        return ticks >= int(quotes.ask[symbol]) if side is Side.BUY else ticks <= int(quotes.bid[symbol])

    def _prevent_self_trade(self, order: Order) -> None:
        """Own resting orders that this taker would meet before the market's best price: the taker's mode decides who goes."""
        if order.stp == "NONE" or order.tif in ("FOK", "GTX"):
            return
        best = int((self._state.quotes.ask if order.side is Side.BUY else self._state.quotes.bid)[order.symbol])
        met = [
            o for o in self._state.orders_of(order.account, order.symbol)
            if o.side is not order.side and o.id != order.id
            and (best - o.ticks) * order.side.sign >= 0
            and (order.type == "MARKET" or (order.ticks - o.ticks) * order.side.sign >= 0)
        ]  # fmt: skip
        if met and order.stp in ("EXPIRE_TAKER", "EXPIRE_BOTH"):
            self._execution.expire_in_match(order, 3 if order.tif == "IOC" else 1)
        if order.stp in ("EXPIRE_MAKER", "EXPIRE_BOTH"):
            for maker in met:
                self._execution.expire_in_match(maker, 1)

    # ------------------------------------------------------------------ checks at the book

    def _check_identity(self, account: AccountState, entry: OrderEntry) -> None:
        state = self._state
        mine = state.open_orders[account.index]
        if entry.client_id:
            twin = mine.get(state.orders_by_client[account.index].get(entry.client_id, 0))
            if twin is not None and (state.options.switches.client_id_unique_per_account or twin.symbol == entry.symbol):
                raise ApiError(-4116)
        if sum(o.symbol == entry.symbol for o in mine.values()) >= state.options.limits.open_orders_per_symbol:
            raise ApiError(-2025)

    def _reducing_qty(self, account: AccountState, entry: OrderEntry, without: Order | None = None) -> Decimal:
        """The size a reducing order may have; -2022 or -2024 when there is nothing, or not enough, to reduce."""
        hedge = hedge_closing(entry.position_side, entry.side)
        room = closable(account, entry.symbol, entry.position_side, entry.side)
        if not room:
            raise ApiError(-2022)
        if entry.type == "MARKET":
            if hedge and entry.qty > room and not entry.reduce_only:
                raise ApiError(-2024)
            return min(entry.qty, room)
        waiting = ZERO
        for order in self._state.orders_of(account.index, entry.symbol):
            same = order.side is entry.side and order.position_side is entry.position_side
            if same and order.reducing and order is not without:
                waiting += order.remaining
        if entry.qty + waiting > room:
            raise ApiError(-2024 if hedge else -2022)
        return entry.qty

    def _check_cap(self, entry: OrderEntry) -> None:
        spec, quotes = self._state.specs[entry.symbol], self._state.quotes
        low, high = band(spec, quotes.mark(entry.symbol))
        best = quotes.price(entry.symbol, int((quotes.ask if entry.side is Side.BUY else quotes.bid)[entry.symbol]))
        if (entry.side is Side.BUY and best > high) or (entry.side is Side.SELL and best < low):
            raise ApiError(-4131)

    def _check_margin(self, account: AccountState, symbol: int, side: Side, position_side: PositionSide, *, price: Decimal, qty: Decimal,
                      without: Order | None = None) -> None:  # fmt: skip
        """-2019 or -2027 when the account cannot carry an order of that size. ``price`` 0: at market. ``without``: an order it replaces."""
        state, spec = self._state, self._state.specs[symbol]
        mark, up = state.quotes.mark(symbol), state.options.switches.open_order_margin_rounds_up
        if not price:
            best = state.quotes.asks(symbol).ticks if side is Side.BUY else state.quotes.bids(symbol).ticks
            price = best * spec.tick * (Decimal("1.0005") if side is Side.BUY else 1)
        elif side is Side.SELL:
            price = max(price, state.quotes.bids(symbol).ticks * spec.tick)
        held = account.positions.get(f"{symbol}:{position_side}") or Position(symbol=symbol, side=position_side)
        now = list(state.orders_of(account.index, symbol))
        bid, ask = order_notionals(now, position_side, mark)
        before = exposure(account, spec, held, mark=mark, bid=bid, ask=ask, up=up)
        if without is not None:
            bid, ask = order_notionals([o for o in now if o is not without], position_side, mark)
        new = price * qty
        bid, ask = bid + (new if side is Side.BUY else 0), ask + (new if side is Side.SELL else 0)
        after = exposure(account, spec, held, mark=mark, bid=bid, ask=ask, up=up)
        need = after.initial - before.initial
        if need <= 0:
            return
        side_notional = after.notional + after.bid if side is Side.BUY else after.ask - after.notional
        if side_notional > max_notional(spec.brackets, account.setting(symbol).leverage):
            raise ApiError(-2027)
        open_loss = qty * abs(min(ZERO, side.sign * (mark - price)))
        if need + open_loss > state.summary(account).available:
            raise ApiError(-2019)

    def _matched_price(self, entry: OrderEntry) -> Decimal:
        """The price of the entry, or the one its priceMatch names."""
        if entry.price_match == "NONE":
            return entry.price
        quotes, spec = self._state.quotes, self._state.specs[entry.symbol]
        opponent = entry.price_match.startswith("OPPONENT")
        asks = (entry.side is Side.BUY) == opponent
        top, direction = (quotes.asks(entry.symbol), 1) if asks else (quotes.bids(entry.symbol), -1)
        rows = list(depth.levels(top, direction, _MATCH_LEVEL[entry.price_match] + 1))
        if len(rows) <= _MATCH_LEVEL[entry.price_match]:
            raise ApiError(-5041)
        return rows[-1][0] * spec.tick

    # ------------------------------------------------------------------ modify and cancel

    def find(self, account: AccountState, symbol: int | None, order_id: int, client_id: str) -> Order | None:
        """The order by number (which wins) or by client id, among the account's own."""
        state = self._state
        order = state.orders.get(order_id or state.orders_by_client[account.index].get(client_id, 0))
        if order is None or order.account != account.index or (symbol is not None and order.symbol != symbol):
            return None
        return order

    def modify(self, account: AccountState, entry: ModifyEntry) -> Order:
        order = self.find(account, entry.symbol, entry.order_id, entry.client_id)
        if order is None or not order.open:
            raise ApiError(-2013)
        if order.type != "LIMIT":
            raise ApiError(-5025)
        if self._state.standings[order.symbol].status != "TRADING":
            raise ApiError(-5024)
        if not self._state.quotes.seen(order.symbol):
            raise ApiError(-1112)
        if order.side is not entry.side:
            raise ApiError(-1102, "side")
        if entry.reduce_only and not order.reduce_only:
            raise ApiError(-5047)
        if order.modified >= MODIFY_MAX:
            raise ApiError(-5026)
        spec, mark = self._state.specs[order.symbol], self._state.quotes.mark(order.symbol)
        probe = OrderEntry(entry.symbol, entry.side, "LIMIT", order.position_side, order.tif, entry.qty, entry.price, price_match=entry.price_match)
        price = self._matched_price(probe)
        if price == order.price and entry.qty == order.qty:
            raise ApiError(-5027)
        if entry.qty <= order.executed:
            self._execution.cancel(order)
            return order
        if order.reducing:
            self._reducing_qty(account, replace(probe, qty=entry.qty - order.executed), without=order)
        else:
            check_notional(spec, price, entry.qty, code=-5029)
            self._check_margin(account, order.symbol, order.side, order.position_side, price=price, qty=entry.qty - order.executed, without=order)
        check_percent_price(spec, buy=order.side is Side.BUY, price=price, mark=mark)
        ticks = int(price / spec.tick)
        if order.tif == "GTX" and self._crosses(order.symbol, order.side, ticks):
            self._execution.cancel(order)
            return order
        self._amend(order, entry, price, ticks)
        self._work(order)
        return order

    def _amend(self, order: Order, entry: ModifyEntry, price: Decimal, ticks: int) -> None:
        state = self._state
        step(order, OrderEvent.AMEND)
        state.keep_amendment(Amendment(
            id=state.ids.next("tran"), account=order.account, symbol=order.symbol, order_id=order.id, client_id=order.client_id,
            time_ms=state.now_ms, price_before=order.price, price_after=price, qty_before=order.qty, qty_after=entry.qty,
            count=order.modified + 1, modify_id=entry.modify_id,
        ))  # fmt: skip
        order.price, order.qty, order.ticks, order.stp = price, entry.qty, ticks, "NONE"
        order.modified += 1
        order.updated_ms = state.now_ms
        state.keep_order(order)
        state.say(order.account, events.order_trade_update(state, order, "AMENDMENT", modify_id=entry.modify_id))

    def cancel(self, account: AccountState, symbol: int | None, order_id: int, client_id: str) -> Order:
        order = self.find(account, symbol, order_id, client_id)
        if order is None or not order.open:
            raise ApiError(-2011)
        self._execution.cancel(order)
        return order

    def cancel_all(self, account: AccountState, symbol: int) -> dict[str, Any]:
        for order in self._state.orders_of(account.index, symbol):
            self._execution.cancel(order)
        return {"code": 200, "msg": "The operation of cancel all open order is done."}

    # ------------------------------------------------------------------ the market comes to what rests

    def on_trade(self, trade: Print) -> None:
        """One trade of the market, or one movement of its book, against our resting orders of its symbol."""
        spec = self._state.specs[trade.symbol]
        for order in sorted(self._state.resting[trade.symbol].values(), key=lambda o: o.id):
            if not order.open:
                continue
            sign = order.side.sign
            through = (order.ticks - trade.ticks) * sign if trade.buyer_is_maker != QUOTE else -1
            facing, shown = (trade.ask, trade.ask_steps) if order.side is Side.BUY else (trade.bid, trade.bid_steps)
            left = int(order.remaining / spec.step)
            if through > 0:
                got = left
            elif facing and (order.ticks - facing) * sign >= 0:
                got = min(left, shown)
            elif through == 0 and bool(trade.buyer_is_maker) == (order.side is Side.BUY):
                order.queue_steps -= trade.steps
                got = min(left, max(0, -order.queue_steps))
                order.queue_steps = max(0, order.queue_steps)
                self._state.changes.orders[order.id] = order
            else:
                continue
            if got:
                self._execution.fill(order, price=order.price, qty=got * spec.step, maker=True)
