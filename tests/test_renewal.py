"""Symbols begin and end on a running Feed: what is asked of the sockets, what the ring says, and when the Brain hears of it."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from src.clock import clock_at
from src.error_handler import AegisError, Retryable
from src.feed import Feed, warm_up
from src.market_universe import Offer, Terms
from src.models import SymbolRules
from src.renewal import Course, Line, Renewer
from src.ring_buffer import GAP, HEALED, STATE, TIME, TRADE
from tests.test_feed import BTC, DEADLINE_S, DOGE, ETH, T0, Scene, rules, scene


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """As the process does before it connects, so that no deadline here waits for a compiler."""
    warm_up()


SOL = rules("SOLUSDT", "0.01")
VOLUMES = {rules.symbol: Decimal(volume) for volume, rules in ((9, BTC), (8, ETH), (7, DOGE), (6, SOL))}


@dataclass
class Market:
    """What the venue lists at each look, and who looks."""

    listed: dict[str, SymbolRules]
    error: AegisError | None = None
    feed: Feed | None = None
    renewer: Renewer | None = None
    counted: dict[str, int] = field(default_factory=dict)

    async def offer(self) -> Offer:
        if self.error is not None:
            raise self.error
        return Offer(dict(self.listed), VOLUMES)

    def count(self, name: str, n: int) -> None:
        self.counted[name] = self.counted.get(name, 0) + n

    async def look(self) -> None:
        assert self.renewer is not None
        await self.renewer.look()


@asynccontextmanager
async def renewing(*symbols: SymbolRules, size: int = 2, line: Line | None = None, held: frozenset[str] = frozenset(), every_s: float = 1e6,
                   **changes: Any) -> AsyncIterator[tuple[Market, Scene]]:  # fmt: skip
    market = Market({one.symbol: one for one in symbols})
    course = Course(market.offer, Terms(), size, every_s, held, line)

    def beside(feed: Feed) -> Any:
        market.feed, market.renewer = feed, Renewer(feed, clock_at(T0, 1.0), course, market.count)
        return market.renewer.run()

    async with scene(*symbols, beside=beside, spare=2, close_grace_ms=0, **changes) as s:
        yield market, s


def asked(s: Scene, route: str) -> list[tuple[str, list[str]]]:
    """Requests to the sockets of a route after the first."""
    return [(r["method"], r["params"]) for c in s.venue.clients if c.route == route for r in c.requests[1:] if "method" in r]


async def test_a_symbol_begins_on_the_sockets_that_flow() -> None:
    async with renewing(BTC) as (market, s):
        market.listed |= {"ETHUSDT": ETH, "DOGEUSDT": DOGE}
        await market.look()
        await s.venue.until(lambda: all(any("ethusdt" in n for n in c.names) for c in s.venue.clients))
        assert asked(s, "market") == [("SUBSCRIBE", ["ethusdt@aggTrade"])] and asked(s, "public") == [("SUBSCRIBE", ["ethusdt@bookTicker"])]
        assert s.venue.connects == {"market": 1, "public": 1}
        await s.venue.trade("ETHUSDT", 1, T0, qty="0.002")
        await s.venue.quote("ETHUSDT", T0)
        await s.venue.marks(T0, "ETHUSDT")
        await s.reader.until(lambda: any(slot["sym"] == 1 and slot["open"] == 1.0 for slot in s.reader.of(STATE)))
        assert s.reader.volume(1) == {T0 // 60_000: 2}
        assert s.reader.kinds(TRADE, GAP, HEALED) == [(GAP, 0, 0, 0), (HEALED, 0, 0, 0), (TRADE, 0, 1, 1)]
        assert s.reader.of(HEALED)[0]["open"] == 1.0, "what it traded before its stream flowed, history has"
        await s.until_counted("symbols", 2)
        assert market.counted == {"began": 1, "ended": 0}


async def test_a_symbol_ends_without_touching_the_others() -> None:
    async with renewing(BTC, ETH) as (market, s):
        await s.venue.trade("ETHUSDT", 4, T0)
        await s.venue.trade("BTCUSDT", 1, T0)
        await s.reader.count(TRADE, 2)
        market.listed["ETHUSDT"] = replace(ETH, status="SETTLING")
        await market.look()
        await s.venue.until(lambda: not any("ethusdt" in name for c in s.venue.clients for name in c.names))
        assert asked(s, "market") == [("UNSUBSCRIBE", ["ethusdt@aggTrade"])]
        (gap,), (state,) = await s.reader.count(GAP), await s.reader.count(STATE)
        assert (gap["sym"], gap["first_id"], gap["last_id"]) == (1, 5, 0)
        assert (state["sym"], state["open"], state["spare_b"]) == (1, 0.0, 1.0)
        await s.venue.trade("BTCUSDT", 2, T0 + 1)
        await s.venue.marks(T0 + 1000, "BTCUSDT")
        await s.reader.until(lambda: s.reader.of(TIME)[-1]["time_ms"] == T0 + 1000)
        assert s.venue.connects == {"market": 1, "public": 1} and not s.venue.asked, "nobody asks for what an ended symbol misses"
        assert s.reader.volume(0) == {T0 // 60_000: 2}


async def test_a_symbol_that_comes_back_has_its_place_and_says_that_history_is_needed() -> None:
    async with renewing(BTC, ETH) as (market, s):
        await s.venue.trade("ETHUSDT", 4, T0)
        await s.reader.count(TRADE)
        for status in ("SETTLING", "TRADING"):
            market.listed["ETHUSDT"] = replace(ETH, status=status)
            await market.look()
        await s.venue.until(lambda: len(asked(s, "market")) == 2)
        assert asked(s, "market") == [("UNSUBSCRIBE", ["ethusdt@aggTrade"]), ("SUBSCRIBE", ["ethusdt@aggTrade"])]
        await s.venue.trade("ETHUSDT", 900, T0 + 5)
        await s.reader.until(lambda: len(s.reader.of(TRADE)) == 2)
        assert s.reader.kinds(TRADE, GAP, HEALED) == [(TRADE, 0, 4, 4), (GAP, 0, 5, 0), (GAP, 0, 0, 0), (HEALED, 0, 0, 0), (TRADE, 0, 900, 900)]
        (healed,) = s.reader.of(HEALED)
        assert (healed["sym"], healed["open"]) == (1, 1.0)


async def test_what_is_held_is_streamed_to_the_last_and_not_entered() -> None:
    async with renewing(BTC, ETH, held=frozenset({"ETHUSDT"})) as (market, s):
        market.listed["ETHUSDT"] = replace(ETH, delivery_ms=T0 + 3600_000)
        await market.look()
        (state,) = await s.reader.count(STATE)
        assert (state["sym"], state["open"], state["spare_a"], state["spare_b"]) == (1, 0.0, T0 + 3600_000, 0.0)
        assert not asked(s, "market")
        market.renewer.on_message(("held", ()))  # type: ignore[union-attr]
        await market.look()
        await s.venue.until(lambda: asked(s, "market") == [("UNSUBSCRIBE", ["ethusdt@aggTrade"])])


async def test_news_of_a_contract_stop_entries_at_once() -> None:
    async with renewing(BTC) as (_, s):
        await s.venue.trade("BTCUSDT", 1, T0)
        await s.venue.quote("BTCUSDT", T0)
        await s.reader.count(STATE)
        event = {"e": "contractInfo", "E": T0, "s": "BTCUSDT", "ps": "BTCUSDT", "ct": "PERPETUAL", "dt": T0 + 7200_000, "ot": 0, "cs": "TRADING"}
        await s.venue.send("market", "!contractInfo", event | {"s": "STRANGERUSDT"})
        await s.venue.send("market", "!contractInfo", event)
        states = await s.reader.count(STATE, 2)
        assert [(state["open"], state["spare_a"]) for state in states] == [(1.0, 0.0), (0.0, T0 + 7200_000)]
        assert s.get("bad_frames") == s.get("bad_values") == 0


async def test_news_of_an_end_hold_though_the_list_does_not_show_it_yet() -> None:
    async with renewing(BTC) as (market, s):
        event = {"e": "contractInfo", "E": T0, "s": "BTCUSDT", "ps": "BTCUSDT", "ct": "PERPETUAL", "dt": T0 + 7200_000, "ot": 0, "cs": "TRADING"}
        await s.venue.send("market", "!contractInfo", event)
        await s.reader.count(STATE)
        await market.look()
        assert market.feed is not None and market.feed.standing_of(0).leave_ms == T0 + 7200_000
        await s.venue.send("market", "!contractInfo", event | {"dt": 4_133_404_800_000})
        await s.reader.count(STATE, 2)
        assert market.feed.standing_of(0).tradable


async def test_a_full_socket_is_left_alone_and_a_new_one_is_opened() -> None:
    async with renewing(BTC, streams_per_socket=3) as (market, s):
        market.listed["ETHUSDT"] = ETH
        await market.look()
        await s.venue.until(lambda: any("ethusdt@aggTrade" in c.names for c in s.venue.clients))
        assert s.venue.connects == {"market": 2, "public": 1}
        await s.venue.until(lambda: any("ethusdt@bookTicker" in c.names for c in s.venue.clients))
        assert asked(s, "market") == []
        await s.venue.marks(T0 + 1000, "BTCUSDT", "ETHUSDT")
        await s.venue.trade("ETHUSDT", 1, T0 + 1001)
        await s.reader.until(lambda: bool(s.reader.of(TIME)))
        assert s.reader.of(TIME)[-1]["time_ms"] == T0 + 1000, "TIME waits for the new socket too"


async def test_a_look_that_fails_changes_nothing_and_is_tried_again() -> None:
    async with renewing(BTC, every_s=0.05) as (market, s):
        market.error = Retryable("down")
        await asyncio.sleep(0.15)
        market.error = None
        market.listed["ETHUSDT"] = ETH
        await s.venue.until(lambda: any("ethusdt@aggTrade" in c.names for c in s.venue.clients))


async def test_more_than_there_are_places_for_is_said_and_left_out() -> None:
    async with renewing(BTC, size=9) as (market, s):
        market.listed |= {one.symbol: one for one in (ETH, DOGE, SOL)}
        await market.look()
        await market.look()
        await s.venue.until(lambda: any("dogeusdt@aggTrade" in c.names for c in s.venue.clients))
        assert market.counted["began"] == 2 and market.feed is not None
        assert [r.symbol for r in market.feed.rules] == ["BTCUSDT", "ETHUSDT", "DOGEUSDT"]


async def test_a_step_that_changes_gives_the_symbol_a_new_place() -> None:
    async with renewing(BTC, ETH) as (market, s):
        market.listed["ETHUSDT"] = replace(ETH, step=Decimal("0.0001"))
        await market.look()
        await s.venue.until(lambda: [m for m, _ in asked(s, "market")] == ["UNSUBSCRIBE", "SUBSCRIBE"])
        await s.venue.trade("ETHUSDT", 5, T0, qty="0.0003")
        (trade,) = await s.reader.count(TRADE)
        assert (trade["sym"], trade["volume"]) == (2, 3)


async def test_trades_off_the_grid_that_we_know_have_the_venue_asked_at_once_and_are_no_part_of_a_candle_unseen() -> None:
    """The step has become finer: until the symbol begins anew its candles miss trades, which HEALED says."""
    async with renewing(BTC, ETH, every_s=1e6) as (market, s):
        await s.venue.trade("ETHUSDT", 1, T0, qty="0.002")
        market.listed["ETHUSDT"] = replace(ETH, step=Decimal("0.0001"))
        await s.venue.trade("ETHUSDT", 2, T0 + 1, qty="0.0003")
        await s.venue.trade("ETHUSDT", 3, T0 + 2, qty="0.001")
        (healed,) = await s.reader.count(HEALED)
        assert (healed["sym"], healed["open"]) == (1, 1.0)
        await s.until_counted("unfilled", 1)
        assert market.renewer is not None
        async with asyncio.timeout(DEADLINE_S):
            await market.renewer._news.wait()


async def test_an_answer_that_lists_nothing_is_no_word_on_who_ends() -> None:
    async with renewing(BTC, ETH, held=frozenset({"ETHUSDT"})) as (market, s):
        listed, market.listed = market.listed, {}
        with pytest.raises(Retryable):
            await market.look()
        market.listed = listed
        await market.look()
        assert not s.reader.of(STATE) and not asked(s, "market")


async def test_a_step_that_changes_again_while_the_brain_is_told_waits_for_its_turn() -> None:
    (brain_hears, feed_says), (feed_hears, brain_says) = (multiprocessing.Pipe(duplex=False) for _ in range(2))
    async with renewing(BTC, ETH, line=Line(feed_says, feed_hears)) as (market, s):
        for step in ("0.0001", "0.00001"):
            market.listed["ETHUSDT"] = replace(ETH, step=Decimal(step))
            await market.look()
        assert brain_hears.recv()[1][0] == 1 and not brain_hears.poll()
        brain_says.send(("known", 1))
        await s.venue.until(lambda: len(asked(s, "market")) == 2)
        await market.look()
        assert {place: str(one.step) for place, one in brain_hears.recv()[1][1].items()} == {3: "0.00001"}


async def test_one_without_a_place_does_not_keep_out_those_that_have_theirs() -> None:
    async with renewing(BTC, ETH, size=9) as (market, s):
        market.listed |= {one.symbol: one for one in (DOGE, SOL)}
        await market.look()
        await s.venue.until(lambda: any("solusdt@aggTrade" in c.names for c in s.venue.clients))
        market.listed["SOLUSDT"] = replace(SOL, status="SETTLING")
        await market.look()
        await s.venue.until(lambda: not any("solusdt@aggTrade" in c.names for c in s.venue.clients))
        market.listed |= {"ETHUSDT": replace(ETH, step=Decimal("0.0001")), "SOLUSDT": SOL}
        await market.look()
        await s.venue.until(lambda: any("solusdt@aggTrade" in c.names for c in s.venue.clients))


async def test_the_brain_hears_first_and_streams_begin_once_it_has_answered() -> None:
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
    (brain_hears, feed_says), (feed_hears, brain_says) = pipes
    async with renewing(BTC, line=Line(feed_says, feed_hears)) as (market, s):
        market.listed |= {"ETHUSDT": ETH, "BTCUSDT": replace(BTC, tick=Decimal("0.5"))}
        await market.look()
        word, (version, places) = brain_hears.recv()
        assert (word, version) == ("symbols", 1)
        assert [(place, one.symbol) for place, one in sorted(places.items())] == [(0, "BTCUSDT"), (1, "ETHUSDT")]
        await market.look()
        assert not brain_hears.poll() and market.feed is not None and len(market.feed.rules) == 1, "it is asked once, and waited for"
        brain_says.send(("known", version))
        await s.venue.until(lambda: any("ethusdt@aggTrade" in c.names for c in s.venue.clients))
        brain_says.send(("held", ("ETHUSDT",)))
        async with asyncio.timeout(DEADLINE_S):
            while market.renewer is None or market.renewer.held != {"ETHUSDT"}:
                await asyncio.sleep(0.01)
    for end in (brain_hears, feed_says, feed_hears, brain_says):
        end.close()
