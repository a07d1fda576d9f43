"""What the venue refuses over REST, with its codes, texts and statuses; signatures; limits."""

from __future__ import annotations

import base64
import hashlib
import hmac
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from src.error_handler import Fatal
from src.exchange.auth import Keyring, signed_part
from src.exchange.errors import ApiError
from src.exchange.limits import MINUTE_MS, STRIKES_TO_BAN, Limiter
from src.exchange.options import Account, Limits, Switches
from tests.test_exchange_wire import KEY, Client, exchange, options

ORDER = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "59000", "quantity": "0.01"}
MARKET = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"}


def without(base: dict[str, Any], *names: str, **changed: Any) -> dict[str, Any]:
    return {k: v for k, v in (base | changed).items() if k not in names}


REFUSED: list[tuple[str, dict[str, Any], int]] = [
    ("no symbol", without(ORDER, "symbol"), -1102),
    ("unknown symbol", ORDER | {"symbol": "NOPEUSDT"}, -1121),
    ("bad side", ORDER | {"side": "LONG"}, -1117),
    ("bad type", ORDER | {"type": "ICEBERG"}, -1116),
    ("conditional type", ORDER | {"type": "STOP_MARKET", "stopPrice": "59000"}, -4120),
    ("trailing type", ORDER | {"type": "TRAILING_STOP_MARKET"}, -4120),
    ("bad time in force", ORDER | {"timeInForce": "DAY"}, -1115),
    ("limit without time in force", without(ORDER, "timeInForce"), -1102),
    ("limit without price", without(ORDER, "price"), -1102),
    ("limit without quantity", without(ORDER, "quantity"), -1102),
    ("empty price", ORDER | {"price": ""}, -1105),
    ("market with price", MARKET | {"price": "59000"}, -1106),
    ("market with time in force", MARKET | {"timeInForce": "GTC"}, -1106),
    ("exponent", ORDER | {"quantity": "1e-2"}, -1100),
    ("not a number", ORDER | {"quantity": "NaN"}, -1100),
    ("too many decimals of price", ORDER | {"price": "59000.001"}, -1111),
    ("off the tick", ORDER | {"price": "59000.05"}, -4014),
    ("too many decimals of quantity", ORDER | {"quantity": "0.0105"}, -1111),
    ("no quantity", ORDER | {"quantity": "0"}, -4003),
    ("negative quantity", ORDER | {"quantity": "-1"}, -4003),
    ("too much", ORDER | {"quantity": "1001"}, -4005),
    ("too much at market", MARKET | {"quantity": "121"}, -4005),
    ("negative price", ORDER | {"price": "-1"}, -4001),
    ("price below the least", ORDER | {"price": "100"}, -4013),
    ("price above the most", ORDER | {"price": "4529765"}, -4002),
    ("notional too small", ORDER | {"price": "59000", "quantity": "0.0"}, -4003),
    ("below minimum notional", MARKET | {"symbol": "ETHUSDT", "quantity": "0.001"}, -4164),
    ("buy above the band", ORDER | {"price": "63000.10"}, -4016),
    ("sell below the band", ORDER | {"side": "SELL", "price": "56999.90"}, -4024),
    ("hedge side in one-way mode", ORDER | {"positionSide": "LONG"}, -4061),
    ("unknown position side", ORDER | {"positionSide": "UP"}, -4060),
    ("reduce-only without a position", MARKET | {"reduceOnly": "true"}, -2022),
    ("not a boolean", MARKET | {"reduceOnly": "maybe"}, -1130),
    ("not enough margin", MARKET | {"quantity": "100"}, -2019),
    ("beyond the bracket", MARKET | {"quantity": "120", "symbol": "ETHUSDT"}, -2019),
    ("post only that crosses", ORDER | {"price": "60100", "timeInForce": "GTX"}, -5022),
    ("fill or kill without enough", ORDER | {"price": "60000.10", "quantity": "5", "timeInForce": "FOK"}, -2019),
    ("bad answer type", ORDER | {"newOrderRespType": "FULL"}, -1136),
    ("long client id", ORDER | {"newClientOrderId": "x" * 37}, -4015),
    ("odd client id", ORDER | {"newClientOrderId": "a b"}, -1100),
    ("bad stp", ORDER | {"selfTradePreventionMode": "SOME"}, -5039),
    ("bad price match", without(ORDER, "price", priceMatch="OPPONENT_10"), -5037),
    ("price match on market", MARKET | {"priceMatch": "QUEUE"}, -5038),
    ("good till too soon", ORDER | {"timeInForce": "GTD", "goodTillDate": "1"}, -5040),
]  # fmt: skip


@pytest.fixture
async def client() -> Any:
    async with exchange() as client:
        yield client


async def test_orders_are_refused_with_the_venue_s_codes(client: Client) -> None:
    got = {name: await client.code("POST", "v1/order", **params) for name, params, _ in REFUSED}
    assert got == {name: code for name, _, code in REFUSED}
    assert (await client.books())["orders"] == []


async def test_what_needs_no_look_at_the_book_is_refused_by_the_test_endpoint_too(client: Client) -> None:
    assert await client.good("POST", "v1/order/test", **ORDER) == {}
    assert await client.code("POST", "v1/order/test", **(ORDER | {"price": "59000.05"})) == -4014
    assert await client.code("POST", "v1/order/test", **(MARKET | {"quantity": "100"})) == -2019


@pytest.mark.parametrize(
    ("method", "path", "params", "code"),
    [
        ("GET", "v1/order", {"symbol": "BTCUSDT"}, -1102),
        ("GET", "v1/order", {"symbol": "BTCUSDT", "orderId": 1}, -2013),
        ("DELETE", "v1/order", {"symbol": "BTCUSDT", "origClientOrderId": "no"}, -2011),
        ("PUT", "v1/order", {"symbol": "BTCUSDT", "side": "BUY", "orderId": 1, "quantity": "1", "price": "59000"}, -2013),
        ("GET", "v1/openOrder", {"symbol": "BTCUSDT", "orderId": 1}, -2013),
        ("DELETE", "v1/algoOrder", {"algoId": 1}, -2011),
        ("GET", "v1/algoOrder", {"algoId": 1}, -2013),
        ("POST", "v1/leverage", {"symbol": "BTCUSDT", "leverage": 151}, -4028),
        ("POST", "v1/marginType", {"symbol": "BTCUSDT", "marginType": "CROSSED"}, -4046),
        ("POST", "v1/positionSide/dual", {"dualSidePosition": "false"}, -4059),
        ("POST", "v1/multiAssetsMargin", {"multiAssetsMargin": "false"}, -4171),
        ("POST", "v1/positionMargin", {"symbol": "BTCUSDT", "amount": "1", "type": 1}, -4053),
        ("GET", "v1/allOrders", {"symbol": "BTCUSDT", "startTime": 0, "endTime": 10**12}, -4165),
        ("GET", "v1/userTrades", {"symbol": "BTCUSDT", "fromId": 1, "startTime": 1}, -1128),
        ("GET", "v1/income", {"incomeType": "LUCK"}, -1130),
        ("GET", "v3/balance", {"recvWindow": 60001}, -1131),
    ],
)
async def test_other_signed_refusals(client: Client, method: str, path: str, params: dict[str, Any], code: int) -> None:
    assert await client.code(method, path, **params) == code


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("v1/depth?symbol=BTCUSDT&limit=3", -4021),
        ("v1/depth?symbol=BTCUSDT&limit=1500", -1130),
        ("v1/rpiDepth?symbol=BTCUSDT&limit=500", -4021),
        ("v1/klines?symbol=BTCUSDT&interval=1s", -1120),
        ("v1/klines?symbol=BTCUSDT&interval=1m&limit=1501", -1130),
        ("v1/klines?symbol=BTCUSDT&interval=1m&startTime=2&endTime=1", -1023),
        ("v1/klines?interval=1m", -1102),
        ("v1/continuousKlines?pair=BTCUSDT&contractType=WEEKLY&interval=1m", -4104),
        ("v1/ticker/24hr?symbol=NOPE", -1121),
        ("v1/aggTrades?symbol=BTCUSDT&fromId=1&startTime=1", -1128),
        ("v1/aggTrades?symbol=BTCUSDT&startTime=1&endTime=99999999", -1127),
        ("v1/trades?symbol=BTCUSDT&limit=1001", -1130),
        ("v1/trades?symbol=BTCUSDT&symbol=ETHUSDT", -1101),
    ],
)
async def test_public_refusals(client: Client, path: str, code: int) -> None:
    status, body = await client.raw("GET", "/fapi/" + path)
    assert (status, body["code"]) == (400, code)


async def test_who_asks_must_be_known_and_must_have_signed(client: Client) -> None:
    stamp = f"timestamp={client.clock.market_ms()}"
    good = f"{stamp}&signature={client.sign(stamp)}"

    async def ask(query: str, key: str | None = KEY) -> tuple[int, int]:
        status, body = await client.raw("GET", f"/fapi/v3/balance?{query}", headers={"X-MBX-APIKEY": key} if key else {})
        return status, body["code"] if isinstance(body, dict) else 0

    assert await ask(good) == (200, 0)
    assert await ask(good, "x-mbx") == (401, -2015)
    assert await ask(good, None) == (401, -2014)
    assert await ask(good, "no such key!") == (401, -2014)
    assert await ask(stamp) == (400, -1102)
    assert await ask("signature=abc") == (400, -1102)
    assert await ask(f"{stamp}&signature={'0' * 64}") == (400, -1022)
    assert await ask(f"{stamp}&signature=%ff") == (400, -1100)
    assert await ask(f"{stamp}&signature=%C3%A9") == (400, -1022)
    assert await ask(f"recvWindow=5000&{good}") == (400, -1022)
    assert await ask(f"{stamp}&signature={client.sign(stamp).upper()}") == (200, 0)


async def test_a_body_is_signed_behind_the_query_and_the_query_wins(client: Client) -> None:
    query, body = "symbol=BTCUSDT&leverage=7", f"symbol=ETHUSDT&timestamp={client.clock.market_ms()}"
    signature = client.sign(query + body)
    headers = {"x-mbx-apikey": KEY, "Content-Type": "application/x-www-form-urlencoded"}
    status, answer = await client.raw("POST", f"/fapi/v1/leverage?{query}", data=f"{body}&signature={signature}", headers=headers)
    assert (status, answer["symbol"], answer["leverage"]) == (200, "BTCUSDT", 7)


async def test_a_get_is_its_query_alone(client: Client) -> None:
    body = f"timestamp={client.clock.market_ms()}"
    headers = {"X-MBX-APIKEY": KEY, "Content-Type": "application/x-www-form-urlencoded"}
    status, answer = await client.raw("GET", "/fapi/v3/balance", data=f"{body}&signature={client.sign(body)}", headers=headers)
    assert (status, answer["code"]) == (400, -1102)


def test_the_documented_signature_is_ours() -> None:
    secret = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9"
    query = "symbol=BTCUSDT&side=BUY&type=LIMIT&quantity=1&price=9000&timeInForce=GTC&recvWindow=5000&timestamp=1591702613943"
    signature = "3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9"
    ring = Keyring([Account("k", secret, Decimal(0))])
    payload, found = signed_part(f"{query}&signature={signature}", "")
    assert (payload, found) == (query.encode(), signature)
    ring.verify("k", payload, found)
    assert hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest() == signature


@pytest.mark.parametrize("form", ["pem", "base64 of pem", "body"])
def test_ed25519_keys_verify(form: str) -> None:
    private = Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    text = {"pem": pem.decode(), "base64 of pem": base64.b64encode(pem).decode(), "body": "".join(pem.decode().splitlines()[1:-1])}[form]
    ring = Keyring([Account("k", "ed25519=" + text, Decimal(0))])
    ring.verify("k", b"a=1", base64.b64encode(private.sign(b"a=1")).decode())
    for wrong in (base64.b64encode(private.sign(b"a=2")).decode(), "%%%", "", "é"):
        with pytest.raises(ApiError):
            ring.verify("k", b"a=1", wrong)


def test_a_secret_that_is_no_key_stops_the_exchange() -> None:
    with pytest.raises(Fatal):
        Keyring([Account("k", "ed25519=nonsense", Decimal(0))])


async def test_ed25519_signs_rest_too() -> None:
    private = Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    account = Account("edkey", "ed25519=" + base64.b64encode(pem).decode(), Decimal(500))
    async with exchange(options(accounts=(account,))) as client:
        stamp = f"timestamp={client.clock.market_ms()}"
        signature = quote(base64.b64encode(private.sign(stamp.encode())).decode(), safe="")
        status, body = await client.raw("GET", f"/fapi/v3/balance?{stamp}&signature={signature}", headers={"X-MBX-APIKEY": "edkey"})
        assert (status, body[0]["balance"]) == (200, "500.00000000")


# ------------------------------------------------------------------ limits


async def test_too_much_weight_is_answered_429_then_418() -> None:
    async with exchange(options(limits=Limits(weight_per_minute=40))) as client:
        statuses = [(await client.raw("GET", "/fapi/v1/aggTrades?symbol=BTCUSDT"))[0] for _ in range(3)]
        assert statuses == [200, 200, 429]
        for _ in range(STRIKES_TO_BAN):
            status, body = await client.raw("GET", "/fapi/v1/ping")
        assert (status, body["code"]) == (418, -1003)
        until = int(body["msg"].split("banned until ")[1].split(".")[0])
        assert 0 < until - client.clock.market_ms() <= 120_000


async def test_who_is_banned_hears_of_nothing_else() -> None:
    async with exchange(options(limits=Limits(weight_per_minute=1))) as client:
        wrong = "/fapi/v1/depth?symbol=BTCUSDT&limit=3"
        assert [(await client.raw("GET", wrong))[0] for _ in range(STRIKES_TO_BAN + 2)] == [400, *[429] * STRIKES_TO_BAN, 418]
        assert (await client.raw("GET", "/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=x"))[0] == 418


async def test_requests_without_weight_are_counted_in_pools_of_their_own() -> None:
    async with exchange(options(limits=Limits(funding_requests_per_5min=3, statistics_requests_per_5min=2))) as client:
        funding = [(await client.raw("GET", "/fapi/v1/" + path))[0] for path in ("fundingRate", "fundingInfo", "fundingRate?symbol=BTCUSDT")]
        assert funding == [200, 200, 200] and "x-mbx-used-weight-1m" not in client.headers
        status, body = await client.raw("GET", "/fapi/v1/fundingInfo")
        assert (status, body["code"]) == (429, -1003) and "3 requests per 5 minutes" in body["msg"]
        statistics = ["/futures/data/basis?pair=BTCUSDT&contractType=PERPETUAL&period=5m", "/futures/data/openInterestHist?symbol=BTCUSDT&period=5m"]
        assert [(await client.raw("GET", path))[0] for path in (*statistics, statistics[0])] == [200, 200, 429]
        assert (await client.raw("GET", "/fapi/v1/ping"))[0] == 200, "what has weight is another matter"
        for _ in range(STRIKES_TO_BAN):
            status, body = await client.raw("GET", "/fapi/v1/fundingInfo")
        assert (status, body["code"]) == (418, -1003)


async def test_too_many_orders_are_answered_429() -> None:
    async with exchange(options(limits=Limits(weight_per_minute=10_000, orders_per_10s=3))) as client:
        codes = [(await client.signed("POST", "v1/order", **MARKET)) for _ in range(5)]
        assert (codes[-1][0], codes[-1][1]["code"]) == (429, -1015)


def test_windows_begin_again_and_bans_end() -> None:
    limiter = Limiter(Limits(weight_per_minute=10, orders_per_10s=2, orders_per_minute=3), Switches(), accounts=2)
    at = 7 * MINUTE_MS

    def weigh(weight: int, wall_ms: int) -> int:
        try:
            limiter.weigh(weight, wall_ms, market_ms=wall_ms, speed=1.0)
        except ApiError as refusal:
            return refusal.status
        return 200

    assert [weigh(10, at), weigh(1, at), weigh(1, at + MINUTE_MS)] == [200, 429, 200]
    assert [weigh(20, at + MINUTE_MS) for _ in range(STRIKES_TO_BAN + 1)][-1] == 418
    assert weigh(1, at + 2 * MINUTE_MS) == 418
    assert weigh(1, at + 4 * MINUTE_MS) == 200
    limiter.count_orders(0, at)
    limiter.count_orders(0, at)
    limiter.count_orders(1, at)
    with pytest.raises(ApiError):
        limiter.count_orders(0, at)
    limiter.count_orders(0, at + 10_000)
    with pytest.raises(ApiError) as over:
        limiter.count_orders(0, at + 20_000)
    assert over.value.code == -1015
    assert limiter.order_counts(0, at + 2 * MINUTE_MS) == (0, 0)
