"""Recordings are read in every accepted shape, and refused with the setting's name, its value and what would be right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.data import ACCEPTED, Recording, load_recording
from src.error_handler import Fatal

START = 1_748_736_000_000
"""2025-06-01."""
MINUTE = 60_000


def candle_columns(n: int = 5, *, interval: int = MINUTE, time: str = "open_time", factor: int = 1) -> dict[str, Any]:
    close = np.arange(n) + 100.0
    return {time: (START + np.arange(n) * interval) * factor, "open": close, "high": close + 1, "low": close - 1, "close": close,
            "volume": np.full(n, 2.5)}


def trade_columns(n: int = 4, *, time: str = "transact_time") -> dict[str, Any]:
    return {"agg_trade_id": np.arange(n) + 9, "price": np.full(n, 50.5), "quantity": np.full(n, 0.25), "first_trade_id": np.arange(n) + 20,
            "last_trade_id": np.arange(n) + 20, time: START + np.arange(n) // 2, "is_buyer_maker": np.arange(n) % 2 == 0}


def write(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def load(path: str | Path, **more: Any) -> Recording:
    return load_recording(str(path), **more)


@pytest.mark.parametrize(("time", "factor"), [("open_time", 1), ("ts_ms", 1), ("timestamp", 1), ("open_time", 1_000), ("ts_us", 1_000),
                                              ("open_time", 1_000_000)])
def test_times_in_ms_us_and_ns_are_told_apart(tmp_path: Path, time: str, factor: int) -> None:
    found = load(write(tmp_path / "BTCUSDT-1m.parquet", candle_columns(time=time, factor=factor)))
    assert found.candles["BTCUSDT"].time_ms.tolist() == [START + i * MINUTE for i in range(5)] and found.interval_ms == MINUTE


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_timestamp_columns_are_read_as_utc(tmp_path: Path, unit: str) -> None:
    columns = candle_columns()
    columns["open_time"] = pa.array(columns["open_time"]).cast(pa.timestamp("ms", tz="UTC")).cast(pa.timestamp(unit, tz="UTC"))
    assert load(write(tmp_path / "BTCUSDT.parquet", columns)).candles["BTCUSDT"].time_ms[0] == START


@pytest.mark.parametrize(("name", "symbol"), [
    ("binance_spot_BTCUSDT_aggTrades_2024-01-01.parquet", "BTCUSDT"), ("BTCUSDT-1m-2025-05.parquet", "BTCUSDT"),
    ("1000PEPEUSDT.parquet", "1000PEPEUSDT"), ("um_SOLUSDC_x.parquet", "SOLUSDC")])
def test_without_a_symbol_column_the_files_name_says_it(tmp_path: Path, name: str, symbol: str) -> None:
    assert list(load(write(tmp_path / name, trade_columns())).trades) == [symbol]


def test_candles_keep_what_the_file_has_and_lack_what_it_lacks(tmp_path: Path) -> None:
    plain = load(write(tmp_path / "AUSDT.parquet", candle_columns())).candles["AUSDT"]
    assert plain.trades is None and plain.taker_volume is None and plain.quote_volume is None and plain.volume.tolist() == [2.5] * 5
    full = candle_columns() | {"count": np.arange(5), "taker_buy_volume": np.full(5, 1.0), "quote_volume": np.full(5, 200.0)}
    rich = load(write(tmp_path / "AUSDT.parquet", full)).candles["AUSDT"]
    assert rich.trades is not None and rich.trades.tolist() == [0, 1, 2, 3, 4]
    assert rich.taker_volume is not None and rich.taker_volume[0] == 1.0 and rich.quote_volume is not None


def test_trades_keep_their_ids_sides_and_order(tmp_path: Path) -> None:
    found = load(write(tmp_path / "BTCUSDT.parquet", trade_columns())).trades["BTCUSDT"]
    assert found.agg_id is not None and found.agg_id.tolist() == [9, 10, 11, 12] and found.buyer_is_maker.tolist() == [1, 0, 1, 0]
    assert found.time_ms.tolist() == [START, START, START + 1, START + 1] and found.qty.tolist() == [0.25] * 4
    bare = {k: v for k, v in trade_columns().items() if "_id" not in k}
    assert load(write(tmp_path / "BTCUSDT.parquet", bare)).trades["BTCUSDT"].agg_id is None


@pytest.mark.parametrize("mixed", [False, True])
def test_many_symbols_in_one_file_are_taken_apart(tmp_path: Path, mixed: bool) -> None:
    a, b = candle_columns(3), candle_columns(3)
    b["close"] = b["close"] + 0.5
    table = pa.concat_tables([pa.table({"symbol": ["AUSDT"] * 3} | a), pa.table({"symbol": ["BUSDT"] * 3} | b)])
    if mixed:
        table = table.take(pa.array([0, 3, 1, 4, 2, 5]))
        table = table.set_column(0, "symbol", table["symbol"].dictionary_encode())
    pq.write_table(table, tmp_path / "x.parquet")
    found = load(tmp_path / "x.parquet").candles
    assert found["AUSDT"].close.tolist() == [100, 101, 102] and found["BUSDT"].close.tolist() == [100.5, 101.5, 102.5]
    assert list(load(tmp_path / "x.parquet", symbols=("BUSDT",)).candles) == ["BUSDT"]


def test_a_folder_joins_the_files_of_a_symbol_by_time(tmp_path: Path) -> None:
    late = candle_columns(3)
    late["open_time"] = late["open_time"] + 10 * MINUTE
    write(tmp_path / "BTCUSDT-a.parquet", late)
    write(tmp_path / "BTCUSDT-b.parquet", candle_columns(3))
    found = load(tmp_path).candles["BTCUSDT"]
    assert ((found.time_ms - START) // MINUTE).tolist() == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize("minutes", [1, 5, 15, 60, 240, 1440])
def test_the_interval_is_seen_in_the_data_in_spite_of_gaps(tmp_path: Path, minutes: int) -> None:
    columns = {k: v[[0, 1, 2, 7, 8]] for k, v in candle_columns(9, interval=minutes * MINUTE).items()}
    assert load(write(tmp_path / "AUSDT.parquet", columns)).interval_ms == minutes * MINUTE


def test_zeros_that_mark_an_outage_are_left_out(tmp_path: Path) -> None:
    columns = candle_columns()
    for name in ("open", "high", "low", "close", "volume"):
        columns[name][2] = 0.0
    assert len(load(write(tmp_path / "AUSDT.parquet", columns)).candles["AUSDT"].time_ms) == 4


def test_the_identity_changes_with_the_files(tmp_path: Path) -> None:
    first = load(write(tmp_path / "AUSDT.parquet", candle_columns(5))).identity
    assert load(tmp_path).identity == first, "a folder of one file is that file"
    assert load(write(tmp_path / "AUSDT.parquet", candle_columns(6))).identity != first


def broken(columns: dict[str, Any], name: str, place: int, value: float) -> dict[str, Any]:
    changed = columns[name].astype(type(value)) if isinstance(value, float) else columns[name].copy()
    changed[place] = value
    return columns | {name: changed}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("missing column", {k: v for k, v in candle_columns().items() if k != "close"}, "no column close"),
    ("missing side", {k: v for k, v in trade_columns().items() if k != "is_buyer_maker"}, "no column is_buyer_maker"),
    ("not a number", broken(candle_columns(), "high", 3, float("nan")), "not a number, first in row 4"),
    ("infinite", broken(candle_columns(), "high", 3, float("inf")), "not a number"),
    ("negative price", broken(candle_columns(), "low", 1, -1.0), "not above 0, first in row 2"),
    ("negative volume", broken(candle_columns(), "volume", 0, -0.5), "volume is negative"),
    ("close outside", broken(candle_columns(), "close", 2, 500.0), "outside low and high, first in row 3"),
    ("unsorted", broken(candle_columns(), "open_time", 3, START), "times do not rise, first in row 4"),
    ("repeated", broken(candle_columns(), "open_time", 1, START), "times do not rise"),
    ("unsorted trades", broken(trade_columns(), "transact_time", 3, START - 5), "times do not rise"),
    ("ids fall", broken(trade_columns(), "agg_trade_id", 3, 1), "trade ids do not rise"),
    ("no quantity", broken(trade_columns(), "quantity", 1, 0.0), "quantity is not above 0"),
    ("seconds", candle_columns() | {"open_time": START // 1_000 + np.arange(5) * 60}, "do not look like ms"),
    ("off the grid", broken(candle_columns(), "open_time", 4, START + 4 * MINUTE + 7), "not a multiple of the interval"),
    ("odd interval", candle_columns(interval=7 * MINUTE), "interval cannot be told"),
    ("one candle", candle_columns(1), "interval cannot be told"),
    ("no rows", {k: v[:0] for k, v in candle_columns().items()}, "is empty"),
    ("text", candle_columns() | {"volume": ["a", "b", "c", "d", "e"]}, "does not hold numbers"),
    ("empty cells", candle_columns() | {"volume": [1.0, None, 1.0, 1.0, 1.0]}, "has empty cells"),
]


@pytest.mark.parametrize(("columns", "why"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_bad_file_is_refused_with_setting_value_and_reason(tmp_path: Path, columns: dict[str, Any], why: str) -> None:
    path = write(tmp_path / "BTCUSDT.parquet", columns)
    with pytest.raises(Fatal) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"SIM_DATA={path}: ") and why in text and "Wanted: a Parquet file" in text and "\n" not in text


def test_a_path_that_cannot_be_read_is_refused_with_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.parquet").write_text("not Parquet")
    write(tmp_path / "whole.parquet", candle_columns(500))
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((tmp_path / "whole.parquet").read_bytes()[:-200])
    nameless = write(tmp_path / "candles.parquet", candle_columns())
    for path, why in (("", "no path"), (tmp_path / "nowhere", "no such file"), (tmp_path / "empty", "no .parquet"),
                      (tmp_path / "notes.parquet", "not a whole Parquet file"), (cut, "not a whole Parquet file"),
                      (nameless, "no symbol in its name")):
        with pytest.raises(Fatal, match=why) as caught:
            load(path, setting="DATA_PATH")
        assert str(caught.value).startswith(f"DATA_PATH={path}: ")


def test_a_folder_that_mixes_candles_and_trades_or_overlaps_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "AUSDT.parquet", candle_columns())
    write(tmp_path / "BUSDT.parquet", trade_columns())
    with pytest.raises(Fatal, match="mixes"):
        load(tmp_path)
    write(tmp_path / "BUSDT.parquet", {"symbol": ["AUSDT"] * 5} | candle_columns())
    with pytest.raises(Fatal, match="two files hold AUSDT at the same time"):
        load(tmp_path)
    with pytest.raises(Fatal, match="does not hold XUSDT"):
        load(tmp_path / "AUSDT.parquet", symbols=("XUSDT",))


def test_the_description_names_every_column_that_is_read() -> None:
    for word in ("open_time", "taker_buy_volume", "is_buyer_maker", "first_id", "transact_time", "quote_volume"):
        assert word in ACCEPTED


@pytest.mark.skipif(not os.environ.get("RECORDED_DATA"), reason="RECORDED_DATA is not set: no recordings to read")
def test_real_recordings_are_read() -> None:
    where = Path(os.environ["RECORDED_DATA"])
    candles = load(where / "klines/binance_um_1m_2025-05_2025-06.parquet")
    assert len(candles.candles) == 18 and candles.interval_ms == MINUTE and sum(len(c.time_ms) for c in candles.candles.values()) == 979_788
    trades = load(where / "ticks/binance_spot_ETHUSDT_aggTrades_2025-09-01_10k_us.parquet").trades["ETHUSDT"]
    assert len(trades.time_ms) == 10_001 and 1_756_684_800_000 <= trades.time_ms[0] < 1_756_771_200_000
    with pytest.raises(Fatal, match="no column open"):
        load(where / "klines/binance_um_5m_close_505sym_2025-07.parquet")
