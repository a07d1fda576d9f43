"""The kernel that reads frames, against the JSON decoder: what it reads is what the decoder says, and what it cannot read it declines."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.conflate import ROWS_MAX, quote_key, staging, trade_key
from src.venue.messages import AggTrade, BookTicker, decode_market, decode_public
from src.wire import names_table, read_rows, scratch, text_of

TRADE = (b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1763600000005,"s":"BTCUSDT","a":3001234567,"p":"91234.50","q":"0.250",'
         b'"nq":"0.100","f":71,"l":72,"T":1763600000004,"m":true,"st":1}}')
QUOTE = (b'{"stream":"ethusdt@bookTicker","data":{"e":"bookTicker","u":400900217,"s":"ETHUSDT","b":"25.35190000","B":"31.21000000",'
         b'"a":"25.36520000","A":"40.66000000","T":1568014460891,"E":1568014460893,"st":1,"ps":"ETHUSDT"}}')
NAMES = ("BTCUSDT", "ETHUSDT")
TRADE_KEYS = {name: trade_key(i) for i, name in enumerate(NAMES)}
QUOTE_KEYS = {name: quote_key(i) for i, name in enumerate(NAMES)}
Row = tuple[Any, ...]


def read(*frames: bytes, trades: bool = True, keys: dict[str, int] | None = None) -> list[Row]:
    """The rows that the kernel makes of frames, until it declines one."""
    _, staged = staging()
    text = text_of(frames)
    table = names_table(keys or (TRADE_KEYS if trades else QUOTE_KEYS))
    at, rows, _ = read_rows(text, table, scratch(), staged, trades, 0, 0)
    assert at == sum(len(frame) + 1 for frame in frames[:rows])
    ints, floats = staged
    whole = (0, 1, 4, 5, 6, 7) if trades else (0, 1)
    return [tuple(int(ints[r, c]) if c in whole else float(floats[r, c]) for c in range(8 if trades else 6)) for r in range(rows)]


def decoded(frame: bytes, trades: bool = True, keys: dict[str, int] | None = None) -> Row | None:
    """The same by the JSON decoder; None for what is not such an event of a symbol that we know."""
    keys = keys or (TRADE_KEYS if trades else QUOTE_KEYS)
    try:
        event = (decode_market if trades else decode_public)(frame).data
        if trades:
            assert isinstance(event, AggTrade)
            return keys[event.s], event.T, float(event.p), float(event.q), int(event.m), event.a, event.f, event.l
        assert isinstance(event, BookTicker)
        return keys[event.s], event.T, float(event.b), float(event.a), float(event.B), float(event.A)
    except (AssertionError, KeyError, ValueError, msgspec.DecodeError):
        return None


def test_frames_of_the_venues_form_are_read() -> None:
    assert read(TRADE, TRADE) == [(trade_key(0), 1763600000004, 91234.5, 0.25, 1, 3001234567, 71, 72)] * 2
    assert read(QUOTE, trades=False) == [(quote_key(1), 1568014460891, 25.3519, 25.3652, 31.21, 40.66)]


@pytest.mark.parametrize("form", [
    lambda data: json.dumps({"stream": "x", "data": data}), lambda data: json.dumps({"data": data, "stream": "x"}, separators=(",", ":")),
    lambda data: json.dumps({"data": dict(reversed(data.items()))}), lambda data: json.dumps({"data": data | {"new": None, "more": "x y"}}),
])
def test_neither_order_nor_spaces_nor_new_fields_matter(form: Any) -> None:
    for frame, trades in ((TRADE, True), (QUOTE, False)):
        other = form(json.loads(frame)["data"]).encode()
        assert read(other, trades=trades) == read(frame, trades=trades)


DECLINED = [
    b"", b"{", b"{}", b"null", b'{"data":null}', TRADE[:-1], TRADE[:-2], TRADE + b"}", TRADE + b" x", TRADE.replace(b'"a":3001234567', b'"a":-1'),
    TRADE.replace(b'"a":3001234567', b'"a":007'), TRADE.replace(b'"a":3001234567', b'"a":1.5'), TRADE.replace(b'"a":3001234567', b'"a":1e3'),
    TRADE.replace(b'"a":3001234567', b'"a":"3"'), TRADE.replace(b'"a":3001234567', b'"a":12345678901234567890'), TRADE.replace(b"true", b"tru"),
    TRADE.replace(b"true", b"1"), TRADE.replace(b'"m":true,', b""), TRADE.replace(b"91234.50", b""), TRADE.replace(b"91234.50", b"x"),
    TRADE.replace(b"91234.50", b"."), TRADE.replace(b"91234.50", b"1.2.3"), TRADE.replace(b"91234.50", b"-1"), TRADE.replace(b"91234.50", b"0x1"),
    TRADE.replace(b"91234.50", b"9007199254740993"), TRADE.replace(b"91234.50", b"1.2345678901234567890123"), TRADE.replace(b"BTC", b"NOBODY"),
    TRADE.replace(b"BTCUSDT", b"BTC\\u0055SDT"), TRADE.replace(b"BTCUSDT", b"BTC\xff"), TRADE.replace(b'"st":1', b'"st":[1]'),
    TRADE.replace(b'"st":1', b'"E":2'), TRADE.replace(b"aggTrade", b"trade"), TRADE.replace(b'"e":"aggTrade",', b""), QUOTE,
]


@pytest.mark.parametrize("frame", DECLINED)
def test_what_is_not_of_that_form_is_declined_and_what_came_before_is_read(frame: bytes) -> None:
    assert read(TRADE, frame, TRADE) == read(TRADE)


@given(st.decimals(0, 10**9, places=8).map("{:f}".format) | st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,10})?", fullmatch=True))
def test_a_float_is_the_nearest_to_its_decimal(text: str) -> None:
    rows = read(TRADE.replace(b"91234.50", text.encode()))
    assert not rows or rows[0][2] == float(text)
    assert rows or len(text) > 15 or (text.startswith("0") and not text.startswith("0.")), "declined without need"


@settings(max_examples=400, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2), st.binary(max_size=3)), min_size=1, max_size=3))
def test_whatever_is_done_to_a_frame_what_is_read_is_what_the_decoder_says(trades: bool, edits: list[tuple[int, int, bytes]]) -> None:
    frame = TRADE if trades else QUOTE
    for at, drop, put in edits:
        frame = frame[:at % len(frame)] + put + frame[at % len(frame) + drop:]
    rows = read(frame.replace(b"\0", b""), trades=trades)
    assert not rows or rows == [decoded(frame.replace(b"\0", b""), trades)]


ODD_BYTES = b"\x01\x1f !\"\\,:{}.-0189AZ\x7f\x80\xff"


@pytest.mark.parametrize("trades", [True, False])
def test_a_wrong_byte_at_any_place_is_read_as_the_decoder_reads_it(trades: bool) -> None:
    frame = TRADE if trades else QUOTE
    for at in range(len(frame)):
        for byte in ODD_BYTES:
            changed = frame[:at] + bytes([byte]) + frame[at + 1:]
            rows = read(changed, trades=trades)
            assert not rows or rows == [decoded(changed, trades)], changed


@pytest.mark.parametrize("digits", range(1, 24))
def test_whole_numbers_of_every_length_end_where_words_of_eight_end_or_do_not(digits: int) -> None:
    number = "1234567890" * 3
    rows = read(TRADE.replace(b"3001234567", number[:digits].encode()))
    assert rows == ([(*read(TRADE)[0][:5], int(number[:digits]), 71, 72)] if digits <= 18 else [])


@pytest.mark.parametrize("length", range(24))
def test_names_and_texts_of_every_length_are_passed_over_or_declined(length: int) -> None:
    text = b"x" * length
    assert read(TRADE.replace(b"btcusdt@aggTrade", text)) == read(TRADE.replace(b'"nq"', b'"' + text + b'y"')) == read(TRADE)
    for wrong in (b"\\", b"\x1f", b"\x7f", b"\xc3"):
        assert not read(TRADE.replace(b"btcusdt@aggTrade", text + wrong))


@pytest.mark.parametrize("name", [b"", b"GEGXL8MK%brW+:8/"])
def test_a_name_of_no_letters_or_made_to_mix_to_nothing_is_nobodys(name: bytes) -> None:
    assert not read(TRADE.replace(b"BTCUSDT", name))


@given(st.sets(st.from_regex(r"[0-9A-Z]{1,12}", fullmatch=True), max_size=300))
def test_every_name_is_found_and_no_other(names: set[str]) -> None:
    keys = {name: trade_key(i) for i, name in enumerate(sorted(names))} | {"BTCUSDT": trade_key(400)}
    for name, key in keys.items():
        assert read(TRADE.replace(b"BTCUSDT", name.encode()), keys=keys)[0][0] == key
    assert not read(TRADE.replace(b"BTCUSDT", b"A_STRANGER"), keys=keys)


def test_it_stops_when_the_rows_are_full() -> None:
    assert len(read(*[TRADE] * (ROWS_MAX + 5))) == ROWS_MAX
