"""A crowd of accounts that does anything an account may do, at random but by a seed, and books of its own to hold the exchange's against.

:class:`Crowd` has a core on a market that it moves itself; every public method is one operation, which the venue may refuse.
:class:`Oracle` hears what the core keeps (fills, income) and computes wallets and positions from nothing else.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import ROUND_DOWN, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.clock import monotonic_ns, seeded
from src.exchange.books import forget_old
from src.exchange.core import Core
from src.exchange.entry import parse_algo, parse_modify, parse_order
from src.exchange.errors import ApiError
from src.exchange.jumps import JumpingMarket
from src.exchange.margin import maintenance
from src.exchange.market import TRADE_DTYPE
from src.exchange.options import Account, ExchangeOptions
from src.exchange.orders import PositionSide
from src.exchange.params import Params
from src.exchange.settings import adjust_margin, set_hedge, set_leverage, set_margin_type, set_multi_assets
from src.exchange.symbols import SymbolSpec, spec

ZERO, E8 = Decimal(0), Decimal("0.00000001")
START_MS = 1_795_161_600_000 - 30_000
"""Half a minute before funding is settled."""
SECOND_MS, HOUR_MS = 1000, 3_600_000
PRICES = (("BTCUSDT", 600_000), ("ETHUSDT", 300_000), ("TRXUSDT", 30_000))


class Tape:
    """Implements the market: trades come one at a time, as the crowd moves the prices."""

    def __init__(self, prices: tuple[tuple[str, int], ...]) -> None:
        self.symbols: tuple[SymbolSpec, ...] = tuple(replace(spec(name), funding_interval_hours=1) for name, _ in prices)
        self.start_ms, self.open_ms, self.end_ms = START_MS - 3_600_000, START_MS, None
        self.last = [ticks for _, ticks in prices]
        self._ids = [0] * len(prices)
        self._due: list[tuple[int, ...]] = []
        self._latest = [self._row(START_MS - 1, i, ticks, 100, 0) for i, ticks in enumerate(self.last)]

    def _row(self, at_ms: int, symbol: int, ticks: int, steps: int, maker: int) -> tuple[int, ...]:
        self._ids[symbol] += 1
        n = self._ids[symbol]
        return (at_ms, symbol, ticks, steps, maker, n, n, n, ticks - 1, ticks + 1, 2000, 2000)

    def put(self, at_ms: int, symbol: int, ticks: int, steps: int, maker: int) -> None:
        self.last[symbol] = ticks
        row = self._row(at_ms, symbol, ticks, steps, maker)
        self._latest[symbol] = row
        self._due.append(row)

    @staticmethod
    def _array(rows: list[tuple[int, ...]]) -> NDArray[Any]:
        names = ("time_ms", "symbol", "price", "qty", "buyer_is_maker", "agg_id", "first_id", "last_id", "bid", "ask", "bid_qty", "ask_qty")
        out = np.zeros(len(rows), TRADE_DTYPE)
        for name, column in zip(names, zip(*rows, strict=True), strict=False):
            out[name] = column
        return out

    def trades(self, from_ms: int, to_ms: int) -> NDArray[Any]:
        due = [row for row in self._due if from_ms <= row[0] < to_ms]
        self._due = [row for row in self._due if row[0] >= to_ms]
        return self._array(due)

    def agg_trades(self, symbol_index: int, **_: Any) -> NDArray[Any]:
        return self._array([self._latest[symbol_index]])

    def klines(self, *_: Any) -> NDArray[Any]:
        raise NotImplementedError("nobody asks a core for candles")

    def marks(self) -> None:
        return None

    def resume_state(self) -> dict[str, Any]:
        return {}


class Crowd:
    """``accounts`` users on one core. ``at_random`` does one thing; ``settle`` is what everybody does after each."""

    def __init__(self, seed: int, accounts: int = 4, balance: int = 20_000) -> None:
        self.rng = seeded(seed)
        self.tape = Tape(PRICES)
        users = tuple(Account(f"k{i}", "s", Decimal(balance)) for i in range(accounts))
        self.core = Core(ExchangeOptions(accounts=users), JumpingMarket(self.tape), START_MS)
        self.core.open_accounts()
        self.core.look_back()
        self.state = self.core.state
        self.oracle = Oracle(self)
        self.oracle.hear()
        self.done: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self._lost: set[int] = set()

    # ------------------------------------------------------------------ time

    def settle(self) -> None:
        """What came of it is heard, checked, and let go."""
        self.oracle.hear()
        self.state.events.clear()

    def run(self, ms: int) -> None:
        """Time goes on, with a stop at every second, where marks are fresh and margins were checked just now."""
        until = self.core.now_ms + ms
        while self.core.now_ms < until:
            second = (self.core.now_ms // SECOND_MS + 1) * SECOND_MS
            if second - 1 > self.core.now_ms:
                self._to(min(until, second - 1))
            if second <= until:
                self._to(second)
                self.oracle.check_margins()

    def _to(self, at_ms: int) -> None:
        self.core.advance(at_ms)
        self.settle()

    def _at_book(self, *calls: Callable[[], Any]) -> None:
        """These arrive together."""
        tickets = [self.core.schedule(self.core.now_ms, call) for call in calls]
        outcome = self.core.advance(self.core.now_ms)
        answers = {a.ticket: a for a in outcome.answers}
        for ticket in tickets:
            refusal = answers[ticket].refusal
            if refusal is not None:
                self.refused[refusal.code] += 1

    def attempt(self, name: str, call: Callable[[], Any]) -> None:
        """One operation; the venue may refuse it, and then nothing has happened."""
        self.done[name] += 1
        try:
            call()
        except ApiError as refusal:
            self.refused[refusal.code] += 1
        self.settle()

    # ------------------------------------------------------------------ operations

    def at_random(self) -> None:
        name = self.rng.choices(*_WEIGHTED)[0]
        self.attempt(name, lambda: getattr(self, name)(self.rng.randrange(len(self.state.accounts)), self.rng.randrange(len(PRICES))))

    def _words(self, account: int, symbol: int) -> dict[str, str]:
        words = {"symbol": self.tape.symbols[symbol].symbol, "side": self.rng.choice(("BUY", "SELL"))}
        if self.state.accounts[account].hedge:
            words["positionSide"] = self.rng.choice(("LONG", "SHORT"))
        elif self.rng.random() < 0.2:
            words["reduceOnly"] = "true"
        return words

    def _qty(self, symbol: int) -> str:
        one = self.tape.symbols[symbol]
        steps = int(min(self.rng.lognormvariate(7.0, 1.3), 1e6) / float(self.tape.last[symbol] * one.tick) / float(one.step)) + 1
        return format(steps * one.step, "f")

    def _near(self, symbol: int, width: float = 0.004) -> str:
        return format(int(self.tape.last[symbol] * (1 + self.rng.uniform(-width, width))) * self.tape.symbols[symbol].tick, "f")

    def _placing(self, account: int, words: dict[str, str]) -> Callable[[], Any]:
        user = self.state.accounts[account]
        entry = parse_order(Params(words), self.state.index, self.state.specs, hedge=user.hedge, now_ms=self.core.now_ms)
        return lambda: self.core.placing.place(user, entry)

    def _limit_words(self, account: int, symbol: int) -> dict[str, str]:
        kind = {"type": "LIMIT", "quantity": self._qty(symbol), "price": self._near(symbol),
                "timeInForce": self.rng.choice(("GTC", "GTC", "IOC", "GTX", "FOK", "GTD"))}  # fmt: skip
        if kind["timeInForce"] == "GTD":
            kind["goodTillDate"] = str(self.core.now_ms + self.rng.randrange(600_000, 1_200_000))
        if self.rng.random() < 0.15:
            del kind["price"]
            kind["priceMatch"] = self.rng.choice(("QUEUE", "OPPONENT", "OPPONENT_5", "QUEUE_20"))
        if self.rng.random() < 0.3:
            kind["selfTradePreventionMode"] = self.rng.choice(("NONE", "EXPIRE_TAKER", "EXPIRE_BOTH"))
        return self._words(account, symbol) | kind

    def market(self, account: int, symbol: int) -> None:
        self._at_book(self._placing(account, self._words(account, symbol) | {"type": "MARKET", "quantity": self._qty(symbol)}))

    def limit(self, account: int, symbol: int) -> None:
        self._at_book(self._placing(account, self._limit_words(account, symbol)))

    def batch(self, account: int, symbol: int) -> None:
        self._at_book(*(self._placing(account, self._limit_words(account, symbol)) for _ in range(self.rng.randrange(2, 6))))

    def conditional(self, account: int, symbol: int) -> None:
        user, words = self.state.accounts[account], self._words(account, symbol) | {"algoType": "CONDITIONAL"}
        words["type"] = self.rng.choice(("STOP_MARKET", "TAKE_PROFIT_MARKET", "STOP", "TAKE_PROFIT", "TRAILING_STOP_MARKET"))
        words["workingType"] = self.rng.choice(("MARK_PRICE", "CONTRACT_PRICE"))
        if words["type"] == "TRAILING_STOP_MARKET":
            words |= {"callbackRate": str(self.rng.randrange(1, 20) / 10), "quantity": self._qty(symbol)}
        elif words["type"] in ("STOP", "TAKE_PROFIT"):
            words |= {"triggerPrice": self._near(symbol), "price": self._near(symbol), "quantity": self._qty(symbol), "timeInForce": "GTC"}
        elif self.rng.random() < 0.5:
            words.pop("reduceOnly", None)
            words |= {"triggerPrice": self._near(symbol), "closePosition": "true", "timeInForce": self.rng.choice(("GTC", "GTE_GTC"))}
        else:
            words |= {"triggerPrice": self._near(symbol), "quantity": self._qty(symbol)}
        entry = parse_algo(Params(words), self.state.index, self.state.specs, hedge=user.hedge, now_ms=self.core.now_ms)
        self._at_book(lambda: self.core.algo.place(user, entry))

    def modify(self, account: int, _symbol: int) -> None:
        orders = list(self.state.open_orders[account].values())
        if orders:
            order = self.rng.choice(orders)
            words = {"symbol": self.tape.symbols[order.symbol].symbol, "side": order.side, "orderId": str(order.id),
                     "quantity": self._qty(order.symbol), "price": self._near(order.symbol)}  # fmt: skip
            entry = parse_modify(Params(words), self.state.index, self.state.specs)
            self._at_book(lambda: self.core.placing.modify(self.state.accounts[account], entry))

    def cancel(self, account: int, _symbol: int) -> None:
        orders = list(self.state.open_orders[account].values())
        if orders:
            order = self.rng.choice(orders)
            self._at_book(lambda: self.core.placing.cancel(self.state.accounts[account], order.symbol, order.id, ""))

    def cancel_conditional(self, account: int, _symbol: int) -> None:
        algos = list(self.state.open_algos[account].values())
        if algos:
            algo = self.rng.choice(algos)
            self._at_book(lambda: self.core.algo.cancel(self.state.accounts[account], algo.id, ""))

    def cancel_all(self, account: int, symbol: int) -> None:
        user = self.state.accounts[account]
        self._at_book(lambda: self.core.placing.cancel_all(user, symbol), lambda: self.core.algo.cancel_all(user, symbol))

    def countdown(self, account: int, symbol: int) -> None:
        self.core.settlement.countdown(account, symbol, self.rng.choice((0, 500, 5000)))

    def close_out(self, account: int, _symbol: int) -> None:
        """Everything goes, so that settings can be changed."""
        user = self.state.accounts[account]
        for symbol in range(len(PRICES)):
            self._at_book(lambda symbol=symbol: self.core.placing.cancel_all(user, symbol))  # type: ignore[misc]
            self._at_book(lambda symbol=symbol: self.core.algo.cancel_all(user, symbol))  # type: ignore[misc]
        for position in user.live_positions():
            mode = {"positionSide": str(position.side)} if user.hedge else {"reduceOnly": "true"}
            order = {"symbol": self.tape.symbols[position.symbol].symbol, "side": "SELL" if position.qty > 0 else "BUY", "type": "MARKET"}
            self._at_book(self._placing(account, order | mode | {"quantity": format(abs(position.qty), "f")}))

    def settings(self, account: int, symbol: int) -> None:
        user, pick = self.state.accounts[account], self.rng.randrange(5)
        if pick == 0:
            set_hedge(self.state, user, not user.hedge)
        elif pick == 1:
            set_multi_assets(self.state, user, not user.multi_assets)
        elif pick == 2:
            set_margin_type(self.state, user, symbol, self.rng.random() < 0.6)
        else:
            set_leverage(self.state, user, symbol, self.rng.choice((1, 3, 10, 50, 75, 150)))

    def margin(self, account: int, symbol: int) -> None:
        user, rng = self.state.accounts[account], self.rng
        side = rng.choice((PositionSide.LONG, PositionSide.SHORT)) if user.hedge else PositionSide.BOTH
        adjust_margin(self.state, user, symbol, side, amount=Decimal(rng.randrange(1, 50_000)) / 7, add=rng.random() < 0.5)

    def transfer(self, account: int, _symbol: int) -> None:
        user, rng = self.state.accounts[account], self.rng
        if user.wallet.balance < 500:
            self.core.transfer(account, Decimal(rng.randrange(1, 10**12)) * E8)
        elif rng.random() < 0.3:
            self.core.transfer(account, -self.state.summary(user).max_withdraw.quantize(E8, ROUND_DOWN))  # to the last of it
        else:
            self.core.transfer(account, Decimal(rng.randrange(-(10**12), 10**12)) * E8)

    def trade(self, _account: int, symbol: int) -> None:
        """The market trades, mostly near by; now and then somewhere else."""
        wide = self.rng.random()
        size = 0.0008 if wide < 0.97 else 0.02 if wide < 0.997 else 0.12
        home = dict(enumerate(t for _, t in PRICES))[symbol] / self.tape.last[symbol] - 1
        move = self.rng.gauss(0.0005 * home, size)
        ticks = max(1000, int(self.tape.last[symbol] * (1 + max(-0.5, min(0.5, move)))))
        self.tape.put(self.core.now_ms, symbol, ticks, int(min(self.rng.lognormvariate(6.0, 2.0), 1e6)) + 1, self.rng.randrange(2))
        self.run(self.rng.randrange(1, 500))

    def jump(self, _account: int, symbol: int) -> None:
        ticks = self.core.part_of_price(symbol, max(-0.3, min(0.3, self.rng.gauss(0.0, 0.03))))
        self.tape.last[symbol] += ticks
        self.core.jump(symbol, ticks)
        self.core.market.jumps.clear()  # this market's later prices follow by themselves

    def forget(self) -> None:
        """What the venue would no longer show."""
        forget_old(self.state)


OPERATIONS = {
    "market": 12, "limit": 18, "batch": 2, "conditional": 10, "modify": 8, "cancel": 8, "cancel_conditional": 4, "cancel_all": 1, "countdown": 1,
    "close_out": 1.5, "settings": 4, "margin": 4, "transfer": 2.5, "trade": 25, "jump": 0.05,
}  # fmt: skip
"""Each with its share."""
_WEIGHTED = (list(OPERATIONS), list(OPERATIONS.values()))


class Oracle:
    """Wallets and positions computed from fills and income alone."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._state = crowd.core.state
        n = len(self._state.accounts)
        self.sums = [Counter[str]() for _ in range(n)]
        self.qty: dict[tuple[int, int, str], Decimal] = {}
        self.cash: dict[tuple[int, int, str], Decimal] = {}
        self.realised: dict[tuple[int, int, str], Decimal] = {}
        self.fills = self.funded = self.seized = 0
        self._trade_id = 0

    def hear(self) -> None:
        """Take what has changed, hold the exchange's ledgers against it, and let it go."""
        changes = self._state.changes
        if not changes:
            return
        for row in (r for r in changes.incomes if r.type == "FUNDING_FEE"):
            self._check_funding(row.account, row.symbol, row.amount)
        for fill in changes.fills:
            self._fill(fill)
        for row in changes.incomes:
            self.sums[row.account][row.type] += row.amount  # type: ignore[assignment]
        for account in changes.accounts:
            self.compare(account)
        changes.clear()

    def _check_funding(self, account: int, symbol: int, amount: Decimal) -> None:
        """Each payment is that of a position as it stood, at this second's mark and the rate of the hour."""
        quotes, now = self._state.quotes, self._state.now_ms
        assert now % HOUR_MS == 0
        rate = quotes.funding_rate(symbol, now)
        held = [q for (a, s, _), q in self.qty.items() if (a, s) == (account, symbol) and q]
        assert amount in {(-q * quotes.mark(symbol) * rate).quantize(E8) for q in held}
        self.funded += 1

    def _fill(self, fill: Any) -> None:
        assert fill.id > self._trade_id, "trade ids rise"
        self._trade_id = fill.id
        self.fills += 1
        state, key = self._state, (fill.account, fill.symbol, str(fill.position_side))
        signed = fill.qty * fill.side.sign
        seized = state.orders[fill.order_id].type == "LIQUIDATION"
        self.seized += seized
        rate = ZERO if seized else state.options.maker_fee if fill.maker else state.options.taker_fee
        assert fill.commission == (fill.price * fill.qty * rate).quantize(E8)
        self.qty[key] = self.qty.get(key, ZERO) + signed
        self.cash[key] = self.cash.get(key, ZERO) - signed * fill.price
        self.realised[key] = self.realised.get(key, ZERO) + fill.realised
        self.sums[fill.account]["realised"] += fill.realised
        self.sums[fill.account]["commission"] += fill.commission

    def compare(self, index: int) -> None:
        """To the last digit: the wallet is what came and went, a position is its fills, and its cost is what they paid."""
        account, said = self._state.accounts[index], self.sums[index]
        wallet = account.wallet
        parts = (said["TRANSFER"], said["realised"], said["commission"], said["FUNDING_FEE"], said["INSURANCE_CLEAR"])
        assert (wallet.deposits, wallet.realised, wallet.commission, wallet.funding, wallet.insurance) == parts, (index, parts, wallet)
        assert wallet.balance == parts[0] + parts[1] - parts[2] + parts[3] + parts[4]
        assert (said["REALIZED_PNL"], said["COMMISSION"]) == (parts[1], -parts[2])
        for (of, symbol, side), qty in self.qty.items():
            if of == index:
                position = account.positions[f"{symbol}:{side}"]
                assert position.qty == qty and position.cost >= 0
                assert self.cash[of, symbol, side] == self.realised[of, symbol, side] - (position.cost if qty > 0 else -position.cost)
                assert qty or position.cost == position.isolated_wallet == 0
                assert qty >= 0 or side != "LONG"
                assert qty <= 0 or side != "SHORT"

    def check_margins(self) -> None:
        """Right after the venue has looked: who holds anything can carry it, who holds nothing owes nothing."""
        state = self._state
        for account in state.accounts:
            cross, need, holds = account.cross_wallet, ZERO, False
            for position in account.live_positions():
                mark = state.quotes.mark(position.symbol)
                maint = maintenance(state.specs[position.symbol].brackets, mark * position.qty)
                if account.setting(position.symbol).isolated:
                    assert position.isolated_wallet + position.unrealised(mark) > maint
                else:
                    holds, cross, need = True, cross + position.unrealised(mark), need + maint
            assert cross > need if holds else cross >= 0, (account.index, cross, need)

    def check_indexes(self) -> None:
        """Orders and conditional orders are where they belong, and have what their fills say."""
        state = self._state
        executed: Counter[int] = Counter()
        for mine in state.fills:
            for fill in mine:
                executed[fill.order_id] += fill.qty  # type: ignore[assignment]
        for order in state.orders.values():
            assert order.executed == executed[order.id] or order.id not in executed
            assert order.open == (order.id in state.open_orders[order.account]) == (order.id in state.resting[order.symbol])
        for algo in state.algos.values():
            assert algo.open == (algo.id in state.open_algos[algo.account]) == (algo.id in state.waiting[algo.symbol])


def main() -> None:
    """``python -m tests.crowd [operations] [seed]``: the long run whose figures stand in docs/evidence.md."""
    operations, seed = (int(word) for word in (sys.argv[1:] + ["1000000", "1"][len(sys.argv) - 1 :]))
    crowd, began = Crowd(seed), monotonic_ns()
    for n in range(1, operations + 1):
        crowd.at_random()
        if n % 20_000 == 0:
            crowd.oracle.check_indexes()
            crowd.forget()
    oracle, spent_s = crowd.oracle, (monotonic_ns() - began) / 1e9
    days = (crowd.core.now_ms - START_MS) / 86_400_000
    sys.stdout.write(f"{operations:,} operations ({sum(crowd.refused.values()):,} refused) in {spent_s:,.0f} s, {days:.1f} days of the market: "
                     f"{oracle.fills:,} fills, {oracle.funded:,} funding payments, {oracle.seized:,} positions liquidated; in balance\n")  # fmt: skip


if __name__ == "__main__":
    main()
