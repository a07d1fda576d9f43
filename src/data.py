"""Recorded markets: Parquet files of candles or trades, read, checked, and handed over as arrays.

What is accepted is said in ``ACCEPTED``; what is not is Fatal, with the setting's name, its value, the file, and what would be right. A
recording that came through is sound: every symbol's rows rise in time without a repeat (trades may share a time), prices are positive
and finite, low ≤ open, close ≤ high, volumes are not negative, candles lie on multiples of one interval. Times are milliseconds since
1970, UTC. Candles of nothing but zeros, as some archives mark an outage, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.error_handler import Fatal
from src.recordings import files_in, messages, rows_in, trades_of
from src.store import PLAYED, read_description

ACCEPTED = """\
a Parquet file, or a folder of them, of candles or of trades (not both), or a folder of the store that download fills
(klines/1m, aggTrades, or a symbol's below one of them; the whole store where it holds one of these), or a folder of
recordings (RECORD=1: the trades among a run's frames); one row each:
  candles: [symbol], open_time (also ts_ms, ts_us, ts, timestamp, open_ms), open, high, low, close, volume,
           [quote_volume], [trades (also count)], [taker_buy_volume (also taker_volume, taker_buy_base_volume)]
  trades:  [symbol], transact_time (also ts_ms, ts_us, time, timestamp), price, qty (also quantity), is_buyer_maker,
           [agg_id (also agg_trade_id, id)], [first_id (also first_trade_id)], [last_id (also last_trade_id)]
columns in [] may be missing; without symbol it is read from the file's name (BTCUSDT-1m-2025-05.parquet,
binance_spot_BTCUSDT_aggTrades_2024-01-01.parquet); times are UTC: ms, µs or ns since 1970, or a timestamp column;
each symbol's rows are sorted by time; one candle interval of 1m to 1d for all"""

EXPECTED = ("a Parquet file, or a folder of them, of candles (open_time, open, high, low, close, volume) or of trades (transact_time, "
            "price, qty, is_buyer_maker), each symbol's rows sorted by time")
"""``ACCEPTED`` in a line, for error texts."""

INTERVALS_MS = tuple(minutes * 60_000 for minutes in (1, 3, 5, 15, 30, 60, 120, 240, 360, 480, 720, 1440))
ROWS_MAX = 60_000_000
"""More than this would not fit beside the daemon in a small machine's memory."""

_TIME = ("open_time", "transact_time", "ts_ms", "ts_us", "ts", "timestamp", "open_ms", "time", "open_time_ms")
_CANDLE_NAMES: dict[str, tuple[str, ...]] = {
    "time_ms": _TIME, "open": ("open",), "high": ("high",), "low": ("low",), "close": ("close",), "volume": ("volume",),
}
_CANDLE_OPTIONAL: dict[str, tuple[str, ...]] = {
    "quote_volume": ("quote_volume", "quote_asset_volume"), "trades": ("trades", "count", "number_of_trades"),
    "taker_volume": ("taker_buy_volume", "taker_volume", "taker_buy_base_volume", "taker_buy_base_asset_volume"),
}
_TRADE_NAMES: dict[str, tuple[str, ...]] = {
    "time_ms": _TIME, "price": ("price",), "qty": ("qty", "quantity"),
    "buyer_is_maker": ("is_buyer_maker", "buyer_is_maker", "isBuyerMaker"),
}
_TRADE_OPTIONAL: dict[str, tuple[str, ...]] = {
    "agg_id": ("agg_id", "agg_trade_id", "id"), "first_id": ("first_id", "first_trade_id"), "last_id": ("last_id", "last_trade_id"),
}
_SYMBOL_IN_NAME = re.compile(r"(?<![A-Z0-9])([A-Z0-9]{1,20}(?:USDT|USDC|FDUSD|BUSD|USD1))(?![A-Z0-9])")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candles:
    """One symbol's candles, columns of equal length; ``time_ms`` is the open. The last three are None where the file has no such column."""

    time_ms: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    quote_volume: Floats | None = None
    trades: Ints | None = None
    taker_volume: Floats | None = None


@dataclass(frozen=True, slots=True)
class TradeRows:
    """One symbol's aggregate trades, columns of equal length. Ids are None where the file has none."""

    time_ms: Ints
    price: Floats
    qty: Floats
    buyer_is_maker: NDArray[np.uint8]
    agg_id: Ints | None = None
    first_id: Ints | None = None
    last_id: Ints | None = None


Rows = TypeVar("Rows", Candles, TradeRows)


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole recording: either ``candles`` or ``trades`` is filled, by symbol. ``interval_ms``: of the candles, 0 for trades.
    ``identity``: changes when the files do (names, sizes, rows, spans)."""

    candles: dict[str, Candles]
    trades: dict[str, TradeRows]
    interval_ms: int
    identity: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who asked for which path, for error texts."""

    setting: str
    value: str

    def refuse(self, why: str) -> NoReturn:
        raise Fatal(f"{self.setting}={self.value}: {why}. Wanted: {EXPECTED}", setting=self.setting, value=self.value)


def load_recording(path: str, *, symbols: Sequence[str] = (), setting: str = "SIM_DATA") -> Recording:
    """Read and check a recording; with ``symbols``, only those. Fatal, naming ``setting``, for everything that is not as accepted."""
    asked = _Asked(setting, path)
    files = _files(path, symbols, asked)
    candles, trades = _load_frames(files, symbols, asked) if _are_frames(files) else _load(files, symbols, asked)
    if candles and trades:
        asked.refuse("it mixes files of candles and of trades")
    found = sorted({*candles, *trades})
    missing = [symbol for symbol in symbols if symbol not in found]
    if missing or not found:
        asked.refuse(f"it does not hold {', '.join(missing)}" if missing else "it holds no rows")
    joined_candles = {s: _join(candles[s], s, asked) for s in found if candles}
    joined_trades = {s: _join(trades[s], s, asked) for s in found if trades}
    for symbol, rows in joined_trades.items():
        if rows.agg_id is not None:
            _demand(np.diff(rows.agg_id, prepend=rows.agg_id[0] - 1) > 0, "the trade ids do not rise", symbol, asked)
    interval = _interval(joined_candles, asked) if candles else 0
    return Recording(joined_candles, joined_trades, interval, _identity(Path(path).expanduser(), files))


def frame_files(folder: Path) -> list[Path]:
    """The frames files of a recording (RECORD=1), or of all below a folder; none where it is no such folder."""
    return files_in(folder, "frames")


def load_messages(file: Path) -> Iterator[tuple[int, bytes]]:
    """The text messages in a frames file, each with the market time of its receipt (µs)."""
    return messages(file)


def _load(files: Sequence[Path], symbols: Sequence[str], asked: _Asked) -> tuple[dict[str, list[Candles]], dict[str, list[TradeRows]]]:
    candles: dict[str, list[Candles]] = {}
    trades: dict[str, list[TradeRows]] = {}
    rows = 0
    for file in files:
        table, kind = _read(file, asked)
        rows += table.num_rows
        if rows > ROWS_MAX:
            asked.refuse(f"it holds more than {ROWS_MAX:,} rows; choose fewer files")
        for symbol, part in _by_symbol(table, file, asked):
            if symbols and symbol not in symbols:
                continue
            where = f"{file.name}, {symbol}"
            if kind == "trades":
                trades.setdefault(symbol, []).append(_trades(part, where, asked))
                continue
            found = _candles(part, where, asked)
            if len(found.time_ms):
                candles.setdefault(symbol, []).append(found)
    return candles, trades


def _are_frames(files: Sequence[Path]) -> bool:
    return all(file.name.startswith("frames-") for file in files)


def _load_frames(files: Sequence[Path], symbols: Sequence[str], asked: _Asked) -> tuple[dict[str, list[Candles]], dict[str, list[TradeRows]]]:
    """The aggregate trades that the Feed has received."""
    try:
        rows = sum(map(rows_in, files))
        found = trades_of(files, symbols) if rows <= ROWS_MAX else {}
    except Fatal as error:
        asked.refuse(str(error))
    if rows > ROWS_MAX:
        asked.refuse(f"it holds {rows:,} frames, and at most {ROWS_MAX:,} can be played; choose fewer files")
    return {}, {symbol: [_trades(table, f"the frames of {symbol}", asked)] for symbol, table in found.items()}


def _files(path: str, symbols: Sequence[str], asked: _Asked) -> list[Path]:
    if not path:
        asked.refuse("no path is given")
    where = Path(path).expanduser()
    if where.is_dir():
        files = files_in(where, "frames") or sorted(where.glob("*.parquet")) or _files_of_store(where, symbols, asked)
        if not files:
            asked.refuse("the folder holds no .parquet file")
        return files
    if not where.is_file():
        asked.refuse("there is no such file or folder")
    return [where]


def _files_of_store(where: Path, symbols: Sequence[str], asked: _Asked) -> list[Path]:
    """What can be played of a folder of the store, which must be of one kind and interval; with ``symbols``, only theirs."""
    found: dict[str, list[Path]] = {}
    for file in sorted(where.rglob("*.parquet")):
        said = _said(file, asked) or asked.refuse(f"{file.relative_to(where)} lies below the folder and is not a file of the store")
        if said["kind"] in PLAYED:
            files = found.setdefault("/".join(filter(None, (said["kind"], said["interval"]))), [])
            files += [file] if not symbols or said["symbol"] in symbols else []
    if len(found) > 1:
        asked.refuse(f"the store holds {' and '.join(sorted(found))}: name the folder of one of them, such as {where / min(found)}")
    if not found and any(where.rglob("*.parquet")):
        asked.refuse(f"the store holds nothing that can be played: that is {' and '.join(PLAYED)}")
    files = [file for files in found.values() for file in files]
    if found and not files:
        asked.refuse(f"it does not hold {', '.join(symbols)}")
    return files


def _said(file: Path, asked: _Asked) -> dict[str, Any] | None:
    """What a file of the store says of itself."""
    return read_description(_schema(file, asked).metadata)


def _schema(file: Path, asked: _Asked) -> Any:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        asked.refuse(f"{file.name} is not a whole Parquet file ({_first_line(error)}); a download may have been cut off")


def _identity(where: Path, files: Sequence[Path]) -> str:
    digest = sha256()
    for file in files:
        metadata = pq.read_metadata(file)
        name = file.relative_to(where) if file != where else file.name
        digest.update(f"{name} {file.stat().st_size} {metadata.num_rows} {metadata.serialized_size}\n".encode())
    return digest.hexdigest()[:32]


def _column(names: Sequence[str], accepted: Sequence[str]) -> str | None:
    return next((name for name in accepted if name in names), None)


def _read(file: Path, asked: _Asked) -> tuple[pa.Table, str]:
    """The needed columns under our names, and ``candles`` or ``trades``."""
    there = _schema(file, asked).names
    kind = "trades" if "price" in there else "candles"
    needed, optional = (_TRADE_NAMES, _TRADE_OPTIONAL) if kind == "trades" else (_CANDLE_NAMES, _CANDLE_OPTIONAL)
    wanted = {ours: _column(there, accepted) for ours, accepted in {**needed, **optional}.items()}
    missing = [" or ".join(needed[ours]) for ours in needed if wanted[ours] is None]
    if missing:
        asked.refuse(f"{file.name} looks like {kind} but has no column {'; nor '.join(missing)}; it has {', '.join(there)}")
    columns = {ours: theirs for ours, theirs in wanted.items() if theirs is not None}
    if "symbol" in there:
        columns["symbol"] = "symbol"
    try:
        table = pq.read_table(file, columns=list(columns.values()))
    except (pa.ArrowException, OSError) as error:
        asked.refuse(f"{file.name} cannot be read ({_first_line(error)}); it may be damaged")
    if not table.num_rows:
        asked.refuse(f"{file.name} is empty")
    return table.select(list(columns.values())).rename_columns(list(columns)), kind


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _by_symbol(table: pa.Table, file: Path, asked: _Asked) -> list[tuple[str, pa.Table]]:
    if "symbol" not in table.column_names:
        said = _said(file, asked)
        if said is not None:
            return [(said["symbol"], table)]
        match = _SYMBOL_IN_NAME.search(file.name)
        if match is None:
            asked.refuse(f"{file.name} has no symbol column and no symbol in its name")
        return [(match[1], table)]
    column = table["symbol"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    if column.null_count:
        asked.refuse(f"{file.name} has rows without a symbol")
    codes = column.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    sorted_codes = codes[order]
    starts = np.flatnonzero(np.r_[True, sorted_codes[1:] != sorted_codes[:-1]])
    rest = table.drop_columns(["symbol"])
    if not np.array_equal(order, np.arange(len(order))):
        rest = rest.take(pa.array(order))
    ends = np.r_[starts[1:], len(codes)]
    names = column.dictionary.to_pylist()
    return [(str(names[sorted_codes[a]]), rest.slice(int(a), int(b - a))) for a, b in zip(starts, ends, strict=True)]


def _numbers(table: pa.Table, name: str, kind: Any, where: str, asked: _Asked) -> NDArray[Any]:
    column = table[name]
    if column.null_count:
        asked.refuse(f"{where}: column {name} has empty cells")
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ns")).cast(pa.int64())
    try:
        values: NDArray[Any] = column.cast(kind).to_numpy()
    except pa.ArrowException as error:
        asked.refuse(f"{where}: column {name} does not hold numbers ({_first_line(error)})")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        asked.refuse(f"{where}: column {name} has a value that is not a number, first in row {int(np.argmin(np.isfinite(values))) + 1}")
    return values


def _times(table: pa.Table, where: str, asked: _Asked) -> Ints:
    """Milliseconds; the unit is told by the size: a time of this century has 12 or 13 digits in ms, 3 more in µs, 6 more in ns."""
    values: Ints = _numbers(table, "time_ms", pa.int64(), where, asked)
    largest = int(values.max())
    for limit, divisor in ((10**11, 0), (10**14, 1), (10**17, 1_000), (10**20, 1_000_000)):
        if largest < limit:
            if not divisor:
                asked.refuse(f"{where}: the times do not look like ms, µs or ns since 1970 (the largest is {largest})")
            return values // divisor if divisor > 1 else values
    raise AssertionError("an int64 is below 10^20")


def _demand(good: NDArray[np.bool_], what: str, where: str, asked: _Asked) -> None:
    if not good.all():
        asked.refuse(f"{where}: {what}, first in row {int(np.argmin(good)) + 1}")


def _optional(table: pa.Table, name: str, kind: Any, where: str, asked: _Asked) -> NDArray[Any] | None:
    return _numbers(table, name, kind, where, asked) if name in table.column_names else None


def _candles(table: pa.Table, where: str, asked: _Asked) -> Candles:
    o, h, low, c, volume = (_numbers(table, name, pa.float64(), where, asked) for name in ("open", "high", "low", "close", "volume"))
    found = Candles(_times(table, where, asked), o, h, low, c, volume, _optional(table, "quote_volume", pa.float64(), where, asked),
                    _optional(table, "trades", pa.int64(), where, asked), _optional(table, "taker_volume", pa.float64(), where, asked))
    _demand(np.diff(found.time_ms, prepend=found.time_ms[0] - 1) > 0, "the times do not rise", where, asked)
    outage = (o == 0) & (h == 0) & (low == 0) & (c == 0) & (volume == 0)
    _demand((low > 0) | outage, "a price is not above 0", where, asked)
    _demand((low <= np.minimum(o, c)) & (h >= np.maximum(o, c)), "open or close lie outside low and high", where, asked)
    for name in ("volume", "quote_volume", "trades", "taker_volume"):
        values = getattr(found, name)
        if values is not None:
            _demand(values >= 0, f"{name} is negative", where, asked)
    if found.taker_volume is not None:
        _demand(found.taker_volume <= volume * (1 + 1e-9), "taker volume is above volume", where, asked)
    return _pick(found, ~outage) if outage.any() else found


def _pick(rows: Candles, keep: NDArray[np.bool_]) -> Candles:
    columns = {f.name: getattr(rows, f.name) for f in fields(rows)}
    kept: dict[str, Any] = {name: None if values is None else values[keep] for name, values in columns.items()}
    return Candles(**kept)


def _trades(table: pa.Table, where: str, asked: _Asked) -> TradeRows:
    price, qty = (_numbers(table, name, pa.float64(), where, asked) for name in ("price", "qty"))
    ids = [_optional(table, name, pa.int64(), where, asked) for name in ("agg_id", "first_id", "last_id")]
    maker = _numbers(table, "buyer_is_maker", pa.uint8(), where, asked)
    found = TradeRows(_times(table, where, asked), price, qty, maker, *ids)
    _demand(np.diff(found.time_ms, prepend=found.time_ms[0]) >= 0, "the times do not rise", where, asked)
    _demand(price > 0, "a price is not above 0", where, asked)
    _demand(qty > 0, "a quantity is not above 0", where, asked)
    if found.first_id is not None and found.last_id is not None:
        _demand(found.last_id >= found.first_id, "last_id is below first_id", where, asked)
    return found


def _join(parts: list[Rows], symbol: str, asked: _Asked) -> Rows:
    """One symbol's parts out of several files, by time."""
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: int(part.time_ms[0]))
    for before, after in pairwise(parts):
        if after.time_ms[0] <= before.time_ms[-1]:
            asked.refuse(f"two files hold {symbol} at the same time ({int(after.time_ms[0])} ms)")
    columns: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if any(v is None for v in values) else np.concatenate(values)
    return type(parts[0])(**columns)


def _interval(candles: dict[str, Candles], asked: _Asked) -> int:
    """The candles' interval: the commonest step between neighbours, which every open must be a multiple of."""
    steps, counts = np.unique(np.concatenate([np.diff(c.time_ms) for c in candles.values()]), return_counts=True)
    interval = int(steps[np.argmax(counts)]) if len(steps) else 0
    if interval not in INTERVALS_MS:
        asked.refuse(f"the candles' interval cannot be told: the usual step between two is {interval} ms")
    for symbol, c in candles.items():
        _demand(c.time_ms % interval == 0, f"an open time is not a multiple of the interval ({interval // 60_000} min)", symbol, asked)
    return interval
