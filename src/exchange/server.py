"""The local exchange as a server on one loopback port: REST, streams, WS API, and (when asked for) the control door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from src.clock import Clock, clock_at, epoch_ms
from src.config import tls_for
from src.error_handler import Fatal, Retryable, lifecycle
from src.exchange import ws_api
from src.exchange.binance import Patience, Watch, open_binance
from src.exchange.books import Books, Kept, forget_old
from src.exchange.control import PREFIX as CONTROL_PREFIX
from src.exchange.control import Control
from src.exchange.core import Core
from src.exchange.feeds import Feeds
from src.exchange.jumps import JumpingMarket
from src.exchange.market import Market, Open, open_made_up
from src.exchange.mishaps import Mishaps
from src.exchange.options import ExchangeOptions
from src.exchange.rest import BODY_MAX, STATISTICS_PREFIX, Rest
from src.exchange.rest import PREFIX as REST_PREFIX
from src.exchange.streams import Streams
from src.exchange.venue import Venue
from src.exchange.ws_api import WsApi

CHORES_S = 1.0
PRUNE_S = 3600.0
UNSAVED_S = 1.5
"""Wall seconds of market time that a killed exchange may have shown after its books last kept the time."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a running exchange answers, and its clock."""

    rest: str
    public: str
    market: str
    private: str
    ws_api: str
    clock: Clock

    def as_json(self) -> str:
        """One line with the addresses."""
        urls = {"rest": self.rest, "public": self.public, "market": self.market, "private": self.private, "ws_api": self.ws_api}
        return msgspec.json.encode(urls).decode()


def ready_at(host: str, port: int, clock: Clock) -> Ready:
    ws = f"ws://{host}:{port}"
    return Ready(f"http://{host}:{port}", f"{ws}/public", f"{ws}/market", f"{ws}/private", f"{ws}{ws_api.PATH}", clock)


def build(options: ExchangeOptions, source: Market | None, books: Books | None, kept: Kept | None, open_market: Open = open_made_up) -> Venue:
    """Market and core at the right market time, with what the books kept. Fatal: options or books that cannot be used.

    The clock runs from the moment its time is chosen: a slow start must not leave the venue behind its clients.
    """
    now = epoch_ms()
    resumed_ms = 0
    if kept is not None:
        resumed_ms = kept.now_ms + (0 if kept.clean else int(UNSAVED_S * 1000 * kept.snapshot.speed))
        now = max(now, resumed_ms)
    if source is None:
        source = open_market(options.market, symbols=options.symbols, seed=options.seed, path=options.path, now_ms=now, start=options.start,
                             edge=options.edge, resume=kept.market if kept is not None else None)  # fmt: skip
    if options.market in ("replay", "frames"):
        now = source.open_ms if kept is None else max(source.open_ms, resumed_ms)
    else:
        now = max(epoch_ms(), resumed_ms)
    clock = clock_at(now, options.speed)
    market = JumpingMarket(source)
    core = Core(options, market, now)
    if kept is not None:
        kept.restore(core)
    core.look_back()
    if kept is None:
        core.open_accounts()
    else:
        core.algo.resume()
    if books is not None:
        books.begin(core, source.resume_state())
    return Venue(options, core, clock, books)


def http_log() -> logging.Logger:
    """Where the HTTP library speaks: bytes that are no HTTP are answered 400, and are nothing to write down."""
    log = logging.getLogger("aegis.http")
    if not log.filters:
        log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError)))
    return log


class Server:
    """The doors of one venue on one aiohttp application."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self.streams = Streams(venue)
        self._feeds = Feeds(venue, self.streams)
        self._rest = Rest(venue)
        self._ws_api = WsApi(venue)
        self.mishaps = Mishaps(venue, self.streams, self._ws_api.cut_all)
        self._control = Control(venue, self.streams, self.mishaps) if venue.options.control else None
        venue.listen(self._feeds)
        self.app = web.Application(client_max_size=BODY_MAX)
        self.app.router.add_route("*", "/{path:.*}", self._route)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._door(request)
        except (ConnectionError, UnicodeEncodeError, web.RequestPayloadError):
            # the client has gone, its handshake is so odd that it cannot be quoted, or its body is not what it announced
            return web.Response(status=400)

    async def _door(self, request: web.Request) -> web.StreamResponse:
        path, shut = request.raw_path.partition("?")[0], self._venue.shut
        if shut is not None and not path.startswith(CONTROL_PREFIX):
            return web.Response(status=shut.status, body=shut.body, content_type=shut.content_type)
        if path.startswith((REST_PREFIX, STATISTICS_PREFIX)):
            return await self._rest.handle(request)
        if path == ws_api.PATH:
            return await self._ws_api.handle(request)
        if self.streams.matches(path):
            return await self.streams.handle(request)
        if self._control is not None and path.startswith(CONTROL_PREFIX):
            return await self._control.handle(request)
        return web.Response(status=404)

    async def chores(self) -> None:
        """Pings, pongs that do not come, listen keys that run out, the books' sense of time, what is too old to show."""
        limits = self._venue.options.limits
        since_ping = since_pruning = 0.0
        while True:
            await asyncio.sleep(CHORES_S)
            since_ping += CHORES_S
            self._venue.beat()
            since_pruning += CHORES_S
            if since_pruning >= PRUNE_S:
                since_pruning = 0.0
                forget_old(self._venue.state)
            ping = since_ping >= limits.ping_every_s
            if ping:
                since_ping = 0.0
            self.streams.keep_alive(ping)
            self._ws_api.keep_alive(ping)
            self.streams.expire_keys()

    async def close(self) -> None:
        await asyncio.gather(self.streams.close_all(), self._ws_api.close_all())


async def serve(options: ExchangeOptions, on_ready: Callable[[Ready], None], stop: asyncio.Event, source: Market | None = None, *,
                open_market: Open = open_made_up) -> None:  # fmt: skip
    """Run the exchange until ``stop`` is set. ``on_ready`` is called once it answers. Fatal: it cannot start, or its books fail.

    Over a venue's market it is ready once that is seen; Retryable: the venue does not answer.
    """
    if not options.books_dir:
        await _open(options, on_ready, stop, source, open_market, None)
        return
    books = Books(options.books_dir)
    try:
        books.lock()
        await _open(options, on_ready, stop, source, open_market, books)
    finally:
        books.close()


async def _open(options: ExchangeOptions, on_ready: Callable[[Ready], None], stop: asyncio.Event, source: Market | None, open_market: Open,
                books: Books | None) -> None:  # fmt: skip
    kept = books.load() if books is not None else None
    if source is not None or options.venue is None:
        await _serve(build(options, source, books, kept, open_market), books, on_ready, stop)
        return
    connector = aiohttp.TCPConnector(ssl=tls_for(options.venue.rest) or True)
    async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
        market = await open_binance(options.venue, options.symbols, kept.held() if kept is not None else (), session,
                                    now_ms=epoch_ms(), resume=kept.market if kept is not None else None)  # fmt: skip
        watch = Watch(market, options.venue, session, Patience())
        await _serve(build(options, market, books, kept), books, on_ready, stop, watch)


async def _serve(venue: Venue, books: Books | None, on_ready: Callable[[Ready], None], stop: asyncio.Event, watch: Watch | None = None) -> None:
    options = venue.options
    server = Server(venue)
    runner = web.AppRunner(server.app, access_log=None, logger=http_log(), shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    tasks: list[asyncio.Task[None]] = []
    ready = False
    try:
        site = web.TCPSite(runner, options.host, options.port, backlog=512)
        try:
            await site.start()
        except OSError as error:
            raise Fatal(f"the local exchange cannot listen on {options.host}:{options.port}: {error.strerror or error}", setting="PORT",
                        value=options.port) from None  # fmt: skip
        port = runner.addresses[0][1]
        venue.on_failure = stop.set
        venue.start()
        server.mishaps.start()
        tasks.append(asyncio.create_task(server.chores()))
        if watch is not None:
            tasks.append(asyncio.create_task(watch.run()))
            tasks[-1].add_done_callback(partial(_ended, venue))
            await _first_sight(watch, stop)
        if not stop.is_set():
            ready = True
            on_ready(ready_at(options.host, port, venue.clock))
        await stop.wait()
        if venue.failed is not None:
            raise venue.failed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.mishaps.clear()
        venue.stop()
        await server.close()
        await runner.cleanup()
        if ready:
            lifecycle("the local exchange has stopped")


def _ended(venue: Venue, task: asyncio.Task[None]) -> None:
    """The one who watches the venue's market never ends by himself: the server stops on it."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        venue.failed = error
        venue.on_failure()


async def _first_sight(watch: Watch, stop: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in (watch.seen, stop)]
    done, _ = await asyncio.wait(waiting, timeout=watch.patience.seen_within_s, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    if not done:
        raise Retryable(f"the venue's market was not seen within {watch.patience.seen_within_s:g} s")
