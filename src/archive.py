"""The venue's archive of market data: which files there are for a span of time, and what is in them.

The archive is a folder of zip files with one CSV each, for a month or for a day of one series. Its files differ by age: with or without
a header, with times in ms or in µs, booleans in either case. Everything that comes out here is in the store's schema, sorted.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from src.clock import iso, parse_utc, utc_day
from src.interleave import whole_numbers
from src.store import KINDS, Kind, Series, Table, month_bounds, month_of

DAY_MS = 86_400_000
BLOCK_BYTES = 8 * 1024 * 1024
CARRIED_ROWS = 4_096
"""How far rows may stand from their place in a file that is not perfectly sorted."""
HEADER_BYTES_MAX = 4_096
STRAY_MS = DAY_MS
"""How far beyond its period a file's rows may lie."""
MICROSECONDS_FROM = 10**14
MONTHLY_ONLY = ("fundingRate",)

_KLINE = "open_time open high low close volume close_time quote_volume count taker_buy_volume taker_buy_quote_volume ignore"
_POSITIONS = {
    "aggTrades": "agg_trade_id price quantity first_trade_id last_trade_id transact_time is_buyer_maker", "klines": _KLINE,
    "markPriceKlines": _KLINE, "fundingRate": "calc_time funding_interval_hours last_funding_rate",
}  # fmt: skip
"""Columns of files without a header."""
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, pa.ArrowException)
"""What reading a damaged zip raises; RuntimeError where it is encrypted, or of a method that we do not have."""
_THEIRS: dict[str, tuple[str, ...]] = {
    "agg_id": ("agg_trade_id",), "qty": ("quantity",), "first_id": ("first_trade_id",), "last_id": ("last_trade_id",), "trades": ("count",),
    "quote_volume": ("quote_asset_volume",), "taker_buy_volume": ("taker_buy_base_asset_volume",),
    "taker_buy_quote_volume": ("taker_buy_quote_asset_volume",),
}  # fmt: skip
"""Names that the archive's headers have or had for a column of the store, where they differ from ours."""


@dataclass(frozen=True, slots=True, order=True)
class ArchiveFile:
    """One file. ``period``: ``2025-01`` for a month, ``2025-01-31`` for a day."""

    series: Series
    period: str

    @property
    def name(self) -> str:
        return f"{self.series.symbol}-{self.series.interval or self.series.kind}-{self.period}.zip"

    @property
    def path(self) -> str:
        """Below the archive's root."""
        folder = "/".join(filter(None, (self.series.kind, self.series.symbol, self.series.interval)))
        return f"data/futures/um/{'monthly' if self.is_month else 'daily'}/{folder}/{self.name}"

    @property
    def span(self) -> tuple[int, int]:
        """Its first millisecond, and the one after its last."""
        if self.is_month:
            return month_bounds(self.month)
        return parse_utc(self.period), parse_utc(self.period) + DAY_MS

    @property
    def month(self) -> str:
        return self.period[:7]

    @property
    def is_month(self) -> bool:
        return len(self.period) == 7

    def days(self) -> list[ArchiveFile]:
        """A month's days; nothing where the archive has no daily files."""
        first, after = month_bounds(self.month)
        return [] if self.series.kind in MONTHLY_ONLY else [ArchiveFile(self.series, day) for day in _days(first, after)]

    def is_in(self, sources: Iterable[str]) -> bool:
        """Whether a month made of these files holds all of this one's rows."""
        known = set(sources)
        month = ArchiveFile(self.series, self.month)
        return self.name in known or month.name in known or (self.is_month and known >= {day.name for day in self.days()} != set())


def files_for(series: Series, from_ms: int, to_ms: int) -> list[ArchiveFile]:
    """What to fetch for from_ms ≤ time < to_ms, both whole days: months where all of one is wanted, else days. Funding comes in months."""
    assert from_ms % DAY_MS == to_ms % DAY_MS == 0, "whole days"
    found, at = [], from_ms
    while at < to_ms:
        first, after = month_bounds(month_of(at))
        if (at == first and after <= to_ms) or series.kind in MONTHLY_ONLY:
            found.append(ArchiveFile(series, month_of(at)))
        else:
            found += [ArchiveFile(series, day) for day in _days(at, min(after, to_ms))]
        at = after
    return found


def _days(from_ms: int, to_ms: int) -> list[str]:
    start = datetime(1970, 1, 1, tzinfo=UTC)
    return [(start + timedelta(days=day)).strftime("%Y-%m-%d") for day in range(utc_day(from_ms), utc_day(to_ms))]


def rows_of(file: Path, series: Series) -> Iterator[Table]:
    """A file's rows in the store's schema, in pieces. ValueError: it is not what the archive says it is."""
    kind = KINDS[series.kind]
    try:
        with zipfile.ZipFile(file) as outer:
            names = outer.namelist()
            if len(names) != 1:
                raise ValueError(f"{file.name} holds {len(names)} files, and should hold one")
            with outer.open(names[0]) as inner:
                yield from _in_order(_parsed(io.BufferedReader(cast(Any, inner)), series.kind), kind)
    except _UNREADABLE as error:
        raise ValueError(f"{file.name}: {(str(error).splitlines() or [type(error).__name__])[0][:160]}") from error


def check_period(table: Table, file: ArchiveFile) -> None:
    """ValueError: the rows, which are sorted, are of another time than the file's."""
    (first, after), times = file.span, whole_numbers(table.column(KINDS[file.series.kind].time))
    for ms in (times[0], times[-1]) if len(times) else ():
        if not first - STRAY_MS <= ms < after + STRAY_MS:
            raise ValueError(f"it holds rows of {_day(int(ms))}, and should hold those of {file.period}")


def _day(ms: int) -> str:
    try:
        return iso(ms)[:10]
    except (ValueError, OverflowError):  # no year of ours
        return f"{ms} ms"


def _parsed(text: io.BufferedReader, kind: str) -> Iterator[Table]:
    begin = text.peek(1)[:1]
    if not begin:
        return
    if begin.isdigit():
        names = _POSITIONS[kind].split()
    else:
        names = [name.strip().strip('"') for name in text.readline(HEADER_BYTES_MAX).decode("ascii", "replace").split(",")]
    wanted: dict[Any, str] = {column: _found(column.name, names) for column in KINDS[kind].schema}
    types = {theirs: pa.int64() if pa.types.is_timestamp(column.type) else column.type for column, theirs in wanted.items()}
    reading = csv.ReadOptions(column_names=names)
    converting = csv.ConvertOptions(column_types=types, include_columns=list(types), true_values=["true", "True"], false_values=["false", "False"])
    for lines in _blocks(text):
        block = csv.read_csv(pa.BufferReader(lines), reading, convert_options=converting)
        columns = [_in_ms(block.column(theirs)) if pa.types.is_timestamp(column.type) else block.column(theirs) for column, theirs in wanted.items()]
        yield pa.table(columns, KINDS[kind].schema)


def _blocks(text: io.BufferedReader) -> Iterator[bytes]:
    """Whole lines, about ``BLOCK_BYTES`` at a time. Arrow gets bytes and not the file: threads of its reader outlive an error, and go on to read
    what is closed by then."""
    rest = b""
    while piece := text.read(BLOCK_BYTES):
        rest += piece
        end = rest.rfind(b"\n") + 1
        if not end and len(rest) > BLOCK_BYTES:
            raise ValueError(f"a line is longer than {BLOCK_BYTES} bytes")
        lines, rest = rest[:end], rest[end:]
        if lines and not lines.isspace():
            yield lines
    if rest:
        yield rest


def _found(ours: str, names: Sequence[str]) -> str:
    for name in (ours, *_THEIRS.get(ours, ())):
        if name in names:
            return name
    raise ValueError(f"there is no column {ours} among {', '.join(names)[:160]!r}")


def _in_ms(column: pa.Array) -> pa.Array:
    """Times of either unit; they are told apart by their size."""
    if column.null_count:
        raise ValueError("a time is missing")
    values = column.to_numpy()
    return pa.array(np.where(values >= MICROSECONDS_FROM, values // 1000, values)).cast(pa.timestamp("ms", "UTC"))


def _in_order(tables: Iterable[Table], kind: Kind) -> Iterator[Table]:
    """The same rows sorted, where each stands near its place. The last ones of a piece are carried into the next."""
    carried = None
    for table in tables:
        whole = _sorted(table if carried is None else pa.concat_tables([carried, table]), kind)
        ready = max(0, whole.num_rows - CARRIED_ROWS)
        carried = whole.slice(ready)
        if ready:
            yield whole.slice(0, ready)
    if carried is not None:
        yield carried


def _sorted(table: Table, kind: Kind) -> Table:
    keys = [whole_numbers(table.column(name)) for name in reversed(kind.order)]
    order = np.lexsort(keys)
    return table if np.array_equal(order, np.arange(len(order))) else table.take(pa.array(order))
