"""The whole room against the local exchange: what it asks, places, hears and cancels, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest

from src.error_handler import Fatal, Rejected, Retryable
from src.exchange.options import DEFAULT_ACCOUNT, ExchangeOptions
from src.exchange.server import Ready, serve
from src.models import AccountUpdate, AlgoUpdate, OrderStatus, OrderUpdate, Role, Side, SymbolRules
from src.reconciliation import Kind, wallet_check
from src.venue import orders, queries
from src.venue.governor import Governor
from src.venue.orders import ClientIds
from src.venue.rest import Rest, fetch_clock
from src.venue.signing import Credentials
from src.venue.user_events import UserEvent
from src.venue.user_stream import UserStream
from src.venue.ws_api import WsApi

D = Decimal
SPEED = 20.0


@dataclass
class Desk:
    """Everything the room offers, connected to one exchange."""

    ready: Ready
    rest: Rest
    ws: WsApi
    stream: UserStream
    rules: SymbolRules
    ids: ClientIds
    events: list[UserEvent] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, event: UserEvent) -> None:
        self.events.append(event)
        self.changed.set()

    async def until(self, found: Callable[[], Any]) -> Any:
        """The first true value of ``found``, asked again after every event."""
        async with asyncio.timeout(5):
            while not (value := found()):
                self.changed.clear()
                await self.changed.wait()
            return value

    def order(self, client_id: str, status: OrderStatus) -> OrderUpdate | None:
        return next((e for e in self.events if isinstance(e, OrderUpdate) and (e.client_id, e.status) == (client_id, status)), None)

    def algo(self, client_id: str, status: OrderStatus) -> AlgoUpdate | None:
        return next((e for e in self.events if isinstance(e, AlgoUpdate) and (e.client_id, e.status) == (client_id, status)), None)

    async def price(self) -> Decimal:
        return D((await queries.agg_trades(self.rest, self.rules.symbol, limit=1))[0].p)

    async def enter(self, steps: int = 20) -> str:
        """A long position, filled."""
        client_id = self.ids.next(Role.ENTRY)
        cap = orders.round_tick(self.rules, await self.price() * D("1.01"), up=False)
        await self.ws.call("order.place", orders.entry(self.rules, Side.BUY, self.rules.step * steps, cap, client_id))
        await self.until(lambda: self.order(client_id, OrderStatus.FILLED))
        return client_id


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    options = ExchangeOptions(symbols=("BTCUSDT",), speed=SPEED, latency_ms=1)
    exchange = asyncio.create_task(serve(options, ready.set_result, stop))
    either: set[asyncio.Future[Any]] = {exchange, ready}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    at = ready.result()
    clock = await fetch_clock(at.rest)
    assert clock == at.clock
    keys = Credentials(DEFAULT_ACCOUNT.key, DEFAULT_ACCOUNT.secret)
    governor = Governor(clock.unscaled_ms)
    rest = Rest(at.rest, clock=clock, governor=governor, credentials=keys)
    rules, _ = await queries.symbol_rules(rest)
    up: list[bool] = []
    ws = WsApi(at.ws_api, clock=clock, credentials=keys, offset_ms=lambda: rest.offset_ms, governor=governor, on_state=lambda _: note(True))
    stream = UserStream(rest, at.private, on_event=lambda event: made.hear(event), on_state=lambda state: note(state))
    made = Desk(at, rest, ws, stream, rules["BTCUSDT"], ClientIds(rest.timestamp()))

    def note(state: bool) -> None:
        up.append(state)
        made.changed.set()

    ws.start()
    stream.start()
    await made.until(lambda: len(up) == 2)
    yield made
    await stream.close()
    await ws.close()
    await rest.close()
    stop.set()
    await exchange


async def test_a_position_is_opened_protected_closed_and_accounted_for(desk: Desk) -> None:
    before = await queries.account(desk.rest)
    start_ms = desk.rest.timestamp()
    entry = await desk.enter()
    filled = desk.order(entry, OrderStatus.FILLED)
    assert filled is not None and filled.fill is not None and filled.executed == desk.rules.step * 20
    stop, target = desk.ids.next(Role.STOP), desk.ids.next(Role.TARGET)
    price = filled.fill.price
    for params in (orders.stop(desk.rules, Side.SELL, orders.round_tick(desk.rules, price * D("0.8"), up=False), stop),
                   orders.target(desk.rules, Side.SELL, orders.round_tick(desk.rules, price * D("1.2"), up=True), target)):
        assert (await desk.ws.call("algoOrder.place", params))["algoStatus"] == "NEW"
    assert {g.client_id for g in await queries.open_algo_orders(desk.rest)} == {stop, target}
    exit_id = desk.ids.next(Role.EXIT)
    await desk.ws.call("order.place", orders.market_exit(desk.rules, Side.SELL, filled.executed, exit_id))
    await desk.until(lambda: desk.order(exit_id, OrderStatus.FILLED))
    await desk.until(lambda: desk.algo(stop, OrderStatus.EXPIRED) and desk.algo(target, OrderStatus.EXPIRED))
    account = await queries.account(desk.rest)
    assert account.positions == () and await queries.open_algo_orders(desk.rest) == []
    fills = await queries.user_trades(desk.rest, "BTCUSDT", start_ms=start_ms)
    heard = [e.fill for e in desk.events if isinstance(e, OrderUpdate) and e.fill is not None]
    assert {(f.symbol, f.trade_id, f.qty, f.price, f.commission, f.realised) for f in fills} == {
        (f.symbol, f.trade_id, f.qty, f.price, f.commission, f.realised) for f in heard}
    rows = await queries.income(desk.rest, start_ms, desk.rest.timestamp() + 1000)
    assert wallet_check(before.wallet, rows, account.wallet, tolerance=D(0)) is None
    wallets = [e.wallet for e in desk.events if isinstance(e, AccountUpdate) and e.wallet is not None]
    assert wallets[-1] == account.wallet
    missing = wallet_check(before.wallet, rows[1:], account.wallet, tolerance=D(0))
    assert missing is not None and missing.kind is Kind.WALLET


async def test_the_same_parameters_go_over_rest_and_evidence_is_found_by_client_id(desk: Desk) -> None:
    client_id = desk.ids.next(Role.ENTRY)
    cap = orders.round_tick(desk.rules, await desk.price() * D("1.01"), up=False)
    answer = await desk.rest.send("POST", "/fapi/v1/order", orders.entry(desk.rules, Side.BUY, desk.rules.step * 5, cap, client_id))
    order = await queries.order(desk.rest, "BTCUSDT", client_id)
    assert order is not None and order.order_id == answer["orderId"] and order.executed == desk.rules.step * 5
    assert await queries.order(desk.rest, "BTCUSDT", desk.ids.next(Role.ENTRY)) is None
    stop = desk.ids.next(Role.STOP)
    params = orders.stop(desk.rules, Side.SELL, orders.round_tick(desk.rules, cap * D("0.8"), up=False), stop)
    await desk.rest.send("POST", "/fapi/v1/algoOrder", params)
    guard = await queries.algo_order(desk.rest, stop)
    assert guard is not None and guard.status is OrderStatus.NEW and guard.close_position and guard.order_type == "STOP_MARKET"
    await desk.rest.send("DELETE", "/fapi/v1/algoOrder", orders.cancel_algo(stop))
    await desk.until(lambda: desk.algo(stop, OrderStatus.CANCELED))


async def test_a_stand_in_may_stand_beside_the_closing_stop(desk: Desk) -> None:
    await desk.enter()
    low = orders.round_tick(desk.rules, await desk.price() * D("0.8"), up=False)
    await desk.ws.call("algoOrder.place", orders.stop(desk.rules, Side.SELL, low, desk.ids.next(Role.STOP)))
    with pytest.raises(Rejected) as second:
        await desk.ws.call("algoOrder.place", orders.stop(desk.rules, Side.SELL, low, desk.ids.next(Role.STOP)))
    assert second.value.code == -4130
    await desk.ws.call("algoOrder.place", orders.stand_in(desk.rules, Side.SELL, desk.rules.step * 20, low, desk.ids.next(Role.STOP)))
    assert len(await queries.open_algo_orders(desk.rest, "BTCUSDT")) == 2


async def test_refusals_carry_the_venues_code(desk: Desk) -> None:
    with pytest.raises(Rejected) as exit_refused:
        await desk.ws.call("order.place", orders.market_exit(desk.rules, Side.SELL, desk.rules.step, desk.ids.next(Role.EXIT)))
    assert exit_refused.value.code == -2022
    with pytest.raises(Rejected) as cancel_refused:
        await desk.ws.call("algoOrder.cancel", orders.cancel_algo(desk.ids.next(Role.STOP)))
    assert cancel_refused.value.code == -2011


@pytest.mark.parametrize(("wrong", "code", "text"), [
    ({"symbol": "NOPEUSDT"}, -1121, "Invalid symbol."),
    ({"quantity": "0.0105"}, -1111, "Precision is over the maximum defined for this asset."),
    ({"price": "59000.05"}, -4014, "Price not increased by tick size."),
])  # fmt: skip
async def test_an_order_that_the_filters_refuse_ends_with_the_venues_code_and_words(
    desk: Desk, wrong: dict[str, str], code: int, text: str
) -> None:
    order = orders.entry(desk.rules, Side.BUY, desk.rules.step * 20, D("59000"), desk.ids.next(Role.ENTRY))
    for place in (lambda: desk.ws.call("order.place", order | wrong), lambda: desk.rest.send("POST", "/fapi/v1/order", order | wrong)):
        with pytest.raises(Rejected) as refused:
            await place()
        assert refused.value.code == code and text in str(refused.value) and str(code) in str(refused.value)


async def test_account_settings_are_read_and_changed(desk: Desk) -> None:
    assert (await queries.validate_binance_keys(desk.rest)).can_trade
    await queries.set_isolated(desk.rest, "BTCUSDT")
    await queries.set_isolated(desk.rest, "BTCUSDT")
    await queries.set_one_way(desk.rest)
    assert await queries.set_leverage(desk.rest, "BTCUSDT", 7) == 7
    config = (await queries.symbol_config(desk.rest, "BTCUSDT"))["BTCUSDT"]
    assert config.isolated and config.leverage == 7 and not await queries.position_mode(desk.rest)
    assert (await queries.brackets(desk.rest))["BTCUSDT"][0].max_leverage >= 100
    assert await queries.open_orders(desk.rest) == []


async def test_market_data_is_read_in_the_shapes_that_are_promised(desk: Desk) -> None:
    table = await queries.klines(desk.rest, "BTCUSDT", "1m", limit=30)
    assert table.shape == (30, 8) and (table[1:, 0] - table[:-1, 0] == 60_000).all() and (table[:, 2] >= table[:, 3]).all()
    seconds = await queries.klines(desk.rest, "BTCUSDT", "1s", limit=5)
    assert (seconds[1:, 0] - seconds[:-1, 0] == 1000).all()
    trades = await queries.agg_trades(desk.rest, "BTCUSDT", limit=10)
    again = await queries.agg_trades(desk.rest, "BTCUSDT", from_id=trades[0].a, limit=10)
    assert [t.a for t in again] == list(range(trades[0].a, trades[0].a + 10)) and again == trades
    assert (await queries.volumes_24h(desk.rest))["BTCUSDT"] > 0


async def test_a_wrong_secret_and_a_clock_that_is_off_are_told_apart(desk: Desk) -> None:
    clock = desk.ready.clock
    wrong = Rest(desk.ready.rest, clock=clock, governor=Governor(clock.unscaled_ms), credentials=Credentials(DEFAULT_ACCOUNT.key, "wrong"))
    with pytest.raises(Fatal, match="-1022"):
        await queries.account(wrong)
    await wrong.close()
    desk.rest.offset_ms = -3_600_000 * int(SPEED)
    with pytest.raises(Retryable, match="-1021"):
        await desk.ws.call("order.cancel", orders.cancel("BTCUSDT", "x"))
    assert await queries.positions(desk.rest) == []  # resynchronised and asked again by itself
    assert abs(desk.rest.offset_ms) < 1000 * SPEED
