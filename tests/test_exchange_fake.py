"""A market whose every trade the test decides, a desk to trade on it, and the tests that both are what they seem."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.exchange.core import Core
from src.exchange.entry import parse_algo, parse_modify, parse_order
from src.exchange.jumps import JumpingMarket
from src.exchange.market import KLINE_DTYPE, TRADE_DTYPE, Market
from src.exchange.options import Account, ExchangeOptions
from src.exchange.orders import AlgoOrder, Order, PositionSide
from src.exchange.params import Params
from src.exchange.state import UserEvent
from src.exchange.symbols import SymbolSpec, spec

T0 = 1_795_146_000_000  # a whole hour, and no hour of funding


class FakeMarket:
    """Quiet symbols that trade once a second at a fixed price; the test puts trades of its own between."""

    def __init__(self, *prices: tuple[str, str], open_ms: int = T0, seconds: int = 60, top_steps: int = 1000) -> None:
        self._symbols = tuple(spec(name) for name, _ in prices)
        self.start_ms, self.open_ms, self.end_ms = open_ms - 3_600_000, open_ms, None
        self._rows: list[tuple[int, ...]] = []
        self._ids = [0] * len(prices)
        self._steps = top_steps
        for t in range(-60, seconds):
            for i, (_, price) in enumerate(prices):
                self.put(i, open_ms + t * 1000, price)

    @property
    def symbols(self) -> tuple[SymbolSpec, ...]:
        return self._symbols

    def put(self, symbol: int, time_ms: int, price: str, steps: int = 10, *, maker: bool = True, bid: str = "", ask: str = "",
            top: int = 0) -> None:  # fmt: skip
        """One trade. Without ``bid`` and ``ask`` the book stands one tick to each side."""
        tick = self._symbols[symbol].tick
        ticks = int(Decimal(price) / tick)
        b = int(Decimal(bid) / tick) if bid else ticks - 1
        a = int(Decimal(ask) / tick) if ask else ticks + 1
        self._ids[symbol] += 1
        n = self._ids[symbol]
        shown = top or self._steps
        self._rows.append((time_ms, symbol, ticks, steps, maker, n, n, n, b, a, shown, shown))
        self._array: NDArray[Any] | None = None

    def _all(self) -> NDArray[Any]:
        if self._array is None:
            rows = np.zeros(len(self._rows), TRADE_DTYPE)
            names = (
                "time_ms",
                "symbol",
                "price",
                "qty",
                "buyer_is_maker",
                "agg_id",
                "first_id",
                "last_id",
                "bid",
                "ask",
                "bid_qty",
                "ask_qty",
            )
            for name, column in zip(names, zip(*self._rows, strict=True), strict=True):
                rows[name] = column
            self._array = rows[np.argsort(rows["time_ms"], kind="stable")]
        return self._array

    def trades(self, from_ms: int, to_ms: int) -> NDArray[Any]:
        rows = self._all()
        return rows[(rows["time_ms"] >= from_ms) & (rows["time_ms"] < to_ms)]

    def agg_trades(self, symbol_index: int, *, from_ms: int | None = None, to_ms: int | None = None, from_id: int | None = None,
                   limit: int = 500) -> NDArray[Any]:  # fmt: skip
        rows = self._all()
        rows = rows[rows["symbol"] == symbol_index]
        if to_ms is not None:
            rows = rows[rows["time_ms"] < to_ms]
        if from_id is not None:
            return rows[rows["agg_id"] >= from_id][:limit]
        if from_ms is not None:
            return rows[rows["time_ms"] >= from_ms][:limit]
        return rows[-limit:]

    def klines(self, symbol_index: int, interval_ms: int, from_ms: int, to_ms: int, now_ms: int) -> NDArray[Any]:
        rows = self._all()
        rows = rows[(rows["symbol"] == symbol_index) & (rows["time_ms"] < now_ms)]
        opens = rows["time_ms"] // interval_ms * interval_ms
        out = []
        for start in np.unique(opens[(opens >= from_ms) & (opens <= to_ms)]):
            bar = rows[opens == start]
            price, qty = bar["price"], bar["qty"]
            taker = int(qty[bar["buyer_is_maker"] == 0].sum())
            out.append((start, price[0], price.max(), price.min(), price[-1], qty.sum(), taker, len(bar), float((price * qty).sum()), 0.0))
        return np.array(out, KLINE_DTYPE)

    def marks(self) -> None:
        return None

    def resume_state(self) -> dict[str, Any]:
        return {}


def test_the_fake_is_a_market_and_shows_no_future() -> None:
    market: Market = FakeMarket(("BTCUSDT", "60000"))
    assert len(market.trades(T0, T0 + 10_000)) == 10
    assert market.agg_trades(0, to_ms=T0, limit=1)["time_ms"][0] < T0
    assert market.klines(0, 60_000, T0, T0, T0 + 5_000)["trades"][0] == 5


class Desk:
    """A core on a fake market, with orders in the words of the wire. Time moves only when told."""

    def __init__(self, *prices: tuple[str, str], balance: str = "10000", seconds: int = 60, open_ms: int = T0, **options: Any) -> None:
        self.market = FakeMarket(*(prices or (("BTCUSDT", "60000"),)), seconds=seconds, open_ms=open_ms)
        accounts = (Account("k", "s", Decimal(balance)),)
        self.core = Core(ExchangeOptions(accounts=accounts, **options), JumpingMarket(self.market), open_ms)
        self.core.open_accounts()
        self.core.look_back()
        self.state = self.core.state
        self.account = self.state.accounts[0]
        self.events: list[UserEvent] = []

    def run(self, ms: int = 0) -> None:
        """Let the market go on by ``ms``."""
        self.events += self.core.advance(self.core.now_ms + ms).events

    def _now(self, call: Callable[[], Any]) -> Any:
        self.core.schedule(self.core.now_ms, call)
        outcome = self.core.advance(self.core.now_ms)
        self.events += outcome.events
        answer = outcome.answers[-1]
        if answer.refusal is not None:
            raise answer.refusal
        return answer.value

    def _params(self, words: dict[str, Any]) -> Params:
        return Params({"symbol": "BTCUSDT"} | {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in words.items()})

    def order(self, side: str, kind: str, quantity: object, **words: Any) -> Order:
        params = self._params({"side": side, "type": kind, "quantity": quantity, **words})
        entry = parse_order(params, self.state.index, self.state.specs, hedge=self.account.hedge, now_ms=self.core.now_ms)
        order: Order = self._now(lambda: self.core.placing.place(self.account, entry))
        return order

    def limit(self, side: str, quantity: object, price: object, tif: str = "GTC", **words: Any) -> Order:
        return self.order(side, "LIMIT", quantity, price=price, timeInForce=tif, **words)

    def algo(self, side: str, kind: str, **words: Any) -> AlgoOrder:
        params = self._params({"side": side, "type": kind, "algoType": "CONDITIONAL", **words})
        entry = parse_algo(params, self.state.index, self.state.specs, hedge=self.account.hedge, now_ms=self.core.now_ms)
        algo: AlgoOrder = self._now(lambda: self.core.algo.place(self.account, entry))
        return algo

    def stop(self, side: str, trigger: object, **words: Any) -> AlgoOrder:
        return self.algo(side, "STOP_MARKET", triggerPrice=trigger, closePosition=True, **words)

    def modify(self, order: Order, **words: Any) -> Order:
        entry = parse_modify(self._params({"side": order.side, "orderId": order.id, **words}), self.state.index, self.state.specs)
        changed: Order = self._now(lambda: self.core.placing.modify(self.account, entry))
        return changed

    def cancel(self, order: Order) -> None:
        self._now(lambda: self.core.placing.cancel(self.account, None, order.id, ""))

    def trade(self, price: str, steps: int = 10, *, after_ms: int = 100, symbol: int = 0, **book: Any) -> None:
        """One trade of the market, and the time until after it."""
        self.market.put(symbol, self.core.now_ms + after_ms - 1, price, steps, **book)
        self.run(after_ms)

    def held(self, side: PositionSide = PositionSide.BOTH, symbol: int = 0) -> Decimal:
        return self.account.held(symbol, side)

    def said(self) -> list[str]:
        """The events so far in short, and forgotten: ``ORDER_TRADE_UPDATE NEW``, ``ALGO_UPDATE TRIGGERED``, ``TRADE_LITE`` …"""
        words = []
        for event in self.events:
            body = event.payload.get("o") or event.payload.get("a") or {}
            detail = {"ORDER_TRADE_UPDATE": body.get("x"), "ALGO_UPDATE": body.get("X"), "ACCOUNT_UPDATE": body.get("m")}.get(event.name)
            words.append(event.name + (f" {detail}" if detail else ""))
        self.events.clear()
        return words

    def check(self) -> None:
        """The invariants that hold at every moment."""
        wallet = self.account.wallet
        fills, incomes = self.state.fills[0], self.state.incomes[0]
        assert wallet.balance == wallet.deposits + wallet.realised - wallet.commission + wallet.funding + wallet.insurance
        assert wallet.realised == sum((f.realised for f in fills), Decimal(0))
        assert wallet.commission == sum((f.commission for f in fills), Decimal(0))
        assert wallet.balance == sum((r.amount for r in incomes), Decimal(0))
        for position in self.account.positions.values():
            mine = [f for f in fills if f.symbol == position.symbol and f.position_side == position.side]
            assert position.qty == sum((f.qty * f.side.sign for f in mine), Decimal(0))
            assert position.cost >= 0
            assert position.qty >= 0 or position.side is not PositionSide.LONG
            assert position.qty <= 0 or position.side is not PositionSide.SHORT
            assert position.qty or (position.cost == 0 and position.isolated_wallet == 0)
        for order in self.state.orders.values():
            assert order.executed == sum((f.qty for f in fills if f.order_id == order.id), Decimal(0))
            assert order.open == (order.id in self.state.open_orders[0]) == (order.id in self.state.resting[order.symbol])
        for algo in self.state.algos.values():
            assert algo.open == (algo.id in self.state.open_algos[0]) == (algo.id in self.state.waiting[algo.symbol])


def test_a_desk_starts_with_its_deposit() -> None:
    desk = Desk()
    desk.check()
    assert desk.account.wallet.balance == 10_000
