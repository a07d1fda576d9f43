"""Market frames decode into structs that keep the venue's text, tolerate what is new, and refuse rubbish."""

from collections import Counter
from pathlib import Path

import msgspec
import pyarrow
import pytest

from src.venue.messages import (
    AggTrade,
    BookTicker,
    ContinuousKline,
    ContractInfo,
    Kline,
    MarketFrame,
    MarkPrice,
    PublicFrame,
    decode_market,
    decode_public,
)

AGG = (b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1796000000123,"s":"BTCUSDT","a":3001234567,"p":"91234.50","q":"0.012",'
       b'"nq":"0","f":6001234567,"l":6001234569,"T":1796000000100,"m":true,"st":1}}')
QUOTE = (b'{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":9001234567890,"s":"BTCUSDT","b":"91234.40","B":"3.213",'
         b'"a":"91234.50","A":"1.202","T":1796000000100,"E":1796000000103,"st":1,"ps":"BTCUSDT"}}')
MARK = (b'{"e":"markPriceUpdate","E":1796000001000,"s":"BTCUSDT","p":"91230.1","ap":"91229.0","i":"91233.3","P":"91200.0","r":"0.00010000",'
        b'"T":1796025600000,"st":1}')
BODY = (b'{"t":1796000000000,"T":1796000059999,"s":"BTCUSDT","i":"1m","f":1,"L":9,"o":"1","c":"2","h":"3","l":"0.5","v":"10","n":9,"x":true,'
        b'"q":"15","V":"4","Q":"6","B":"0"}')


def test_a_trade_keeps_the_venues_text_and_tolerates_new_fields() -> None:
    assert decode_market(AGG).data == AggTrade("BTCUSDT", 3001234567, "91234.50", "0.012", 6001234567, 6001234569, 1796000000100, True,
                                               1796000000123, "0")
    assert decode_market(AGG.replace(b'"nq":"0",', b"")).data == AggTrade(
        "BTCUSDT", 3001234567, "91234.50", "0.012", 6001234567, 6001234569, 1796000000100, True, 1796000000123)


def test_a_quote_is_decoded() -> None:
    assert decode_public(memoryview(QUOTE)).data == BookTicker("BTCUSDT", "91234.40", "3.213", "91234.50", "1.202", 1796000000100,
                                                               1796000000103, 9001234567890)


def test_mark_prices_come_alone_or_as_an_array() -> None:
    mark = MarkPrice("BTCUSDT", "91230.1", 1796000001000, "91233.3", "0.00010000", 1796025600000)
    assert decode_market(b'{"stream":"btcusdt@markPrice","data":' + MARK + b"}").data == mark
    assert decode_market(b'{"stream":"!markPrice@arr@1s","data":[' + MARK + b"," + MARK + b"]}").data == [mark, mark]


def test_candles_of_both_kinds_are_decoded() -> None:
    plain = decode_market(b'{"stream":"btcusdt@kline_1m","data":{"e":"kline","E":1796000060001,"s":"BTCUSDT","k":' + BODY + b"}}").data
    continuous = decode_market(b'{"stream":"x","data":{"e":"continuous_kline","E":1,"ps":"BTCUSDT","ct":"PERPETUAL","k":' + BODY + b"}}").data
    assert isinstance(plain, Kline) and plain.k.x and plain.k.l == "0.5" and plain.k.n == 9
    assert isinstance(continuous, ContinuousKline) and continuous.ps == "BTCUSDT" and continuous.k == plain.k


def test_a_change_of_a_contract_is_decoded() -> None:
    data = decode_market(b'{"data":{"e":"contractInfo","E":1,"s":"XUSDT","ps":"XUSDT","ct":"PERPETUAL","dt":9,"ot":1,"cs":"SETTLING"}}').data
    assert data == ContractInfo("XUSDT", "SETTLING", 1, "PERPETUAL", 9, 1)


def test_control_answers_hold_no_data() -> None:
    assert decode_market(b'{"result":null,"id":1}') == MarketFrame(id=1)
    assert decode_public(b'{"code":2,"msg":"Invalid request: unknown variant"}') == PublicFrame(code=2, msg="Invalid request: unknown variant")


RUBBISH = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"data":1}', b'{"data":{"e":"news"}}', b'{"data":{"s":"BTCUSDT"}}', AGG[:-20],
           AGG.replace(b'"a":3001234567', b'"a":"x"'), AGG.replace(b'"p":"91234.50"', b'"p":null'), QUOTE]


@pytest.mark.parametrize("frame", RUBBISH)
def test_rubbish_raises_a_decode_error_and_nothing_else(frame: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_market(frame)


def test_recorded_quotes_of_the_venue_decode(recorded_data: Path) -> None:
    found: Counter[str] = Counter()
    path = recorded_data / "raw_ws" / "hft_binance_um_btcusdt_20240718.jsonl.zst"
    for line in pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd").read().splitlines():
        frame = line.split(b" ", 1)[1]
        if b'"e":"bookTicker"' in frame:
            event = decode_public(frame).data
            assert isinstance(event, BookTicker) and float(event.b) < float(event.a)
            found["quotes"] += 1
    assert found["quotes"] == 7113
