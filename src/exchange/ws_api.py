"""The WebSocket API: the same operations as REST, signed over sorted parameters, several requests at a time on one socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from src.error_handler import failure
from src.exchange import account_ops, public, trading
from src.exchange.auth import check_time
from src.exchange.call import Call, Endpoint, Security
from src.exchange.errors import ApiError
from src.exchange.faults import UNKNOWN_TEXT, Page, Reset, Silence, Spoiled, carried_out
from src.exchange.garble import spoiled
from src.exchange.params import Params
from src.exchange.sockets import Connection, close_all
from src.exchange.trading import as_text
from src.exchange.venue import Venue

PATH = "/ws-fapi/v1"
HANDSHAKE_WEIGHT = 5
PENDING_MAX = 1000
SIGNED, KEY = Security.SIGNED, Security.KEY

METHODS: dict[str, Endpoint] = {
    "ping": Endpoint(public.ping),
    "time": Endpoint(public.server_time),
    "order.place": Endpoint(trading.place, SIGNED, 0, (1, 1)),
    "order.modify": Endpoint(trading.modify, SIGNED, 0, (1, 1)),
    "order.cancel": Endpoint(trading.cancel, SIGNED, 1),
    "order.status": Endpoint(trading.query, SIGNED, 1),
    "algoOrder.place": Endpoint(trading.place_algo, SIGNED, 0, (1, 1)),
    "algoOrder.cancel": Endpoint(trading.cancel_algo, SIGNED, 1),
    "account.balance": Endpoint(account_ops.balance, SIGNED, 5),
    "v2/account.balance": Endpoint(account_ops.balance, SIGNED, 5),
    "account.status": Endpoint(account_ops.ws_account_v2, SIGNED, 5),
    "v2/account.status": Endpoint(account_ops.ws_account_v3, SIGNED, 5),
    "account.position": Endpoint(account_ops.position_risk_v2, SIGNED, 5),
    "v2/account.position": Endpoint(account_ops.position_risk_v3, SIGNED, 5),
    "depth": Endpoint(public.order_book, weight=public.depth_weight),
    "ticker.price": Endpoint(public.ticker_price, weight=lambda p: 1 if "symbol" in p else 2),
    "ticker.book": Endpoint(public.ticker_book, weight=lambda p: 2 if "symbol" in p else 5),
    "userDataStream.start": Endpoint(account_ops.open_listen_key, KEY, 1),
    "userDataStream.ping": Endpoint(account_ops.extend_listen_key, KEY, 1),
    "userDataStream.stop": Endpoint(account_ops.close_listen_key, KEY, 1),
}
_PLACING = ("order.place", "algoOrder.place")
SESSION_METHODS = ("session.logon", "session.status", "session.logout")
SESSION_WEIGHT = 2


class Request(msgspec.Struct):
    """One message of a client. Numbers that are not whole keep their text, since it was signed."""

    method: str
    id: str | int | None = None
    params: dict[str, Any] = {}


@dataclass(slots=True)
class Session:
    """What one socket remembers: the key it has logged on with, and whether it wants to see rate limits."""

    connected_ms: int
    show_limits: bool = True
    key: str = ""
    authorized_ms: int | None = None


def _number_text(raw: str) -> str:
    return raw


_decoder = msgspec.json.Decoder(Request, float_hook=_number_text)


class WsApi:
    """Answers requests under /ws-fapi/v1."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self.connections: dict[Connection, None] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        venue = self._venue
        try:
            venue.ws_limiter.weigh(HANDSHAKE_WEIGHT, venue.wall_ms(), market_ms=venue.now_ms(), speed=venue.clock.speed)
        except ApiError as refusal:
            return web.Response(status=refusal.status, body=msgspec.json.encode(refusal.body()), content_type="application/json")
        connection = Connection(venue.options.limits, api=True)
        response = await connection.open(request)
        session = Session(venue.now_ms(), show_limits=request.query.get("returnRateLimits", "true").lower() != "false")
        self.connections[connection] = None
        pending: set[asyncio.Task[None]] = set()
        try:
            async for text in connection.messages():
                if len(pending) >= PENDING_MAX:
                    await connection.close(1008, b"Too many requests")
                    break
                task = asyncio.create_task(self._serve(connection, session, text))
                pending.add(task)
                task.add_done_callback(pending.discard)
        except (TimeoutError, ConnectionError):
            connection.cut()
        finally:
            self.connections.pop(connection, None)
        return response

    async def _serve(self, connection: Connection, session: Session, text: str) -> None:
        """One request: its answer goes out when it is there, whatever came in between."""
        request_id: str | int | None = None
        endpoint, account, show, spoil = None, None, session.show_limits, None
        try:
            request = self._parse(text)
            request_id = request.id
            show = self._wants_limits(request, session)
            if request.method in SESSION_METHODS:
                answer: dict[str, Any] = {"status": 200, "result": self._session(session, request)}
            else:
                endpoint = METHODS.get(request.method)
                if endpoint is None:
                    raise ApiError(-1020)
                account, value = await self._answer(request.method, endpoint, session, request.params)
                answer = {"status": 200, "result": value}
        except ApiError as refusal:
            answer = {"status": refusal.status, "error": refusal.body()}
        except Page as page:
            answer = {"status": page.status, "error": {"code": -1000, "msg": UNKNOWN_TEXT}}
        except Spoiled as given:
            answer, spoil = {"status": 200, "result": given.value}, given.kind
        except (asyncio.CancelledError, Silence):
            return
        except Reset:
            connection.cut()
            return
        except Exception as error:  # the end of a request: the others live on
            failure("ws-fapi request", error)
            answer = {"status": 503, "error": {"code": -1000, "msg": UNKNOWN_TEXT}}
        whole = {"id": request_id, **answer}
        if show:
            orders = endpoint is not None and endpoint.orders is not None
            whole["rateLimits"] = self._usage(account, orders)
        text_out = msgspec.json.encode(whole)
        connection.send_text(text_out if spoil is None else spoiled(spoil, text_out))

    @staticmethod
    def _parse(text: str) -> Request:
        try:
            return _decoder.decode(text)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
            raise ApiError(-1013, msg="Invalid JSON format, or not a request.") from None

    @staticmethod
    def _wants_limits(request: Request, session: Session) -> bool:
        wanted = request.params.get("returnRateLimits")
        return session.show_limits if wanted is None else str(wanted).lower() != "false"

    def _pay(self, endpoint_weight: int) -> None:
        venue = self._venue
        venue.ws_limiter.weigh(endpoint_weight, venue.wall_ms(), market_ms=venue.now_ms(), speed=venue.clock.speed)

    async def _answer(self, method: str, endpoint: Endpoint, session: Session, raw: dict[str, Any]) -> tuple[int | None, Any]:
        venue = self._venue
        values = {name: as_text(value) for name, value in raw.items() if value is not None}
        unsaid = method in _PLACING and not venue.options.switches.stp_default_everywhere
        params = Params(({"selfTradePreventionMode": "NONE"} if unsaid else {}) | values)
        self._pay(endpoint.cost(params))
        account, sent, window = -1, 0, 0
        if endpoint.security is not Security.NONE:
            key = values.get("apiKey") or session.key
            account = venue.keyring.account(key)
            if endpoint.security is Security.SIGNED:
                sent, window = check_time(params, venue.told_ms(), venue.clock.speed)
                if "signature" in values or key != session.key:
                    self._verify(key, values)
        if endpoint.orders is not None:
            venue.limiter.count_orders(account, venue.wall_ms(), *endpoint.orders)
        call = Call(venue, params, account, sent - venue.skew_ms if sent else 0, window, venue.lag_ms(method))
        return (account if account >= 0 else None), await carried_out(venue.faults, method, params, lambda: endpoint.operation(call))

    def _usage(self, account: int | None, orders: bool) -> list[dict[str, object]]:
        venue = self._venue
        rows = venue.limiter.usage(account, venue.wall_ms(), orders)
        return [*rows[:-1], *venue.ws_limiter.usage(None, venue.wall_ms(), orders=False)]

    def _verify(self, key: str, values: dict[str, str]) -> None:
        signature = values.get("signature")
        if not signature:
            raise ApiError(-1102, "signature")
        payload = "&".join(f"{name}={values[name]}" for name in sorted(values) if name != "signature")
        self._venue.keyring.verify(key, payload.encode("utf-8", "surrogatepass"), signature)

    # ------------------------------------------------------------------ sessions

    def _session(self, session: Session, request: Request) -> dict[str, Any]:
        self._pay(SESSION_WEIGHT)
        if request.method == "session.logon":
            self._logon(session, request.params)
        elif request.method == "session.logout":
            session.key, session.authorized_ms = "", None
        return {
            "apiKey": session.key or None, "authorizedSince": session.authorized_ms, "connectedSince": session.connected_ms,
            "returnRateLimits": session.show_limits, "serverTime": self._venue.now_ms(),
        }  # fmt: skip

    def _logon(self, session: Session, raw: dict[str, Any]) -> None:
        values = {name: as_text(value) for name, value in raw.items() if value is not None}
        key = values.get("apiKey", "")
        self._venue.keyring.account(key)
        if not self._venue.keyring.is_ed25519(key):
            raise ApiError(-4056, msg="Invalid API key type: only Ed25519 keys can log on.")
        check_time(Params(values), self._venue.told_ms(), self._venue.clock.speed)
        self._verify(key, values)
        session.key, session.authorized_ms = key, self._venue.now_ms()

    def keep_alive(self, ping: bool) -> None:
        for connection in list(self.connections):
            connection.keep_alive(ping)

    def cut_all(self) -> None:
        for connection in self.connections:
            connection.cut()

    async def close_all(self) -> None:
        await close_all(list(self.connections))
