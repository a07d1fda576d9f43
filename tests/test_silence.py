"""Who is silent, and why: scenarios of streams, sockets and the venue's word, with no network and no waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from src.clock import SECOND_NS, Clock
from src.conflate import SYMBOL_DTYPE
from src.error_handler import AegisError, Retryable
from src.links import Route
from src.silence import Silence
from src.sockets import Patience
from src.venue.answers import Book, Price

T0_MS = 1_763_600_000_000
PATIENCE = Patience(mute_s=10.0, silent_s=30.0, lag_s=5.0)
NAMES = ["BTCUSDT", "ETHUSDT", "DOGEUSDT"]
START = 1000
"""The second at which every scenario begins; everything was asked for 100 seconds before."""


@dataclass(eq=False)
class FakeShard:
    """A socket whose every figure the test decides; seconds become nanoseconds in ``World``."""

    route: Route
    members: list[int]
    link: Any
    since: dict[int, int]
    event_ms: int = 0
    flowing: bool = True
    silent: dict[int, int] = field(default_factory=dict)
    again: list[list[int]] = field(default_factory=list)
    hung_up: int = 0

    @property
    def stream(self) -> dict[int, str]:
        return {index: f"{NAMES[index]}@{self.route.value}" for index in self.members}

    @property
    def size(self) -> int:
        return len(self.members)

    def since_ns(self, index: int) -> int:
        return self.since[index] if self.flowing else 0

    def is_mute(self, now_ns: int) -> bool:
        patience_s = PATIENCE.mute_s * (1 if self.route is Route.MARKET else 3)
        return self.flowing and now_ns - self.link.last_frame_ns > patience_s * SECOND_NS

    def ask_again(self, indices: list[int]) -> None:
        self.again.append(list(indices))
        self.since.update(dict.fromkeys(indices, 0))

    def hang_up(self) -> None:
        self.hung_up += 1
        self.flowing = False


class World:
    """Market sockets with the symbols given, and one public socket with all of them."""

    def __init__(self, *market: list[int], speed: float = 1.0) -> None:
        self.conflator = SimpleNamespace(symbols=np.zeros(len(NAMES), SYMBOL_DTYPE))
        self.names = NAMES
        self.shards = [self._shard(Route.MARKET, part) for part in market] + [self._shard(Route.PUBLIC, [0, 1, 2])]
        self.missed_of: list[int] = []
        self.counts: Counter[str] = Counter()
        self.clock = Clock(T0_MS, 0, speed)
        self.answers: dict[Route, Mapping[str, Any] | AegisError] = {}
        self.asked: list[Route] = []
        self.silence = Silence(self, self.clock, PATIENCE, self.probe, lambda name: self.counts.update([name]))  # type: ignore[arg-type]

    @staticmethod
    def _shard(route: Route, members: list[int]) -> FakeShard:
        opened = (START - 100) * SECOND_NS
        return FakeShard(route, members, SimpleNamespace(opened_ns=opened, last_frame_ns=opened), dict.fromkeys(members, opened))

    async def probe(self, route: Route) -> Any:
        self.asked.append(route)
        answer = self.answers.get(route, {})
        if isinstance(answer, AegisError):
            raise answer
        return answer

    def missed(self, index: int, now_ns: int) -> None:
        self.missed_of.append(index)

    def ms(self, second: float) -> int:
        return self.clock.market_ms_at(int(second * SECOND_NS))

    def trade(self, second: float, *symbols: int) -> None:
        """They trade, and their sockets show it."""
        self._show("trade", Route.MARKET, second, symbols)

    def quote(self, second: float, *symbols: int, bid: float = 1.0) -> None:
        self.conflator.symbols["bid"][list(symbols)], self.conflator.symbols["ask"][list(symbols)] = bid, bid + 1
        self._show("quote", Route.PUBLIC, second, symbols)

    def _show(self, kind: str, route: Route, second: float, symbols: tuple[int, ...]) -> None:
        rows = self.conflator.symbols
        for symbol in symbols:
            rows[f"{kind}_ns"][symbol], rows[f"{kind}_ms"][symbol] = second * SECOND_NS, self.ms(second)
            for shard in self.shards:
                if shard.route is route and symbol in shard.members:
                    shard.link.last_frame_ns, shard.event_ms = int(second * SECOND_NS), self.ms(second)

    def prices(self, **seconds: float) -> dict[str, Price]:
        return {name: Price(name, 1.0, self.ms(second)) for name, second in seconds.items()}

    def books(self, bid: float = 1.0, **seconds: float) -> dict[str, Book]:
        return {name: Book(name, bid, bid + 1, self.ms(second)) for name, second in seconds.items()}

    def tick(self, second: float) -> None:
        self.silence.tick(int(second * SECOND_NS))

    def judge(self, second: float, **told: Any) -> None:
        self.silence.judge({Route(route): rows for route, rows in told.items()}, int(second * SECOND_NS))


# --- sockets ---------------------------------------------------------------------------------------------------------------------------

def test_a_socket_that_stops_while_another_goes_on_is_hung_up_and_the_other_is_not() -> None:
    world = World([0], [1, 2])
    world.trade(START, 0, 1, 2)
    for second in range(START + 1, START + 20):
        world.trade(second, 1, 2)
        world.quote(second, 0, 1, 2)
        world.tick(second)
    assert [shard.hung_up for shard in world.shards] == [1, 0, 0]
    assert world.counts["mute_sockets"] == 1


def test_it_is_not_hung_up_when_it_speaks_before_the_lag_is_over() -> None:
    """All that we read late, because we were not running, looks mute for a moment."""
    world = World([0], [1, 2])
    world.trade(START, 0, 1, 2)
    world.trade(START + 20, 1, 2)
    world.quote(START + 20, 0)
    world.tick(START + 20)
    world.trade(START + 21, 0)
    world.tick(START + 30)
    assert [shard.hung_up for shard in world.shards] == [0, 0, 0]


def test_a_public_socket_is_convicted_by_trades_of_its_symbols() -> None:
    world = World([0, 1, 2])
    world.quote(START, 0, 1, 2)
    for second in range(START + 1, START + 40):
        world.trade(second, 0)
        world.tick(second)
    assert [shard.hung_up for shard in world.shards] == [0, 1]


def test_the_only_market_socket_is_hung_up_when_the_venue_has_moved() -> None:
    world = World([0, 1, 2])
    world.trade(START, 0, 1, 2)
    world.judge(START + 20, market=world.prices(BTCUSDT=START - 10, DOGEUSDT=START + 12))
    assert world.shards[0].hung_up == 1


def test_a_silent_market_ends_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World([0, 1, 2])
    world.trade(START, 0, 1, 2)
    world.quote(START, 0, 1, 2)
    still = {"market": world.prices(BTCUSDT=START, ETHUSDT=START - 300), "public": world.books(BTCUSDT=START, ETHUSDT=START - 300)}
    for second in range(START + 40, START + 4000, 30):
        world.tick(second)
        world.judge(second + 5, **still)
    assert [shard.hung_up for shard in world.shards] == [0, 0]
    assert [record.getMessage() for record in caplog.records].count("the market is silent, and the venue says so too") == 1
    world.trade(START + 4000, 0)
    world.quote(START + 4000, 0)
    world.tick(START + 4001)
    world.judge(START + 4040, **still)
    assert [record.getMessage() for record in caplog.records].count("the market is silent, and the venue says so too") == 2


def test_a_socket_that_never_showed_anything_is_told_to_have_a_wrong_url(caplog: pytest.LogCaptureFixture) -> None:
    """A socket of another route, or of none, acknowledges every stream and delivers nothing."""
    world = World([0, 1, 2])
    world.judge(START, market=world.prices(BTCUSDT=START - 6))
    assert world.shards[0].hung_up == 1
    assert "from the start: is its URL one of that route?" in caplog.text


def test_where_the_venue_cannot_be_asked_a_mute_socket_is_hung_up_and_no_stream_is_judged() -> None:
    world = World([0], [1, 2])
    world.trade(START + 40, 1)
    world.judge(START + 41, market=None, public=None)
    assert [shard.hung_up for shard in world.shards] == [1, 0, 1]
    assert not world.missed_of and not world.shards[1].silent


# --- streams ---------------------------------------------------------------------------------------------------------------------------

def flow(world: World, first: int, last: int, *symbols: int) -> None:
    for second in range(first, last):
        world.trade(second, *symbols)
        world.quote(second, *symbols)
        world.tick(second)


def test_a_mute_trade_stream_is_asked_for_again_then_its_socket_is_dialled_and_then_it_is_only_asked_for() -> None:
    world = World([0, 1, 2])
    market = world.shards[0]
    world.trade(START, 0, 1, 2)
    now = START
    for _ in range(4):
        flow(world, now, now + 40, 1, 2)
        now += 40
        world.judge(now, market=world.prices(BTCUSDT=now - 5, ETHUSDT=now, DOGEUSDT=now))
        market.flowing, market.since[0] = True, now * SECOND_NS
    assert world.missed_of == [0, 0, 0, 0], "whatever else is done, its trades are in doubt"
    assert market.again == [[0], [0], [0]] and market.hung_up == 1
    assert world.counts["mute_streams"] == 1
    world.trade(now + 1, 0)
    world.tick(now + 1)
    assert not market.silent, "it has spoken"


def test_a_mute_quote_stream_is_found_by_its_price() -> None:
    world = World([0, 1, 2])
    public = world.shards[1]
    world.quote(START, 0, 1, 2)
    flow(world, START + 1, START + 40, 1, 2)
    world.judge(START + 40, public=world.books(1.0, BTCUSDT=START + 34))
    assert not public.silent, "its book has moved further down: the best prices are those that we hold"
    world.judge(START + 40, public=world.books(1.5, BTCUSDT=START + 34))
    assert public.silent == {0: 1} and public.again == [[0]]
    assert not world.missed_of


@pytest.mark.parametrize("told", [START, START - 50, START - 98, START + 41], ids=["ours", "before ours", "as it was asked for", "still under way"])
def test_a_stream_is_not_judged_by_what_it_has_shown_or_cannot_have_shown(told: int) -> None:
    world = World([0, 1, 2])
    world.trade(START, *([0] if told != START - 98 else []), 1, 2)
    flow(world, START + 1, START + 40, 1, 2)
    world.judge(START + 40, market=world.prices(BTCUSDT=told))
    assert not world.shards[0].silent


def test_a_stream_that_was_just_asked_for_is_not_judged() -> None:
    world = World([0, 1, 2])
    world.trade(START, 1, 2)
    flow(world, START + 1, START + 60, 1, 2)
    for since, found in ((0, {}), (START + 40, {}), (START + 20, {0: 1})):
        world.shards[0].since[0] = since * SECOND_NS
        world.judge(START + 60, market=world.prices(BTCUSDT=START + 50))
        assert world.shards[0].silent == found


def test_a_socket_that_lags_is_not_taken_for_a_mute_stream() -> None:
    """Frames of the last minute wait in its buffers: what it has not shown yet may be among them."""
    world = World([0, 1, 2])
    world.trade(START, 0)
    world.trade(START + 60, 1, 2)
    world.shards[0].event_ms = world.ms(START + 5)
    world.judge(START + 61, market=world.prices(BTCUSDT=START + 40))
    assert not world.shards[0].silent
    world.shards[0].event_ms = world.ms(START + 41)
    world.judge(START + 61, market=world.prices(BTCUSDT=START + 40))
    assert world.shards[0].silent == {0: 1}


def test_a_symbol_that_the_venue_does_not_list_is_not_judged() -> None:
    world = World([0, 1, 2])
    world.trade(START, 0, 1, 2)
    flow(world, START + 1, START + 40, 1, 2)
    world.judge(START + 40, market=world.prices(ETHUSDT=START + 40))
    assert not world.shards[0].silent


def test_at_sixty_times_the_speed_the_lag_is_still_five_wall_seconds() -> None:
    world = World([0, 1, 2], speed=60.0)
    since = START - 100
    flow(world, START + 1, START + 40, 1, 2)
    for second, found in ((since + 4, {}), (since + 6, {0: 1})):
        world.judge(START + 40, market=world.prices(BTCUSDT=second))
        assert world.shards[0].silent == found


# --- the question ----------------------------------------------------------------------------------------------------------------------

async def questions(world: World, seconds: range) -> list[Route]:
    """Who is asked about in that time, with nobody flowing but whom the scene lets."""
    patience = Patience(mute_s=10.0, silent_s=30.0, lag_s=0.0)
    world.silence = Silence(world, world.clock, patience, world.probe, lambda name: world.counts.update([name]))  # type: ignore[arg-type]
    task = asyncio.create_task(world.silence.run())
    for second in seconds:
        world.tick(second)
        for _ in range(4):
            await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return world.asked


async def test_while_everything_flows_nobody_is_asked() -> None:
    world = World([0, 1, 2])
    world.trade(START + 99, 0, 1, 2)
    world.quote(START + 99, 0, 1, 2)
    assert await questions(world, range(START + 80, START + 109)) == []


async def test_one_silent_symbol_costs_two_of_weight_every_half_minute() -> None:
    world = World([0, 1, 2])
    world.trade(START + 300, 0, 1)
    world.quote(START + 300, 0, 1, 2)
    assert await questions(world, range(START + 300, START + 310)) == [Route.MARKET]
    assert world.counts["probes"] == 1


async def test_mute_sockets_are_asked_about_every_ten_seconds_and_both_routes_where_both_are_mute() -> None:
    world = World([0, 1, 2])
    world.trade(START, 0, 1, 2)
    world.quote(START, 0, 1, 2)
    asked = await questions(world, range(START + 11, START + 52))
    assert Counter(asked) == {Route.MARKET: 5, Route.PUBLIC: 3}


async def test_a_refusal_is_no_word_of_the_venue() -> None:
    world = World([0, 1, 2])
    world.answers = {Route.MARKET: Retryable("no weight")}
    assert await questions(world, range(START, START + 1)) == [Route.MARKET, Route.PUBLIC]
    assert [shard.hung_up for shard in world.shards] == [1, 0], "about quotes the venue said that nothing moved"
