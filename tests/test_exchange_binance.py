"""A venue's market as the local exchange sees it: trade for trade, quotes as they stand, nothing made up, nothing filled on what was not seen.

The venue is a second local exchange with a market whose every trade the test decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from decimal import Decimal as D
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pyarrow
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from src.error_handler import Fatal, Retryable
from src.exchange.binance import PENDING_MAX, AggTrade, BinanceMarket, BookTicker, MarkPrice, Patience, Watch, decode_frame, open_binance
from src.exchange.core import Core
from src.exchange.errors import ApiError
from src.exchange.jumps import JumpingMarket
from src.exchange.listing import Book, Contract, Premium, Price, PublicRest, Snapshot, spec_of
from src.exchange.options import Account, ExchangeOptions, VenueUrls
from src.exchange.symbols import TABLE, derived_spec, spec
from tests.test_exchange_fake import T0, Desk, FakeMarket
from tests.test_exchange_wire import Client, exchange, options

pytestmark = pytest.mark.slow  # a venue is watched for seconds

DEADLINE_S = 20.0
HOUR = 3_600_000
QUICK = Patience(market_mute_s=1.2, public_mute_s=30.0, backoff_s=(0.05, 0.2))
NAMES = ("BTCUSDT", "ETHUSDT")


def urls(venue: Client) -> VenueUrls:
    return VenueUrls(venue.ready.rest, venue.ready.market, venue.ready.public)


def lively(count: int = 6000) -> FakeMarket:
    """BTCUSDT trades ten times a second with sizes and a book that tell one trade from the other, ETHUSDT once a second."""
    market = FakeMarket(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), seconds=-60)
    for n in range(-20, count):
        if n % 10 == 0:
            market.put(1, market.open_ms + n * 100, "3000")
        price = D("60000") + D(n % 7) / 10
        market.put(0, market.open_ms + n * 100 + 50, str(price), 1 + n % 13, maker=n % 3 == 0, bid=str(price - 1), ask=str(price + D("0.5")))
    return market


@asynccontextmanager
async def watching(venue: Client, patience: Patience = QUICK, wanted: tuple[str, ...] = NAMES) -> AsyncIterator[Watch]:
    """The venue's market, watched and seen."""
    async with aiohttp.ClientSession() as session:
        market = await open_binance(urls(venue), wanted, (), session, now_ms=T0, resume=None)
        watch = Watch(market, urls(venue), session, patience)
        task = asyncio.create_task(watch.run())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await watch.seen.wait()
            yield watch
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Reader:
    """Takes out what a market has, as an exchange does: in steps of its own time."""

    def __init__(self, market: BinanceMarket) -> None:
        self.market = market
        self.now_ms = T0
        self.rows: list[Any] = []

    def step(self) -> np.ndarray:
        rows = self.market.trades(self.now_ms, self.now_ms + 6)
        assert (rows["time_ms"] == self.now_ms + 5).all()
        self.now_ms += 6
        self.rows += rows.tolist()
        return rows

    def trades(self, symbol: int = 0) -> list[tuple[int, ...]]:
        """(price, qty, buyer is maker, ids) of the symbol's trades."""
        return [row[2:8] for row in self.rows if row[1] == symbol and row[3] > 0]

    async def until(self, wanted: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not wanted():
                await asyncio.sleep(0.006)
                self.step()


# ------------------------------------------------------------------ over sockets


async def test_the_venues_own_filters_are_listed() -> None:
    async with exchange() as venue, aiohttp.ClientSession() as session:
        found = await PublicRest(venue.ready.rest, session).specs(())
        assert found == tuple(spec(name) for name in NAMES)
        assert [s.symbol for s in await PublicRest(venue.ready.rest, session).specs(("ETHUSDT",), ("BTCUSDT", "GONEUSDT"))] == ["ETHUSDT", "BTCUSDT"]
        with pytest.raises(Fatal, match="DOGEUSDT") as caught:
            await PublicRest(venue.ready.rest, session).specs(("BTCUSDT", "DOGEUSDT"))
        assert caught.value.fields["setting"] == "SYMBOLS"


async def test_trades_pass_one_for_one_and_quotes_follow() -> None:
    source = lively()
    async with exchange(options(speed=20.0), source) as venue, watching(venue) as watch:
        reader = Reader(watch.market)
        await reader.until(lambda: len(reader.trades()) > 600)
        every = source.trades(source.open_ms, source.open_ms + 3_600_000)
        theirs = [row[2:8] for row in every.tolist() if row[1] == 0]
        seen = reader.trades()
        start = theirs.index(seen[0])
        assert seen == theirs[start : start + len(seen)], "one for one, in their order"
        quotes = {(row[2], row[8], row[9], row[10], row[11]) for row in every.tolist() if row[1] == 0}
        last = [row for row in reader.rows if row[1] == 0][-1]
        assert (last[8], last[9]) in {(q[1], q[2]) for q in quotes}
        tally = watch.market.tally
        assert (tally.gaps, tally.late, tally.bad, tally.lost, tally.cuts) == (0, 0, 0, 0, 0) and tally.quotes > 300 and tally.marks > 2


async def test_a_cut_socket_is_dialled_again_and_what_was_missed_is_counted() -> None:
    async with exchange(options(speed=20.0), lively()) as venue, watching(venue) as watch:
        reader, market = Reader(watch.market), watch.market
        await reader.until(lambda: len(reader.trades()) > 100)
        await venue.control("drop_streams")
        await reader.until(lambda: not watch.seen.is_set())
        assert {row[1] for row in reader.rows if not row[9]} == {0, 1}, "no book is seen any more"
        await reader.until(watch.seen.is_set)
        before = len(reader.trades())
        await reader.until(lambda: len(reader.trades()) > before + 50)
        ids = [row[3] for row in reader.trades()]
        holes = [(a, b) for a, b in pairwise(ids) if b != a + 1]
        assert len(holes) == 1 and market.tally.cuts == 1
        eth = [row[3] for row in reader.trades(1)]
        missed = holes[0][1] - holes[0][0] - 1 + sum(b - a - 1 for a, b in pairwise(eth))
        assert market.tally.missed == missed > 0


async def test_one_route_that_ends_takes_the_other_with_it() -> None:
    async with exchange(options(speed=20.0), lively()) as venue, watching(venue) as watch:
        await venue.control("mute", route="market", on=True)
        reader = Reader(watch.market)
        await reader.until(lambda: watch.market.tally.cuts > 0)
        assert reader.rows[-1][9] == 0 and not watch.seen.is_set(), "quotes flow still, and are not believed"
        await venue.control("mute", route="market", on=False)
        await reader.until(lambda: watch.seen.is_set() and len(reader.trades()) > 20)
        assert watch.market.tally.missed > 0, "what was traded in silence never comes"


async def test_a_venue_whose_rest_fails_meanwhile_is_seen_symbol_by_symbol() -> None:
    async with exchange(options(speed=20.0), lively()) as venue, watching(venue) as watch:
        reader = Reader(watch.market)
        await venue.control("fault", door="GET v1/premiumIndex", kind="unavailable", count=1000)
        await venue.control("drop_streams")
        await reader.until(lambda: watch.market.tally.cuts > 0)
        await reader.until(watch.seen.is_set)
        before = len(reader.trades())
        await reader.until(lambda: len(reader.trades()) > before + 10)
        assert reader.rows[-1][9] > 0


# ------------------------------------------------------------------ what cannot be had


@asynccontextmanager
async def answering(status: int, body: str) -> AsyncIterator[VenueUrls]:
    """A venue that gives every request the same answer."""

    async def handle(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"127.0.0.1:{runner.addresses[0][1]}"
    yield VenueUrls(f"http://{base}", f"ws://{base}/market", f"ws://{base}/public")
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (451, "Service unavailable from a restricted location", Fatal), (404, "no such page", Fatal), (503, "", Retryable),
        (200, "<html>", Retryable), (200, '{"symbols":[{"symbol":5}]}', Retryable),
    ],
)  # fmt: skip
async def test_a_venue_that_does_not_answer_well_is_named(status: int, body: str, error: type[Exception]) -> None:
    async with answering(status, body) as where, aiohttp.ClientSession() as session:
        with pytest.raises(error, match="fapi/v1/exchangeInfo"):
            await PublicRest(where.rest, session, pauses_s=(0.01,)).specs(NAMES)


async def test_books_of_a_made_market_are_not_taken_for_the_venues() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(Fatal, match="'synthetic'"):
            await open_binance(VenueUrls("http://x", "", ""), (), (), session, now_ms=T0, resume={"kind": "synthetic"})


def contract(**changes: Any) -> Contract:
    filters = [{"filterType": "PRICE_FILTER", "tickSize": "0.10", "minPrice": "556.85", "maxPrice": "0"},
               {"filterType": "LOT_SIZE", "stepSize": "0.001", "minQty": "0.0015", "maxQty": "1000"},
               {"filterType": "PERCENT_PRICE", "multiplierUp": "1.10", "multiplierDown": "0.95"}]  # fmt: skip
    words = {"symbol": "NEWUSDT", "status": "TRADING", "contractType": "PERPETUAL", "baseAsset": "NEW", "quoteAsset": "USDT", "pricePrecision": 2,
             "quantityPrecision": 3, "filters": filters} | changes  # fmt: skip
    return msgspec.convert(words, Contract, strict=False)


def test_odd_filters_are_brought_to_the_grid_and_none_is_left_out() -> None:
    found = spec_of(contract())
    assert found is not None
    assert (found.min_price, found.min_qty, found.market_max_qty, found.band) == (D("556.90"), D("0.002"), D(1000), D("0.05"))
    assert found.max_price > 1_000_000 and found.min_notional == 0 and str(found.tick) == "0.10"
    assert spec_of(contract(filters=[])) is None


def test_every_contract_of_a_recorded_exchange_info_can_be_listed(recorded_data: Path) -> None:
    info = msgspec.json.decode((recorded_data / "exchangeInfo.json").read_bytes())["symbols"]
    found = [spec_of(msgspec.convert(row, Contract, strict=False)) for row in info]
    assert len(found) == len(info) > 600 and None not in found
    by_name = {s.symbol: s for s in found if s is not None}
    for known in TABLE.values():  # October 2025, but for the least notional of BTC
        same = {f.name for f in fields(known)} - {"min_notional", "funding_interval_hours", "max_price", "derived"}
        assert all(getattr(by_name[known.symbol], name) == getattr(known, name) for name in same), known.symbol


def test_recorded_frames_of_the_venue_are_all_used(recorded_data: Path) -> None:
    market, last = seen_market("CTKUSDT", "SUSHIUSDT", "AKROUSDT", "KEEPUSDT"), {}
    with pyarrow.input_stream(str(recorded_data / "raw_ws/cryptofeed/BINANCE_FUTURES.jsonl.zst"), compression="zstd") as packed:
        lines = [msgspec.json.decode(line) for line in packed.read().splitlines()]
    frames = [msgspec.json.decode(line["data"])["data"] for line in lines if line["t"] == "recv"]
    frames = [frame for frame in frames if frame["e"] in ("aggTrade", "bookTicker")]
    for frame in frames:
        market.take(decode_frame(msgspec.json.encode(frame)))
        if frame["e"] == "bookTicker":
            last[frame["s"]] = (D(frame["b"]), D(frame["a"]))
    stand = {row[1]: row for row in market.trades(T0, T0 + 6).tolist()}
    for i, one in enumerate(market.symbols):
        assert (stand[i][8] * one.tick, stand[i][9] * one.tick) == last[one.symbol]
    assert (market.tally.trades, market.tally.quotes) == (91, 613) and market.tally.late == market.tally.gaps == 0


# ------------------------------------------------------------------ event by event


def seen_market(*names: str) -> BinanceMarket:
    known = [spec(name) if name in TABLE else derived_spec(name, price=1.0, price_digits=5, quantity_digits=0) for name in names or NAMES]
    return BinanceMarket(tuple(known), T0)


def trade(a: int, price: str = "60000", qty: str = "0.010", *, maker: bool = True, symbol: str = "BTCUSDT") -> AggTrade:
    return AggTrade(symbol, a, price, qty, 10 * a, 10 * a + 1, maker)


def quote(bid: str, ask: str, u: int = 0, qty: str = "1", symbol: str = "BTCUSDT") -> BookTicker:
    return BookTicker(symbol, u, bid, qty, ask, qty)


def test_quotes_between_two_looks_are_the_last_one_and_trades_carry_the_book_of_their_moment() -> None:
    market = seen_market()
    for event in (quote("59999.9", "60000.0", 1), trade(5), quote("59990.0", "59990.5", 2), quote("59991.0", "59991.5", 3)):
        market.take(event)
    rows = market.trades(T0, T0 + 6)
    assert rows[["price", "qty", "agg_id", "bid", "ask"]].tolist() == [(600000, 10, 5, 599999, 600000), (600000, 0, 5, 599910, 599915)]
    assert rows["buyer_is_maker"].tolist() == [1, 2]
    assert len(market.trades(T0 + 6, T0 + 12)) == 0, "each once"
    market.take(trade(6))
    assert len(market.trades(T0 + 12, T0 + 12)) == 0, "no time has passed: it waits"
    assert market.trades(T0 + 12, T0 + 13)["agg_id"].tolist() == [6]


def test_late_frames_are_dropped_and_gaps_counted() -> None:
    market = seen_market()
    for a in (5, 6, 6, 4, 9, 10):
        market.take(trade(a))
    market.take(quote("1", "2", 7))
    market.take(quote("3", "4", 6))
    assert market.trades(T0, T0 + 6)["agg_id"].tolist() == [5, 6, 9, 10, 10]
    tally = market.tally
    assert (tally.trades, tally.late, tally.gaps, tally.missed) == (4, 3, 1, 2)
    market.unsee()
    market.take(trade(3))
    market.take(trade(4))
    assert market.trades(T0 + 6, T0 + 12)["agg_id"].tolist()[:2] == [3, 4], "after a cut a venue may number anew"


@pytest.mark.parametrize(
    "event",
    [trade(1, "0"), trade(1, "-5"), trade(1, "nan"), trade(1, "inf"), trade(1, "x"), quote("2", "1"), quote("1", "1"), quote("0", "1"),
     quote("1", "x")],
)  # fmt: skip
def test_impossible_numbers_are_refused_and_change_nothing(event: AggTrade | BookTicker) -> None:
    market = seen_market()
    with pytest.raises((ValueError, OverflowError)):
        market.take(event)
    assert len(market.trades(T0, T0 + 6)) == 0
    market.take(trade(1))
    assert market.tally.gaps == 0


def test_a_rubbish_mark_spoils_only_itself_and_strangers_are_passed_over() -> None:
    market = seen_market()
    market.take([MarkPrice("STRANGERUSDT", "5"), MarkPrice("BTCUSDT", "x"), MarkPrice("ETHUSDT", "3000.5", "0.0001", T0 + HOUR)])
    told = market.marks()
    assert told is not None and told.mark_e8.tolist() == [0, 300_050_000_000] and market.tally.bad == 1


def test_what_nobody_takes_out_is_bounded() -> None:
    market = seen_market()
    for a in range(1, PENDING_MAX + 11):
        market.take(trade(a))
    rows = market.trades(T0, T0 + 6)
    assert len(rows) == PENDING_MAX + 1 and rows["qty"][-1] == 0 and market.tally.lost == 10


def test_a_snapshot_speaks_only_of_what_the_streams_have_not_spoken_of() -> None:
    market = seen_market(*NAMES, "SOLUSDT")
    snapshot = Snapshot([Price("BTCUSDT", "1"), Price("ETHUSDT", "2"), Price("STRANGERUSDT", "3"), Price("SOLUSDT", "0")],
                        [Book("BTCUSDT", "1", "1", "2", "1"), Book("ETHUSDT", "1", "1", "2", "1"), Book("SOLUSDT", "0", "0", "0", "0")],
                        [Premium("ETHUSDT", "2", "", 0)])  # fmt: skip
    market.take(trade(5))
    market.take(quote("59999", "60000", 9))
    market.settle(snapshot)
    stand = {row[1]: (row[2], row[8], row[9]) for row in market.trades(T0, T0 + 6).tolist()}
    assert stand == {0: (600000, 599990, 600000), 1: (200, 100, 200)}


@given(st.lists(st.tuples(st.sampled_from(["trade", "quote", "cut", "look"]), st.integers(1, 40)), max_size=60))
def test_whatever_comes_ids_rise_between_cuts_and_no_row_has_half_a_book(events: list[tuple[str, int]]) -> None:
    market, now, high = seen_market(), T0, 0
    for kind, n in events:
        if kind == "trade":
            market.take(trade(n))
        elif kind == "quote":
            market.take(quote(str(59_000 + n), str(59_001 + n), n))
        elif kind == "cut":
            market.unsee()
            assert not any(market.trades(now, now + 6)["ask"][-1:])
            high = 0
        else:
            for row in market.trades(now, now + 6).tolist():
                assert (row[8] > 0) == (row[9] > 0) and row[8] <= row[9]
                if row[3]:
                    assert row[5] > high
                    high = row[5]
        now += 6


# ------------------------------------------------------------------ an exchange over it


class SeenDesk(Desk):
    """A desk on a market that is seen."""

    def __init__(self, balance: str = "100000") -> None:
        self.seen = seen_market("BTCUSDT")
        accounts = (Account("k", "s", D(balance)),)
        self.core = Core(ExchangeOptions(accounts=accounts), JumpingMarket(self.seen), T0)
        self.core.open_accounts()
        self.core.look_back()
        self.state = self.core.state
        self.account = self.state.accounts[0]
        self.events = []
        self.take(quote("59999.9", "60000.1", 1), trade(1))

    def take(self, *events: Any) -> None:
        for event in events:
            self.seen.take(event)
        self.run(6)


def test_an_order_meets_the_book_that_stands() -> None:
    desk = SeenDesk()
    assert desk.order("BUY", "MARKET", "0.1").average == D("60000.1")
    desk.take(quote("60010.0", "60010.5", 2))
    assert desk.order("SELL", "MARKET", "0.1").average == D("60010.0"), "a quote without a trade moves the book"
    desk.check()


def test_a_resting_order_fills_when_the_book_comes_to_it_and_not_by_an_old_trade() -> None:
    desk = SeenDesk()
    desk.take(quote("59998.0", "60002.0", 2))
    order = desk.limit("BUY", "0.1", "60001")  # inside the spread, above the last trade
    desk.take(quote("59999.0", "60002.0", 3))
    assert not order.executed, "the book has moved, nobody has traded"
    desk.take(quote("59999.0", "60001.0", 4, qty="0.04"))
    assert order.executed == D("0.04"), "as much as is shown"
    desk.take(trade(2, "60000.9"))
    assert order.executed == D("0.1"), "traded through"
    desk.check()


def test_while_nothing_is_seen_nothing_fills_and_orders_are_refused() -> None:
    desk = SeenDesk()
    resting = desk.limit("BUY", "0.1", "59990")
    desk.seen.unsee()
    desk.run(6)
    asks: list[Callable[[], Any]] = [
        lambda: desk.order("BUY", "MARKET", "0.1"), lambda: desk.limit("SELL", "0.1", "60500"),
        lambda: desk.modify(resting, quantity="0.2", price="59991"),
    ]  # fmt: skip
    for ask in asks:
        with pytest.raises(ApiError) as refused:
            ask()
        assert refused.value.code == -1112
    desk.run(5000)
    assert resting.open and not resting.executed
    desk.take(trade(90, "59980"))
    assert resting.executed == D("0.1"), "what is seen again counts again"
    desk.check()


def test_a_stop_that_was_passed_unseen_fires_at_what_stands_afterwards() -> None:
    desk = SeenDesk()
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000", timeInForce="GTE_GTC")
    desk.seen.unsee()
    desk.run(60_000)
    assert stop.open
    desk.seen.settle(Snapshot([Price("BTCUSDT", "58000")], [Book("BTCUSDT", "57999", "1", "58001", "1")], []))
    desk.run(6)
    desk.run(20)
    fill = desk.state.fills[0][-1]
    assert not stop.open and fill.price == D("57999") and desk.held() == 0
    desk.check()


def test_a_stop_by_mark_that_fires_unseen_waits_for_a_book() -> None:
    desk = SeenDesk()
    desk.take(MarkPrice("BTCUSDT", "60000", "0.0001", T0 + HOUR))
    desk.run(1000)
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000", timeInForce="GTE_GTC", workingType="MARK_PRICE")
    desk.seen.unsee()
    desk.run(6)
    desk.seen.take(MarkPrice("BTCUSDT", "58900", "0.0001", T0 + HOUR))
    desk.run(3000)
    assert stop.status == "TRIGGERING" and desk.held() == D("0.1")
    desk.take(quote("58800", "58801", 9))
    desk.run(200)
    assert stop.status == "FINISHED" and desk.state.fills[0][-1].price == D("58800")
    desk.check()


def test_marks_and_funding_are_the_venues() -> None:
    desk = SeenDesk()
    due = T0 // HOUR * HOUR + HOUR
    desk.take(MarkPrice("BTCUSDT", "60123.45678901", "0.00050000", due))
    desk.run(1000)
    assert desk.state.quotes.mark(0) == D("60123.45678901")
    desk.order("BUY", "MARKET", "0.1")
    desk.run(due - desk.core.now_ms - 1000)
    desk.take(MarkPrice("BTCUSDT", "60000", "-0.00070000", due + 4 * HOUR))  # early with the next period's
    desk.run(3000)
    assert [r.amount for r in desk.state.incomes[0] if r.type == "FUNDING_FEE"] == [D("-3.00000000")]
    desk.run(3 * HOUR)
    assert len([r for r in desk.state.incomes[0] if r.type == "FUNDING_FEE"]) == 1, "the interval is the venue's"
    desk.check()


# ------------------------------------------------------------------ exchange over exchange


@asynccontextmanager
async def paper(venue: Client, **given: Any) -> AsyncIterator[Client]:
    words = options(**({"market": "binance", "symbols": NAMES, "venue": urls(venue), "latency_ms": 5} | given))
    async with exchange(words) as client:
        yield client


async def test_orders_fill_at_the_venues_quote_and_never_reach_it() -> None:
    source = FakeMarket(*((name, price) for name, price in zip(NAMES, ("60000", "3000"), strict=True)), seconds=600)
    async with exchange(options(), source) as venue, paper(venue) as local:
        assert 0 <= local.clock.market_ms() - local.clock.t0_ms < 60_000 and local.clock.speed == 1
        order = await local.good("POST", "v1/order", symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.5", newOrderRespType="RESULT")
        book = await venue.get("v1/ticker/bookTicker", symbol="ETHUSDT")
        (fill,) = await local.good("GET", "v1/userTrades", symbol="ETHUSDT")
        assert (order["status"], D(fill["price"])) == ("FILLED", D(book["askPrice"]))
        assert D((await local.get("v1/premiumIndex", symbol="ETHUSDT"))["markPrice"]) == 3000
        theirs = await venue.books()
        assert not (theirs["orders"] or theirs["fills"] or theirs["algo"] or theirs["positions"])


async def test_history_is_asked_of_the_venue_and_said_so() -> None:
    async with exchange(options(), lively()) as venue, paper(venue) as local:
        symbol = "symbol=BTCUSDT"
        for path in (f"v1/klines?{symbol}&interval=1m", f"v1/aggTrades?{symbol}", "v1/ticker/24hr", "v1/fundingRate", f"v1/openInterest?{symbol}"):
            status, body = await local.raw("GET", "/fapi/" + path)
            assert (status, body["code"]) == (400, -1020) and venue.ready.rest in body["msg"], path
        socket = await local.socket(local.ready.market + "/stream?streams=btcusdt@kline_1m/btcusdt@aggTrade/!ticker@arr/btcusdt@ticker")
        book = await local.socket(local.ready.public + "/ws/btcusdt@depth@100ms")
        assert (await socket.next())["stream"] == "btcusdt@aggTrade"
        first, second = await book.next(), await book.next()
        assert second["pu"] == first["u"] and first["U"] <= first["u"]


async def test_a_restart_finds_the_books_and_what_is_held_is_listed(tmp_path: Path) -> None:
    async with exchange() as venue:
        async with paper(venue, books_dir=str(tmp_path)) as local:
            await local.good("POST", "v1/order", symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.5", newOrderRespType="RESULT")
        async with paper(venue, books_dir=str(tmp_path), symbols=("BTCUSDT",)) as local:
            (row,) = await local.good("GET", "v3/positionRisk")
            assert (row["symbol"], D(row["positionAmt"])) == ("ETHUSDT", D("0.5"))
            info = await local.get("v1/exchangeInfo")
            assert [s["symbol"] for s in info["symbols"]] == ["BTCUSDT", "ETHUSDT"]
            assert len((await local.books())["fills"]) == 1, "nothing was liquidated on the way"
