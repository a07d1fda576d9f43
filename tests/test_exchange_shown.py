"""A client that keeps a book by the venue's recipe has the exchange's book, however long it keeps it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from src.clock import seeded
from tests.test_exchange_fake import FakeMarket
from tests.test_exchange_wire import Client, Socket, exchange, options

pytestmark = pytest.mark.slow  # books are kept for seconds

Side = dict[str, str]


def rising() -> FakeMarket:
    """BTCUSDT wanders about, and up by a hundredth in a minute."""
    market, chance = FakeMarket(("BTCUSDT", "60000"), seconds=1), seeded(3)
    for n in range(3000):
        price = 60_000 + n // 2 + chance.randrange(-30, 30)
        market.put(0, market.open_ms + n * 40, f"{price}.0", chance.randrange(1, 500), top=chance.randrange(1, 5000))
    return market


class Kept:
    """One client's book. ``update``: what it holds; 0: nothing yet."""

    def __init__(self, client: Client, socket: Socket) -> None:
        self.client, self.socket = client, socket
        self.bids: Side = {}
        self.asks: Side = {}
        self.update = 0

    async def begin(self) -> None:
        """Buffer, snapshot, drop what is older, find the frame that fits; once more where none does."""
        waiting = [await self.socket.next()]
        for _ in range(5):
            snapshot = await self.client.get("v1/depth", symbol="BTCUSDT", limit=1000)
            last = snapshot["lastUpdateId"]
            while waiting[-1]["u"] < last:
                waiting.append(await self.socket.next())
            fitting = [w for w in waiting if w["u"] >= last]
            if fitting[0]["U"] <= last:
                self.bids, self.asks = dict(snapshot["bids"]), dict(snapshot["asks"])
                for frame in fitting:
                    self.apply(frame)
                return
        raise AssertionError(f"no frame fits {last}: {[(w['U'], w['u']) for w in waiting]}")

    def apply(self, frame: dict[str, Any]) -> None:
        assert frame["U"] <= frame["u"]
        if self.update:
            assert frame["pu"] == self.update, "a hole"
        self.update = frame["u"]
        for side, changes in ((self.bids, frame["b"]), (self.asks, frame["a"])):
            for price, qty in changes:
                if float(qty):
                    side[price] = qty
                else:
                    side.pop(price, None)
        assert max(map(float, self.bids)) < min(map(float, self.asks)), "the book crosses itself"


@pytest.mark.parametrize("speed", ["@100ms", "", "@500ms"])
async def test_a_kept_book_is_the_shown_one(speed: str) -> None:
    async with exchange(options(speed=10.0), rising()) as client:
        book = Kept(client, await client.socket(f"{client.ready.public}/ws/btcusdt@depth{speed}"))
        await book.begin()
        same = 0
        for _ in range(12):
            for _ in range(2):
                book.apply(await book.socket.next())
            snapshot = await client.get("v1/depth", symbol="BTCUSDT", limit=1000)
            while book.update < snapshot["lastUpdateId"]:
                book.apply(await book.socket.next())
            if book.update == snapshot["lastUpdateId"]:
                same += 1
                assert (book.bids, book.asks) == (dict(snapshot["bids"]), dict(snapshot["asks"]))
        assert same > 3


async def test_a_second_client_of_the_stream_finds_the_same_book() -> None:
    async with exchange(options(speed=10.0), rising()) as client:
        first = Kept(client, await client.socket(f"{client.ready.public}/ws/btcusdt@depth@100ms"))
        await first.begin()
        await asyncio.sleep(0.3)
        second = Kept(client, await client.socket(f"{client.ready.public}/ws/btcusdt@depth@100ms"))
        await second.begin()
        while first.update != second.update:
            behind = first if first.update < second.update else second
            behind.apply(await behind.socket.next())
        assert (first.bids, first.asks) == (second.bids, second.asks)
