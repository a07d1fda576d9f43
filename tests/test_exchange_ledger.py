"""The ledger balances to the last digit, whatever is done to it."""

from __future__ import annotations

import itertools
from decimal import Decimal as D

import pytest

from src.exchange.ledger import AccountState, Wallet, book_fill
from src.exchange.margin import bracket_of, liquidation_price, maintenance
from src.exchange.orders import PositionSide, Side
from src.exchange.settings import adjust_margin, set_hedge, set_leverage, set_margin_type
from src.exchange.symbols import spec
from tests.test_exchange_fake import Desk


def account(balance: str = "10000") -> AccountState:
    state = AccountState(index=0, wallet=Wallet(), settings={}, positions={})
    state.wallet.book("deposits", D(balance))
    return state


def test_a_round_trip_realises_exactly_what_its_fills_differ_by() -> None:
    user = account()
    position = user.position(0, PositionSide.BOTH)
    for price, qty in (("0.0071234", "3"), ("0.0071111", "4"), ("0.0079999", "6")):
        book_fill(user, position, Side.BUY, price=D(price), qty=D(qty), fee_rate=D("0.0005"))
    for price, qty in (("0.0081", "5"), ("0.0069", "7"), ("0.0075001", "1")):
        book_fill(user, position, Side.SELL, price=D(price), qty=D(qty), fee_rate=D("0.0005"))
    bought = D("0.0071234") * 3 + D("0.0071111") * 4 + D("0.0079999") * 6
    sold = D("0.0081") * 5 + D("0.0069") * 7 + D("0.0075001")
    assert position.qty == position.cost == 0
    assert user.wallet.realised == sold - bought


def test_turning_a_position_realises_the_old_part_and_enters_at_the_new_price() -> None:
    user = account()
    position = user.position(0, PositionSide.BOTH)
    book_fill(user, position, Side.SELL, price=D(100), qty=D(2), fee_rate=D(0))
    booked = book_fill(user, position, Side.BUY, price=D(90), qty=D(5), fee_rate=D(0))
    assert (booked.realised, booked.closed) == (20, 2)
    assert (position.qty, position.entry) == (3, 90)


def test_maintenance_follows_the_brackets() -> None:
    tiers = spec("BTCUSDT").brackets
    assert maintenance(tiers, D(100_000)) == 400
    assert maintenance(tiers, D(-500_000)) == D(500_000) * D("0.005") - 300
    for lower, upper in itertools.pairwise(tiers):
        assert lower.cap * lower.mmr - lower.cum == lower.cap * upper.mmr - upper.cum, "no jump where tiers meet"
    assert bracket_of(tiers, D(10) ** 12) is tiers[-1]


@pytest.mark.parametrize("side", ["BUY", "SELL"])
@pytest.mark.parametrize("isolated", [False, True])
def test_at_the_liquidation_price_the_margin_is_just_used_up(side: str, isolated: bool) -> None:
    desk = Desk(balance="3000")
    if isolated:
        set_margin_type(desk.state, desk.account, 0, True)
    desk.order(side, "MARKET", "0.5")
    position = desk.account.position(0, PositionSide.BOTH)
    price = liquidation_price(desk.account, desk.state.specs[0], position, desk.state.summary(desk.account), desk.state.quotes.mark(0))
    margin = (position.isolated_wallet if isolated else desk.account.cross_wallet) + position.unrealised(price)
    assert abs(margin - maintenance(desk.state.specs[0].brackets, price * position.qty)) < D("0.0001")


def act(desk: Desk, chance: object) -> None:
    """One random thing that a user or the market may do."""
    rng = chance
    symbol = rng.randrange(2)  # type: ignore[attr-defined]
    name, base, step = (("BTCUSDT", 60_000, D("0.001")), ("ETHUSDT", 3_000, D("0.001")))[symbol]
    side = rng.choice(["BUY", "SELL"])  # type: ignore[attr-defined]
    qty = step * rng.randrange(20, 400) * (1 if symbol == 0 else 10)  # type: ignore[attr-defined]
    price = D(base) + D(rng.randrange(-300, 300)) / (1 if symbol == 0 else 20)  # type: ignore[attr-defined]
    words: dict[str, object] = {"symbol": name}
    if desk.account.hedge:
        words["positionSide"] = rng.choice(["LONG", "SHORT"])  # type: ignore[attr-defined]
    elif rng.random() < 0.2:  # type: ignore[attr-defined]
        words["reduceOnly"] = True
    match rng.randrange(9):  # type: ignore[attr-defined]
        case 0 | 1:
            desk.order(side, "MARKET", qty, **words)
        case 2 | 3:
            desk.limit(side, qty, price.quantize(desk.state.specs[symbol].tick), rng.choice(["GTC", "IOC", "GTX", "FOK"]), **words)  # type: ignore[attr-defined]
        case 4:
            kind = rng.choice(["STOP_MARKET", "TAKE_PROFIT_MARKET"])  # type: ignore[attr-defined]
            words.pop("reduceOnly", None)
            tif = rng.choice(["GTC", "GTE_GTC"])  # type: ignore[attr-defined]
            trigger = price.quantize(desk.state.specs[symbol].tick)
            desk.algo(side, kind, triggerPrice=trigger, closePosition=True, timeInForce=tif, **words)
        case 5:
            orders = list(desk.state.open_orders[0].values())
            if orders:
                desk.cancel(rng.choice(orders))  # type: ignore[attr-defined]
        case 6:
            orders = list(desk.state.open_orders[0].values())
            if orders:
                order = rng.choice(orders)  # type: ignore[attr-defined]
                desk.modify(order, symbol=desk.state.specs[order.symbol].symbol, quantity=order.qty * 2, price=order.price)
        case 7:
            desk.trade(str(price.quantize(desk.state.specs[symbol].tick)), rng.randrange(1, 3000), symbol=symbol, maker=rng.random() < 0.5)  # type: ignore[attr-defined]
        case 8:
            pick = rng.randrange(5)  # type: ignore[attr-defined]
            if pick == 0:
                set_leverage(desk.state, desk.account, symbol, rng.choice([2, 5, 20, 100]))  # type: ignore[attr-defined]
            elif pick == 1:
                set_margin_type(desk.state, desk.account, symbol, rng.random() < 0.5)  # type: ignore[attr-defined]
            elif pick == 2:
                amount = D(rng.randrange(1, 5000)) / 7  # type: ignore[attr-defined]
                adjust_margin(desk.state, desk.account, symbol, PositionSide.BOTH, amount=amount, add=rng.random() < 0.5)  # type: ignore[attr-defined]
            elif pick == 3:
                set_hedge(desk.state, desk.account, not desk.account.hedge)
            else:
                desk.core.jump(symbol, rng.randrange(-3000, 3000))  # type: ignore[attr-defined]


def test_what_an_isolated_close_costs_beyond_its_margin_is_paid_by_the_insurance_fund() -> None:
    """The close is far from the mark, and takes more than there is beside another isolated position."""
    desk = Desk(("BTCUSDT", "60000"), ("ETHUSDT", "3000"), balance="155")
    for symbol, name in enumerate(("BTCUSDT", "ETHUSDT")):
        set_margin_type(desk.state, desk.account, symbol, True)
        set_leverage(desk.state, desk.account, symbol, 50)
        desk.order("BUY", "MARKET", "0.06" if symbol == 0 else "1.2", symbol=name)
    desk.trade("58500", bid="58500", ask="58500.1", after_ms=10)
    desk.order("SELL", "MARKET", "0.06", reduceOnly=True)
    assert desk.account.cross_wallet < 0
    desk.run(1000)
    assert desk.account.cross_wallet == 0 and desk.account.wallet.insurance > 0
    assert desk.held(symbol=1) == D("1.2"), "the other position has its own margin"
    desk.check()
