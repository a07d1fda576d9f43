"""The universe while it runs: the venue is asked now and then what it lists, and symbols begin, end, and stop being entered.

The table of places is versioned: a new symbol gets the next place, told to the Brain first; only what the Brain has answered for is
streamed, so no slot ever speaks of a place that its reader does not know. A symbol that comes back gets the place it had.

Invariants
  * A place belongs to one symbol with one step, for ever. What is held is streamed, whatever else changes.
  * A contract's end is known by whichever comes first, the news stream or the next look; entries stop with it.
  * A look that fails changes nothing and is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from src.clock import SECOND_NS, Clock, iso, monotonic_ns
from src.error_handler import AegisError, Fatal, Retryable, lifecycle, warn
from src.feed import Feed
from src.life import hear
from src.market_universe import PERPETUAL_END_MS, Offer, Terms, renewed, standing
from src.models import SymbolRules
from src.venue import queries
from src.venue.messages import ContractInfo
from src.venue.rest import Rest

NEWS_PAUSE_S = 10.0
"""Wall seconds between a look and the next one that news ask for."""
NEWS_LEAD_S = 60.0
"""For so many wall seconds news of an end hold, though the venue's list does not show it yet."""

Look = Callable[[], Awaitable[Offer]]


class Listing:
    """What can be traded. ``orders``: REST of a venue that orders go to, where that is another than the market's: only what both list.
    ``spreads``: whether they are asked for."""

    def __init__(self, market: Rest, orders: Rest | None, *, spreads: bool) -> None:
        self._market = market
        self._orders = orders
        self._spreads = spreads

    async def offer(self) -> Offer:
        """Weight 41, with spreads 46. Raises AegisError."""
        rules, _ = await queries.symbol_rules(self._market)
        volumes = await queries.volumes_24h(self._market)
        spreads = await queries.spreads_bps(self._market) if self._spreads else {}
        if self._orders is not None:
            listed, _ = await queries.symbol_rules(self._orders)
            rules = {symbol: one for symbol, one in rules.items() if symbol in listed}
        return Offer(rules, volumes, spreads)


@dataclass(frozen=True, slots=True)
class Line:
    """The pipes to the Brain and back: ("symbols", (version, {place: rules})) goes out; ("known", version) and ("held", symbols) come in."""

    say: Connection
    hear: Connection


@dataclass(frozen=True, slots=True)
class Course:
    """How the universe is kept. ``every_s``: wall seconds between two looks. ``held``: symbols that are traded at the start."""

    look: Look
    terms: Terms
    size: int
    every_s: float
    held: frozenset[str] = field(default_factory=frozenset)
    line: Line | None = None


class Renewer:
    """``run`` is a task of the Feed. ``count`` is told how many began and ended."""

    def __init__(self, feed: Feed, clock: Clock, course: Course, count: Callable[[str, int], None]) -> None:
        self._feed = feed
        self._clock = clock
        self._course = course
        self._count = count
        self.held = course.held
        self.version = 0
        self._coming: list[tuple[int, int, SymbolRules]] = []
        """(version, place, rules) that the Brain has not answered for yet."""
        self._places = {(rules.symbol, rules.step): index for index, rules in enumerate(feed.rules)}
        self._news = asyncio.Event()
        self._heard_ns: dict[int, int] = {}
        """When the stream told of a contract's end, by place."""
        self._full = False
        feed.on_contract, feed.on_doubt = self.on_contract, self._news.set

    async def run(self) -> None:
        """For ever: look, and look again."""
        if self._course.line is not None:
            hear(self._course.line.hear, self.on_message)
        while True:
            await self._wait()
            try:
                await self.look()
            except Fatal:
                raise
            except AegisError as error:
                warn(f"the venue does not say what it lists; the universe stays as it is: {error}")

    async def _wait(self) -> None:
        """Until it is time, or news came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._course.every_s):
                await asyncio.sleep(min(NEWS_PAUSE_S, self._course.every_s))
                await self._news.wait()
        self._news.clear()

    # what is heard

    def on_message(self, message: tuple[str, Any]) -> None:
        """From the Brain."""
        word, value = message
        if word == "held":
            self.held = frozenset(value)
        elif word == "known":
            ready = [one for one in self._coming if one[0] <= value]
            self._coming = self._coming[len(ready):]
            for _, place, rules in ready:
                self._feed.begin(place, rules)

    def on_contract(self, event: ContractInfo) -> None:
        """News of a contract: one of ours that ends is not entered from this moment on; whatever else it means, the next look shows."""
        place = self._feed.place.get(event.s)
        if place is not None and self._feed.streamed[place]:
            rules = replace(self._feed.rules[place], status=event.cs, delivery_ms=event.dt or PERPETUAL_END_MS)
            self._heard_ns.pop(place, None)
            if standing(rules).leave_ms:
                self._heard_ns[place] = monotonic_ns()
            self._stand(place, rules)
        self._news.set()

    def _stand(self, place: int, rules: SymbolRules | None, wanted: bool = True) -> None:
        stands, before = standing(rules, wanted), self._feed.standing_of(place)
        if stands.leave_ms and stands.leave_ms != before.leave_ms:
            when = iso(stands.leave_ms) if rules is not None and rules.tradable else "now"
            lifecycle(f"🚪 {self._feed.rules[place].symbol} leaves the venue: nothing opens in it", ends=when)
        self._feed.stand(place, stands)

    def _is_fresh(self, place: int) -> bool:
        return monotonic_ns() - self._heard_ns.get(place, -10**18) < NEWS_LEAD_S * SECOND_NS

    # a look

    async def look(self) -> None:
        """Ask once, and do what follows from the answer."""
        course, feed = self._course, self._feed
        offer = await course.look()
        if not offer.rules or not offer.volumes:
            raise Retryable("it lists nothing")
        coming = {rules.symbol: rules for _, _, rules in self._coming}
        offer = replace(offer, rules={**offer.rules, **coming})  # what is under way is as the Brain was told
        places = {feed.rules[place].symbol: place for place in feed.streamed.nonzero()[0].tolist()}
        members = {symbol: feed.rules[place] for symbol, place in places.items()} | coming
        found = renewed(members, offer, course.terms, size=course.size, held=self.held | set(coming), now_ms=self._clock.market_ms())
        for symbol in found.end:
            feed.end(places[symbol])
        news: dict[int, SymbolRules] = {}
        for symbol, stands in found.standings.items():
            if symbol in places:
                rules = offer.rules.get(symbol)
                if stands.leave_ms or not self._is_fresh(places[symbol]):
                    self._stand(places[symbol], rules, wanted=stands.tradable)
                if rules is not None and rules != members[symbol]:
                    news[places[symbol]] = feed.rules[places[symbol]] = rules
        began = self._settle(found.begin)
        self._tell(news, began)
        if began or found.end:
            self._count("began", len(began))
            self._count("ended", len(found.end))
            lifecycle(f"🌍 The universe changes: {len(began)} symbols begin, {len(found.end)} end",
                      begin=[rules.symbol for rules in began.values()][:10], end=list(found.end)[:10])

    def _settle(self, begin: tuple[SymbolRules, ...]) -> dict[int, SymbolRules]:
        """Places for them, as far as there are places."""
        capacity, places = len(self._feed.streamed), {}
        for rules in begin:
            key = (rules.symbol, rules.step)
            place = self._places.setdefault(key, len(self._places))
            if place >= capacity:
                del self._places[key]
                if not self._full:
                    warn("no place is left for new symbols; a restart makes room", places=capacity)
                self._full = True
                continue  # others may have one of their own
            places[place] = rules
        return places

    def _tell(self, news: dict[int, SymbolRules], began: dict[int, SymbolRules]) -> None:
        """The Brain hears first; what begins waits for its answer."""
        if not news and not began:
            return
        self.version += 1
        self._coming += [(self.version, place, rules) for place, rules in sorted(began.items())]
        if self._course.line is None:
            self.on_message(("known", self.version))
        else:
            self._course.line.say.send(("symbols", (self.version, news | began)))
