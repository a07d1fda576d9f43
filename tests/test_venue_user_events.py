"""Each frame of the private stream becomes one of our words, with every digit kept."""

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from src.models import AccountUpdate, AlgoUpdate, Fill, OrderStatus, OrderUpdate, PositionUpdate, Side
from src.venue.user_events import EVENTS, ConfigUpdate, KeyExpired, MarginCall, UnknownEvent, decode_event

ORDER = {"s": "BTCUSDT", "c": "aegis-x-1-e", "S": "SELL", "o": "MARKET", "f": "GTC", "q": "0.012", "p": "0", "ap": "91234.5",
         "x": "TRADE", "X": "PARTIALLY_FILLED", "i": 8389765999999999999, "l": "0.005", "z": "0.010", "L": "91234.50", "N": "USDT",
         "n": "0.22808625", "T": 1796000000001, "t": 6001234567, "b": "0", "a": "0", "m": False, "R": True, "wt": "CONTRACT_PRICE",
         "ot": "MARKET", "ps": "BOTH", "cp": False, "pP": False, "si": 0, "ss": 0, "sp": "0", "rp": "-1.25000000", "V": "EXPIRE_MAKER",
         "pm": "NONE", "gtd": 0, "er": "0"}


def frame(name: str, **body: Any) -> bytes:
    return json.dumps({"e": name, "T": 1796000000001, "E": 1796000000003, **body}).encode()


def test_a_fill_keeps_every_digit() -> None:
    fill = Fill("BTCUSDT", 6001234567, "aegis-x-1-e", 8389765999999999999, Side.SELL, Decimal("91234.50"), Decimal("0.005"),
                Decimal("0.22808625"), "USDT", Decimal("-1.25"), False, 1796000000001)
    assert decode_event(frame("ORDER_TRADE_UPDATE", o=ORDER)) == OrderUpdate(
        "BTCUSDT", "aegis-x-1-e", 8389765999999999999, Side.SELL, OrderStatus.PARTIALLY_FILLED, Decimal("0.012"), Decimal("0.010"),
        1796000000001, reduce_only=True, fill=fill)


def test_an_order_without_a_fill_may_lack_commission() -> None:
    bare = {k: v for k, v in ORDER.items() if k not in ("N", "n", "rp", "er", "L")} | {"x": "NEW", "X": "NEW", "l": "0", "z": "0", "t": 0}
    event = decode_event(frame("ORDER_TRADE_UPDATE", o=bare))
    assert isinstance(event, OrderUpdate) and event.fill is None and event.status is OrderStatus.NEW and event.reason == ""
    assert isinstance(decode_event(frame("ORDER_TRADE_UPDATE", o={**bare, "N": None})), OrderUpdate)


def test_an_expiry_tells_its_reason() -> None:
    event = decode_event(frame("ORDER_TRADE_UPDATE", o={**ORDER, "x": "EXPIRED", "X": "EXPIRED", "l": "0", "er": "9"}))
    assert isinstance(event, OrderUpdate) and "price cap" in event.reason and event.status is OrderStatus.EXPIRED


@pytest.mark.parametrize(("executed", "status"), [("0", OrderStatus.NEW), ("0.010", OrderStatus.PARTIALLY_FILLED)])
def test_a_status_of_tomorrow_is_an_order_that_lives_and_its_fill_counts(executed: str, status: OrderStatus) -> None:
    event = decode_event(frame("ORDER_TRADE_UPDATE", o={**ORDER, "X": "NEW_ADL", "z": executed}))
    assert isinstance(event, OrderUpdate) and event.status is status and event.fill is not None


def test_an_account_update_carries_wallet_and_signed_positions() -> None:
    body = {"m": "ORDER", "B": [{"a": "BNB", "wb": "1", "cw": "1", "bc": "0"}, {"a": "USDT", "wb": "9998.77", "cw": "9000", "bc": "0"}],
            "P": [{"s": "BTCUSDT", "pa": "-0.010", "ep": "91234.50", "bep": "91200", "cr": "0", "up": "-1.5", "mt": "isolated", "iw": "100",
                   "ps": "BOTH"}]}
    position = PositionUpdate("BTCUSDT", Decimal("-0.010"), Decimal("91234.50"), Decimal("-1.5"), True, "BOTH", 1796000000001)
    event = decode_event(frame("ACCOUNT_UPDATE", a=body))
    assert event == AccountUpdate("ORDER", Decimal("9998.77"), Decimal(0), (position,), 1796000000001)


MOVES = [("DEPOSIT", "100"), ("WITHDRAW", "100"), ("FUNDING_FEE", "0"), ("ORDER", "0"), ("INSURANCE_CLEAR", "0")]


@pytest.mark.parametrize(("reason", "moved"), MOVES)
def test_only_money_that_was_moved_counts_as_a_transfer(reason: str, moved: str) -> None:
    event = decode_event(frame("ACCOUNT_UPDATE", a={"m": reason, "B": [{"a": "USDT", "wb": "200", "cw": "0", "bc": "100"}], "P": []}))
    assert isinstance(event, AccountUpdate) and event.transfer == Decimal(moved)


def test_an_update_without_our_asset_has_no_wallet() -> None:
    event = decode_event(frame("ACCOUNT_UPDATE", a={"m": "ORDER", "B": [{"a": "BNB", "wb": "1", "cw": "1", "bc": "-1"}]}))
    assert isinstance(event, AccountUpdate) and event.wallet is None and event.transfer == 0
    other = decode_event(frame("ACCOUNT_UPDATE", a={"m": "ORDER", "B": [{"a": "BNFCR", "wb": "5"}]}), "BNFCR")
    assert isinstance(other, AccountUpdate) and other.wallet == 5


ALGO = {"caid": "aegis-x-2-s", "aid": 2148719, "at": "CONDITIONAL", "o": "STOP_MARKET", "s": "BTCUSDT", "S": "SELL", "ps": "BOTH",
        "f": "GTE_GTC", "q": "0", "X": "TRIGGERING", "ai": "", "tp": "90000.00", "p": "0", "cp": True, "R": True, "tt": 0}


def test_an_algo_update_may_lack_what_is_not_known_yet() -> None:
    assert decode_event(frame("ALGO_UPDATE", o=ALGO)) == AlgoUpdate(
        "BTCUSDT", "aegis-x-2-s", 2148719, Side.SELL, "STOP_MARKET", OrderStatus.TRIGGERING, Decimal("90000.00"), True, 1796000000001)


def test_a_finished_algo_tells_what_was_executed_and_a_rejected_one_why() -> None:
    finished = decode_event(frame("ALGO_UPDATE", o={**ALGO, "X": "FINISHED", "aq": "0.012", "ap": "89990", "act": "MARKET"}))
    rejected = decode_event(frame("ALGO_UPDATE", o={**ALGO, "X": "REJECTED", "rm": "Margin is insufficient."}))
    assert isinstance(finished, AlgoUpdate) and finished.executed == Decimal("0.012") and finished.status.ended
    assert isinstance(rejected, AlgoUpdate) and rejected.reason == "Margin is insufficient."


def test_configuration_margin_call_and_key_expiry_are_told() -> None:
    assert decode_event(frame("ACCOUNT_CONFIG_UPDATE", ac={"s": "BTCUSDT", "l": 25})) == ConfigUpdate("BTCUSDT", 25, None, 1796000000001)
    assert decode_event(frame("ACCOUNT_CONFIG_UPDATE", ai={"j": True})) == ConfigUpdate(None, None, True, 1796000000001)
    call = frame("MARGIN_CALL", cw="3.1", p=[{"s": "BTCUSDT", "ps": "BOTH", "pa": "1", "mt": "CROSSED", "mp": "1", "up": "-1", "mm": "1"}])
    assert decode_event(call) == MarginCall(("BTCUSDT",), Decimal("3.1"), 1796000000003)
    assert decode_event(b'{"e":"listenKeyExpired","E":"1736996475556","listenKey":"abc"}') == KeyExpired(1736996475556)


def test_trade_lite_is_known_and_ignored_so_that_no_fill_counts_twice() -> None:
    assert decode_event(frame("TRADE_LITE", s="BTCUSDT", q="1", p="0", m=False, c="x", S="BUY", L="1", l="1", t=1, i=2)) is None


def test_a_frame_in_combined_mode_is_unwrapped() -> None:
    wrapped = b'{"stream":"the-listen-key","data":' + frame("ORDER_TRADE_UPDATE", o=ORDER) + b"}"
    assert decode_event(wrapped) == decode_event(frame("ORDER_TRADE_UPDATE", o=ORDER)) == decode_event(wrapped.decode())


def test_an_event_of_tomorrow_is_named() -> None:
    with pytest.raises(UnknownEvent, match="GRID_UPDATE"):
        decode_event(frame("GRID_UPDATE", gu={}))


RUBBISH = [b"", b"{", b"[]", b"null", b'{"x":1}', b'{"e":1}', b"\xff\xfe\x00", b'{"stream":"k","data":{"e":"NEWS"}}',
           frame("ORDER_TRADE_UPDATE"), frame("ORDER_TRADE_UPDATE", o={**ORDER, "z": "x"}),
           frame("ORDER_TRADE_UPDATE", o={**ORDER, "S": "HOLD"})]


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_rubbish_raises_and_nothing_else(rubbish: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, ValueError)):
        decode_event(rubbish)


def test_every_event_of_the_venue_is_asked_for_by_name() -> None:
    needed = {"ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE", "ALGO_UPDATE", "MARGIN_CALL", "ACCOUNT_CONFIG_UPDATE", "listenKeyExpired"}
    assert needed <= set(EVENTS)
