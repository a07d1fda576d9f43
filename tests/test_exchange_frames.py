"""Raw frames leave the streams byte for byte, and orders meet the book that they tell."""

from __future__ import annotations

import asyncio
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.clock import MS
from src.error_handler import Fatal
from src.exchange.frames import LEAD_MS, FramesMarket, open_frames
from src.exchange.ladders import Book, Ladders, Told
from src.exchange.quotes import QUOTE
from src.exchange.recorded import load_frames
from src.exchange.replay import choose_spec
from src.exchange.streams import route_of
from src.recordings import FRAMES, META, OPENED, VERSION
from tests.test_exchange_wire import Client, exchange, options

T0 = 1_721_347_200_000
"""A whole minute of July 2024."""


def frame(stream: str, **data: Any) -> str:
    """With a space that no encoder of ours would leave there."""
    return json.dumps({"stream": stream, "data": data}, separators=(",", ":")).replace('"e":', '"e": ')


def trade(at_ms: int, price: str, qty: str, number: int, *, maker: bool = False) -> str:
    return frame("btcusdt@aggTrade", e="aggTrade", E=at_ms, s="BTCUSDT", a=number, p=price, q=qty, f=number * 2, l=number * 2 + 1, T=at_ms, m=maker)


def quote(at_ms: int, bid: str, ask: str, update: int, bid_qty: str = "1.000", ask_qty: str = "2.000") -> str:
    return frame("btcusdt@bookTicker", e="bookTicker", u=update, s="BTCUSDT", b=bid, B=bid_qty, a=ask, A=ask_qty, T=at_ms, E=at_ms)


def diff(at_ms: int, first: int, last: int, before: int, bids: Any = (), asks: Any = ()) -> str:
    return frame("btcusdt@depth@100ms", e="depthUpdate", E=at_ms, T=at_ms, s="BTCUSDT", U=first, u=last, pu=before, b=list(bids), a=list(asks))


def whole(update: int, bids: Any, asks: Any) -> str:
    return json.dumps({"lastUpdateId": update, "E": T0, "T": T0, "bids": list(bids), "asks": list(asks)})


BIDS = [["60000.00", "1.000"], ["59999.00", "2.000"], ["59990.00", "9.000"]]
ASKS = [["60000.10", "2.000"], ["60003.00", "3.000"], ["60010.00", "9.000"]]
STORY = [
    (0, whole(100, BIDS, ASKS)),
    (10, diff(T0 + 9, 90, 101, 89, [["59999.00", "2.500"]])),
    (20, quote(T0 + 19, "60000.00", "60000.10", 102)),
    (30, trade(T0 + 28, "60000.10", "0.500", 7)),
    (30, trade(T0 + 29, "60000.00", "0.250", 8, maker=True)),
    (500, diff(T0 + 499, 102, 110, 101, [["59990.00", "0"]], [["60001.00", "0.700"]])),
    (900, quote(T0 + 899, "60000.00", "60000.20", 111, "0.300", "0.400")),
]


def stored(folder: Path, story: list[tuple[int, str]], name: str = "btcusdt.jsonl") -> str:
    file = folder / name
    file.write_text("".join(f"{(T0 + at) * 1000} {text}\n" for at, text in story))
    return str(file)


def opened(path: str, *symbols: str, start: str = "", lead_ms: int = LEAD_MS) -> FramesMarket:
    return open_frames(path=path, symbols=symbols, resume=None, start=start, lead_ms=lead_ms)


def lines_of(path: str) -> list[bytes]:
    """The frames of such a file, without any reader of ours."""
    texts = [line.split(b" ", 1)[1] for line in Path(path).read_bytes().splitlines()]
    return [text for text in texts if b"lastUpdateId" not in text]


# ---- files


def captured(at_ms: int, text: str) -> str:
    if "lastUpdateId" in text:
        return json.dumps({"t": "http", "url": "https://x/fapi/v1/depth?symbol=BTCUSDT&limit=1000", "ts": at_ms / 1000, "data": text})
    return json.dumps({"t": "recv", "ts": at_ms / 1000, "data": text})


def older(at_ms: int, text: str) -> str:
    at = f"{at_ms / 1000}: {text}"
    return f"https://x/fapi/v1/depth?symbol=BTCUSDT&limit=1000 -> {at}" if "lastUpdateId" in text else at


@pytest.mark.parametrize(
    ("suffix", "line", "head"),
    [
        ("jsonl", lambda at, text: f"{at * 1000} {text}", ""),
        ("jsonl", lambda at, text: f"{at * MS} {text}", ""),
        ("jsonl.gz", lambda at, text: f"{at * 1000} {text}", ""),
        ("jsonl.zst", captured, '{"t":"header","version":2}\n'),
        ("txt", older, "configuration: {}\nwss://somewhere <-> 1\n"),
    ],
)
def test_each_accepted_form_is_read(tmp_path: Path, suffix: str, line: Any, head: str) -> None:
    data = (head + "".join(line(T0 + at, text) + "\n" for at, text in STORY)).encode()
    packed = {"jsonl.gz": gzip.compress, "jsonl.zst": lambda raw: pa.compress(raw, "zstd", asbytes=True)}.get(suffix, bytes)(data)
    (tmp_path / f"a.{suffix}").write_bytes(packed)
    recording = load_frames(str(tmp_path), ())
    assert [f.at_us // 1000 - T0 for f in recording.frames] == [at for at, _ in STORY[1:]]
    assert [b'{"stream":"%s","data":%s}' % (f.stream.encode(), f.payload) for f in recording.frames] == [text.encode() for _, text in STORY[1:]]
    assert [(s.symbol, s.body) for s in recording.snapshots] == [("BTCUSDT", STORY[0][1].encode())]


def test_what_record_1_has_written_is_read_too(tmp_path: Path) -> None:
    rows = []
    for at, text in STORY[1:]:
        raw = text.encode()
        half = len(raw) // 2 if at == 20 else 0  # a message in two pieces
        pieces = [(1, False, raw[:half]), (0, True, raw[half:])] if half else [(1, True, raw)]
        rows += [(5 * MS + at * MS, 1, opcode, fin, True, piece) for opcode, fin, piece in pieces]
    rows += [(0, 1, 9, True, True, b"ping"), (0, 1, OPENED, True, True, b""), (0, 1, 1, True, True, b'{"result":null,"id":1}')]
    said = {"version": VERSION, "clock": [T0, 5 * MS, 1.0], "symbols": {}, "links": {}}
    schema = FRAMES.with_metadata({META: json.dumps(said).encode()})
    (tmp_path / "one").mkdir()
    pq.write_table(pa.table(list(map(list, zip(*rows, strict=True))), schema), tmp_path / "one/frames-000001.parquet")
    found = load_frames(str(tmp_path), ()).frames
    assert [(f.at_us // 1000 - T0, f.stream) for f in found] == [(at, json.loads(text)["stream"]) for at, text in STORY[1:]]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1 nonsense\n2 x\n", ["line 1", "no frame", "cryptofeed"]),
        ('1721347200000000 {"stream":"btcusdt@kline_1m","data":{}}\n', ["no price", "any symbol"]),
        ("", ["holds no frames"]),
        ('{"t":"recv","ts":1.0,"data":"{}"}\n\n', ["line 1", "no frame"]),
    ],
)
def test_a_file_that_cannot_be_played_is_refused_and_says_why(tmp_path: Path, text: str, named: list[str]) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(Fatal) as refused:
        opened(str(tmp_path))
    assert all(word in str(refused.value) for word in ["SIM_DATA", *named]), refused.value


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"path": "/nowhere/a.jsonl"}, "no such file"),
        ({"symbols": ("ETHUSDT",)}, "ETHUSDT"),
        ({"start": "2024-07-20"}, "SIM_START"),
        ({"start": "soon"}, r"from .* and before"),
        ({"resume": {"kind": "frames", "recording": "another", "symbols": ["BTCUSDT"]}}, "another"),
    ],
)
def test_what_does_not_fit_the_recording_is_refused(tmp_path: Path, given: dict[str, Any], named: str) -> None:
    with pytest.raises(Fatal, match=named):
        open_frames(**({"path": stored(tmp_path, STORY), "symbols": (), "resume": None} | given))


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = stored(tmp_path, STORY)
    cut = Path(path).read_text()[:-40]
    Path(path).write_text(cut)
    assert len(load_frames(path, ()).frames) == len(STORY) - 2


def test_several_files_are_one_recording_in_the_order_of_receipt(tmp_path: Path) -> None:
    even, odd = stored(tmp_path, STORY[::2], "even.jsonl"), stored(tmp_path, STORY[1::2], "odd.jsonl")
    together = load_frames(f"{odd},{even}", ()).frames
    assert together == load_frames(stored(tmp_path, STORY), ()).frames


# ---- the market


def test_trades_quotes_and_their_order_are_the_recording_s(tmp_path: Path) -> None:
    market = opened(stored(tmp_path, STORY))
    rows = market.trades(market.open_ms, market.end_ms or 0)
    said = [(int(r["time_ms"]) - T0, int(r["qty"]), int(r["price"]), int(r["bid"]), int(r["ask"]), int(r["ask_qty"])) for r in rows]
    assert said == [
        (20, 0, 0, 600_000, 600_001, 2000),
        (30, 500, 600_001, 600_000, 600_001, 2000),
        (30, 250, 600_000, 600_000, 600_001, 2000),
        (900, 0, 600_000, 600_000, 600_002, 400),
    ]
    assert [int(r["buyer_is_maker"]) for r in rows] == [QUOTE, 0, 1, QUOTE]
    assert market.open_ms == T0 - LEAD_MS and market.start_ms == T0 + 10


def test_history_is_what_has_been_played_and_nothing_later(tmp_path: Path) -> None:
    market = opened(stored(tmp_path, [*STORY, (61_000, trade(T0 + 61_000, "60500.00", "1.000", 9))]))
    first = market.klines(0, 60_000, T0, T0 + 60_000, T0 + 59_000)
    assert first[["open_ms", "open", "close", "volume", "taker_volume", "trades"]].tolist() == [(T0, 600_001, 600_000, 750, 500, 4)]
    assert market.klines(0, 60_000, T0, T0 + 120_000, T0 + 62_000)["close"].tolist() == [600_000, 605_000]
    assert [market.agg_trades(0, to_ms=T0 + at)["agg_id"].tolist() for at in (30, 31, 61_001)] == [[], [7, 8], [7, 8, 9]]
    assert market.agg_trades(0, from_id=8, to_ms=T0 + 61_000)["agg_id"].tolist() == [8]


def test_live_trading_may_begin_inside_the_recording(tmp_path: Path) -> None:
    market = opened(stored(tmp_path, STORY), start="2024-07-19T00:00:00.5")
    assert market.open_ms == T0 + 500
    assert market.agg_trades(0, to_ms=market.open_ms)["agg_id"].tolist() == [7, 8]


def test_a_recorder_whose_clock_was_behind_shows_no_frame_before_its_time(tmp_path: Path) -> None:
    market = opened(stored(tmp_path, [(at - 250, text) for at, text in STORY]))
    for at in range(T0 - 300, T0 + 1000):
        for played in market.frames(at, at + 1):
            assert json.loads(played.payload)["E"] <= at
    assert [int(t) - T0 for t in market.trades(0, 1 << 60)["time_ms"]] == [19, 29, 29, 899]


def test_depth_alone_gives_the_top_of_the_book(tmp_path: Path) -> None:
    depth = [(at, text) for at, text in STORY if "bookTicker" not in text]
    rows = opened(stored(tmp_path, depth)).trades(0, 1 << 60)
    quotes = rows[rows["buyer_is_maker"] == QUOTE]
    assert quotes[["bid", "ask", "bid_qty", "ask_qty"]].tolist() == [(600_000, 600_001, 1000, 2000)] * 2


def test_marks_come_from_mark_price_streams_and_from_no_other_array(tmp_path: Path) -> None:
    row = {"e": "x", "E": T0, "s": "BTCUSDT", "p": "60123.45", "r": "0.00010000", "T": T0 + 3_600_000}
    story = [*STORY, (950, json.dumps({"stream": "!ticker@arr", "data": [row | {"p": "-12.00"}, row | {"p": "7.00"}]}))]
    assert opened(stored(tmp_path, story)).marks() is None
    market = opened(stored(tmp_path, [*STORY, (950, json.dumps({"stream": "!markPrice@arr@1s", "data": [row, row | {"s": "X"}]}))]), "BTCUSDT")
    marks = market.marks()
    assert marks is not None and marks.mark_e8[0] == 0, "not yet"
    market.trades(T0, T0 + 2000)
    assert (marks.mark_e8[0], marks.rate(0, T0 + 3_600_000)) == (6_012_345_000_000, Decimal("0.0001"))


def test_symbols_without_a_price_are_not_listed_but_their_frames_are_played(tmp_path: Path) -> None:
    market = opened(stored(tmp_path, [*STORY, (40, frame("ethusdt@kline_1m", e="kline", E=T0, s="ETHUSDT"))]))
    assert [s.symbol for s in market.symbols] == ["BTCUSDT"]
    assert "ethusdt@kline_1m" in {f.stream for f in market.frames(0, 1 << 60)}


def test_frames_that_say_nothing_sensible_are_played_and_not_traded(tmp_path: Path) -> None:
    odd = [(40, frame("btcusdt@aggTrade", e="aggTrade", p="x")), (41, frame("btcusdt@bookTicker", b="2", B="1", a="1", A="1")),
           (42, trade(T0, "-1", "1", 9))]  # fmt: skip
    market, plain = opened(stored(tmp_path, STORY + odd)), opened(stored(tmp_path, STORY))
    assert len(market.trades(0, 1 << 60)) == len(plain.trades(0, 1 << 60))
    assert len(list(market.frames(0, 1 << 60))) == len(STORY) - 1 + len(odd)


def changed(text: str, **fields: Any) -> str:
    """The frame with these fields, which may be nonsense."""
    said = json.loads(text)
    said["data"] |= fields
    return json.dumps(said)


RUBBISH: list[tuple[str, str, dict[str, Any]]] = [
    ("time", trade(T0 + 40, "60000.00", "0.250", 9), {"E": value}) for value in ("x", None, [], True, 1.5, -1, 10**17, 10**30)] + [
    (name, trade(T0 + 40, "60000.00", "0.250", 9), {name: value}) for name, value in (
        ("p", "1e400"), ("p", "nan"), ("p", "99999999999999"), ("q", "inf"), ("q", "1e30"), ("a", 10**30), ("f", -1), ("l", 10**30))] + [
    (name, quote(T0 + 40, "60000.00", "60000.10", 103), {name: value})
    for name, value in (("a", "1e300"), ("B", "inf"), ("A", "nan"), ("b", "-1"))] + [
    (name, diff(T0 + 40, 111, 112, 110), {name: value}) for name in ("b", "a") for value in (
        [["x", "1"]], [["1e300", "1"]], [["60000.00", "nan"]], [["-1", "1"]])] + [
    ("mark", frame("btcusdt@markPrice", e="markPriceUpdate", E=T0, s="BTCUSDT", p="60000.00", r="0.0001", T=T0 + 3_600_000), {name: value})
    for name, value in (("p", "inf"), ("r", "x"), ("r", "nan"), ("T", 10**30))]  # fmt: skip


@pytest.mark.parametrize(("text", "fields"), [row[1:] for row in RUBBISH], ids=[f"{name}={list(fields.values())}" for name, _, fields in RUBBISH])
def test_one_frame_of_rubbish_stops_nothing_and_moves_no_other(tmp_path: Path, text: str, fields: dict[str, Any]) -> None:
    market = opened(stored(tmp_path, [*STORY, (40, changed(text, **fields))]))
    plain = opened(stored(tmp_path, STORY))
    assert (market.start_ms, market.end_ms, market.symbols) == (plain.start_ms, plain.end_ms, plain.symbols)
    assert len(list(market.frames(0, 1 << 60))) == len(STORY)
    rows = market.trades(0, 1 << 60)
    assert len(rows) - len(plain.trades(0, 1 << 60)) == ("E" in fields)
    assert max(rows["price"]) == 600_001
    market.ladders.now_ms = plain.ladders.now_ms = lambda: T0 + 2000
    assert market.ladders.of(0) == plain.ladders.of(0)


@pytest.mark.parametrize("at", ["9" * 30, "-5", "inf:", "nan:", "1721347200", "1e300:", "0"])
def test_a_time_that_cannot_be_is_refused_with_its_line(tmp_path: Path, at: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{T0 * 1000} {STORY[2][1]}\n{at} {STORY[3][1]}\n")
    with pytest.raises(Fatal, match="line 2 is no frame"):
        opened(str(tmp_path))


@pytest.mark.parametrize("price", ["0.00006123", "0.0000006", "1000000", "3.5"])
def test_a_price_is_never_less_than_a_tick(price: str) -> None:
    found = choose_spec("NEWUSDT", (np.array([float(price)]),), np.array([1.0, 0.0]))
    ticks = Decimal(price) / found.tick
    assert ticks == int(ticks) >= 1


# ---- books


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_book_follows_its_changes_and_is_unknown_after_a_break(data: st.DataObject) -> None:
    level = st.tuples(st.integers(1, 9), st.integers(0, 3))
    book, plain, known, last = Book(1.0, 1.0), ({}, {}), False, 0  # type: ignore[var-annotated]
    for n in range(12):
        bids, asks = data.draw(st.lists(level, max_size=4)), data.draw(st.lists(level, max_size=4))
        as_text = [[[str(p), str(q)] for p, q in side] for side in (bids, asks)]
        kind = data.draw(st.sampled_from(["whole", "next", "next", "next", "hole"]))
        last += 10
        if kind == "whole":
            plain, known = (dict(bids), dict(asks)), True
            book.take(Told(n, True, whole(last, *as_text).encode()))
            continue
        known = known and kind == "next"
        first, before = (last - 10, last - 10) if known else (last - 5, last - 13)
        book.take(Told(n, False, json.dumps(json.loads(diff(0, first, last, before, *as_text))["data"]).encode()))
        for side, changes in zip(plain, (bids, asks), strict=True):
            for p, q in changes:
                side[p] = q
                if not q:
                    del side[p]
        assert bool(book.update) == known
        if known:
            assert (book.bids, book.asks) == plain


def test_the_ladder_is_that_of_the_present(tmp_path: Path) -> None:
    market, now = opened(stored(tmp_path, STORY)), [T0]
    market.ladders.now_ms = lambda: now[0]
    assert market.ladders.of(0) is None, "no snapshot yet"
    now[0] = T0 + 10
    assert market.ladders.of(0) == (((600_000, 1000), (599_990, 2500), (599_900, 9000)), ((600_001, 2000), (600_030, 3000), (600_100, 9000)))
    assert market.ladders.update(0) == 101
    now[0] = T0 + 500
    assert market.ladders.of(0) == (((600_000, 1000), (599_990, 2500)), ((600_001, 2000), (600_010, 700), (600_030, 3000), (600_100, 9000)))


def test_a_snapshot_that_no_change_follows_is_no_book(tmp_path: Path) -> None:
    market = opened(stored(tmp_path, [(0, STORY[0][1]), *STORY[2:5]]))
    market.ladders.now_ms = lambda: T0 + 10_000
    assert market.ladders.of(0) is None
    assert isinstance(market.ladders, Ladders)


# ---- on the wire


def recorded(path: str, *symbols: str, **given: Any) -> Any:
    """An exchange on this recording, with a second and a half of the wall to subscribe before its first frame."""
    made = options(market="frames", path=path, **({"latency_ms": 0} | given))
    return exchange(made, opened(path, *symbols, lead_ms=max(LEAD_MS, int(1500 * made.speed))))


async def assert_comes_out(client: Client, lines: list[bytes]) -> None:
    """Every line is a frame that leaves by the socket of its route, unchanged, in order, and nothing else does."""
    routes: dict[str, list[str]] = {}
    names: dict[str, dict[str, None]] = {}
    for line in lines:
        stream = json.loads(line)["stream"]
        routes.setdefault(route_of(stream), []).append(line.decode())
        names.setdefault(route_of(stream), {})[stream] = None

    async def listen(route: str, wanted: list[str]) -> None:
        socket = await client.socket(f"{getattr(client.ready, route)}/stream?streams={'/'.join(names[route])}")
        for number, line in enumerate(wanted):
            assert (await socket.frame()).data == line, f"frame {number} of {route}"

    await asyncio.gather(*(listen(route, wanted) for route, wanted in routes.items()))


async def test_recorded_frames_leave_byte_for_byte(tmp_path: Path) -> None:
    path = stored(tmp_path, [*STORY, (950, frame("!contractInfo", e="contractInfo", s="XUSDT")), (960, '{"stream":"!markPrice@arr","data":[ ]}')])
    async with recorded(path, speed=20.0) as client:
        await assert_comes_out(client, lines_of(path))


async def test_streams_that_were_not_recorded_are_made_of_those_that_were(tmp_path: Path) -> None:
    async with recorded(stored(tmp_path, STORY), speed=20.0) as client:
        socket = await client.socket(client.ready.market + "/ws/btcusdt@kline_1m")
        bar = (await socket.next())["k"]
        assert (bar["o"], bar["v"]) == ("60000.10", "0.750")


async def test_a_market_order_gets_the_recorded_book_s_prices(tmp_path: Path) -> None:
    async with recorded(stored(tmp_path, STORY), speed=60.0) as client:
        await past(client, T0 + 1000)
        answer = await client.good("POST", "v1/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="2.000", newOrderRespType="RESULT")
        fills = [(f["price"], f["qty"]) for f in await client.good("GET", "v1/userTrades", symbol="BTCUSDT")]
        assert answer["status"] == "FILLED"
        assert fills == [("60000.20", "0.400"), ("60001.00", "0.700"), ("60003.00", "0.900")]


async def past(client: Client, at_ms: int) -> None:
    """Until the market has passed that time."""
    while (await client.get("v1/time"))["serverTime"] <= at_ms:
        await asyncio.sleep(0.01)


async def test_a_client_that_keeps_a_book_as_documented_has_the_recorded_one(tmp_path: Path) -> None:
    async with recorded(stored(tmp_path, STORY), speed=20.0) as client:
        socket = await client.socket(client.ready.public + "/ws/btcusdt@depth@100ms")
        first = await socket.next()
        snapshot = await client.get("v1/depth", symbol="BTCUSDT", limit=1000)
        assert first["U"] <= snapshot["lastUpdateId"] <= first["u"]
        assert snapshot["bids"][1] == ["59999.00", "2.500"]
        assert (await socket.next())["pu"] == snapshot["lastUpdateId"]


async def test_the_price_of_recorded_frames_cannot_be_moved(tmp_path: Path) -> None:
    async with recorded(stored(tmp_path, STORY)) as client:
        for action, body in (("price", {"symbol": "BTCUSDT", "price": "1"}), ("fault", {"kind": "gap", "door": "BTCUSDT", "size": -0.05})):
            status, answer = await client.raw("POST", f"/control/{action}", json=body)
            assert status == 400 and "cannot be moved" in str(answer), answer


async def test_a_muted_route_loses_its_frames(tmp_path: Path) -> None:
    async with recorded(stored(tmp_path, STORY), speed=20.0) as client:
        await client.control("mute", route="market", on=True)
        socket = await client.socket(client.ready.market + "/ws/btcusdt@aggTrade")
        await past(client, T0 + 900)
        await client.control("mute", route="market", on=False)
        assert (await socket.ask({"method": "LIST_SUBSCRIPTIONS", "id": 1}))["id"] == 1, "nothing came before"


# ---- recorded data

HFT = ("hft_binance_um_btcusdt_20230404", "hft_binance_um_btcusdt_20230405", "hft_binance_um_btcusdt_20240718", "hft_binance_um_btcusdt_20240719",
       "hft_binance_um_ethusdt_20240718", "hft_binance_um_ethusdt_20240719")  # fmt: skip


def unpacked(source: Path, into: Path) -> list[bytes]:
    """The frames of a recorded file, read without ours."""
    into.write_bytes(pa.CompressedInputStream(pa.OSFile(str(source)), "zstd").read())
    lines = into.read_bytes().splitlines()
    if lines[0].startswith(b"{"):
        return [json.loads(line)["data"].encode() for line in lines if line.startswith(b'{"t":"recv"')]
    return [line.split(b" ", 1)[1] for line in lines if b'"lastUpdateId"' not in line[:60]]


async def test_a_capture_of_cryptofeed_comes_out_field_for_field(recorded_data: Path, tmp_path: Path) -> None:
    source = recorded_data / "raw_ws/cryptofeed/BINANCE_FUTURES.jsonl.zst"
    lines = [line for line in unpacked(source, tmp_path / "x") if b'"stream"' in line[:10]]
    async with recorded(str(source), speed=60.0) as client:
        await assert_comes_out(client, lines)
    assert len(lines) == 1535


@pytest.mark.slow
@pytest.mark.parametrize("name", HFT)
async def test_a_recorded_file_comes_out_field_for_field(name: str, recorded_data: Path, tmp_path: Path) -> None:
    source = recorded_data / f"raw_ws/{name}.jsonl.zst"
    lines = unpacked(source, tmp_path / "x")
    async with recorded(str(source), speed=60.0) as client:
        await assert_comes_out(client, lines)
    assert len(lines) > 10_000


@pytest.mark.parametrize("name", [HFT[0], HFT[2]])
def test_a_recorded_file_passes_without_a_hole(name: str, recorded_data: Path, tmp_path: Path) -> None:
    source = recorded_data / f"raw_ws/{name}.jsonl.zst"
    market, lines = opened(str(source)), unpacked(source, tmp_path / "x")
    chance, at, out, rows = np.random.default_rng(1), market.open_ms, [], []
    while at < (market.end_ms or 0):
        upto = at + int(chance.integers(1, 3000))
        out += [b'{"stream":"%s","data":%s}' % (f.stream.encode(), f.payload) for f in market.frames(at, upto)]
        rows.append(market.trades(at, upto))
        at = upto
    assert out == lines
    ids = np.concatenate(rows)
    singles = [json.loads(line)["data"] for line in lines if b"@trade" in line[:40]]
    assert [t["t"] for t in singles if t["X"] == "MARKET"] == ids[ids["qty"] > 0]["agg_id"].tolist()


def test_the_recorded_book_is_whole_for_the_length_of_a_file_and_agrees_with_the_quotes(recorded_data: Path) -> None:
    market = opened(str(recorded_data / "raw_ws/hft_binance_um_btcusdt_20240718.jsonl.zst"))
    now = [0]
    market.ladders.now_ms = lambda: now[0]
    quotes = market.trades(0, 1 << 60)
    agree = known = 0
    for at in range(market.start_ms + 2000, market.end_ms or 0, 500):
        now[0] = at
        ladder = market.ladders.of(0)
        top = quotes[np.searchsorted(quotes["time_ms"], at) - 1]
        known += ladder is not None
        if ladder is not None:
            assert ladder[0][0][0] < ladder[1][0][0], "a book that crosses itself"
            agree += abs(ladder[0][0][0] - int(top["bid"])) <= 100 and abs(ladder[1][0][0] - int(top["ask"])) <= 100
    assert known > 300 and agree > 0.97 * known
