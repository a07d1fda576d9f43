"""What can be asked of the venue, and the few account settings that can be changed: typed functions over ``Rest``.

Each does one thing, raises ``AegisError`` only, and names the request weight it costs. ``None`` for an order means that the venue says that
it does not exist (which its reads say too early now and then: one such answer is no proof).
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from functools import partial

import numpy as np
from numpy.typing import NDArray

from src.error_handler import Fatal, Rejected, mask
from src.models import Account, AlgoUpdate, Fill, OrderUpdate, PositionUpdate, SymbolRules
from src.venue import answers
from src.venue.answers import AccountConfig, Bracket, Income, SymbolConfig
from src.venue.errors import NO_SUCH_ORDER, code_of, is_fine
from src.venue.governor import Limits, Priority
from src.venue.messages import AggTrade
from src.venue.rest import Rest

PAGE = 1000
PAGES_MAX = 20
"""A statement or a list of fills is followed over at most so many pages."""
KLINES_MAX = 1500
API_KEY_LENGTH = 64

# -- public --------------------------------------------------------------------------------------------------------------------------


async def symbol_rules(rest: Rest) -> tuple[dict[str, SymbolRules], Limits]:
    """Rules of all symbols and the venue's limits, which the governor is told too. About 1.3 MB. Weight 1."""
    found: tuple[dict[str, SymbolRules], Limits] = await rest.get("/fapi/v1/exchangeInfo", weight=1, timeout_s=15.0,
                                                                  decode=answers.exchange_info)
    rest.governor.set_limits(found[1])
    return found


async def volumes_24h(rest: Rest) -> dict[str, Decimal]:
    """Quote volume of the last 24 hours by symbol. Weight 40."""
    found: dict[str, Decimal] = await rest.get("/fapi/v1/ticker/24hr", weight=40, timeout_s=10.0, decode=answers.tickers)
    return found


async def spreads_bps(rest: Rest) -> dict[str, Decimal]:
    """Spread of the best quotes by symbol, in 0.01 % of their mean; a symbol without both sides is left out. Weight 5."""
    found: dict[str, Decimal] = await rest.get("/fapi/v1/ticker/bookTicker", weight=5, timeout_s=10.0, decode=answers.spreads)
    return found


async def last_trades(rest: Rest) -> dict[str, int]:
    """Id of the newest single trade of the last 24 hours by symbol; −1 where there was none. Weight 40."""
    found: dict[str, int] = await rest.get("/fapi/v1/ticker/24hr", weight=40, timeout_s=10.0, decode=answers.last_ids)
    return found


async def prices(rest: Rest) -> dict[str, answers.Price]:
    """Newest price and its time by symbol. Weight 2."""
    found: dict[str, answers.Price] = await rest.get("/fapi/v2/ticker/price", weight=2, timeout_s=10.0, decode=answers.prices)
    return found


async def books(rest: Rest) -> dict[str, answers.Book]:
    """Best quotes and their time by symbol. Weight 5."""
    found: dict[str, answers.Book] = await rest.get("/fapi/v1/ticker/bookTicker", weight=5, timeout_s=10.0, decode=answers.books)
    return found


async def klines(rest: Rest, symbol: str, interval: str, *, start_ms: int | None = None, end_ms: int | None = None,
                 limit: int = 500) -> NDArray[np.float64]:  # fmt: skip
    """Candles, oldest first: float64 (n, 8) of open_ms, open, high, low, close, volume, trades, taker_volume. The last may be unfinished.

    ``interval`` below a minute comes from the continuous contract. ``limit`` ≤ 1500. Weight 1, 2, 5 or 10 by limit.
    """
    assert 0 < limit <= KLINES_MAX, limit
    weight = 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10
    params: dict[str, str | int] = {"interval": interval, "limit": limit}
    if start_ms is not None:
        params["startTime"] = start_ms
    if end_ms is not None:
        params["endTime"] = end_ms
    if interval.endswith("s"):
        path, named = "/fapi/v1/continuousKlines", {"pair": symbol, "contractType": "PERPETUAL"}
    else:
        path, named = "/fapi/v1/klines", {"symbol": symbol}
    table: NDArray[np.float64] = await rest.get(path, {**named, **params}, weight=weight, timeout_s=10.0, decode=answers.kline_table)
    return table


async def agg_trades(rest: Rest, symbol: str, *, from_id: int | None = None, limit: int = PAGE) -> list[AggTrade]:
    """Aggregate trades from ``from_id`` on, or the newest, oldest first; event time is 0. At most 1000. Weight 20."""
    params: dict[str, str | int] = {"symbol": symbol, "limit": limit}
    if from_id is not None:
        params["fromId"] = from_id
    found: list[AggTrade] = await rest.get("/fapi/v1/aggTrades", params, weight=20, decode=partial(answers.agg_trade_rows, symbol=symbol))
    return found


# -- account -------------------------------------------------------------------------------------------------------------------------


async def account(rest: Rest, asset: str = "USDT") -> Account:
    """Wallet and unrealised profit in ``asset``, and the positions held. Two calls at once, weight 10."""
    money, held = await asyncio.gather(
        rest.get("/fapi/v3/account", weight=5, signed=True, priority=Priority.PROTECT, decode=partial(answers.balance, asset=asset)),
        positions(rest))
    return Account(money[0], money[1], tuple(held), rest.timestamp())


async def positions(rest: Rest) -> list[PositionUpdate]:
    """What is held, by symbol; a symbol that is not listed is flat. Weight 5."""
    found: list[PositionUpdate] = await rest.get("/fapi/v3/positionRisk", weight=5, signed=True, priority=Priority.PROTECT,
                                                 decode=answers.positions)
    return found


async def open_orders(rest: Rest, symbol: str | None = None) -> list[OrderUpdate]:
    """Plain orders that rest, everybody's. Weight 40, with a symbol 1."""
    found: list[OrderUpdate] = await rest.get("/fapi/v1/openOrders", {"symbol": symbol} if symbol else {}, weight=1 if symbol else 40,
                                              signed=True, priority=Priority.PROTECT, decode=answers.orders)
    return found


async def open_algo_orders(rest: Rest, symbol: str | None = None) -> list[AlgoUpdate]:
    """Conditional orders that stand, everybody's. Weight 40, with a symbol 1."""
    found: list[AlgoUpdate] = await rest.get("/fapi/v1/openAlgoOrders", {"symbol": symbol} if symbol else {}, weight=1 if symbol else 40,
                                             signed=True, priority=Priority.PROTECT, decode=answers.algos)
    return found


async def order(rest: Rest, symbol: str, client_id: str) -> OrderUpdate | None:
    """The newest order with that id, ended or not; None where the venue knows none. Weight 1."""
    try:
        found: OrderUpdate = await rest.get("/fapi/v1/order", {"symbol": symbol, "origClientOrderId": client_id}, weight=1, signed=True,
                                            priority=Priority.PROTECT, decode=answers.order)
    except Rejected as error:
        if error.code == NO_SUCH_ORDER:
            return None
        raise
    return found


async def algo_order(rest: Rest, client_id: str) -> AlgoUpdate | None:
    """The conditional order with that id, ended or not; None where the venue knows none. Weight 1."""
    try:
        found: AlgoUpdate = await rest.get("/fapi/v1/algoOrder", {"clientAlgoId": client_id}, weight=1, signed=True,
                                           priority=Priority.PROTECT, decode=answers.algo)
    except Rejected as error:
        if error.code == NO_SUCH_ORDER:
            return None
        raise
    return found


async def user_trades(rest: Rest, symbol: str, *, order_id: int | None = None, start_ms: int | None = None,
                      from_id: int | None = None) -> list[Fill]:  # fmt: skip
    """Our executions of a symbol, oldest first, over at most 20 pages; ``client_id`` is empty. Weight 5 a page.

    ``from_id``: from that trade on (it excludes ``start_ms``). ``start_ms``: from then on, seven days at most.
    """
    params: dict[str, str | int] = {"symbol": symbol, "limit": PAGE}
    if order_id is not None:
        params["orderId"] = order_id
    if from_id is not None:
        params["fromId"] = from_id
    elif start_ms is not None:
        params["startTime"] = start_ms
    found: list[Fill] = []
    for _ in range(PAGES_MAX):
        page: list[Fill] = await rest.get("/fapi/v1/userTrades", params, weight=5, signed=True, priority=Priority.PROTECT,
                                          decode=answers.fills)
        found += page
        if len(page) < PAGE:
            break
        params.pop("startTime", None)
        params["fromId"] = page[-1].trade_id + 1
    return found


async def income(rest: Rest, start_ms: int, end_ms: int, *, kind: str = "") -> list[Income]:
    """The account's statement of that time, oldest first, each row once, over at most 20 pages; ``kind``: of rows of that type alone. Weight
    30 a page."""
    rows: dict[tuple[str, int, str], Income] = {}
    since = start_ms
    for _ in range(PAGES_MAX):
        params: dict[str, str | int] = {"startTime": since, "endTime": end_ms, "limit": PAGE} | ({"incomeType": kind} if kind else {})
        page: list[Income] = await rest.get("/fapi/v1/income", params, weight=30, signed=True, priority=Priority.TRADE,
                                            decode=answers.income_rows)
        before = len(rows)
        rows.update({(row.kind, row.transaction_id, row.symbol): row for row in page})
        if len(page) < PAGE or len(rows) == before:
            break
        since = page[-1].time_ms
    return list(rows.values())


async def commission_rate(rest: Rest, symbol: str) -> tuple[Decimal, Decimal]:
    """(maker, taker) as fractions of the notional. Weight 20."""
    found: tuple[Decimal, Decimal] = await rest.get("/fapi/v1/commissionRate", {"symbol": symbol}, weight=20, signed=True,
                                                    decode=answers.commission)
    return found


async def brackets(rest: Rest, symbol: str | None = None) -> dict[str, list[Bracket]]:
    """The margin table by symbol, smallest notional first. Weight 1."""
    found: dict[str, list[Bracket]] = await rest.get("/fapi/v1/leverageBracket", {"symbol": symbol} if symbol else {}, weight=1,
                                                     signed=True, timeout_s=10.0, decode=answers.bracket_table)
    return found


async def maintenance_rates(rest: Rest) -> dict[str, Decimal]:
    """Maintenance margin as a fraction of the notional by symbol, in the lowest bracket; larger positions need more. Weight 1."""
    return {symbol: table[0].rate for symbol, table in (await brackets(rest)).items() if table}


async def symbol_config(rest: Rest, symbol: str | None = None) -> dict[str, SymbolConfig]:
    """Margin type and leverage by symbol. Weight 5."""
    found: dict[str, SymbolConfig] = await rest.get("/fapi/v1/symbolConfig", {"symbol": symbol} if symbol else {}, weight=5, signed=True,
                                                    priority=Priority.TRADE, decode=answers.symbol_configs)
    return found


async def account_config(rest: Rest) -> AccountConfig:
    """Rights and modes of the account. Weight 5."""
    found: AccountConfig = await rest.get("/fapi/v1/accountConfig", weight=5, signed=True, priority=Priority.TRADE,
                                          decode=answers.account_config)
    return found


async def position_mode(rest: Rest) -> bool:
    """True: hedge mode. Weight 30 (``account_config`` tells it for 5)."""
    return bool((await rest.get("/fapi/v1/positionSide/dual", weight=30, signed=True))["dualSidePosition"])


async def multi_assets(rest: Rest) -> bool:
    """True: multi-asset mode. Weight 30 (``account_config`` tells it for 5)."""
    return bool((await rest.get("/fapi/v1/multiAssetsMargin", weight=30, signed=True))["multiAssetsMargin"])


# -- settings ------------------------------------------------------------------------------------------------------------------------


async def set_leverage(rest: Rest, symbol: str, leverage: int) -> int:
    """Returns what the venue set. Weight 1."""
    found: int = await rest.send("POST", "/fapi/v1/leverage", {"symbol": symbol, "leverage": leverage}, weight=1, decode=answers.leverage)
    return found


async def set_isolated(rest: Rest, symbol: str) -> None:
    """Isolated margin for the symbol, where it is not so already. Weight 1."""
    await _unless_fine(rest, "/fapi/v1/marginType", {"symbol": symbol, "marginType": "ISOLATED"})


async def set_one_way(rest: Rest) -> None:
    """One-way mode for the account, where it is not so already. Weight 1."""
    await _unless_fine(rest, "/fapi/v1/positionSide/dual", {"dualSidePosition": "false"})


async def _unless_fine(rest: Rest, path: str, params: dict[str, str]) -> None:
    try:
        await rest.send("POST", path, params, weight=1)
    except Rejected as error:
        if not is_fine(error):
            raise


WRONG_SIGNATURE = -1022


async def validate_binance_keys(rest: Rest) -> AccountConfig:
    """Keys that work, on an account that we can trade. Raises Fatal that says what to change, Retryable where the venue does not answer."""
    credentials = rest.credentials
    if credentials is None or not credentials.key or not credentials.secret:
        raise Fatal("BINANCE_API_KEY and BINANCE_API_SECRET must be set")
    key = credentials.key
    if len(key) != API_KEY_LENGTH or not (key.isascii() and key.isalnum()):
        raise Fatal(f"BINANCE_API_KEY has {len(key)} characters, and must be {API_KEY_LENGTH} letters and digits, "
                    "without spaces or quotes")
    await rest.sync_time()
    try:
        config = await account_config(rest)
    except Fatal as error:
        setting = "BINANCE_API_SECRET" if code_of(error) == WRONG_SIGNATURE else f"BINANCE_API_KEY={mask(key)}"
        raise Fatal(f"{setting}: {error}", **error.fields) from error
    if not config.can_trade:
        raise Fatal("this API key may not trade: enable futures trading for it at the venue")
    if config.dual_side_position:
        raise Fatal("the account is in hedge mode: switch it to one-way mode at the venue (with no position or order open)")
    if config.multi_assets_margin:
        raise Fatal("the account is in multi-asset mode: switch it to single-asset mode at the venue")
    return config
