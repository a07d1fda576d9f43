"""Trade with all its organs against a real local exchange over sockets: a bench, and the lives of positions without any rudeness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from src.bus import EventBus, Topic
from src.clock import monotonic_ns
from src.counters import Counters
from src.error_handler import Degraded, Retryable
from src.exchange.options import ExchangeOptions
from src.gateway import Gateway
from src.journal import Journal
from src.models import AccountUpdate, Fill, PositionUpdate, Quote, Side, Signal
from src.portfolio import Portfolio
from src.preparation import keep_prepared
from src.recovery import reconcile, recover
from src.risk import Limit, Limits
from src.slots import MS_NS, Patience, Slot, State
from src.trade import Desk, Trade
from src.venue import queries
from src.venue.governor import Governor
from src.venue.orders import ClientIds, ours
from src.venue.rest import Rest
from src.venue.signing import Credentials
from src.venue.user_stream import UserStream
from src.venue.ws_api import WsApi
from tests.test_exchange_fake import FakeMarket
from tests.test_exchange_wire import KEY, SECRET, Client, exchange, options

D = Decimal
PRICES = {"BTCUSDT": "60000", "ETHUSDT": "3000", "XRPUSDT": "2", "SOLUSDT": "150"}
SYMBOLS = tuple(PRICES)
NAKED_S = 2.0
TICK_S = 0.05
WAIT_S = 8.0
LIMIT = Limit(D("0.02"), D("0.55"), D(5), D(10), 3, 3, 10, 1500, 5000, False)
QUICK = Patience(ask_ns=300 * MS_NS, absent_ns=900 * MS_NS, lookup_ns=600 * MS_NS, twice_ns=800 * MS_NS, exit_again_ns=600 * MS_NS,
                 target_again_ns=800 * MS_NS)  # fmt: skip
"""What is not about the naked limit need not take long in a test."""
DEAD_WS = "ws://127.0.0.1:1/"
TICKS = {"BTCUSDT": 0.1, "ETHUSDT": 0.01, "XRPUSDT": 0.0001, "SOLUSDT": 0.01}


class Relay:
    """A wire between the daemon and the venue that a test can cut. ``hole``: bytes vanish, connections stand."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.port = 0
        self.hole = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def down(self) -> None:
        """Nobody listens any more, and what was connected is cut."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, there}
        await asyncio.gather(self._pump(reader, there), self._pump(there_reader, writer))
        self._writers -= {writer, there}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                if not self.hole:
                    writer.write(chunk)
        writer.transport.abort()


@dataclass
class Watch:
    """What an outsider sees of a symbol's protection: the longest time that a position stood without a stop, as wall seconds."""

    naked_s: float = 0.0
    since: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, Decimal] = field(default_factory=dict)

    def look(self, books: dict[str, Any], now: float) -> None:
        held = {name.split(":")[0]: D(p["qty"]) for name, p in books["positions"].items() if D(p["qty"])}
        stops = {a["symbol"] for a in books["algo"] if a["status"] in ("NEW", "TRIGGERING") and a["type"] == "STOP_MARKET" and a["close_position"]}
        for symbol in set(self.since) | set(held):
            if symbol in held and symbol not in stops:
                self.since.setdefault(symbol, now)
                self.naked_s = max(self.naked_s, now - self.since[symbol])
            else:
                self.since.pop(symbol, None)
        for symbol, qty in held.items():
            self.sizes[symbol] = max(self.sizes.get(symbol, D(0)), abs(qty))


class World:
    """A venue, its scripted market, another client on the same account, and a wire that can be cut."""

    def __init__(self, client: Client, market: FakeMarket, relay: Relay) -> None:
        port = relay.port
        self.client, self.market, self.relay = client, market, relay
        self.clock = client.clock
        self.price = {s: float(p) for s, p in PRICES.items()}
        self.rest_url = f"http://127.0.0.1:{port}"
        self.ws_url = f"ws://127.0.0.1:{port}" + client.ready.ws_api.split(":", 2)[2].lstrip("0123456789")
        self.private_url = f"ws://127.0.0.1:{port}/private"
        self.watch = Watch()

    async def move(self, symbol: str, price: float) -> None:
        """The market of a symbol jumps."""
        self.price[symbol] = price
        await self.client.control("price", symbol=symbol, price=f"{price:g}")

    async def fault(self, door: str, kind: str, count: int = 1, delay_s: float = 0.0) -> None:
        await self.client.control("fault", door=door, kind=kind, count=count, delay_s=delay_s)

    async def books(self) -> dict[str, Any]:
        return dict(await self.client.books())

    async def held(self, symbol: str = "BTCUSDT") -> Decimal:
        positions = (await self.books())["positions"]
        return D(positions.get(f"{symbol}:BOTH", {"qty": "0"})["qty"])

    async def standing(self, symbol: str = "BTCUSDT", kind: str = "STOP_MARKET") -> list[dict[str, Any]]:
        return [a for a in (await self.books())["algo"] if (a["symbol"], a["type"]) == (symbol, kind) and a["status"] in ("NEW", "TRIGGERING")]

    async def user(self, side: str, quantity: str, symbol: str = "BTCUSDT", **words: Any) -> Any:
        """The account's owner trades by hand."""
        return await self.client.good("POST", "v1/order", symbol=symbol, side=side, type="MARKET", quantity=quantity, **words)

    async def watching(self) -> None:
        while True:
            self.watch.look(await self.books(), monotonic())
            await asyncio.sleep(0.04)

    def quote(self, symbol: str) -> Quote:
        price, tick = self.price[symbol], TICKS[symbol]
        return Quote(price - tick, price + tick, price, price, 1.0, 1.0, 1.0, True)


class Daemon:
    """The money side of one Brain process: what ``brain_process`` wires, without Feed and kernels."""

    def __init__(self, world: World, folder: Path, *, slots: int = 3, ws_url: str = "", cooldown_ms: int = 60_000, limit: Limit = LIMIT,
                 patience: Patience | None = None, symbols: tuple[str, ...] = SYMBOLS, stream: bool = True) -> None:  # fmt: skip
        self.world, self.folder, self.patience, self.symbols, self.with_stream = world, folder, patience, symbols, stream
        self.with_ws = ws_url != DEAD_WS
        keys = Credentials(KEY, SECRET)
        self.rest = Rest(world.rest_url, clock=world.clock, governor=Governor(world.clock.unscaled_ms), credentials=keys)
        self.ws = WsApi(ws_url or world.ws_url, clock=world.clock, credentials=keys, offset_ms=lambda: self.rest.offset_ms)
        self.journal = Journal(folder)
        self.bus = EventBus(lambda topic, handler, error: self.errors.append(error))
        self.counters = Counters.create()
        self.errors: list[BaseException] = []
        self.closed: list[Any] = []
        self.refused: list[tuple[str, str]] = []
        self.requests: list[Any] = []
        for topic, heard in ((Topic.POSITION_CLOSED, self.closed), (Topic.ORDER_REJECTED, self.refused), (Topic.ORDER_REQUEST, self.requests)):
            self.bus.subscribe(topic, heard.append)
        self.slots, self.cooldown_ms, self.limit = slots, cooldown_ms, limit
        self.tasks: list[asyncio.Task[Any]] = []
        self.up = asyncio.Event()
        self.running = False

    async def start(self, *, ticking: bool = True) -> None:
        """Connect, recover, be prepared, and tick."""
        await self.rest.sync_time()
        all_rules, _ = await queries.symbol_rules(self.rest)
        rules = {s: all_rules[s] for s in self.symbols}
        self.ids = ClientIds(self.rest.timestamp())
        self.gateway = Gateway(self.rest, self.ws, rules, "MARK_PRICE")
        self.portfolio = Portfolio(self.slots, cooldown_ms=self.cooldown_ms, naked_ns=int(NAKED_S * 1e9), next_id=self.ids.next,
                                   patience=self.patience)  # fmt: skip
        limits = Limits(D("0.06"), D("0.2"))
        if (memory := self.journal.recall("limits")) is not None:
            limits.recall(memory)
        self.trade = Trade(Desk(
            clock=self.world.clock, journal=self.journal, portfolio=self.portfolio, gateway=self.gateway, bus=self.bus,
            block=self.counters.block("brain"), limit=self.limit, limits=limits, ids=self.ids, rules=rules,
            quote_of=self.world.quote), self.errors.append)  # fmt: skip
        self.stream = UserStream(self.rest, self.world.private_url, on_event=self.trade.on_event, on_state=self._stream_state)
        self.tasks = [self.ws.start(), *([self.stream.start()] if self.with_stream else [])]
        async with asyncio.timeout(WAIT_S):
            if self.with_stream:
                await self.up.wait()
            while not self.ws.is_up and self.with_ws:
                await asyncio.sleep(0.005)
        self.trade.recovering = True
        if ticking:
            self.tasks.append(asyncio.ensure_future(self._ticks()))
        await recover(self.trade, self.journal, self.portfolio, self.gateway, self.world.clock)
        self.trade.prepared.update(self.symbols)
        for task in self.tasks:
            task.add_done_callback(self._ended)
        self.running = True

    def _stream_state(self, up: bool) -> None:
        if not up:
            self.trade.holds["stream"] = "the user stream is down"
            return
        self.trade.holds.pop("stream", None)
        self.up.set()
        if self.trade.recovering:
            self.trade.spawn(reconcile(self.trade, self.portfolio, self.gateway, self.world.clock))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    async def _ticks(self) -> None:
        while True:
            self.trade.tick()
            await asyncio.sleep(TICK_S)

    async def kill(self) -> None:
        """As by SIGKILL: nothing is settled, only the sockets are closed."""
        self.running = False
        self.trade.close()
        for task in self.tasks[1 + self.with_stream :]:
            task.cancel()
        await self.stream.close()
        await self.ws.close()
        await self.rest.close()
        self.journal.close()
        self.counters.close()

    async def stop(self, *, flatten: bool = False) -> None:
        """As on SIGTERM: no new entries, what is in flight is settled."""
        self.trade.holds["stop"] = "stopping"
        if flatten:
            self.trade.flatten("stopping")
        async with asyncio.timeout(5):
            while self.portfolio.slots if flatten else self.portfolio.in_flight():
                await asyncio.sleep(0.01)

    # signals

    def signal(self, symbol: str = "BTCUSDT", side: Side = Side.BUY, confidence: float = 0.7, **words: Any) -> Signal:
        """At the best price, stop and target 1 % away."""
        quote = self.world.quote(symbol)
        price = quote.ask if side is Side.BUY else quote.bid
        stop, target, now_ms = price * (1 - 0.01 * side.sign), price * (1 + 0.01 * side.sign), self.world.clock.market_ms()
        made = Signal(1, symbol, side, price, stop, target, now_ms + 3_600_000, confidence, "teacher", now_ms, monotonic_ns(), quote.bid, quote.ask)
        return replace(made, **words)

    def hear(self, symbol: str = "BTCUSDT", side: Side = Side.BUY, confidence: float = 0.7, **words: Any) -> None:
        self.bus.publish(Topic.SIGNAL_GENERATED, self.signal(symbol, side, confidence, **words))

    def slot(self, symbol: str = "BTCUSDT") -> Slot | None:
        return self.portfolio.slots.get(symbol)

    def protected(self, symbol: str = "BTCUSDT") -> bool:
        slot = self.slot(symbol)
        return slot is not None and slot.state is State.OPEN and slot.protected and slot.target is not None and slot.target.word == "live"

    def gone(self, symbol: str = "BTCUSDT") -> bool:
        return symbol not in self.portfolio.slots

    async def opened(self, symbol: str = "BTCUSDT", side: Side = Side.BUY, confidence: float = 0.7, **words: Any) -> Slot:
        """A position that is open and protected."""
        self.hear(symbol, side, confidence, **words)
        await until(lambda: self.protected(symbol), f"{symbol} open and protected")
        slot = self.slot(symbol)
        assert slot is not None
        return slot

    # what must hold

    async def agree(self) -> None:
        """Journal, ledger and fills agree to the last digit; a slot holds what the venue holds; one entry a signal at most."""
        books, read = await self.world.books(), self.journal._db.execute
        assert D(books["wallet"]) == D(10_000) + D(books["realised"]) - D(books["commission"]) + D(books["funding"])
        held = {s.symbol: s for s in self.portfolio.slots.values()}
        mine = set(held) | {r[0] for r in read("SELECT symbol FROM intents")}
        theirs = {(f["symbol"], f["id"]): (D(f["price"]), D(f["qty"]), D(f["commission"]), D(f["realised"]), f["side"])
                  for f in books["fills"] if f["symbol"] in mine}  # fmt: skip
        rows = read("SELECT symbol, trade_id, price, qty, commission, realised, side FROM fills").fetchall()
        written = {(r[0], r[1]): (D(r[2]), D(r[3]), D(r[4]), D(r[5]), r[6]) for r in rows if r[0] in mine}
        assert written == theirs
        trades = read("SELECT realised, commission FROM trades").fetchall()
        for column, name in ((0, "realised"), (1, "commission")):
            counted = sum((D(t[column]) for t in trades), D(0)) + sum((getattr(s, name) for s in held.values()), D(0))
            assert counted == sum((f[3 - column] for f in written.values()), D(0)), name
        for symbol, slot in held.items():
            assert slot.qty * slot.side.sign == D(books["positions"].get(f"{symbol}:BOTH", {"qty": "0"})["qty"]), symbol
        entries = [o["client_id"] for o in books["orders"] if ours(o["client_id"]) and o["client_id"].endswith("-e")]
        assert len(entries) == len(set(entries)), "an entry was sent twice"
        written_ids = {r[0] for r in read("SELECT client_id FROM intents")}
        assert {o["client_id"] for o in books["orders"] + books["algo"] if ours(o["client_id"])} <= written_ids
        assert not self.errors and not self.trade.latches, (self.errors, self.trade.latches)


async def until(check: Callable[[], Any], what: str = "it", within_s: float = WAIT_S) -> Any:
    """The first true value of ``check`` (which may be a coroutine function)."""
    deadline = monotonic() + within_s
    while True:
        value = check()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert monotonic() < deadline, f"{what} did not happen within {within_s:g} s"
        await asyncio.sleep(0.01)


async def table(rows: Iterable[Any], scenario: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """Each row in a world of its own, all at once, since they mostly wait. Every row that fails is named."""
    named = list(rows)
    outcomes = await asyncio.gather(*[scenario(row) for row in named], return_exceptions=True)
    failed = []
    for row, error in zip(named, outcomes, strict=True):
        if isinstance(error, Exception):
            error.add_note(f"row {row!r}")
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(named)} rows failed", failed)


@asynccontextmanager
async def world(given: ExchangeOptions | None = None, market: FakeMarket | None = None) -> AsyncIterator[World]:
    source = market or FakeMarket(*PRICES.items(), seconds=600, top_steps=10_000_000)
    async with exchange(given or options(latency_ms=2), source) as client:
        relay = Relay(int(client.ready.rest.rsplit(":", 1)[1]))
        await relay.up()
        made = World(client, source, relay)
        watching = asyncio.ensure_future(made.watching())
        try:
            yield made
        finally:
            watching.cancel()
            relay.down()


@asynccontextmanager
async def daemon(world: World, folder: Path, **words: Any) -> AsyncIterator[Daemon]:
    made = Daemon(world, folder, **words)
    await made.start()
    try:
        yield made
    finally:
        if made.running:
            await made.kill()


@asynccontextmanager
async def bench(folder: Path, **words: Any) -> AsyncIterator[tuple[World, Daemon]]:
    async with world() as there, daemon(there, folder, **words) as here:
        yield there, here


# ------------------------------------------------------------------ the ordinary life


async def test_a_signal_becomes_a_protected_position(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        assert slot.qty == await venue.held() > 0
        assert [s["client_id"] for s in await venue.standing()] == [slot.stop.client_id if slot.stop else ""]
        assert len(await venue.standing(kind="TAKE_PROFIT_MARKET")) == 1
        await d.agree()
        assert venue.watch.naked_s < 0.5


@pytest.mark.parametrize("side", [Side.BUY, Side.SELL])
@pytest.mark.parametrize("cause", ["stop", "target"])
async def test_stop_and_target_close_and_free_the_slot(tmp_path: Path, side: Side, cause: str) -> None:
    async with bench(tmp_path) as (venue, d):
        await d.opened(side=side)
        up = (side is Side.BUY) == (cause == "target")
        await venue.move("BTCUSDT", 60_000 * (1.02 if up else 0.98))
        await until(d.gone, "the slot is free")
        assert d.closed[0].reason == cause and await venue.held() == 0
        assert not await venue.standing() and not await venue.standing(kind="TAKE_PROFIT_MARKET")
        await d.agree()


@pytest.mark.parametrize("moved", [1.004, 0.997])
async def test_three_full_slots_fit_into_the_accounts_free_margin(tmp_path: Path, moved: float) -> None:
    """Stops so near that each slot's share decides; profit that is not realised cannot be margin, and fees are paid."""
    async with bench(tmp_path) as (venue, d):
        d.trade.prepared.clear()
        keeping = asyncio.ensure_future(keep_prepared(d.trade, d.rest, SYMBOLS, LIMIT.leverage_teacher, asyncio.Event()))
        await until(lambda: d.trade.prepared == set(SYMBOLS))
        keeping.cancel()
        for symbol in ("BTCUSDT", "ETHUSDT"):
            await d.opened(symbol)
        for symbol in ("BTCUSDT", "ETHUSDT"):
            await venue.move(symbol, venue.price[symbol] * moved)
        await until(lambda: (d.trade.equity > 10_020) if moved > 1 else (d.trade.equity < 9_970))
        slot = await d.opened("SOLUSDT")
        assert slot.qty * slot.entry_price > 9_000 and not d.refused
        await d.agree()


async def test_the_time_limit_closes(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await d.opened(limit_ms=venue.clock.market_ms() + 300)
        await until(d.gone, "the slot is free")
        assert d.closed[0].reason == "time limit" and await venue.held() == 0
        await d.agree()


async def test_an_entry_that_meets_no_price_expires_and_cools_its_symbol_down(tmp_path: Path) -> None:
    async with bench(tmp_path, cooldown_ms=700) as (venue, d):
        await venue.move("BTCUSDT", 60_500)
        venue.price["BTCUSDT"] = 60_000  # the Brain's view is a moment old
        d.hear()
        await until(lambda: d.refused and d.gone(), "the entry has died")
        assert "remainder of an immediate-or-cancel order" in d.refused[0][1] or "EXPIRED".lower() in d.refused[0][1].lower()
        venue.price["BTCUSDT"] = 60_500
        d.hear()
        assert d.refused[-1] == ("BTCUSDT", "cooling down")
        await until(lambda: venue.clock.market_ms() >= d.portfolio.cooldown_until_ms["BTCUSDT"])
        await d.opened()
        await d.agree()


async def test_a_gap_through_the_stop_is_closed_at_the_gaps_price(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await d.opened()
        await venue.move("BTCUSDT", 57_500)
        await until(d.gone, "the slot is free")
        assert d.closed[0].reason == "stop" and d.closed[0].exit_price < 57_501
        await d.agree()


async def test_an_entry_that_fills_in_part_is_protected_for_what_it_has(tmp_path: Path) -> None:
    market = FakeMarket(*PRICES.items(), seconds=600, top_steps=2)
    async with world(market=market) as venue, daemon(venue, tmp_path, limit=replace(LIMIT, max_slippage_bps=D("0.02"))) as d:
        slot = await d.opened()
        asked = next(o for o in (await venue.books())["orders"])
        assert 0 < slot.qty < D(asked["qty"]) and asked["status"] == "EXPIRED"
        await until(lambda: slot.entry.word == "gone")
        await d.agree()
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone, "the slot is free")
        assert d.closed[0].reason == "target"
        await d.agree()


# ------------------------------------------------------------------ rotation


async def test_a_better_signal_takes_the_place_of_the_weakest_winner(tmp_path: Path) -> None:
    """All three slots hold their full share of the leverage, as they usually do."""
    async with bench(tmp_path) as (venue, d):
        for symbol, confidence in (("BTCUSDT", 0.8), ("ETHUSDT", 0.6), ("XRPUSDT", 0.7)):
            await d.opened(symbol, confidence=confidence)
        await venue.move("ETHUSDT", 3_020)
        d.hear("SOLUSDT", confidence=0.75)
        await until(lambda: d.protected("SOLUSDT"), "the newcomer is open")
        assert [t.symbol for t in d.closed] == ["ETHUSDT"] and d.closed[0].reason == "rotated" and d.closed[0].net > 0
        assert set(d.portfolio.slots) == {"BTCUSDT", "XRPUSDT", "SOLUSDT"}
        await d.agree()


async def test_a_loser_is_never_rotated_out(tmp_path: Path) -> None:
    async with bench(tmp_path, slots=1) as (_, d):
        await d.opened(confidence=0.6)
        d.hear("SOLUSDT", confidence=0.9)
        assert "not in profit" in d.refused[-1][1]
        assert not d.gone()


async def test_a_newcomer_whose_victim_leaves_too_late_is_stale(tmp_path: Path) -> None:
    async with bench(tmp_path, slots=1) as (venue, d):
        await d.opened(confidence=0.6)
        await venue.move("BTCUSDT", 60_500)
        await venue.fault("order.place", "unavailable")
        d.hear("SOLUSDT", confidence=0.9)
        await until(d.gone, "the victim is gone")
        await d.opened("ETHUSDT")
        assert d.gone("SOLUSDT") and await venue.held("SOLUSDT") == 0
        await d.agree()


# ------------------------------------------------------------------ equity and its limits


async def test_a_loss_is_never_counted_twice_while_its_fill_is_on_the_way(tmp_path: Path) -> None:
    """The wallet's update comes before the fill: in between the slot still holds what the wallet has lost already."""
    async with bench(tmp_path) as (venue, d):
        await d.opened()
        await venue.fault("ORDER_TRADE_UPDATE", "delay", count=2, delay_s=0.5)
        await venue.move("BTCUSDT", 58_000)
        lowest = D(10_000)
        while not d.gone():
            lowest = min(lowest, d.trade.equity)
            await asyncio.sleep(0.005)
        assert lowest > D(10_000) - D("0.17") * 2_000 - 30 and not d.trade.latches
        assert d.trade.equity == d.trade.account.wallet
        await d.agree()


# ------------------------------------------------------------------ other hands on the account


async def test_a_position_of_others_takes_a_slot_and_is_left_alone(tmp_path: Path) -> None:
    async with bench(tmp_path, slots=2) as (venue, d):
        await venue.user("BUY", "1", "ETHUSDT")
        stop = await venue.client.good("POST", "v1/algoOrder", algoType="CONDITIONAL", symbol="ETHUSDT", side="SELL", type="STOP_MARKET",
                                       triggerPrice="2900", closePosition="true")  # fmt: skip
        await until(lambda: "ETHUSDT" in d.portfolio.foreign)
        d.hear("ETHUSDT")
        assert d.refused[-1] == ("ETHUSDT", "already held")
        await d.opened("BTCUSDT")
        d.hear("SOLUSDT", confidence=0.6)
        assert d.gone("SOLUSDT") and "not better" in d.refused[-1][1]
        assert await venue.held("ETHUSDT") == 1 and [s["id"] for s in await venue.standing("ETHUSDT")] == [stop["algoId"]]
        await venue.user("SELL", "1", "ETHUSDT")
        await until(lambda: "ETHUSDT" not in d.portfolio.foreign)
        await d.opened("SOLUSDT")
        await d.agree()


async def test_others_count_in_the_accounts_leverage(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.user("BUY", "9", "ETHUSDT")  # 27,000 of the 30,000 that three times the equity allow
        await until(lambda: "ETHUSDT" in d.portfolio.foreign)
        d.hear("BTCUSDT")
        assert d.gone() and ("leverage" in d.refused[-1][1] or "balance" in d.refused[-1][1])


async def test_the_rest_of_an_entry_that_is_filling_counts_in_the_accounts_leverage(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.client.control("mute", route="private", on=True)
        await venue.fault("order.place", "slow", delay_s=1.0)
        d.hear()
        order = d.requests[0]
        part = Fill("BTCUSDT", 1, d.slot().entry.client_id, 1, Side.BUY, order.price, order.qty / 4, D(0), "USDT", D(0), False, 0)
        d.portfolio.fill(part, monotonic_ns(), venue.clock.market_ms())
        assert d.slot().state is State.OPEN and d.trade._notional("") == order.notional


async def test_a_position_that_the_owner_closes_by_hand_is_let_go(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        await venue.user("SELL", str(slot.qty), reduceOnly="true")
        await until(d.gone, "the slot is free")
        assert d.closed[0].reason == "closed from outside"
        assert not await venue.standing() and not await venue.standing(kind="TAKE_PROFIT_MARKET")
        await d.agree()


async def test_what_the_owner_adds_is_protected_and_closed_with_ours(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        before = slot.qty
        await venue.user("BUY", "0.05")
        await until(lambda: slot.qty == before + D("0.05"))
        await venue.user("SELL", "0.01")
        await until(lambda: slot.qty == before + D("0.04"))
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone, "the slot is free")
        assert await venue.held() == 0
        await d.agree()


async def test_an_owner_who_turns_the_position_round_keeps_what_is_left(tmp_path: Path) -> None:
    """His part takes a slot afterwards, and is left alone."""
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        await venue.user("SELL", str(slot.qty + D("0.02")))
        await until(d.gone, "the slot is free")
        await until(lambda: d.portfolio.foreign.get("BTCUSDT") == D("-0.02"), "the rest is foreign")
        d.hear()
        assert d.refused[-1] == ("BTCUSDT", "already held")
        assert await venue.held() == D("-0.02")


async def test_a_stop_that_the_owner_cancels_is_put_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        assert slot.stop is not None
        gone = slot.stop.client_id
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=gone)
        await until(lambda: d.protected() and slot.stop is not None and slot.stop.client_id != gone, "a new stop")
        assert len(await venue.standing()) == 1 and venue.watch.naked_s < 0.5
        await d.agree()


async def test_a_changed_leverage_stops_opening_on_that_symbol_until_it_is_set_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        d.trade.leverage = 20
        await venue.client.good("POST", "v1/leverage", symbol="BTCUSDT", leverage=19)
        await until(lambda: "BTCUSDT" not in d.trade.prepared)
        d.hear()
        assert "not prepared" in d.refused[-1][1] and d.gone()
        keeping = asyncio.ensure_future(keep_prepared(d.trade, d.rest, ("BTCUSDT", "ETHUSDT"), 20, asyncio.Event()))
        await until(lambda: "BTCUSDT" in d.trade.prepared, "set again")
        assert (await venue.client.good("GET", "v1/symbolConfig", symbol="BTCUSDT"))[0]["marginType"] == "ISOLATED"
        await d.opened()
        keeping.cancel()


async def test_multi_asset_mode_stops_opening_until_it_is_left(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.client.good("POST", "v1/multiAssetsMargin", multiAssetsMargin="true")
        await until(lambda: "multi-asset" in d.trade.halted)
        await venue.client.good("POST", "v1/multiAssetsMargin", multiAssetsMargin="false")
        await until(lambda: not d.trade.halted)
        await d.opened()


# ------------------------------------------------------------------ the journal cannot be written


async def test_a_journal_that_cannot_be_written_stops_entries_and_nothing_else(tmp_path: Path) -> None:
    """Guards and exits go out all the same, are kept in memory, and are on disk once it takes them again."""
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        slot = await d.opened()
        assert slot.stop is not None
        stop = slot.stop.client_id
        d.journal._db.execute("PRAGMA query_only=ON")
        d.hear("ETHUSDT")
        await until(lambda: d.gone("ETHUSDT"))
        assert d.refused[-1][1] == "the journal cannot be written" and not await venue.held("ETHUSDT")
        assert not [o for o in (await venue.books())["orders"] if o["symbol"] == "ETHUSDT"]
        d.hear("SOLUSDT")
        assert "the journal cannot be written" in d.refused[-1][1] and d.gone("SOLUSDT")
        await venue.client.good("DELETE", "v1/algoOrder", clientAlgoId=stop)
        await until(lambda: d.protected() and slot.stop is not None and slot.stop.client_id != stop, "a new stop")
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone, "the slot is free")
        assert "journal" in d.trade.holds and d.journal.trade_count() == 0
        d.journal._db.execute("PRAGMA query_only=OFF")
        await until(lambda: not d.trade.halted, "the hold is gone")
        assert d.journal.trade_count() == 1 and not d.journal.slots()
        assert d.journal.known(slot.stop.client_id)
        await d.agree()
        await d.opened("SOLUSDT")
        await d.agree()


async def test_a_fill_that_was_told_is_not_news_while_the_journal_cannot_be_written(tmp_path: Path) -> None:
    """Nor that the stream has missed something: whether the fill is on disk already, or waits for it."""
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        filled, missed = [], []
        d.bus.subscribe(Topic.ORDER_FILLED, filled.append)
        d.trade.on_missed = missed.append
        slot = await d.opened()
        d.journal._db.execute("PRAGMA query_only=ON")
        await venue.user("BUY", "0.01")
        await until(lambda: slot.qty == D("0.176"))
        told = len(filled)
        for fill in filled:
            assert not d.trade.on_fill(fill)
        assert len(filled) == told == 2 and not missed
        d.journal._db.execute("PRAGMA query_only=OFF")
        await until(lambda: not d.trade.halted)
        await d.agree()


async def test_what_was_written_late_does_not_overwrite_what_is_newer(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        slot = await d.opened()
        d.journal._db.execute("PRAGMA query_only=ON")
        await venue.user("BUY", "0.01")
        await until(lambda: slot.qty == D("0.176"))
        await venue.user("BUY", "0.01")
        await until(lambda: slot.qty == D("0.186"))
        d.journal._db.execute("PRAGMA query_only=OFF")
        await until(lambda: not d.trade.halted)
        assert D(d.journal.slots()["BTCUSDT"]["opened"]) == D("0.186")
        await d.agree()


async def test_a_full_disk_is_such_a_journal(tmp_path: Path) -> None:
    async with bench(tmp_path) as (_, d):
        pages = d.journal._db.execute("PRAGMA page_count").fetchone()[0]
        d.journal._db.execute(f"PRAGMA max_page_count={pages}")
        for number in range(2000):
            d.trade._write(partial(d.journal.money, number, "x" * 200, D(1), D(0)))
        assert "journal" in d.trade.holds
        d.hear()
        assert d.gone() and "journal" in d.refused[-1][1]
        d.journal._db.execute("PRAGMA max_page_count=1000000")
        await until(lambda: not d.trade.halted)
        await d.opened()
        await d.agree()


# ------------------------------------------------------------------ limits, commands and the end


async def test_a_day_that_loses_six_percent_latches_and_closes_nothing_by_itself(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.user("BUY", "3", "ETHUSDT")
        await d.opened()
        await venue.move("ETHUSDT", 2_750)
        await until(lambda: "daily_loss" in d.trade.latches, "the day's limit has tripped")
        d.hear("SOLUSDT")
        assert "latched: daily_loss" in d.refused[-1][1] and d.protected()
        assert "daily_loss" in d.journal.latches()


async def test_a_withdrawal_is_no_loss(tmp_path: Path) -> None:
    async with bench(tmp_path) as (_, d):
        d.trade.on_event(AccountUpdate("WITHDRAW", D(5_000), D(-5_000), (), d.world.clock.market_ms()))
        d.trade.tick()
        assert not d.trade.latches and d.trade.equity == 5_000


async def test_flatten_closes_everything_of_ours_and_nothing_else(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.user("BUY", "1", "ETHUSDT")
        await until(lambda: d.portfolio.foreign)
        await d.opened("BTCUSDT")
        await d.opened("SOLUSDT")
        d.trade.flatten("flattened by the operator")
        await until(lambda: not d.portfolio.slots)
        assert {t.reason for t in d.closed} == {"flattened by the operator"}
        assert await venue.held("ETHUSDT") == 1 and not await venue.held("BTCUSDT") and not await venue.held("SOLUSDT")
        await d.agree()


async def test_the_end_settles_what_is_in_flight_and_leaves_stops_standing(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await venue.client.control("latency", latency_ms=60)
        d.hear()
        await d.stop()
        assert d.slot() is not None and d.slot().protected and await venue.standing()
        d.hear("ETHUSDT")
        assert "stopping" in d.refused[-1][1]
        await d.agree()


async def test_the_end_may_close_everything_what_is_in_flight_included(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await d.opened("SOLUSDT")
        await venue.client.control("latency", latency_ms=60)
        d.hear()
        await d.stop(flatten=True)
        assert not d.portfolio.slots and not await venue.held() and not await venue.held("SOLUSDT")
        assert not await venue.standing() and not await venue.standing("SOLUSDT")
        await d.agree()


async def test_the_end_waits_for_an_exit_that_is_under_way(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await d.opened(limit_ms=venue.clock.market_ms() + 100)
        await venue.client.control("latency", latency_ms=60)
        await until(lambda: d.slot().state is State.CLOSING)
        await d.stop()
        assert d.gone() and d.closed
        await d.agree()


# ------------------------------------------------------------------ what must never end the process, or hold it for ever


async def test_a_network_error_of_a_task_latches_nothing(tmp_path: Path) -> None:
    async def fails() -> None:
        raise Retryable("no answer")

    async with bench(tmp_path) as (_, d):
        d.trade.spawn(fails())
        await asyncio.sleep(0.01)
        assert not d.trade.latches


async def test_a_bug_of_a_task_latches(tmp_path: Path) -> None:
    async def fails() -> None:
        raise KeyError("a bug")

    async with bench(tmp_path) as (_, d):
        d.trade.spawn(fails())
        await until(lambda: "halt" in d.trade.latches)


async def test_a_failed_assertion_in_the_money_path_latches_and_what_is_held_stays_managed(tmp_path: Path) -> None:
    async with bench(tmp_path) as (venue, d):
        await d.opened()
        d.trade.on_event(PositionUpdate)  # no event: ignored
        d.trade._guarded(_impossible)
        assert "halt" in d.trade.latches
        await until(lambda: not d.trade.reconciliations_wanted, "compared with the venue")
        d.hear("ETHUSDT")
        assert "latched: halt" in d.refused[-1][1]
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone)
        assert d.closed[0].reason == "target"


def _impossible() -> None:
    raise AssertionError("cannot be")


@pytest.mark.parametrize("bug", [AssertionError("cannot be"), KeyError("nor this")])
async def test_a_bug_where_an_answer_is_taken_latches_too(tmp_path: Path, bug: Exception) -> None:
    def take(client_id: str, answer: Any, error: Any) -> None:
        raise bug

    async with bench(tmp_path) as (_, d):
        call: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        d.trade._watch(call, "any", take)
        call.set_result({})
        await until(lambda: "halt" in d.trade.latches)
        await until(lambda: not d.trade.reconciliations_wanted, "compared with the venue")


async def test_a_hold_that_the_venue_puts_on_us_ends_by_itself(tmp_path: Path) -> None:
    async with bench(tmp_path) as (_, d):
        d.trade._grave(Degraded("venue -4400: reduce only, and wait"))
        d.trade.tick()
        d.hear()
        assert "-4400" in d.refused[-1][1]
        d.trade._venue_hold_ns = 0
        d.trade.tick()
        await d.opened()


async def test_a_second_position_of_a_symbol_does_not_count_the_first_ones_fills(tmp_path: Path) -> None:
    """Opened again at once, asked after because its fills were lost: the answer holds the trades of the last minute."""
    async with bench(tmp_path, patience=QUICK) as (venue, d):
        await d.opened()
        await venue.move("BTCUSDT", 61_000)
        await until(d.gone)
        await venue.fault("ORDER_TRADE_UPDATE", "drop", count=3)
        d.hear()
        await until(lambda: d.protected() and d.slot().qty > 0)
        assert d.slot().qty == await venue.held() and len(d.slot().trades) == 1
        await d.agree()
