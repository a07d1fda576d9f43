"""Order parameters lie on the symbol's grid, reduce where they say so, and their ids tell whose they are."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.models import Role, Side, SymbolRules
from src.venue import orders
from src.venue.orders import ClientIds, floor_step, ours, parse, plain, round_tick, split_market

D = Decimal


def rules(tick: str = "0.10", step: str = "0.001", market_max: str = "120") -> SymbolRules:
    return SymbolRules("BTCUSDT", D(tick), D(step), D(step), D(1000), D(market_max), D(50), D("1.05"), D("0.95"))


NUMBERS = [("1E-7", "0.0000001"), ("1E+3", "1000"), ("0.0100", "0.01"), ("100", "100"), ("0", "0"), ("0.000", "0"), ("91234.50", "91234.5"),
           ("-1.50", "-1.5")]


@pytest.mark.parametrize(("number", "text"), NUMBERS)
def test_numbers_are_written_without_an_exponent(number: str, text: str) -> None:
    assert plain(D(number)) == text


@given(st.decimals(min_value="0.0000001", max_value="10000000", places=9), st.sampled_from(["0.001", "1", "0.1", "0.01"]))
def test_a_quantity_is_rounded_down_to_the_step(qty: Decimal, step: str) -> None:
    floored = floor_step(rules(step=step), qty)
    assert floored <= qty < floored + D(step) and floored % D(step) == 0


@given(st.floats(min_value=1e-6, max_value=1e7), st.sampled_from(["0.10", "0.0000001", "1", "0.01000"]), st.booleans())
def test_a_price_is_rounded_to_the_tick_in_the_asked_direction(price: float, tick: str, up: bool) -> None:
    rounded = round_tick(rules(tick=tick), price, up=up)
    exact = D(repr(price))
    assert rounded % D(tick) == 0 and abs(rounded - exact) < D(tick) and (rounded >= exact if up else rounded <= exact)


@given(st.integers(min_value=1, max_value=300_000), st.integers(min_value=1, max_value=60), st.data())
def test_a_split_keeps_the_whole_and_exceeds_no_lot(largest: int, lots: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(min_value=1, max_value=largest * lots))
    r = rules(market_max=str(D(largest) * D("0.001")))
    qty = D(steps) * D("0.001")
    pieces = split_market(r, qty)
    assert sum(pieces) == qty and all(0 < p <= r.market_max_qty and p % r.step == 0 for p in pieces)
    assert max(pieces) - min(pieces) <= r.step


def test_a_split_makes_no_crumbs() -> None:
    assert split_market(rules(market_max="120"), D("120.001")) == [D("60.001"), D("60.000")]
    assert split_market(rules(), D("0.0004")) == [D("0.0004")]


def test_an_entry_is_a_limit_order_that_never_rests() -> None:
    assert orders.entry(rules(), Side.BUY, D("0.0120"), D("91234.50"), "id") == {
        "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "IOC", "quantity": "0.012", "price": "91234.5",
        "newClientOrderId": "id", "newOrderRespType": "RESULT", "selfTradePreventionMode": "EXPIRE_MAKER"}


def test_what_is_off_the_grid_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        orders.entry(rules(), Side.BUY, D("0.0125"), D("91234.5"), "id")
    with pytest.raises(AssertionError):
        orders.entry(rules(), Side.BUY, D("0.012"), D("91234.55"), "id")
    with pytest.raises(AssertionError):
        orders.stop(rules(), Side.SELL, D("-1"), "id")


def test_every_builder_but_the_entry_can_only_reduce() -> None:
    r = rules()
    for params in (orders.market_exit(r, Side.SELL, D("0.012"), "i"), orders.stop(r, Side.SELL, D(90000), "i"),
                   orders.target(r, Side.SELL, D(92000), "i"), orders.stand_in(r, Side.SELL, D("0.012"), D(90000), "i")):
        assert params.get("reduceOnly") == "true" or params.get("closePosition") == "true"


@pytest.mark.parametrize(("build", "kind"), [(orders.stop, "STOP_MARKET"), (orders.target, "TAKE_PROFIT_MARKET")])
def test_protection_closes_the_position_and_expires_with_it(build: object, kind: str) -> None:
    params = build(rules(), Side.SELL, D("90000.0"), "id", working_type="CONTRACT_PRICE")  # type: ignore[operator]
    assert params == {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "type": kind, "triggerPrice": "90000",
                      "closePosition": "true", "timeInForce": "GTE_GTC", "workingType": "CONTRACT_PRICE", "clientAlgoId": "id"}


def test_ids_are_unique_short_and_tell_epoch_number_and_role() -> None:
    ids = ClientIds(1_796_000_000_000, start=35)
    made = [ids.next(role) for role in Role]
    assert len(set(made)) == 4 and all(len(i) <= 36 for i in made)
    assert [parse(i) for i in made] == [(1_796_000_000_000, 35 + n, role) for n, role in enumerate(Role)]


@given(st.integers(min_value=0, max_value=10**13), st.integers(min_value=0, max_value=36**9), st.sampled_from(Role))
def test_an_id_is_read_back_as_it_was_made(epoch_ms: int, number: int, role: Role) -> None:
    assert parse(ClientIds(epoch_ms, start=number).next(role)) == (epoch_ms, number, role)


FOREIGN = ["", "aegis", "aegis-", "aegis-1-2", "aegis-1-2-q", "aegis-1-2-e-x", "aegis--2-e", "aegis-1--e", "aegisx-1-2-e", "AEGIS-1-2-e",
           "aegis-A-2-e", "aegis-1-2-E", "aegis-_-2-e", "web_abc", "autoclose-1796000000000", "adl_autoclose", "x-aegis-1-2-e",
           "aegis-١-2-e", f"aegis-{'1' * 40}-2-e", "aegis-1-2-e\n"]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_an_order_of_somebody_else_is_never_taken_for_ours(foreign: str) -> None:
    assert not ours(foreign)


def test_another_prefix_is_another_owner() -> None:
    made = ClientIds(1, prefix="my-bot").next(Role.STOP)
    assert ours(made, "my-bot") and not ours(made)


@given(st.text(max_size=40))
def test_any_text_can_be_asked_about(text: str) -> None:
    assert parse(text) is None or text.startswith("aegis-")
