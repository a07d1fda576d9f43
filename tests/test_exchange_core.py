"""Order lives, matching, positions, the algo service and the venue's own acts, on a market that the test writes."""

from __future__ import annotations

from decimal import Decimal as D

import pytest

from src.exchange.errors import ApiError
from src.exchange.orders import ALGO_LIFE, ORDER_LIFE, AlgoEvent, AlgoStatus, OrderEvent, OrderStatus, PositionSide
from src.exchange.settings import adjust_margin, set_hedge, set_leverage, set_margin_type
from src.exchange.state import SETTLED_KEPT
from tests.test_exchange_fake import T0, Desk

FILL = ["TRADE_LITE", "ACCOUNT_UPDATE ORDER", "ORDER_TRADE_UPDATE TRADE"]
HOUR = 3_600_000


def refused(call: object, *args: object, **words: object) -> int:
    with pytest.raises(ApiError) as error:
        call(*args, **words)  # type: ignore[operator]
    return error.value.code


# ------------------------------------------------------------------ lives


def test_nothing_leaves_an_ended_state() -> None:
    assert {s for s, _ in ORDER_LIFE} == {OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED}
    assert {s for s, _ in ALGO_LIFE} == {AlgoStatus.NEW, AlgoStatus.TRIGGERING, AlgoStatus.TRIGGERED}
    assert len({(s, e) for s, e in ORDER_LIFE}) == 2 * len(OrderEvent)
    assert {e for _, e in ALGO_LIFE} == set(AlgoEvent)


def test_a_market_order_speaks_in_the_order_of_the_venue() -> None:
    desk = Desk()
    order = desk.order("BUY", "MARKET", "0.5")
    assert order.status is OrderStatus.FILLED
    assert desk.said() == ["ORDER_TRADE_UPDATE NEW", *FILL]
    assert desk.held() == D("0.5")
    assert order.average == D("60000.10")
    desk.check()


def test_a_large_market_order_walks_the_book_and_pays_for_it() -> None:
    desk = Desk(balance="10000000")
    order = desk.order("BUY", "MARKET", "5")
    assert order.status is OrderStatus.FILLED
    assert desk.said().count("TRADE_LITE") > 1
    assert order.average > D("60000.10")


def test_what_was_taken_is_gone_until_the_market_moves_again() -> None:
    desk = Desk(balance="10000000")
    first = desk.order("BUY", "MARKET", "1")
    second = desk.order("BUY", "MARKET", "1")
    assert first.average == D("60000.10")
    assert second.average > first.average
    desk.trade("60000")
    assert desk.order("BUY", "MARKET", "1").average == D("60000.10")


def test_an_ioc_order_expires_with_its_remainder() -> None:
    desk = Desk(balance="10000000")
    order = desk.limit("BUY", "2", "60000.10", "IOC")
    assert (order.status, order.executed, order.expire_reason) == (OrderStatus.EXPIRED, D(1), 2)
    assert desk.said() == ["ORDER_TRADE_UPDATE NEW", *FILL, "ORDER_TRADE_UPDATE EXPIRED"]


def test_a_market_order_stops_at_the_price_cap() -> None:
    desk = Desk(("UNIUSDT", "10"), balance="100000000")
    desk.state.quotes.ask_qty[0] = 1
    order = desk.order("BUY", "MARKET", "35000", symbol="UNIUSDT")
    assert order.status in (OrderStatus.FILLED, OrderStatus.EXPIRED)
    desk.state.quotes.mark_e8[0] = int(D("9") * 10**8)
    assert refused(desk.order, "BUY", "MARKET", "10", symbol="UNIUSDT") == -4131


def test_fok_fills_whole_or_is_refused() -> None:
    desk = Desk(balance="10000000")
    assert refused(desk.limit, "BUY", "2", "60000.10", "FOK") == -5021
    assert desk.limit("BUY", "1", "60000.10", "FOK").status is OrderStatus.FILLED
    assert desk.state.orders.keys() == {o.order_id for o in desk.state.fills[0]}


def test_post_only_that_would_cross_leaves_no_order() -> None:
    desk = Desk()
    assert refused(desk.limit, "BUY", "0.1", "60000.10", "GTX") == -5022
    assert not desk.state.orders
    assert desk.limit("BUY", "0.1", "60000.00", "GTX").status is OrderStatus.NEW


def test_a_resting_order_waits_for_the_size_in_front_of_it() -> None:
    desk = Desk()
    order = desk.limit("BUY", "0.1", "59999.90")  # at the bid: 1000 steps stand before it
    desk.trade("59999.90", 600, maker=True, bid="59999.90", ask="60000.10")
    assert order.executed == 0
    desk.trade("59999.90", 450, maker=True, bid="59999.90", ask="60000.10")
    assert order.executed == D("0.05")
    desk.trade("59999.90", 10, maker=False, bid="59999.80", ask="60000.00")
    assert order.executed == D("0.05"), "a taker's purchase at the bid's price does not fill a bid"
    desk.trade("59999.80", 1, maker=True, bid="59999.80", ask="60000.00")
    assert order.status is OrderStatus.FILLED
    assert all(f.maker and f.price == D("59999.90") for f in desk.state.fills[0])
    desk.check()


def test_good_till_date_expires() -> None:
    desk = Desk(seconds=5)
    order = desk.limit("BUY", "0.1", "59000", "GTD", goodTillDate=T0 + 700_000)
    desk.run(699_000)
    assert order.open
    desk.run(2_000)
    assert order.status is OrderStatus.EXPIRED


def test_a_change_of_price_or_size_keeps_the_order_and_says_amendment() -> None:
    desk = Desk()
    order = desk.limit("BUY", "0.1", "59000")
    desk.said()
    assert desk.modify(order, price="59500", quantity="0.2") is order
    assert (order.price, order.qty, order.status) == (D("59500"), D("0.2"), OrderStatus.NEW)
    assert desk.said() == ["ORDER_TRADE_UPDATE AMENDMENT"]
    assert refused(desk.modify, order, price="59500", quantity="0.2") == -5027
    desk.modify(order, price="60100", quantity="0.2")
    assert order.status is OrderStatus.FILLED
    assert refused(desk.modify, order, price="59000", quantity="0.2") == -2013


def test_a_change_to_less_than_the_least_notional_has_a_code_of_its_own() -> None:
    desk = Desk()
    order = desk.limit("BUY", "0.001", "59000")
    assert refused(desk.modify, order, price="49000", quantity="0.001") == -5029
    assert refused(desk.limit, "BUY", "0.001", "49000") == -4164
    assert order.price == D("59000")


def test_a_change_below_what_is_filled_cancels() -> None:
    desk = Desk(balance="10000000")
    order = desk.limit("BUY", "2", "60000.10")
    assert order.executed == 1
    desk.modify(order, price="60000.10", quantity="0.5")
    assert order.status is OrderStatus.CANCELED


def test_a_live_client_id_may_not_be_used_twice_and_an_ended_one_may() -> None:
    desk = Desk()
    order = desk.limit("BUY", "0.1", "59000", newClientOrderId="mine")
    assert refused(desk.limit, "BUY", "0.1", "59000", newClientOrderId="mine") == -4116
    desk.cancel(order)
    again = desk.limit("BUY", "0.1", "59000", newClientOrderId="mine")
    assert desk.core.placing.find(desk.account, 0, 0, "mine") is again
    assert refused(desk.cancel, order) == -2011


def test_own_resting_orders_give_way_to_an_own_taker() -> None:
    desk = Desk()
    resting = desk.limit("BUY", "0.1", "60000.00")  # inside the spread
    taker = desk.order("SELL", "MARKET", "0.1")
    assert (resting.status, resting.expire_reason) == (OrderStatus.EXPIRED_IN_MATCH, 1)
    assert taker.status is OrderStatus.FILLED


def test_countdown_cancels_what_is_left() -> None:
    desk = Desk()
    order = desk.limit("BUY", "0.1", "59000")
    desk.core.settlement.countdown(0, 0, 1500)
    desk.run(1400)
    assert order.open
    desk.run(200)
    assert order.status is OrderStatus.CANCELED


# ------------------------------------------------------------------ reducing, position modes


def test_reduce_only_needs_something_to_reduce_and_never_turns_the_position() -> None:
    desk = Desk()
    assert refused(desk.order, "SELL", "MARKET", "0.1", reduceOnly=True) == -2022
    desk.order("BUY", "MARKET", "0.1")
    assert refused(desk.order, "BUY", "MARKET", "0.1", reduceOnly=True) == -2022
    desk.order("SELL", "MARKET", "5", reduceOnly=True)
    assert desk.held() == 0


def test_reduce_only_limits_never_add_up_to_more_than_the_position() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.3")
    first = desk.limit("SELL", "0.2", "61000", reduceOnly=True)
    assert refused(desk.limit, "SELL", "0.2", "62000", reduceOnly=True) == -2022
    second = desk.limit("SELL", "0.1", "62000", reduceOnly=True)
    desk.order("SELL", "MARKET", "0.1", reduceOnly=True)
    assert (first.status, second.status, second.expire_reason) == (OrderStatus.NEW, OrderStatus.EXPIRED, 4)
    desk.order("SELL", "MARKET", "0.2", reduceOnly=True)
    assert (first.status, first.expire_reason) == (OrderStatus.EXPIRED, 4)


def test_one_order_may_turn_a_one_way_position_around() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    desk.order("SELL", "MARKET", "0.3")
    position = desk.account.position(0, PositionSide.BOTH)
    assert (position.qty, position.entry) == (D("-0.2"), D("59999.90"))
    assert position.realised == D("-0.02")
    desk.check()


def test_hedge_mode_keeps_two_positions() -> None:
    desk = Desk()
    set_hedge(desk.state, desk.account, True)
    assert refused(desk.order, "BUY", "MARKET", "0.1") == -4061
    assert refused(desk.order, "BUY", "MARKET", "0.1", positionSide="LONG", reduceOnly=True) == -1106
    desk.order("BUY", "MARKET", "0.1", positionSide="LONG")
    desk.order("SELL", "MARKET", "0.2", positionSide="SHORT")
    assert (desk.held(PositionSide.LONG), desk.held(PositionSide.SHORT)) == (D("0.1"), D("-0.2"))
    assert refused(desk.order, "SELL", "MARKET", "0.2", positionSide="LONG") == -2024
    desk.order("SELL", "MARKET", "0.1", positionSide="LONG")
    assert refused(desk.order, "SELL", "MARKET", "0.1", positionSide="LONG") == -2022
    assert refused(set_hedge, desk.state, desk.account, False) == -4068
    closing = [e.payload["o"] for e in desk.events if e.name == "ORDER_TRADE_UPDATE" and e.payload["o"]["ps"] == "LONG"][-1]
    assert closing["R"] is True
    desk.check()


def test_one_way_mode_refuses_hedge_sides() -> None:
    assert refused(Desk().order, "BUY", "MARKET", "0.1", positionSide="LONG") == -4061


# ------------------------------------------------------------------ margin


def test_an_order_needs_its_initial_margin() -> None:
    desk = Desk(balance="1000")
    assert refused(desk.order, "BUY", "MARKET", "0.4") == -2019
    assert desk.order("BUY", "MARKET", "0.3").status is OrderStatus.FILLED
    assert refused(desk.limit, "BUY", "0.1", "59000") == -2019
    assert desk.limit("SELL", "0.3", "61000").status is OrderStatus.NEW, "what only closes needs no margin"


def test_a_position_may_not_outgrow_its_bracket() -> None:
    desk = Desk(balance="1000000")
    set_leverage(desk.state, desk.account, 0, 150)
    assert refused(desk.limit, "BUY", "6", "59000") == -2027


@pytest.mark.parametrize(("leverage", "code"), [(0, -4028), (151, -4028), (-3, -4028)])
def test_leverage_has_its_bounds(leverage: int, code: int) -> None:
    desk = Desk()
    assert refused(set_leverage, desk.state, desk.account, 0, leverage) == code


def test_open_orders_count_when_leverage_is_changed() -> None:
    desk = Desk(balance="20000")
    desk.limit("BUY", "6", "59000")  # 17,700 of margin at 20, of at most 300,000 at 150
    assert refused(set_leverage, desk.state, desk.account, 0, 15) == -2028
    assert refused(set_leverage, desk.state, desk.account, 0, 150) == -2027
    assert desk.account.setting(0).leverage == 20
    set_leverage(desk.state, desk.account, 0, 100)


def test_a_lower_leverage_is_paid_by_the_cross_wallet_alone() -> None:
    desk = Desk(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), balance="2000")
    set_margin_type(desk.state, desk.account, 0, True)
    desk.order("BUY", "MARKET", "0.3")  # its 900 of margin are its own
    desk.order("BUY", "MARKET", "1", symbol="ETHUSDT")
    set_leverage(desk.state, desk.account, 1, 10)
    assert refused(set_leverage, desk.state, desk.account, 1, 2) == -2028


def test_settings_are_announced_and_guarded() -> None:
    desk = Desk()
    set_leverage(desk.state, desk.account, 0, 10)
    assert desk.state.events[-1].payload["ac"] == {"s": "BTCUSDT", "l": 10}
    assert refused(set_margin_type, desk.state, desk.account, 0, False) == -4046
    order = desk.limit("BUY", "0.1", "59000")
    assert refused(set_margin_type, desk.state, desk.account, 0, True) == -4047
    desk.cancel(order)
    set_margin_type(desk.state, desk.account, 0, True)
    desk.order("BUY", "MARKET", "0.1")
    assert refused(set_margin_type, desk.state, desk.account, 0, False) == -4048
    assert refused(set_leverage, desk.state, desk.account, 0, 5) == -4161
    assert refused(set_hedge, desk.state, desk.account, False) == -4059


def test_isolated_margin_moves_with_the_position() -> None:
    desk = Desk()
    set_margin_type(desk.state, desk.account, 0, True)
    set_leverage(desk.state, desk.account, 0, 10)
    desk.order("BUY", "MARKET", "0.1")
    position = desk.account.position(0, PositionSide.BOTH)
    assert position.isolated_wallet == D("600.001")
    adjust_margin(desk.state, desk.account, 0, PositionSide.BOTH, amount=D(100), add=True)
    assert position.isolated_wallet == D("700.001")
    assert refused(adjust_margin, desk.state, desk.account, 0, PositionSide.BOTH, amount=D(500), add=False) == -4051
    desk.order("SELL", "MARKET", "0.05")
    assert position.isolated_wallet == D("350.0005")
    desk.order("SELL", "MARKET", "0.05")
    assert desk.account.cross_wallet == desk.account.wallet.balance
    desk.check()


# ------------------------------------------------------------------ the algo service


def test_a_stop_goes_through_its_four_stations() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    algo = desk.stop("SELL", "59000", timeInForce="GTE_GTC", clientAlgoId="stop-1")
    desk.said()
    desk.trade("58990", after_ms=50)
    desk.run(50)
    assert desk.said() == [
        "ALGO_UPDATE TRIGGERING", "ORDER_TRADE_UPDATE NEW", "ALGO_UPDATE TRIGGERED", *FILL, "ALGO_UPDATE FINISHED",
    ]  # fmt: skip
    order = desk.state.orders[algo.order_id]
    assert (order.client_id, order.type, order.orig_type) == ("stop-1", "MARKET", "STOP_MARKET")
    assert (desk.held(), algo.status) == (0, AlgoStatus.FINISHED)
    assert not desk.state.open_orders[0]
    desk.check()


@pytest.mark.parametrize(("tif", "status"), [("GTE_GTC", AlgoStatus.EXPIRED), ("GTC", AlgoStatus.NEW)])
def test_only_gte_gtc_goes_with_its_position(tif: str, status: AlgoStatus) -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000", timeInForce=tif)
    target = desk.algo("SELL", "TAKE_PROFIT_MARKET", triggerPrice="61000", closePosition=True, timeInForce=tif)
    desk.order("SELL", "MARKET", "0.1", reduceOnly=True)
    assert (stop.status, target.status) == (status, status)


def test_an_orphan_that_fires_with_nothing_to_close_is_rejected() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000")
    desk.order("SELL", "MARKET", "0.1")
    desk.trade("58900")
    desk.run(20)
    assert (stop.status, stop.reason) == (AlgoStatus.REJECTED, "ReduceOnly Order is rejected.")


def test_a_turned_position_takes_its_old_protection_with_it() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000", timeInForce="GTE_GTC")
    desk.order("SELL", "MARKET", "0.2")
    assert (desk.held(), stop.status) == (D("-0.1"), AlgoStatus.EXPIRED)


def test_one_closing_order_a_direction_and_kind() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    desk.stop("SELL", "59000")
    assert refused(desk.stop, "SELL", "58000") == -4130
    assert refused(desk.stop, "SELL", "58000", timeInForce="GTE_GTC") == -4130
    desk.algo("SELL", "TAKE_PROFIT_MARKET", triggerPrice="61000", closePosition=True)
    desk.algo("SELL", "STOP_MARKET", triggerPrice="58000", quantity="0.1", reduceOnly=True)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"side": "SELL", "kind": "STOP_MARKET", "triggerPrice": "60500", "quantity": "0.1"}, -2021),
        ({"side": "BUY", "kind": "STOP_MARKET", "triggerPrice": "59500", "quantity": "0.1"}, -2021),
        ({"side": "SELL", "kind": "TAKE_PROFIT_MARKET", "triggerPrice": "59500", "quantity": "0.1"}, -2021),
        ({"side": "SELL", "kind": "STOP_MARKET", "triggerPrice": "59000", "closePosition": True}, -2022),
        ({"side": "SELL", "kind": "STOP_MARKET", "triggerPrice": "59000", "closePosition": True, "timeInForce": "GTE_GTC"}, -4509),
        ({"side": "SELL", "kind": "STOP_MARKET", "triggerPrice": "59000", "closePosition": True, "quantity": "0.1"}, -4137),
        ({"side": "SELL", "kind": "TRAILING_STOP_MARKET", "callbackRate": "1", "closePosition": True}, -4136),
        ({"side": "SELL", "kind": "TRAILING_STOP_MARKET", "callbackRate": "21", "quantity": "0.1"}, -1130),
        ({"side": "SELL", "kind": "TRAILING_STOP_MARKET", "callbackRate": "1", "activatePrice": "59000", "quantity": "0.1"}, -2021),
        ({"side": "SELL", "kind": "STOP", "triggerPrice": "59000", "quantity": "0.1"}, -1102),
        ({"side": "SELL", "kind": "STOP_MARKET", "quantity": "0.1"}, -1102),
        ({"side": "SELL", "kind": "STOP_MARKET", "triggerPrice": "59000.05", "quantity": "0.1"}, -4014),
        ({"side": "SELL", "kind": "MARKET", "quantity": "0.1"}, -1116),
    ],
)
def test_algo_refusals(words: dict[str, object], code: int) -> None:
    desk = Desk()
    side, kind = str(words.pop("side")), str(words.pop("kind"))
    assert refused(desk.algo, side, kind, **words) == code


def test_margin_is_checked_at_the_trigger_not_before() -> None:
    desk = Desk(balance="1000")
    algo = desk.algo("BUY", "STOP_MARKET", triggerPrice="60500", quantity="5")
    desk.trade("60510")
    desk.run(20)
    assert (algo.status, algo.reason) == (AlgoStatus.REJECTED, "Margin is insufficient.")


def test_mark_price_stops_listen_to_the_mark_alone() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000", workingType="MARK_PRICE")
    desk.trade("58000", after_ms=100)
    assert stop.status is AlgoStatus.NEW
    for _ in range(40):
        desk.trade("58000", after_ms=1000)
    assert stop.status is AlgoStatus.FINISHED


def test_a_trailing_stop_follows_and_fires() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    desk.said()
    algo = desk.algo("SELL", "TRAILING_STOP_MARKET", callbackRate="1", activatePrice="60500", quantity="0.1", reduceOnly=True)
    assert not algo.active
    desk.trade("60600")
    assert algo.active and algo.best == D("60600")
    desk.trade("61000")
    desk.trade("60400")
    assert algo.status is AlgoStatus.NEW
    desk.trade("60390")
    desk.run(20)
    assert algo.status is AlgoStatus.FINISHED
    assert [e.payload["o"]["ia"] for e in desk.events if e.name == "ALGO_UPDATE"][:2] == [False, True]


def test_no_more_than_two_hundred_algo_orders() -> None:
    desk = Desk()
    for n in range(200):
        desk.algo("BUY", "STOP_MARKET", triggerPrice=str(61000 + n), quantity="0.01")
    assert refused(desk.algo, "BUY", "STOP_MARKET", triggerPrice="62000", quantity="0.01") == -4045


def test_a_triggering_order_can_no_longer_be_cancelled() -> None:
    desk = Desk()
    desk.order("BUY", "MARKET", "0.1")
    stop = desk.stop("SELL", "59000")
    desk.trade("58900", after_ms=1)
    assert stop.status is AlgoStatus.TRIGGERING
    assert refused(desk.core.algo.cancel, desk.account, stop.id, "") == -4117


# ------------------------------------------------------------------ the venue's own acts


def test_funding_is_paid_at_its_hour_once() -> None:
    start = T0 // (8 * HOUR) * 8 * HOUR + 8 * HOUR - 5000
    desk = Desk(open_ms=start, seconds=20)
    desk.order("BUY", "MARKET", "0.1")
    desk.said()
    desk.run(10_000)
    assert desk.said() == ["ACCOUNT_UPDATE FUNDING_FEE"]
    rows = [r for r in desk.state.incomes[0] if r.type == "FUNDING_FEE"]
    assert len(rows) == 1
    assert rows[0].amount == desk.account.wallet.funding != 0
    desk.check()


def test_of_marks_that_funding_was_settled_at_the_latest_are_kept() -> None:
    state = Desk().state
    for n in range(SETTLED_KEPT + 5):
        state.keep_settled({n: D(1)})
    assert len(state.settled_marks) == SETTLED_KEPT and min(state.settled_marks)[0] == 5


def test_an_isolated_position_pays_funding_from_its_own_margin() -> None:
    start = T0 // (8 * HOUR) * 8 * HOUR + 8 * HOUR - 5000
    desk = Desk(open_ms=start, seconds=20)
    set_margin_type(desk.state, desk.account, 0, True)
    desk.order("BUY", "MARKET", "0.1")
    before = desk.account.position(0, PositionSide.BOTH).isolated_wallet
    desk.run(10_000)
    update = next(e.payload["a"] for e in desk.events if e.name == "ACCOUNT_UPDATE" and e.payload["a"]["m"] == "FUNDING_FEE")
    assert len(update["P"]) == 1 and update["S"] == "BTCUSDT"
    assert desk.account.position(0, PositionSide.BOTH).isolated_wallet == before + desk.account.wallet.funding


@pytest.mark.parametrize("isolated", [False, True])
def test_a_position_without_margin_is_liquidated(isolated: bool) -> None:
    desk = Desk(balance="1000")
    if isolated:
        set_margin_type(desk.state, desk.account, 0, True)
    desk.order("BUY", "MARKET", "0.3")
    desk.stop("SELL", "40000", timeInForce="GTE_GTC", workingType="MARK_PRICE")
    order = desk.limit("SELL", "0.1", "61000")
    desk.said()
    desk.core.jump(0, -34000)  # 3,400 USDT of price
    desk.run(1)
    assert desk.held() == 0
    assert (order.status, order.expire_reason) == (OrderStatus.EXPIRED, 5)
    close = next(e.payload["o"] for e in desk.events if e.name == "ORDER_TRADE_UPDATE" and e.payload["o"]["x"] == "CALCULATED")
    assert close["c"].startswith("autoclose-") and close["o"] == "LIQUIDATION"
    assert desk.account.wallet.balance >= 0
    assert desk.account.wallet.insurance != 0
    assert not desk.state.open_algos[0]
    desk.check()


def test_a_liquidation_takes_the_orders_that_its_margin_stood_for() -> None:
    """A cross wallet is one for all symbols; what another symbol's own margin carries stays."""
    desk = Desk(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), ("SOLUSDT", "200"), balance="1500")
    set_margin_type(desk.state, desk.account, 2, True)
    desk.order("BUY", "MARKET", "0.3")
    ether = desk.limit("BUY", "0.1", "2900", symbol="ETHUSDT")
    sol = desk.limit("BUY", "1", "195", symbol="SOLUSDT")
    desk.core.jump(0, -50_000)
    desk.run(1)
    assert (ether.status, ether.expire_reason) == (OrderStatus.EXPIRED, 5)
    assert sol.open
    desk.check()


def test_the_same_calls_at_the_same_times_give_the_same_events() -> None:
    def story() -> list[object]:
        desk = Desk()
        desk.order("BUY", "MARKET", "0.1")
        desk.stop("SELL", "59000", timeInForce="GTE_GTC")
        desk.limit("SELL", "0.05", "60010", reduceOnly=True)
        desk.trade("60020")
        desk.trade("58000")
        desk.run(5000)
        return [e.payload for e in desk.events]

    assert story() == story()
