"""Parquet store: rows a second read in order of time over many symbols, and appended, against pyarrow.dataset with a sort.

Trades like a liquid contract's (ids without holes, prices in ticks, a busy second now and then) and 1-minute candles, 18 symbols each. Memory
is the peak of what reading holds beside an empty process, measured in a child.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from src.clock import monotonic_ns
from src.store import KINDS, Series, Store, month_bounds
from tests.bench import Row, row

SYMBOLS = tuple(f"S{number:02d}USDT" for number in range(18))
TRADES, MONTHS = 500_000, ("2025-05",)
CANDLE_MONTHS = ("2025-05", "2025-06")


def trades(seed: int, count: int, month: str) -> Any:
    """One symbol's trades of a month, in the store's columns."""
    chance = np.random.default_rng(seed)
    first, after = month_bounds(month)
    times = np.sort(first + (chance.beta(0.4, 0.5, count) * (after - first - 1)).astype(np.int64))
    ids = np.arange(count) + 10_000_000
    singles = np.cumsum(chance.integers(1, 4, count))
    price = np.round(100 * np.exp(np.cumsum(chance.normal(0, 2e-5, count))), 2)
    columns = {"transact_time": pa.array(times).cast(pa.timestamp("ms", "UTC")), "agg_id": ids, "first_id": np.r_[0, singles[:-1]],
               "last_id": singles - 1, "price": price, "qty": np.round(chance.exponential(0.5, count) + 0.001, 3),
               "is_buyer_maker": chance.random(count) < 0.5}  # fmt: skip
    return pa.table(columns, KINDS["aggTrades"].schema)


def candles(seed: int, month: str) -> Any:
    chance = np.random.default_rng(seed)
    first, after = month_bounds(month)
    times = np.arange(first, after, 60_000)
    close = np.round(100 * np.exp(np.cumsum(chance.normal(0, 5e-4, len(times)))), 2)
    volume = np.round(chance.exponential(100, len(times)), 3)
    columns = {"open_time": pa.array(times).cast(pa.timestamp("ms", "UTC")), "trades": chance.integers(1, 3000, len(times)), "open": close,
               "high": np.round(close * 1.001, 2), "low": np.round(close * 0.999, 2), "close": close, "volume": volume,
               "quote_volume": np.round(volume * close, 5), "taker_buy_volume": np.round(volume / 2, 3),
               "taker_buy_quote_volume": np.round(volume * close / 2, 5)}  # fmt: skip
    return pa.table(columns, KINDS["klines"].schema)


def _read(store: Store, series: list[Series]) -> int:
    return sum(len(chunk) for chunk in store.read(series, 0, 2**53))


def _dataset(store: Store, kind: str) -> int:
    """What one would write without a store: everything into memory, then a sort."""
    table = ds.dataset(store.root / kind, format="parquet").to_table()
    return int(table.sort_by([(KINDS[kind].time, "ascending")]).num_rows)


def _seconds(work: Any) -> tuple[float, int]:
    """(seconds, rows), best of three."""
    best, rows = 1e9, 0
    for _ in range(3):
        start = monotonic_ns()
        rows = work()
        best = min(best, (monotonic_ns() - start) / 1e9)
    return best, rows


CHILD = """
import json, sys
from pathlib import Path
from src.store import Series, Store
from tests.bench.store import _dataset, _read
root, series, work = json.loads(sys.argv[1])
store, series = Store(root), [Series(*one) for one in series]
if work == "read":
    _read(store, series)
elif work == "dataset":
    _dataset(store, series[0].kind)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def _peak_mb(root: Path, series: list[Series], work: str) -> float:
    """Peak resident memory of a child that reads, less that of one that only imports."""
    named = [[one.kind, one.symbol, one.interval] for one in series]

    def peak(word: str) -> int:
        words = [sys.executable, "-c", CHILD, json.dumps([str(root), named, word])]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    return (peak(work) - peak("nothing")) / 1024


def _case(store: Store, series: list[Series], what: str) -> Iterator[Row]:
    kind = series[0].kind
    ours, rows = _seconds(lambda: _read(store, series))
    theirs, _ = _seconds(lambda: _dataset(store, kind))
    yield row("store", f"{what}, {len(series)} symbols, read interleaved", "m_rows_s", rows / ours / 1e6,
              reference="pyarrow.dataset to_table + sort", reference_value=rows / theirs / 1e6)
    yield row("store", f"{what}, {len(series)} symbols, {rows:,} rows, read interleaved", "peak_mb", _peak_mb(store.root, series, "read"),
              reference="pyarrow.dataset to_table + sort", reference_value=_peak_mb(store.root, series, "dataset"))
    size = sum(file.stat().st_size for file in (store.root / kind).rglob("*.parquet"))
    yield row("store", f"{what}, on disk", "bytes_row", size / rows)


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        made = [(Series("aggTrades", name), trades(i, TRADES, month)) for i, name in enumerate(SYMBOLS) for month in MONTHS]
        start = monotonic_ns()
        for series, table in made:
            store.append(series, [table])
        fresh = (monotonic_ns() - start) / 1e9
        start = monotonic_ns()
        for series, table in made[:3]:
            store.append(series, [table])
        again = (monotonic_ns() - start) / 1e9
        yield row("store", "trades, appended to nothing", "m_rows_s", len(made) * TRADES / fresh / 1e6)
        yield row("store", "trades, appended to the same rows (all duplicates)", "m_rows_s", 3 * TRADES / again / 1e6)
        yield from _case(store, [series for series, _ in made], "trades")
        bars = [Series("klines", name, "1m") for name in SYMBOLS]
        for i, series in enumerate(bars):
            store.append(series, [candles(i, month) for month in CANDLE_MONTHS])
        yield from _case(store, bars, "1-minute candles")
