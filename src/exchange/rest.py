"""The REST door: paths to operations, security, limits, headers, and refusals as the venue answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from src.clock import MS, monotonic_ns
from src.error_handler import failure
from src.exchange import account_ops, figures, public, records, trading
from src.exchange.auth import check_time, signed_part
from src.exchange.call import Call, Endpoint, Security
from src.exchange.errors import ApiError
from src.exchange.faults import UNKNOWN_TEXT, Page, Reset, Silence, Spoiled, carried_out
from src.exchange.garble import spoiled
from src.exchange.limits import Pool
from src.exchange.params import Params, parse_pairs
from src.exchange.venue import Venue

BODY_MAX = 1 << 20
KEY, SIGNED = Security.KEY, Security.SIGNED
FUNDING, STATISTICS = Pool.FUNDING, Pool.STATISTICS


def _by_symbol(one: int, every: int) -> Callable[[Params], int]:
    return lambda params: one if "symbol" in params else every


ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    ("GET", "v1/ping"): Endpoint(public.ping),
    ("GET", "v1/time"): Endpoint(public.server_time),
    ("GET", "v1/exchangeInfo"): Endpoint(public.exchange_info),
    ("GET", "v1/depth"): Endpoint(public.order_book, weight=public.depth_weight),
    ("GET", "v1/trades"): Endpoint(public.trades, weight=5, history=True),
    ("GET", "v1/aggTrades"): Endpoint(public.agg_trades, weight=20, history=True),
    ("GET", "v1/klines"): Endpoint(public.klines, weight=public.kline_weight, history=True),
    ("GET", "v1/continuousKlines"): Endpoint(public.continuous_klines, weight=public.kline_weight, history=True),
    ("GET", "v1/markPriceKlines"): Endpoint(public.price_klines, weight=public.kline_weight, history=True),
    ("GET", "v1/indexPriceKlines"): Endpoint(public.price_klines, weight=public.kline_weight, history=True),
    ("GET", "v1/premiumIndex"): Endpoint(public.premium_index, weight=_by_symbol(1, 10)),
    ("GET", "v1/fundingRate"): Endpoint(public.funding_rates, pool=FUNDING, history=True),
    ("GET", "v1/fundingInfo"): Endpoint(public.funding_info, pool=FUNDING, history=True),
    ("GET", "v1/ticker/24hr"): Endpoint(public.ticker_24hr, weight=_by_symbol(1, 40), history=True),
    ("GET", "v1/ticker/price"): Endpoint(public.ticker_price, weight=_by_symbol(1, 2)),
    ("GET", "v2/ticker/price"): Endpoint(public.ticker_price, weight=_by_symbol(1, 2)),
    ("GET", "v1/ticker/bookTicker"): Endpoint(public.ticker_book, weight=_by_symbol(2, 5)),
    ("GET", "v1/openInterest"): Endpoint(public.open_interest, history=True),
    ("GET", "v1/historicalTrades"): Endpoint(public.old_trades, KEY, 200, history=True),
    ("GET", "v1/rpiDepth"): Endpoint(public.rpi_book, weight=20),
    ("GET", "v1/premiumIndexKlines"): Endpoint(public.premium_klines, weight=public.kline_weight, history=True),
    ("GET", "v1/constituents"): Endpoint(figures.constituents, weight=2),
    ("GET", "v1/indexInfo"): Endpoint(figures.index_info),
    ("GET", "v1/assetIndex"): Endpoint(figures.asset_index, weight=_by_symbol(1, 10)),
    ("GET", "v1/insuranceBalance"): Endpoint(figures.insurance_balance),
    ("GET", "v1/symbolAdlRisk"): Endpoint(figures.adl_risk),
    ("GET", "v1/tradingSchedule"): Endpoint(figures.trading_schedule, weight=5),
    ("GET", "/futures/data/openInterestHist"): Endpoint(figures.open_interest_history, pool=STATISTICS, history=True),
    ("GET", "/futures/data/topLongShortAccountRatio"): Endpoint(figures.long_short_ratio, pool=STATISTICS, history=True),
    ("GET", "/futures/data/topLongShortPositionRatio"): Endpoint(figures.long_short_ratio, pool=STATISTICS, history=True),
    ("GET", "/futures/data/globalLongShortAccountRatio"): Endpoint(figures.long_short_ratio, pool=STATISTICS, history=True),
    ("GET", "/futures/data/takerlongshortRatio"): Endpoint(figures.taker_volume, pool=STATISTICS, history=True),
    ("GET", "/futures/data/basis"): Endpoint(figures.basis, pool=STATISTICS, history=True),
    ("GET", "/futures/data/delivery-price"): Endpoint(figures.delivery_prices, pool=STATISTICS, history=True),
    ("POST", "v1/order"): Endpoint(trading.place, SIGNED, 0, (1, 1)),
    ("PUT", "v1/order"): Endpoint(trading.modify, SIGNED, 0, (1, 1)),
    ("GET", "v1/order"): Endpoint(trading.query, SIGNED, 1),
    ("DELETE", "v1/order"): Endpoint(trading.cancel, SIGNED, 1),
    ("POST", "v1/order/test"): Endpoint(trading.place_test, SIGNED, 0),
    ("GET", "v1/openOrder"): Endpoint(trading.query_open, SIGNED, 1),
    ("GET", "v1/openOrders"): Endpoint(trading.open_orders, SIGNED, _by_symbol(1, 40)),
    ("GET", "v1/allOrders"): Endpoint(trading.all_orders, SIGNED, 5),
    ("GET", "v1/userTrades"): Endpoint(trading.user_trades, SIGNED, 5),
    ("DELETE", "v1/allOpenOrders"): Endpoint(trading.cancel_all, SIGNED, 1),
    ("POST", "v1/batchOrders"): Endpoint(trading.place_batch, SIGNED, 5, (5, 1)),
    ("PUT", "v1/batchOrders"): Endpoint(trading.modify_batch, SIGNED, 5, (5, 1)),
    ("DELETE", "v1/batchOrders"): Endpoint(trading.cancel_batch, SIGNED, 1),
    ("POST", "v1/countdownCancelAll"): Endpoint(trading.countdown, SIGNED, 10),
    ("POST", "v1/algoOrder"): Endpoint(trading.place_algo, SIGNED, 0, (1, 1)),
    ("GET", "v1/algoOrder"): Endpoint(trading.query_algo, SIGNED, 1),
    ("DELETE", "v1/algoOrder"): Endpoint(trading.cancel_algo, SIGNED, 1),
    ("DELETE", "v1/algoOpenOrders"): Endpoint(trading.cancel_all_algos, SIGNED, 1),
    ("GET", "v1/openAlgoOrders"): Endpoint(trading.open_algos, SIGNED, _by_symbol(1, 40)),
    ("GET", "v1/allAlgoOrders"): Endpoint(trading.all_algos, SIGNED, 5),
    ("GET", "v2/account"): Endpoint(account_ops.account_v2, SIGNED, 5),
    ("GET", "v3/account"): Endpoint(account_ops.account_v3, SIGNED, 5),
    ("GET", "v2/balance"): Endpoint(account_ops.balance, SIGNED, 5),
    ("GET", "v3/balance"): Endpoint(account_ops.balance, SIGNED, 5),
    ("GET", "v2/positionRisk"): Endpoint(account_ops.position_risk_v2, SIGNED, 5),
    ("GET", "v3/positionRisk"): Endpoint(account_ops.position_risk_v3, SIGNED, 5),
    ("GET", "v1/symbolConfig"): Endpoint(account_ops.symbol_config, SIGNED, 5),
    ("GET", "v1/accountConfig"): Endpoint(account_ops.account_config, SIGNED, 5),
    ("POST", "v1/leverage"): Endpoint(account_ops.leverage, SIGNED, 1),
    ("POST", "v1/marginType"): Endpoint(account_ops.margin_type, SIGNED, 1),
    ("GET", "v1/positionSide/dual"): Endpoint(account_ops.dual_side, SIGNED, 30),
    ("POST", "v1/positionSide/dual"): Endpoint(account_ops.set_dual_side, SIGNED, 1),
    ("GET", "v1/multiAssetsMargin"): Endpoint(account_ops.multi_assets, SIGNED, 30),
    ("POST", "v1/multiAssetsMargin"): Endpoint(account_ops.set_multi_assets, SIGNED, 1),
    ("GET", "v1/leverageBracket"): Endpoint(account_ops.leverage_bracket, SIGNED, 1),
    ("GET", "v1/commissionRate"): Endpoint(account_ops.commission_rate, SIGNED, 20),
    ("GET", "v1/income"): Endpoint(account_ops.income, SIGNED, 30),
    ("POST", "v1/positionMargin"): Endpoint(account_ops.position_margin, SIGNED, 1),
    ("GET", "v1/positionMargin/history"): Endpoint(records.margin_moves, SIGNED, 1),
    ("GET", "v1/orderAmendment"): Endpoint(records.amendments, SIGNED, 1),
    ("GET", "v1/forceOrders"): Endpoint(records.force_orders, SIGNED, _by_symbol(20, 50)),
    ("GET", "v1/adlQuantile"): Endpoint(records.adl_quantiles, SIGNED, 5),
    ("GET", "v1/feeBurn"): Endpoint(records.fee_burn, SIGNED, 30),
    ("POST", "v1/feeBurn"): Endpoint(records.set_fee_burn, SIGNED, 1),
    ("GET", "v1/apiTradingStatus"): Endpoint(records.trading_status, SIGNED, _by_symbol(1, 10)),
    ("POST", "v1/stock/contract"): Endpoint(records.sign_agreement, SIGNED, 50),
    ("GET", "v1/rateLimit/order"): Endpoint(account_ops.order_limits, SIGNED, 1),
    ("POST", "v1/listenKey"): Endpoint(account_ops.open_listen_key, KEY, 1),
    ("PUT", "v1/listenKey"): Endpoint(account_ops.extend_listen_key, KEY, 1),
    ("DELETE", "v1/listenKey"): Endpoint(account_ops.close_listen_key, KEY, 1),
}
PREFIX = "/fapi/"
STATISTICS_PREFIX = "/futures/data/"
"""Of endpoints that stand in the table with their whole path."""
_JSON = {"Content-Type": "application/json"}


class Rest:
    """Answers requests under /fapi and /futures/data."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        clock = venue.clock
        self._clock_header = f"{clock.t0_ms},{clock.m0_ns},{clock.speed!r}"

    async def handle(self, request: web.Request) -> web.Response:
        path, _, query = request.raw_path.partition("?")
        door = f"{request.method} {path.removeprefix(PREFIX)}"
        endpoint = ENDPOINTS.get((request.method, path.removeprefix(PREFIX)))
        if endpoint is None:
            return web.Response(status=404, text="<html><body><h2>404 Not found</h2></body></html>", content_type="text/html")
        began_ns = monotonic_ns()
        headers = {"x-sim-clock": self._clock_header, "Server": "nginx"}
        account, status, value, text = -1, 0, None, None
        try:
            sent = await request.read()
            body = "" if request.method == "GET" else sent.decode("utf-8", "surrogateescape")
            account, value = await self._answer(endpoint, door, request.headers.get("X-MBX-APIKEY", ""), query=query, body=body)
            status = 200
        except ApiError as refusal:
            status, value = refusal.status, refusal.body()
            if refusal.retry_after_s is not None:
                headers["Retry-After"] = str(refusal.retry_after_s)
        except (web.HTTPException, web.RequestPayloadError):
            raise
        except Page as page:
            return web.Response(status=page.status, text=f"<html><body><h1>{page.status}</h1></body></html>", content_type="text/html")
        except Spoiled as answer:
            status, text = 200, spoiled(answer.kind, msgspec.json.encode(answer.value))
        except Silence:
            await asyncio.Event().wait()
        except Reset:
            if request.transport is not None:
                request.transport.abort()  # type: ignore[attr-defined]
        except Exception as error:  # the end of a request: the others live on
            failure(f"{request.method} {path}", error)
            status, value = 503, {"code": -1000, "msg": UNKNOWN_TEXT}
        if endpoint.pool is None:
            headers["x-mbx-used-weight-1m"] = str(self._venue.limiter.used_weight(self._venue.wall_ms()))
        if endpoint.orders is not None and account >= 0:
            short, long = self._venue.limiter.order_counts(account, self._venue.wall_ms())
            headers |= {"x-mbx-order-count-10s": str(short), "x-mbx-order-count-1m": str(long)}
        headers["x-response-time"] = f"{(monotonic_ns() - began_ns) // MS}ms"
        return web.Response(body=text or msgspec.json.encode(value), status=status or 503, headers=headers | _JSON)

    def _verify(self, key: str, payload: bytes, signature: str) -> None:
        try:
            self._venue.keyring.verify(key, payload, signature)
        except ApiError:
            if not self._venue.options.switches.decoded_signature_accepted:
                raise
            self._venue.keyring.verify(key, unquote_to_bytes(payload), signature)

    async def _answer(self, endpoint: Endpoint, door: str, key: str, *, query: str, body: str) -> tuple[int, Any]:
        venue, wall = self._venue, self._venue.wall_ms()
        params = Params(parse_pairs(query, body))
        if endpoint.pool is not None:
            venue.limiter.draw(endpoint.pool, wall, market_ms=venue.now_ms(), speed=venue.clock.speed)
        else:
            venue.limiter.weigh(endpoint.cost(params), wall, market_ms=venue.now_ms(), speed=venue.clock.speed)
        if endpoint.history and venue.options.venue is not None:
            raise ApiError(-1020, msg=f"This operation is not supported: the market is a venue's own, ask {venue.options.venue.rest} for it.")
        account, sent, window = -1, 0, 0
        if endpoint.security is not Security.NONE:
            account = venue.keyring.account(key)
        if endpoint.security is Security.SIGNED:
            payload, signature = signed_part(query, body)
            if not signature:
                raise ApiError(-1102, "signature")
            sent, window = check_time(params, venue.told_ms(), venue.clock.speed)
            self._verify(key, payload, signature)
        if endpoint.orders is not None:
            venue.limiter.count_orders(account, wall, *endpoint.orders)
        call = Call(venue, params, account, sent - venue.skew_ms if sent else 0, window, venue.lag_ms(door))
        return account, await carried_out(venue.faults, door, params, lambda: endpoint.operation(call))
