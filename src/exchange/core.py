"""The exchange as a pure state machine: market time goes forward, requests reach the book in their turn, events come out.

Nothing here reads a clock, a socket or a file. :meth:`Core.advance` takes the market to a moment: trades, requests that fall due,
seconds (marks, funding, liquidation) in the order of their times. Same market, same calls at the same times: same events, to the byte.

Invariants: time never goes back; a request that arrives at time t meets the book as it is at t, after every earlier trade; the events of
one step are kept in the order in which they happened.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.exchange import events
from src.exchange.algo import AlgoService
from src.exchange.errors import ApiError
from src.exchange.execution import Execution
from src.exchange.expansion import PRICE_TICKS_MAX
from src.exchange.jumps import JumpingMarket
from src.exchange.options import ExchangeOptions
from src.exchange.orders import q8
from src.exchange.placing import Placing
from src.exchange.quotes import PRINT_FIELDS, Print
from src.exchange.settlement import Settlement
from src.exchange.state import State, UserEvent

SECOND_MS = 1000
NEVER = 1 << 62
CRASH_STEPS = 10


class Answer(NamedTuple):
    """What a scheduled request came to: ``value``, or the refusal."""

    ticket: int
    value: Any
    refusal: ApiError | None


class Outcome(NamedTuple):
    """What one step brought: the market's trades, events for users, answers to requests."""

    trades: NDArray[np.void]
    events: list[UserEvent]
    answers: list[Answer]


class Core:
    """All of the venue but its sockets. ``market`` is asked only for what lies before the present."""

    def __init__(self, options: ExchangeOptions, market: JumpingMarket, now_ms: int) -> None:
        self.options = options
        self.market = market
        self.state = State(options, market.symbols, now_ms)
        self.state.quotes.told = market.marks()
        if market.recorded is not None:
            self.state.quotes.ladders = market.recorded.ladders
            market.recorded.ladders.now_ms = lambda: self.state.now_ms
        self.execution = Execution(self.state)
        self.placing = Placing(self.state, self.execution)
        self.algo = AlgoService(self.state, self.execution, self.placing, self._later)
        self.settlement = Settlement(self.state, self.execution)
        self._heap: list[tuple[int, int, int, Callable[[], object]]] = []
        self._tickets = 0
        self._answers: list[Answer] = []
        self._next_second = (now_ms // SECOND_MS + 1) * SECOND_MS

    @property
    def now_ms(self) -> int:
        return self.state.now_ms

    def open_accounts(self) -> None:
        """First start: the deposits."""
        for index in range(len(self.state.accounts)):
            self.open_account(index)

    def open_account(self, index: int) -> None:
        """The first deposit of one account."""
        self._transfer(index, q8(self.options.accounts[index].balance))

    def transfer(self, index: int, amount: Decimal) -> None:
        """Money comes from another wallet of the user's, or goes there (negative): at most what can be withdrawn. ApiError: more than that."""
        account, amount = self.state.accounts[index], q8(amount)
        if amount < 0 and -amount > self.state.summary(account).max_withdraw:
            raise ApiError(-2018)
        self._transfer(index, amount)
        self.state.say(index, events.account_update(self.state, account, "DEPOSIT" if amount > 0 else "WITHDRAW", [], change=amount))

    def _transfer(self, index: int, amount: Decimal) -> None:
        account = self.state.accounts[index]
        account.wallet.book("deposits", amount)
        if amount:
            self.state.keep_income(index, "TRANSFER", amount, info="DEPOSIT" if amount > 0 else "WITHDRAW")
        self.state.touch(account)

    def look_back(self) -> None:
        """Learn the last price of every symbol before the present."""
        for i in range(len(self.state.specs)):
            self.state.quotes.take(self.market.agg_trades(i, to_ms=self.now_ms, limit=1))

    # ------------------------------------------------------------------ requests

    def schedule(self, due_ms: int, call: Callable[[], object]) -> int:
        """Have ``call`` run at ``due_ms``; its outcome comes as the Answer with the returned ticket."""
        self._tickets += 1
        heapq.heappush(self._heap, (max(due_ms, self.now_ms), self._tickets, self._tickets, call))
        return self._tickets

    def _later(self, due_ms: int, call: Callable[[], object]) -> None:
        """As :meth:`schedule`, for the venue's own calls, whose outcome nobody waits for."""
        self._tickets += 1
        heapq.heappush(self._heap, (max(due_ms, self.now_ms), self._tickets, 0, call))

    @property
    def next_due_ms(self) -> int:
        """When the next request reaches the book."""
        return self._heap[0][0] if self._heap else NEVER

    # ------------------------------------------------------------------ time

    def advance(self, now_ms: int) -> Outcome:
        """Let the market run to ``now_ms`` (excluded) and everything due by then (included) happen."""
        trades = self.market.trades(self.now_ms, now_ms) if now_ms > self.now_ms else self.market.trades(now_ms, now_ms)
        if self.state.closed:
            trades = trades[~np.isin(trades["symbol"], list(self.state.closed))]
        times, jumped = trades["time_ms"], len(self.market.jumps)
        done = 0
        while True:
            countdown = self.settlement.next_countdown_ms
            stop = min(now_ms, self._next_second, self.next_due_ms, countdown or NEVER)
            end = int(np.searchsorted(times, stop, "left"))
            if end > done:
                done += self._trades(trades[done:end])
                if done < end or self.next_due_ms < stop:
                    continue  # a trade has triggered something that comes first
            self.state.now_ms = max(self.now_ms, stop)
            if countdown is not None and countdown <= stop:
                self.settlement.run_countdowns()
            elif self.next_due_ms <= stop:
                self._run_due()
                if len(self.market.jumps) > jumped:
                    trades, jumped = self.market.catch_up(trades, jumped), len(self.market.jumps)
            elif self._next_second <= stop:
                self._second()
            else:
                break
        return Outcome(trades, *self.take_output())

    def take_output(self) -> tuple[list[UserEvent], list[Answer]]:
        events, self.state.events = self.state.events, []
        answers, self._answers = self._answers, []
        return events, answers

    def _run_due(self) -> None:
        _, _, ticket, call = heapq.heappop(self._heap)
        value, refusal = None, None
        try:
            value = call()
        except ApiError as error:
            refusal = error
        if ticket:
            self._answers.append(Answer(ticket, value, refusal))

    def _second(self) -> None:
        self._next_second += SECOND_MS
        state = self.state
        state.quotes.second()
        for symbol, waiting in enumerate(state.waiting):
            if waiting:
                self.algo.on_price(symbol, "MARK_PRICE", state.quotes.mark(symbol))
        self.algo.expire_old()
        self.settlement.second()

    def _trades(self, trades: NDArray[np.void]) -> int:
        """Take trades of the market, all before the next stop; returns how many, fewer where one has triggered what comes before the next.

        Only symbols with orders of ours are looked at one by one.
        """
        state = self.state
        taken = len(trades)
        interest = [i for i, (r, w) in enumerate(zip(state.resting, state.waiting, strict=True)) if r or w]
        if interest:
            is_watched = np.zeros(len(state.specs), bool)
            is_watched[interest] = True
            watched = np.flatnonzero(is_watched[trades["symbol"]])
            for place, row in zip(watched.tolist(), trades[watched][PRINT_FIELDS].tolist(), strict=True):
                trade = Print(*row)
                if self.next_due_ms <= trade.time_ms:
                    taken = place
                    break
                state.now_ms = max(state.now_ms, trade.time_ms)
                if state.resting[trade.symbol]:
                    self.placing.on_trade(trade)
                if state.waiting[trade.symbol]:
                    state.quotes.last[trade.symbol] = trade.ticks
                    self.algo.on_price(trade.symbol, "CONTRACT_PRICE", state.quotes.price(trade.symbol, trade.ticks))
        if taken:
            state.quotes.take(trades[:taken])
        return taken

    # ------------------------------------------------------------------ control, for tests

    def jump(self, symbol: int, ticks: int) -> None:
        """The whole market of a symbol moves by ``ticks`` from now on, last and mark price at once."""
        state = self.state
        self.market.jump(symbol, self.now_ms, ticks)
        state.changes.jumps.append((symbol, self.now_ms, ticks))
        state.quotes.shift(symbol, ticks)
        top = state.quotes
        at = Print(self.now_ms, symbol, int(top.last[symbol]), 0, 0, int(top.bid[symbol]), int(top.ask[symbol]),
                   int(top.bid_qty[symbol]), int(top.ask_qty[symbol]))  # fmt: skip
        self.placing.on_trade(at)
        self.algo.on_price(symbol, "CONTRACT_PRICE", top.last_price(symbol))
        self.algo.on_price(symbol, "MARK_PRICE", top.mark(symbol))
        self.settlement.check_margins()

    def part_of_price(self, symbol: int, size: float) -> int:
        """That part of the last price in ticks; a fall leaves two ticks, a rise ends where prices do."""
        last = int(self.state.quotes.last[symbol])
        return min(max(round(last * size), 2 - last), PRICE_TICKS_MAX - last)

    def crash(self, symbol: int, size: float, span_ms: int) -> None:
        """The price moves by that part of itself within a fifth of the span, stays there for two, and is back at the end of it."""
        whole = self.part_of_price(symbol, size)
        for part in range(CRASH_STEPS):
            ticks = whole * (part + 1) // CRASH_STEPS - whole * part // CRASH_STEPS
            fall_ms = self.now_ms + span_ms * part // (5 * CRASH_STEPS)
            rise_ms = self.now_ms + span_ms * 3 // 5 + span_ms * 2 * (part + 1) // (5 * CRASH_STEPS)
            self._later(fall_ms, lambda ticks=ticks: self.jump(symbol, ticks))  # type: ignore[misc]
            self._later(rise_ms, lambda ticks=ticks: self.jump(symbol, -ticks))  # type: ignore[misc]

    def books(self) -> dict[str, Any]:
        """Every account's ledger as exact decimal strings, for tests that compare ledgers."""
        return {given.key: self._book(i) for i, given in enumerate(self.options.accounts)}

    def _book(self, index: int) -> dict[str, Any]:
        state, account = self.state, self.state.accounts[index]
        wallet = account.wallet
        name = [s.symbol for s in state.specs]
        return {
            "wallet": format(wallet.balance, "f"), "deposits": format(wallet.deposits, "f"), "realised": format(wallet.realised, "f"),
            "commission": format(wallet.commission, "f"), "funding": format(wallet.funding, "f"),
            "insurance": format(wallet.insurance, "f"),
            "hedge": account.hedge,
            "positions": {
                f"{name[p.symbol]}:{p.side}": {"qty": format(p.qty, "f"), "cost": format(p.cost, "f"), "entry": format(p.entry, "f"),
                                              "isolated_wallet": format(p.isolated_wallet, "f")}
                for p in account.live_positions()
            },
            "fills": [
                {"id": f.id, "order_id": f.order_id, "client_id": state.orders[f.order_id].client_id if f.order_id in state.orders else "",
                 "symbol": name[f.symbol], "side": f.side, "position_side": f.position_side, "price": format(f.price, "f"),
                 "qty": format(f.qty, "f"), "realised": format(f.realised, "f"), "commission": format(f.commission, "f"),
                 "maker": f.maker, "time_ms": f.time_ms}
                for f in state.fills[index]
            ],
            "orders": [
                {"id": o.id, "client_id": o.client_id, "symbol": name[o.symbol], "side": o.side, "type": o.type, "status": o.status,
                 "price": format(o.price, "f"), "qty": format(o.qty, "f"), "executed": format(o.executed, "f"), "time_ms": o.created_ms,
                 "reduce_only": o.reduce_only}
                for o in state.orders.values() if o.account == index
            ],
            "algo": [
                {"id": a.id, "client_id": a.client_id, "symbol": name[a.symbol], "side": a.side, "type": a.type, "status": a.status,
                 "trigger_price": format(a.trigger_price, "f"), "close_position": a.close_position, "time_in_force": a.tif,
                 "order_id": a.order_id, "reason": a.reason, "time_ms": a.created_ms}
                for a in state.algos.values() if a.account == index
            ],
        }  # fmt: skip
