"""The store keeps every row once, in order, and whole; it reads many series as one stream; what a crash leaves is never read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import load_recording
from src.error_handler import Fatal
from src.store import KINDS, Appended, Chunk, Gap, Series, Store, month_bounds, month_of

MAY = 1_746_057_600_000
"""2025-05-01."""
DAY = 86_400_000
TRADES = Series("aggTrades", "BTCUSDT")
BARS = Series("klines", "BTCUSDT", "1m")


def trades(times: Any, ids: Any, price: Any = 100.0) -> Any:
    n = len(times)
    columns = {"transact_time": pa.array(np.asarray(times, np.int64)).cast(pa.timestamp("ms", "UTC")), "agg_id": np.asarray(ids, np.int64),
               "first_id": np.asarray(ids, np.int64) * 2, "last_id": np.asarray(ids, np.int64) * 2 + 1,
               "price": np.broadcast_to(np.float64(price), n), "qty": np.full(n, 0.25), "is_buyer_maker": np.arange(n) % 2 == 0}  # fmt: skip
    return pa.table(columns, KINDS["aggTrades"].schema)


def bars(opens: Any, close: float = 100.0) -> Any:
    n = len(opens)
    same = {name: np.full(n, close) for name in ("open", "high", "low", "close")}
    flow = {name: np.full(n, 1.5) for name in ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")}
    times = pa.array(np.asarray(opens, np.int64)).cast(pa.timestamp("ms", "UTC"))
    return pa.table({"open_time": times, "trades": np.arange(n), **same, **flow}, KINDS["klines"].schema)


def funding(times: Any, hours: Any) -> Any:
    columns = {"calc_time": pa.array(np.asarray(times, np.int64)).cast(pa.timestamp("ms", "UTC")),
               "funding_interval_hours": np.asarray(hours, np.int64), "last_funding_rate": np.full(len(times), 0.0001)}  # fmt: skip
    return pa.table(columns, KINDS["fundingRate"].schema)


def read(store: Store, *series: Series, from_ms: int = 0, to_ms: int = 2**53, **more: Any) -> list[Chunk]:
    return list(store.read(series or (TRADES,), from_ms, to_ms, **more))


def column(chunks: list[Chunk], name: str) -> list[Any]:
    return [value for chunk in chunks for value in chunk.columns[name].tolist()]


# --- appending -------------------------------------------------------------------------------------------------------------------------

def test_rows_come_back_typed_and_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.append(TRADES, [trades([MAY, MAY, MAY + 5], [1, 2, 3], 100.1)]) == Appended(3, 0)
    (chunk,) = read(store)
    assert chunk.columns["transact_time"].tolist() == [MAY, MAY, MAY + 5] and chunk.columns["transact_time"].dtype == np.int64
    assert chunk.columns["price"].tolist() == [100.1] * 3 and chunk.columns["is_buyer_maker"].tolist() == [1, 0, 1]
    schema = pq.read_schema(store.path(TRADES, "2025-05"))
    assert schema.equals(KINDS["aggTrades"].schema) and str(schema.field("transact_time").type) == "timestamp[ms, tz=UTC]"


def test_a_file_for_each_month(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _, june = month_bounds("2025-05")
    store.append(TRADES, [trades([MAY, june - 1], [1, 2]), trades([june, june + 40 * DAY], [3, 4])])
    assert store.months(TRADES) == ["2025-05", "2025-06", "2025-07"] and store.rows(TRADES) == 4
    assert (tmp_path / "aggTrades/BTCUSDT/2025-05.parquet").is_file()
    assert pq.read_table(store.path(TRADES, "2025-05")).num_rows == 2
    store.append(BARS, [bars([MAY])])
    assert (tmp_path / "klines/1m/BTCUSDT/2025-05.parquet").is_file()
    assert store.series() == [TRADES, BARS]
    assert column(read(store), "agg_id") == [1, 2, 3, 4]


@pytest.mark.parametrize("month", ["2024-02", "2024-12", "2025-01"])
def test_months_are_those_of_the_calendar(month: str) -> None:
    first, after = month_bounds(month)
    assert month_of(first) == month_of(after - 1) == month and month_of(first - 1) < month < month_of(after)


def test_who_appends_a_row_again_replaces_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades([MAY, MAY + 1, MAY + 1, MAY + 2], [1, 2, 3, 4], 100.0)])
    assert store.append(TRADES, [trades([MAY + 1, MAY + 9], [3, 5], 200.0)]) == Appended(2, 1)
    (chunk,) = read(store)
    assert chunk.columns["agg_id"].tolist() == [1, 2, 3, 4, 5] and chunk.columns["price"].tolist() == [100, 100, 200, 100, 200]
    assert store.append(TRADES, [trades([MAY, MAY], [7, 7])]) == Appended(2, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=60), min_size=1, max_size=6), st.integers(1, 50))
def test_whatever_the_order_of_pieces_the_rows_are_the_union(tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]], size: int) -> None:
    """Ids stand for times too: three ids a millisecond, so that many rows share one."""
    store, given_rows, expected = Store(tmp_path_factory.mktemp("store")), 0, set()
    for piece in pieces:
        ids = np.sort(piece)
        parts = [ids[at:at + size] for at in range(0, len(ids), size)]
        done = store.append(TRADES, (trades(MAY + part // 3, part) for part in parts))
        given_rows += done.rows
        expected |= set(piece)
        assert store.rows(TRADES) == len(expected)
    assert given_rows == sum(map(len, pieces)) and column(read(store), "agg_id") == sorted(expected)


def test_a_large_month_is_appended_in_pieces(tmp_path: Path) -> None:
    store, n = Store(tmp_path), 300_000
    times = MAY + np.arange(n) * 7
    store.append(TRADES, (trades(times[at:at + 9_999], np.arange(at, min(n, at + 9_999))) for at in range(0, n, 9_999)))
    store.append(TRADES, [trades(times[1::2], np.arange(1, n, 2))])
    assert column(read(store, columns=["agg_id"]), "agg_id") == list(range(n))
    file = pq.ParquetFile(store.path(TRADES, "2025-05"))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups - 1)] == [32_768] * (file.num_row_groups - 1)


def broken(table: Any, name: str, values: Any) -> Any:
    return table.set_column(table.schema.get_field_index(name), pa.field(name, table.schema.field(name).type, nullable=False), pa.array(values))


@pytest.mark.parametrize(("table", "why"), [
    (trades([MAY + 1, MAY], [1, 2]), "do not rise"),
    (trades([MAY], [1]).drop_columns(["qty"]), "of other types"),
    (broken(trades([MAY], [1]), "price", [float("nan")]), "not a number"),
    (broken(trades([MAY], [1]), "price", pa.array([None], pa.float64())), "empty cells"),
])
def test_what_is_not_sound_is_refused_and_nothing_changes(tmp_path: Path, table: Any, why: str) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades([MAY], [1])])
    before = store.path(TRADES, "2025-05").read_bytes()
    with pytest.raises(ValueError, match=why):
        store.append(TRADES, [trades([MAY], [0]), table])
    assert store.path(TRADES, "2025-05").read_bytes() == before
    assert [p.name for p in (tmp_path / "aggTrades/BTCUSDT").iterdir()] == ["2025-05.parquet"]


def test_a_refusal_in_a_later_month_changes_no_month_and_names_no_source(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _, june = month_bounds("2025-05")
    with pytest.raises(ValueError, match="do not rise"):
        store.append(TRADES, [trades([MAY, june], [1, 2]), trades([MAY + 1], [3])], {"BTCUSDT-aggTrades-2025-05.zip": "aa"})
    assert store.months(TRADES) == [] and not list(tmp_path.rglob("*.p*"))


def test_a_file_says_what_it_is_and_what_it_was_made_of(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.sources(TRADES, "2025-05") == {}
    store.append(TRADES, [trades([MAY], [1])], {"a.zip": "aa"})
    store.append(TRADES, [trades([MAY], [2])], {"b.zip": "bb"})
    assert store.sources(TRADES, "2025-05") == {"a.zip": "aa", "b.zip": "bb"}
    said = json.loads(pq.read_schema(store.path(TRADES, "2025-05")).metadata[b"aegis"])
    assert said["version"] == 1 and said["kind"] == "aggTrades" and said["symbol"] == "BTCUSDT"


def test_a_newer_schema_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades([MAY], [1])])
    path = store.path(TRADES, "2025-05")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"aegis": json.dumps(SAID | {"version": 99})}), path)
    with pytest.raises(Fatal, match="schema 99"):
        store.append(TRADES, [trades([MAY], [2])])
    path.write_bytes(path.read_bytes()[:-9])
    for attempt in (lambda: read(store), lambda: store.sources(TRADES, "2025-05")):
        with pytest.raises(Fatal, match=r"2025-05\.parquet cannot be read.*delete it"):
            attempt()


def test_a_month_whose_rows_are_damaged_is_named_whether_it_is_read_or_appended_to(tmp_path: Path) -> None:
    store, n = Store(tmp_path), 40_000
    store.append(TRADES, [trades(MAY + np.arange(n), np.arange(n), np.arange(n) + 1.0)])
    path = store.path(TRADES, "2025-05")
    body = bytearray(path.read_bytes())
    body[20_000:20_200] = np.random.default_rng(1).bytes(200)
    path.write_bytes(body)
    for attempt in (lambda: read(store), lambda: store.append(TRADES, [trades([MAY], [n])])):
        with pytest.raises(Fatal, match=r"BTCUSDT/2025-05\.parquet is damaged .*: delete it and download that month again"):
            attempt()
    assert path.read_bytes() == body and len(list(path.parent.iterdir())) == 1


def foreign(path: Path, said: Any) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"aegis": said} if said else None), path)


SAID = {"version": 1, "kind": "aggTrades", "symbol": "BTCUSDT", "interval": "", "sources": {}}
NOT_OURS = {
    "of a newer schema": json.dumps({"version": 2, "kind": "aggTrades"}), "without a word": None, "no JSON": "{", "no object": "[]",
    "of a recorder": json.dumps({"version": 1, "clock": []}), "of another symbol": json.dumps(SAID | {"symbol": "ETHUSDT"}),
}  # fmt: skip


@pytest.mark.parametrize("said", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_what_was_written_by_others_is_neither_read_nor_appended_to(tmp_path: Path, said: str | None) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades([MAY], [1])])
    foreign(store.path(TRADES, "2025-05"), said)
    for attempt in (lambda: read(store), lambda: list(store.gaps(TRADES)), lambda: store.rows(TRADES), lambda: store.sources(TRADES, "2025-05"),
                    lambda: store.append(TRADES, [trades([MAY], [2])])):  # fmt: skip
        with pytest.raises(Fatal, match=r"schema 2, here 1|2025-05\.parquet is not a file of aggTrades/BTCUSDT"):
            attempt()


def test_files_of_other_names_are_not_the_stores(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades([MAY], [1])])
    for name in ("notes.parquet", "2025-13.parquet", "2025-05 (copy).parquet", "2025-06.csv", "._2025-05.parquet"):
        (tmp_path / "aggTrades/BTCUSDT" / name).write_bytes(b"x")
    (tmp_path / "klines/9z/XUSDT").mkdir(parents=True)
    (tmp_path / "klines/9z/XUSDT/2025-05.parquet").write_bytes(b"x")
    (tmp_path / "x.parquet").write_bytes(b"x")
    assert store.months(TRADES) == ["2025-05"] and store.series() == [TRADES] and store.rows(TRADES) == 1
    assert column(read(store), "agg_id") == [1] and list(store.gaps(TRADES)) == []


# --- one writer, crashes, full disks ---------------------------------------------------------------------------------------------------

def test_one_writer_at_a_time_and_leftovers_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades([MAY], [1])])
    part = store.path(TRADES, "2025-05").with_name(".2025-05.parquet.part")
    part.write_bytes(b"half")
    with store.writing():
        assert not part.exists()
        with pytest.raises(Fatal, match="another process is writing"), Store(tmp_path).writing():
            raise AssertionError("two writers")
    with store.writing():
        pass


CHILD = """
import resource, signal, sys
from tests.test_store import MAY, TRADES, Store, trades
import numpy as np
store, n = Store(sys.argv[1]), 60_000
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
turn = 0
while True:
    turn += 1
    ids = np.arange(n)
    try:
        store.append(TRADES, [trades(MAY + ids, ids + turn * n, 1.0 + turn + ids)])
    except OSError as error:
        print("refused", error.errno, flush=True)
        break
    print(turn, flush=True)
"""


def child(folder: Path, word: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), word], stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_killed_while_it_writes_the_file_is_whole(tmp_path: Path, turns: int) -> None:
    with child(tmp_path, "kill") as process:
        assert process.stdout is not None
        for _ in range(turns):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    ids = column(read(Store(tmp_path), columns=["agg_id"]), "agg_id")
    assert len(ids) % 60_000 == 0 and len(ids) >= turns * 60_000 and sorted(ids) == list(range(60_000, 60_000 + len(ids)))


def test_a_disk_that_takes_no_more_leaves_what_was_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades([MAY], [1])])
    with child(tmp_path, "full") as process:
        assert process.stdout is not None and process.stdout.read().startswith("refused")
    assert column(read(store), "agg_id") == [1]
    assert [p.name for p in store.path(TRADES, "2025-05").parent.iterdir()] == ["2025-05.parquet"]


# --- reading many at once --------------------------------------------------------------------------------------------------------------

def many(store: Store, count: int, rows: int, seed: int = 1) -> list[Series]:
    """Symbols as different as they are: the first trades a thousand times as much as the last, and all in bursts."""
    chance = np.random.default_rng(seed)
    series = [Series("aggTrades", f"S{number:03d}USDT") for number in range(count)]
    for number, one in enumerate(series):
        n = max(1, int(rows / 1000 ** (number / count)))
        times = np.sort(MAY + (chance.beta(0.3, 0.3, n) * 45 * DAY).astype(np.int64) // 50 * 50)
        store.append(one, [trades(times, np.arange(n), number + np.arange(n) / n)])
    return series


@pytest.mark.parametrize("rows", [100, 5_000, 10**9])
def test_many_symbols_come_interleaved_as_a_stable_sort_would_have_them(tmp_path: Path, rows: int) -> None:
    store = Store(tmp_path)
    series = many(store, 12, 40_000)
    names = ("transact_time", "agg_id", "price")
    alone = [[np.concatenate([c.columns[name] for c in store.read([one], 0, 2**53)]) for name in names] for one in series]
    owner = np.repeat(np.arange(12), [len(one[0]) for one in alone])
    time, identity, price = (np.concatenate(parts) for parts in zip(*alone, strict=True))
    order = np.argsort(time, kind="stable")
    chunks = read(store, *series, rows=rows)
    assert np.array_equal(np.concatenate([c.series for c in chunks]), owner[order])
    for name, expected in (("transact_time", time), ("agg_id", identity), ("price", price)):
        assert np.array_equal(np.concatenate([c.columns[name] for c in chunks]), expected[order]), name


def test_a_chunk_is_bounded_though_all_series_begin_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    series = [Series("klines", f"S{number:02d}USDT", "1m") for number in range(30)]
    for one in series:
        store.append(one, [bars(MAY + np.arange(9_000) * 60_000)])
    chunks = read(store, *series, columns=["close"], rows=10_000)
    assert sum(map(len, chunks)) == 270_000 and max(map(len, chunks)) <= 20_000
    assert set(chunks[0].columns) == {"open_time", "close"}


def test_all_at_one_millisecond_is_no_trouble(tmp_path: Path) -> None:
    store = Store(tmp_path)
    series = [Series("aggTrades", name) for name in ("AUSDT", "BUSDT")]
    for one in series:
        store.append(one, [trades(np.full(70_000, MAY), np.arange(70_000))])
        store.append(one, [trades(np.full(70_000, MAY), np.arange(35_000, 105_000))])
    chunks = read(store, *series, rows=1_000)
    assert column(chunks, "agg_id") == [*range(105_000), *range(105_000)]


@pytest.mark.parametrize(("from_ms", "to_ms", "ids"), [(MAY, MAY + 1, [0]), (MAY + 1, MAY + 40 * DAY, list(range(1, 40))),
                                                       (MAY + 39 * DAY + 1, 2**53, []), (0, MAY, [])])
def test_a_span_is_cut_to_the_millisecond(tmp_path: Path, from_ms: int, to_ms: int, ids: list[int]) -> None:
    store = Store(tmp_path)
    store.append(TRADES, [trades(MAY + np.arange(40) * DAY, np.arange(40))])
    assert column(read(store, from_ms=from_ms, to_ms=to_ms), "agg_id") == ids


def test_a_series_that_is_not_there_gives_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read(store) == [] and store.series() == [] and store.rows(TRADES) == 0
    store.append(TRADES, [trades([MAY], [1])])
    assert column(read(store, Series("aggTrades", "NOBODYUSDT"), TRADES), "agg_id") == [1]


def test_reading_that_is_left_half_way_ends_its_thread(tmp_path: Path) -> None:
    store = Store(tmp_path)
    series = many(store, 4, 40_000)
    stream = store.read(series, 0, 2**53, rows=100)
    next(stream)
    stream.close()
    assert sum(map(len, read(store, *series))) > 40_000


# --- gaps ------------------------------------------------------------------------------------------------------------------------------

def test_missing_trades_are_seen_by_their_ids(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ids = np.r_[0:50_000, 50_003:60_000, 70_000:70_010]
    store.append(TRADES, [trades(MAY + np.arange(len(ids)), ids)])
    assert list(store.gaps(TRADES)) == [Gap(MAY + 49_999, MAY + 50_000, 3), Gap(MAY + 59_996, MAY + 59_997, 10_000)]
    assert list(store.gaps(TRADES, MAY, MAY + 50_000)) == []


def test_missing_candles_are_seen_across_months(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _, june = month_bounds("2025-05")
    store.append(BARS, [bars([june - 180_000, june - 120_000, june + 60_000, june + 120_000])])
    assert list(store.gaps(BARS)) == [Gap(june - 120_000, june + 60_000, 2)]


def test_missing_settlements_are_seen_though_stamps_are_late_and_intervals_change(tmp_path: Path) -> None:
    store, series, hour = Store(tmp_path), Series("fundingRate", "BTCUSDT"), 3_600_000
    hours = np.array([0, 8, 16, 20, 24, 36, 40])
    store.append(series, [funding(MAY + hours * hour + [0, 3, 0, 12, 0, 1, 0], [8, 8, 8, 4, 4, 4, 4])])
    assert list(store.gaps(series)) == [Gap(MAY + 24 * hour, MAY + 36 * hour + 1, 2)]


# --- a market is played from it --------------------------------------------------------------------------------------------------------

def test_a_store_is_a_recording(tmp_path: Path) -> None:
    store, eth = Store(tmp_path), Series("aggTrades", "ETHUSDT")
    _, june = month_bounds("2025-05")
    store.append(TRADES, [trades([june - 5, june, june + 5], [1, 2, 3])])
    store.append(eth, [trades([june], [9], 20.5)])
    store.append(Series("fundingRate", "BTCUSDT"), [funding([MAY], [8])])
    for folder in (tmp_path, tmp_path / "aggTrades"):
        found = load_recording(str(folder))
        assert list(found.trades) == ["BTCUSDT", "ETHUSDT"] and found.trades["BTCUSDT"].time_ms.tolist() == [june - 5, june, june + 5]
        assert found.trades["BTCUSDT"].agg_id is not None and found.trades["BTCUSDT"].agg_id.tolist() == [1, 2, 3]
    assert list(load_recording(str(tmp_path), symbols=("ETHUSDT",)).trades) == ["ETHUSDT"]
    assert list(load_recording(str(tmp_path / "aggTrades/ETHUSDT")).trades) == ["ETHUSDT"]
    before = load_recording(str(tmp_path)).identity
    store.append(eth, [trades([june + 1], [10])])
    assert load_recording(str(tmp_path)).identity != before


def test_candles_of_a_store_are_a_recording_with_flow(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(BARS, [bars(MAY + np.arange(5) * 60_000)])
    found = load_recording(str(tmp_path))
    candles = found.candles["BTCUSDT"]
    assert found.interval_ms == 60_000 and candles.trades is not None and candles.taker_volume is not None and candles.quote_volume is not None


def test_a_store_of_many_kinds_must_be_asked_for_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(BARS, [bars([MAY, MAY + 60_000])])
    with pytest.raises(Fatal, match="does not hold ETHUSDT"):
        load_recording(str(tmp_path), symbols=("ETHUSDT",))
    store.append(Series("klines", "BTCUSDT", "1h"), [bars([MAY, MAY + 60_000])])
    with pytest.raises(Fatal, match=r"SIM_DATA=.*holds klines/1h and klines/1m: name the folder .*/klines/1h"):
        load_recording(str(tmp_path))
    assert list(load_recording(str(tmp_path / "klines/1m")).candles) == ["BTCUSDT"]


def test_what_cannot_be_played_is_named(tmp_path: Path) -> None:
    Store(tmp_path).append(Series("fundingRate", "BTCUSDT"), [funding([MAY], [8])])
    with pytest.raises(Fatal, match="nothing that can be played"):
        load_recording(str(tmp_path))
    (tmp_path / "sub").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "sub/x.parquet")
    with pytest.raises(Fatal, match=r"sub/x\.parquet lies below the folder and is not a file of the store"):
        load_recording(str(tmp_path))
