"""Silence, told apart: a market in which nothing happens, a socket that is dead, a stream that the venue has forgotten.

Witnesses are compared: sockets with each other, quotes with trades, and all of them with the venue's own word by REST (newest trade or best
quotes of all symbols with their times: weight 2 or 5, asked only while something is silent).

Invariants
  * A socket is hung up, and a stream called mute, only where a witness has seen what it did not show, and ``lag_s`` later it still has not;
    or, a socket, where nobody can be asked. A silent market ends nothing, and is said once.
  * A stream is judged by what happened after it was asked for on the link that carries it, and after what that link has shown since.
  * What a mute stream missed is a hole from that moment on, and its symbol is not tradable until the stream has shown data again.
  * A mute stream is asked for again; if it stays mute its socket is dialled anew, once until the stream has shown data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from src.clock import SECOND_NS, Clock, monotonic_ns
from src.conflate import Conflator
from src.error_handler import AegisError, info, warn
from src.links import Route
from src.sockets import Patience, Shard
from src.venue.answers import Book, Price

Told = Mapping[str, Price] | Mapping[str, Book] | None
"""The venue's word on all symbols; None: it gave none."""
Probe = Callable[[Route], Awaitable[Mapping[str, Price] | Mapping[str, Book]]]
"""Newest trades for the market route, best quotes for the public one. Raises AegisError."""


class Ward(Protocol):
    """Whose streams they are. ``names``: symbols by index."""

    conflator: Conflator
    shards: list[Shard]
    names: list[str]

    def missed(self, index: int, now_ns: int) -> None:
        """The symbol's trade stream has been proven mute: what it carries is in doubt from the last trade on."""


class Silence:
    """``tick`` once a second, beside ``run``. ``count`` is told of ``probes``, ``mute_sockets`` and ``mute_streams``."""

    def __init__(self, ward: Ward, clock: Clock, patience: Patience, probe: Probe, count: Callable[[str], None]) -> None:
        self._ward = ward
        self._clock = clock
        self._patience = patience
        self._probe = probe
        self._count = count
        self._accused: dict[Shard, int] = {}
        """Mute sockets against which another stream speaks, since when."""
        self._routes: list[Route] = []
        self._wanted = asyncio.Event()
        self._asked_ns = 0
        self._quiet = False

    def tick(self, now_ns: int) -> None:
        """Compare what is here, and have the venue asked where that does not tell."""
        mute = [shard for shard in self._ward.shards if shard.is_mute(now_ns)]
        self._quiet = self._quiet and bool(mute)
        self._accused = {shard: self._accused.get(shard, now_ns) for shard in mute if self._others_show(shard)}
        for shard, since_ns in self._accused.items():
            if now_ns - since_ns >= self._ns(self._patience.lag_s):
                self._hang_up(shard, "others show what it does not")
        for shard in self._ward.shards:
            self._hear(shard)
        pause_s = self._patience.mute_s if mute else self._patience.silent_s
        if not self._wanted.is_set() and now_ns - self._asked_ns >= self._ns(pause_s):
            found = {shard.route for shard in (*mute, *(one for one in self._ward.shards if self._unheard(one, now_ns)))}
            if found:
                self._routes, self._asked_ns = [route for route in Route if route in found], now_ns
                self._wanted.set()

    async def run(self) -> None:
        """For ever: one question at a time."""
        while True:
            await self._wanted.wait()
            told = {route: await self._ask(route) for route in self._routes}
            await asyncio.sleep(self._patience.lag_s)
            self.judge(told, monotonic_ns())
            self._wanted.clear()

    async def _ask(self, route: Route) -> Told:
        """Leave of the governor and the answer are waited for as long as a connection is."""
        self._count("probes")
        try:
            async with asyncio.timeout(self._patience.connect_s):
                return await self._probe(route)
        except (AegisError, TimeoutError) as error:
            info("the venue does not say whether its market moves", route=route.value, reason=str(error) or "no answer in time")
            return None

    # what is here

    @staticmethod
    def _ns(seconds: float) -> int:
        return int(seconds * SECOND_NS)

    def _column(self, shard: Shard, unit: str) -> str:
        return f"{'trade' if shard.route is Route.MARKET else 'quote'}_{unit}"

    def _others_show(self, shard: Shard) -> bool:
        """Every market socket carries a stream that ticks, so one that goes on convicts one that has stopped. A public socket is convicted by
        trades of its own symbols, since a trade changes the best quotes."""
        assert shard.link is not None, "a mute socket is connected"
        last_ns = shard.link.last_frame_ns
        if shard.route is Route.PUBLIC:
            return bool((self._ward.conflator.symbols["trade_ns"][shard.members] > last_ns).any())
        others = (one for one in self._ward.shards if one is not shard and one.route is Route.MARKET and one.flowing)
        return any(one.link is not None and one.link.last_frame_ns - last_ns > self._ns(self._patience.mute_s) for one in others)

    def _hear(self, shard: Shard) -> None:
        """A stream that has shown data since it was asked for again is mute no more."""
        column = self._column(shard, "ns")
        for index in [i for i in shard.silent if 0 < shard.since_ns(i) < self._ward.conflator.symbols[column][i]]:
            del shard.silent[index]
            info("a mute stream speaks again", stream=shard.stream[index])

    def _unheard(self, shard: Shard, now_ns: int) -> list[int]:
        """Streams that have shown nothing for long on a socket that flows."""
        if not shard.flowing or shard.is_mute(now_ns):
            return []
        rows, before_ns = self._ward.conflator.symbols[self._column(shard, "ns")], now_ns - self._ns(self._patience.silent_s)
        return [index for index in shard.members if rows[index] < before_ns and 0 < shard.since_ns(index) < before_ns]

    # the venue's word

    def judge(self, told: Mapping[Route, Told], now_ns: int) -> None:
        """What follows from the answers, ``lag_s`` after they came."""
        for shard in self._ward.shards:
            if shard.route in told and shard.is_mute(now_ns):
                self._judge_socket(shard, told[shard.route])
            elif (rows := told.get(shard.route)) is not None:
                shown_ms = self._shown_ms(shard)
                mute = [index for index in self._unheard(shard, now_ns) if 0 < self._missed_ms(shard, index, rows) <= shown_ms]
                if mute:
                    self._judge_streams(shard, mute, now_ns)

    def _shown_ms(self, shard: Shard) -> int:
        """Newest event that the socket has shown: what is missing of before is not under way any more."""
        return shard.event_ms if shard.route is Route.MARKET else int(self._ward.conflator.symbols["quote_ms"][shard.members].max(initial=0))

    def _missed_ms(self, shard: Shard, index: int, told: Mapping[str, Price] | Mapping[str, Book]) -> int:
        """When the venue had an event that the stream should have shown and has not; 0: there is none. A book whose best prices are those
        that we hold may have moved further down."""
        row, ours, since_ns = told.get(self._ward.names[index]), self._ward.conflator.symbols[index], shard.since_ns(index)
        if row is None or not since_ns:
            return 0
        since_ms = self._clock.market_ms_at(since_ns) + self._patience.lag_s * 1000.0 * self._clock.speed
        if row.time <= max(since_ms, float(ours[self._column(shard, "ms")])):
            return 0
        same = isinstance(row, Book) and (row.bid_price, row.ask_price) == (float(ours["bid"]), float(ours["ask"]))
        return 0 if same else row.time

    def _judge_socket(self, shard: Shard, told: Told) -> None:
        if told is None:
            self._hang_up(shard, "the venue cannot be asked")
        elif any(self._missed_ms(shard, index, told) for index in shard.members):
            self._hang_up(shard, "the venue's market moves")
        elif not self._quiet:
            self._quiet = True
            warn("the market is silent, and the venue says so too", route=shard.route.value)

    def _hang_up(self, shard: Shard, evidence: str) -> None:
        assert shard.link is not None, "what flows is connected"
        never = shard.link.last_frame_ns == shard.link.opened_ns
        self._count("mute_sockets")
        warn("market stream is mute" + (" from the start: is its URL one of that route?" if never else ""), route=shard.route.value,
             streams=shard.size, evidence=evidence)  # fmt: skip
        shard.hang_up()

    def _judge_streams(self, shard: Shard, mute: list[int], now_ns: int) -> None:
        """Proven mute: in doubt at once and asked for again; the second time the socket is dialled anew."""
        new = [shard.stream[index] for index in mute if index not in shard.silent]
        for index in mute:
            shard.silent[index] = shard.silent.get(index, 0) + 1
            if shard.route is Route.MARKET:
                self._ward.missed(index, now_ns)
        if new:
            for _ in new:
                self._count("mute_streams")
            warn("streams are mute: they are asked for again", route=shard.route.value, streams=new[:20], count=len(new))
        stubborn = [shard.stream[index] for index in mute if shard.silent[index] == 2]
        if stubborn:
            self._hang_up(shard, f"{len(stubborn)} of its streams stay mute, {stubborn[0]} among them")
        else:
            shard.ask_again(mute)
