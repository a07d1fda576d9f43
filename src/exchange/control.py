"""The control door: exists only when asked for, and only for tests. Price jumps, transfers, delistings, streams that are dropped, muted,
flooded or fed rubbish, latency, faults, the books."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web

from src.exchange.errors import ApiError
from src.exchange.expansion import PRICE_TICKS_MAX
from src.exchange.faults import Rule
from src.exchange.mishaps import Mishaps
from src.exchange.options import LATENCY_MS_MAX
from src.exchange.state import FAR_MS, STATUSES, Standing
from src.exchange.streams import MARKET, PUBLIC, Streams
from src.exchange.venue import Venue

PREFIX = "/control/"
COPIES_MAX = 100
CHAOS_EVERY_S = 20.0
TRANSFER_MAX = 10**12


class Control:
    """Answers requests under /control. A body that makes no sense is answered 400 with the reason."""

    def __init__(self, venue: Venue, streams: Streams, mishaps: Mishaps) -> None:
        self._mishaps = mishaps
        self._venue = venue
        self._streams = streams

    async def handle(self, request: web.Request) -> web.Response:
        action = request.path.removeprefix(PREFIX)
        try:
            body = msgspec.json.decode(await request.read() or b"{}", type=dict[str, Any])
            value = self._act(request.method, action, body)
        except (msgspec.ValidationError, msgspec.DecodeError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
        return web.Response(body=msgspec.json.encode(value), content_type="application/json")

    def _act(self, method: str, action: str, body: dict[str, Any]) -> Any:
        match method, action:
            case "GET", "books":
                self._venue.step()
                return self._venue.core.books()
            case "POST", "price":
                return self._price(str(body["symbol"]), Decimal(str(body["price"])))
            case "POST", "drop_streams":
                return {"dropped": self._streams.cut_all()}
            case "POST", "mute":
                self._mishaps.mute(str(body["route"]), bool(body["on"]))
                return {"muted": sorted(self._streams.muted)}
            case "POST", "mute_stream":
                self._streams.channels[str(body["stream"])].copies = 0
                return {}
            case "POST", "flood":
                route, copies = _market_route(body), int(body["copies"])
                if not 1 <= copies <= COPIES_MAX:
                    raise ValueError(f"copies must be 1 to {COPIES_MAX}")
                self._streams.flood(route, copies)
                return {"copies": copies}
            case "POST", "rubbish":
                return {"heard": self._streams.say(_market_route(body), [str(text) for text in body["texts"]])}
            case "POST", "symbol":
                return self._symbol(str(body["symbol"]), body)
            case "POST", "transfer":
                return self._transfer(str(body["key"]), Decimal(str(body["amount"])))
            case "POST", "latency":
                latency_ms = max(0, int(body["latency_ms"]))
                if latency_ms > LATENCY_MS_MAX:
                    raise ValueError(f"latency_ms must be 0 to {LATENCY_MS_MAX:,}")
                self._venue.latency_ms = latency_ms
                return {"latency_ms": latency_ms}
            case "POST", "fault":
                self._mishaps.order(msgspec.convert(body, Rule, strict=False))
                return {"left": self._venue.faults.left}
            case "GET", "faults":
                return self._mishaps.told()
            case "POST", "chaos":
                self._mishaps.chaos(int(body["seed"]), float(body.get("every_s", CHAOS_EVERY_S)))
                return {}
            case "POST", "clear_faults":
                self._mishaps.clear()
                return {}
            case "POST", "expire_listen_keys":
                self._venue.listen_keys.age()
                self._streams.expire_keys()
                return {}
        raise KeyError(f"{method} {action}")

    def _price(self, symbol: str, price: Decimal) -> dict[str, Any]:
        state = self._venue.state
        index = state.index[symbol]
        ticks = int(price / state.specs[index].tick)
        if not 2 <= ticks <= PRICE_TICKS_MAX:
            raise ValueError(f"the price must be 2 to {PRICE_TICKS_MAX:,} ticks")
        self._venue.at_once(lambda: self._venue.core.jump(index, ticks - int(state.quotes.last[index])))
        return {"symbol": symbol, "price": format(state.quotes.last_price(index), "f")}

    def _transfer(self, key: str, amount: Decimal) -> dict[str, Any]:
        """Money comes to an account, or leaves it (negative), at most what can be withdrawn."""
        if not abs(amount) <= TRANSFER_MAX:
            raise ValueError(f"the amount must be {-TRANSFER_MAX:,} to {TRANSFER_MAX:,}")
        index = [a.key for a in self._venue.options.accounts].index(key)
        try:
            self._venue.at_once(lambda: self._venue.core.transfer(index, amount))
        except ApiError as refusal:
            raise ValueError(refusal.msg) from None
        return {"wallet": format(self._venue.state.accounts[index].wallet.balance, "f")}

    def _symbol(self, symbol: str, body: dict[str, Any]) -> dict[str, Any]:
        """A contract's status or delivery date changes, and whoever listens to ``!contractInfo`` is told. Not kept over a restart."""
        state = self._venue.state
        index = state.index[symbol]
        was = state.standings[index]
        now = Standing(str(body.get("status", was.status)), int(body.get("delivery_ms", was.delivery_ms)))
        if now.status not in STATUSES or not 0 <= now.delivery_ms <= FAR_MS:
            raise ValueError(f"the status must be one of {', '.join(STATUSES)}, and delivery_ms 0 to {FAR_MS:,}")
        self._venue.at_once(lambda: state.stand(index, now))
        return {"symbol": symbol, "status": now.status, "delivery_ms": now.delivery_ms}


def _market_route(body: dict[str, Any]) -> str:
    route = str(body["route"])
    if route not in (MARKET, PUBLIC):
        raise ValueError(f"no market data on route {route!r}")
    return route
