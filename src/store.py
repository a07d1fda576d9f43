"""The Parquet store of market data: a file for each month of a series, sorted, typed, and whole or not there.

Layout: ``<root>/<kind>[/<interval>]/<SYMBOL>/<YYYY-MM>.parquet``; kinds and their columns are in ``KINDS``. A series is one symbol's rows
of one kind (and interval). Times are UTC, milliseconds.

Invariants
  * Rows are sorted by time, then id, and no two have the same. Who appends a row that is there already replaces it.
  * A file appears at once and whole: it is written as ``.part``, flushed to the disk and renamed. What a crash leaves is never read.
  * Every file says in its metadata which series and schema version it is, and which files of an archive it was made of (``sources``). One
    that says anything else is refused; files with other names than a month's are not looked at.
  * What is refused half way has changed nothing, in any month.
  * Reading and appending hold a bounded number of rows, however many there are: about ``rows`` and one row group of each series.

One process writes to a store at a time (``writing``); any number may read meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.config import INTERVALS_MS
from src.error_handler import Fatal
from src.interleave import Chunk, interleaved, read_group, whole_numbers

SCHEMA_VERSION = 1
TRADES_GROUP, CANDLES_GROUP = 32_768, 8_192
"""Rows of a row group: what one series holds in memory while it is read."""
WRITE_ROWS = 4 * TRADES_GROUP
READ_ROWS = 262_144
LATEST_MS = 2**53
"""Later than any time."""
_META = b"aegis"
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_TIME = pa.timestamp("ms", "UTC")

Table = Any
"""``pyarrow.Table``."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kind:
    """What rows of a kind look like. ``order``: the columns that rows are sorted by, time first; no two rows agree in all of them."""

    name: str
    schema: Any
    order: tuple[str, ...]
    has_interval: bool = False
    dictionary: tuple[str, ...] = ()
    split: tuple[str, ...] = ()

    @property
    def time(self) -> str:
        return self.order[0]


def _kind(name: str, order: str, whole: str = "", text: str = "", noise: str = "", *, has_interval: bool = False, flag: str = "") -> Kind:
    """``whole``: int64 columns; ``text``: numbers that repeat, as prices do; ``noise``: numbers that do not; ``flag``: booleans."""
    first, *more = order.split()
    columns = [(first, _TIME), *((c, pa.int64()) for c in [*more, *whole.split()]), *((c, pa.float64()) for c in (text + " " + noise).split()),
               *((c, pa.bool_()) for c in flag.split())]  # fmt: skip
    return Kind(name, pa.schema([pa.field(c, t, nullable=False) for c, t in columns]), tuple(order.split()), has_interval,
                tuple(text.split()), tuple(noise.split()))


KINDS = {kind.name: kind for kind in (
    _kind("aggTrades", "transact_time agg_id", whole="first_id last_id", text="price qty", flag="is_buyer_maker"),
    _kind("klines", "open_time", whole="trades", text="open high low close", noise="volume quote_volume taker_buy_volume taker_buy_quote_volume",
          has_interval=True),
    _kind("fundingRate", "calc_time", whole="funding_interval_hours", text="last_funding_rate"),
    _kind("markPriceKlines", "open_time", noise="open high low close", has_interval=True),
)}  # fmt: skip
PLAYED = ("aggTrades", "klines")
"""Kinds that a market can be played from."""


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """One symbol's rows of one kind. ``interval``: of kinds that have one, else empty."""

    kind: str
    symbol: str
    interval: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"there is no kind {self.kind!r}"
        assert bool(self.interval) == KINDS[self.kind].has_interval, f"{self.kind} and interval {self.interval!r}"

    def __str__(self) -> str:
        return "/".join(filter(None, (self.kind, self.interval, self.symbol)))


@dataclass(frozen=True, slots=True)
class Appended:
    """``rows``: that were given. ``duplicates``: of these, that were there before or were given twice; the newer one stays."""

    rows: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows that are missing between two neighbours, whose times these are. ``missing``: how many (of funding: as they were spaced)."""

    from_ms: int
    to_ms: int
    missing: int


def month_of(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m")


def month_bounds(month: str) -> tuple[int, int]:
    """First millisecond of a month, and of the one after it."""
    year, number = int(month[:4]), int(month[5:7])
    ends = (datetime(year, number, 1, tzinfo=UTC), datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC))
    return int(ends[0].timestamp()) * 1000, int(ends[1].timestamp()) * 1000


class Store:
    """A store in the folder ``root``, which is made when something is first written."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # what is there

    def path(self, series: Series, month: str) -> Path:
        return self.root / str(series) / f"{month}.parquet"

    def series(self) -> list[Series]:
        """All that have a file, sorted."""
        folders = {file.parent.relative_to(self.root).parts for file in self.root.glob("*/**/*.parquet") if _MONTH.fullmatch(file.stem)}
        found = [Series(kind, names[-1], *names[:-1]) for kind, *names in folders
                 if kind in KINDS and len(names) == 1 + KINDS[kind].has_interval and all(name in INTERVALS_MS for name in names[:-1])]  # fmt: skip
        return sorted(found)

    def months(self, series: Series) -> list[str]:
        return sorted(file.stem for file in (self.root / str(series)).glob("*.parquet") if _MONTH.fullmatch(file.stem))

    def sources(self, series: Series, month: str) -> dict[str, str]:
        """The archive's files that this month was made of, with their SHA-256. Empty where there is no such month."""
        if not self.path(series, month).exists():
            return {}
        with self._open(series, month) as file:
            return dict((read_description(file.schema_arrow.metadata) or {})["sources"])

    def rows(self, series: Series) -> int:
        count = 0
        for month in self.months(series):
            with self._open(series, month) as file:
                count += file.metadata.num_rows
        return count

    def _open(self, series: Series, month: str) -> Any:
        """A month's file. Fatal: it cannot be read, is of a newer version, or does not say that it is of this series."""
        path = self.path(series, month)
        file = _opened(path)
        said = read_description(file.schema_arrow.metadata) or {}
        if (said.get("kind"), said.get("symbol"), said.get("interval")) != (series.kind, series.symbol, series.interval):
            file.close()
            raise Fatal(f"{path} is not a file of {series}: move it away")
        return file

    def _groups(self, series: Series, month: str) -> Iterator[Table]:
        """The rows that are there."""
        if self.path(series, month).exists():
            with self._open(series, month) as file:
                for number in range(file.num_row_groups):
                    yield read_group(file, number, self.path(series, month))

    # writing

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer. Fatal: another process is."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Fatal(f"another process is writing to the store {self.root}") from None
            for part in self.root.glob("*/**/.*.part"):
                part.unlink()
            yield

    def append(self, series: Series, tables: Iterable[Table], sources: Mapping[str, str] | None = None) -> Appended:
        """Add rows: tables in the kind's schema, each sorted, one after the other in time. ``sources``: file name → SHA-256.

        ValueError: rows are out of order or not of the schema. OSError: the disk does not take them. What was there before stays then: months
        are written aside, and take their places when all are whole. The one with most rows comes last, since what it says of its sources holds
        only when their few rows of a neighbour are there.
        """
        kind, rows, duplicates = KINDS[series.kind], 0, 0
        written: list[tuple[int, Path, Path]] = []
        with contextlib.ExitStack() as undo:
            for month, given in _by_month(kind, tables):
                path = self.path(series, month)
                part = path.with_name(f".{path.name}.part")
                undo.callback(part.unlink, missing_ok=True)
                merge = _Merge(kind, self._groups(series, month), given)
                known = self.sources(series, month) | dict(sources or {})
                _write(part, kind, merge.tables(), {"kind": series.kind, "symbol": series.symbol, "interval": series.interval, "sources": known})
                written.append((merge.given, part, path))
                rows, duplicates = rows + merge.given, duplicates + merge.duplicates
            for _, part, path in sorted(written):
                part.rename(path)
                sync_folder(path.parent)
        return Appended(rows, duplicates)

    # reading

    def read(self, series: Sequence[Series], from_ms: int, to_ms: int, *, columns: Sequence[str] = (), rows: int = READ_ROWS) -> Iterator[Chunk]:
        """Rows with from_ms ≤ time < to_ms of all series together, in order of time. All of one kind; ``columns``: only these and the time.

        A chunk holds about ``rows``. A series or month that is not there gives nothing.
        """
        kinds = {one.kind for one in series}
        assert len(kinds) == 1, f"one kind at a time, and not {', '.join(sorted(kinds)) or 'none'}"
        kind = KINDS[kinds.pop()]
        wanted = [c for c in kind.schema.names if not columns or c in columns or c == kind.time]
        for month in sorted({m for one in series for m in self.months(one)}):
            first, after = month_bounds(month)
            if first < to_ms and after > from_ms:
                with contextlib.ExitStack() as stack:
                    paths = [(i, self.path(one, month)) for i, one in enumerate(series)]
                    files = [(i, path, stack.enter_context(self._open(series[i], month))) for i, path in paths if path.exists()]
                    yield from interleaved(files, kind.time, wanted, (from_ms, to_ms), rows)

    def gaps(self, series: Series, from_ms: int = 0, to_ms: int = LATEST_MS) -> Iterator[Gap]:
        """Where rows are missing between the first and the last row of that time: ids that were passed over, candles, settlements."""
        last: tuple[int, int, int] | None = None
        for chunk in self.read([series], from_ms, to_ms, columns=[*KINDS[series.kind].order, "funding_interval_hours"]):
            time, place, step = _places(series, chunk)
            if last is not None:
                time, place, step = (np.r_[was, now] for was, now in zip(last, (time, place, step), strict=True))
            for at in np.flatnonzero(np.diff(place) > np.maximum(step[1:], step[:-1])):
                yield Gap(int(time[at]), int(time[at + 1]), int((place[at + 1] - place[at] - 1) // max(step[at], step[at + 1])))
            last = int(time[-1]), int(place[-1]), int(step[-1])


def _places(series: Series, chunk: Chunk) -> tuple[Ints, Ints, Ints]:
    """(time, what rises by at most ``step`` from row to row, step) of a chunk's rows."""
    time: Ints = chunk.columns[KINDS[series.kind].time]
    if series.kind == "aggTrades":
        return time, np.sort(chunk.columns["agg_id"]), np.ones(len(time), np.int64)
    if series.kind == "fundingRate":  # stamps lie up to a few ms behind the hour
        return time, (time + 1_800_000) // 3_600_000, chunk.columns["funding_interval_hours"]
    return time, time, np.full(len(time), INTERVALS_MS[series.interval])


# --- files -----------------------------------------------------------------------------------------------------------------------------

def read_description(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any] | None:
    """What a file of the store says of itself in its schema's metadata: kind, symbol, interval, sources. None: it was written by others.
    Fatal: by a newer version."""
    try:
        said = json.loads((metadata or {}).get(_META, b"null"))
    except ValueError:
        return None
    if not isinstance(said, dict) or not {"version", "kind"} <= said.keys():
        return None
    if said["version"] > SCHEMA_VERSION:
        raise Fatal(f"the store was written by a newer version (schema {said['version']}, here {SCHEMA_VERSION}): use that version")
    return said


def _opened(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise Fatal(f"{path} cannot be read ({error}): delete it and download that month again") from error


def _write(path: Path, kind: Kind, tables: Iterable[Table], said: dict[str, Any]) -> None:
    """To the disk, and not only on its way there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = kind.schema.with_metadata({_META: json.dumps({"version": SCHEMA_VERSION, **said}, sort_keys=True)})
    encoding = {f.name: "BYTE_STREAM_SPLIT" if f.name in kind.split else "DELTA_BINARY_PACKED" for f in schema
                if f.name not in kind.dictionary and not pa.types.is_boolean(f.type)}  # fmt: skip
    order = [pq.SortingColumn(schema.names.index(name)) for name in kind.order]
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="lz4", use_dictionary=list(kind.dictionary) or False, column_encoding=encoding,
                              sorting_columns=order) as writer:  # fmt: skip
            for table in _in_pieces(tables, WRITE_ROWS):
                writer.write_table(table, row_group_size=CANDLES_GROUP if kind.has_interval else TRADES_GROUP)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in it last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _in_pieces(tables: Iterable[Table], rows: int) -> Iterator[Table]:
    """The same rows in tables of ``rows`` each; the last one may be shorter."""
    held: list[Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        if count >= rows:
            whole = pa.concat_tables(held).combine_chunks()
            for start in range(0, count - rows + 1, rows):
                yield whole.slice(start, rows)
            held, count = [whole.slice(count - count % rows)], count % rows
    if count:
        yield pa.concat_tables(held).combine_chunks()


# --- appending -------------------------------------------------------------------------------------------------------------------------

def _times(table: Table, kind: Kind) -> Ints:
    return whole_numbers(table.column(kind.time))


class _Months:
    """A stream of tables, cut where the month changes. ``table`` is what was not yet given out."""

    def __init__(self, kind: Kind, tables: Iterable[Table]) -> None:
        self._kind = kind
        self._tables = iter(tables)
        self._last_ms = 0
        self.table: Table | None = None
        self._next()

    def _next(self) -> None:
        self.table = None
        for table in self._tables:
            if not table.schema.equals(self._kind.schema):
                raise ValueError(f"columns are {table.schema.names} of other types than {self._kind.name} has")
            if table.num_rows:
                _check(table, self._kind, self._last_ms)
                self.table, self._last_ms = table, int(_times(table, self._kind)[-1])
                return

    def month(self) -> str:
        assert self.table is not None, "no more rows"
        return month_of(int(_times(self.table, self._kind)[0]))

    def of(self, month: str) -> Iterator[Table]:
        """The rows of that month, which is the next."""
        after = month_bounds(month)[1]
        while self.table is not None:
            table, count = self.table, int(np.searchsorted(_times(self.table, self._kind), after))
            if count == 0:
                return
            if count < table.num_rows:
                self.table = table.slice(count)
                yield table.slice(0, count)
                return
            self._next()
            yield table


def _by_month(kind: Kind, tables: Iterable[Table]) -> Iterator[tuple[str, Iterator[Table]]]:
    months = _Months(kind, tables)
    while months.table is not None:
        month = months.month()
        yield month, months.of(month)


def _check(table: Table, kind: Kind, last_ms: int) -> None:
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            raise ValueError(f"column {name} has empty cells")
        if pa.types.is_floating(column.type) and not np.isfinite(column.to_numpy()).all():
            raise ValueError(f"column {name} has a value that is not a number")
    times = _times(table, kind)
    if times[0] < last_ms or (np.diff(times) < 0).any():
        raise ValueError("the times do not rise")


class _Merge:
    """Rows that were there and rows that are given, in one order and without repeats. ``given``, ``duplicates`` count as it goes."""

    def __init__(self, kind: Kind, old: Iterator[Table], new: Iterator[Table]) -> None:
        self._kind = kind
        self._streams = [old, new]
        self._held: list[Table | None] = [None, None]
        self._ended = [False, False]
        self.given = self.duplicates = 0

    def tables(self) -> Iterator[Table]:
        """What is older than all that a stream may still bring, again and again."""
        while True:
            for side in (0, 1):
                if self._held[side] is None:
                    self._fill(side)
            ends = [int(_times(held, self._kind)[-1]) for held, ended in zip(self._held, self._ended, strict=True) if held is not None and not ended]
            due = self._cut(min(ends, default=LATEST_MS))
            if due is not None:
                yield due
            elif not ends:
                return
            else:  # one and the same time from end to end
                for side in (0, 1):
                    self._fill(side)

    def _fill(self, side: int) -> None:
        table = next(self._streams[side], None)
        if table is None:
            self._ended[side] = True
            return
        self.given += table.num_rows * side
        held = self._held[side]
        self._held[side] = table if held is None else pa.concat_tables([held, table])

    def _cut(self, before_ms: int) -> Table | None:
        """What is held and older, merged."""
        parts = []
        for side, held in enumerate(self._held):
            if held is None:
                continue
            count = int(np.searchsorted(_times(held, self._kind), before_ms))
            if count:
                parts.append(held.slice(0, count))
                self._held[side] = held.slice(count) if count < held.num_rows else None
        return self._joined(parts) if parts else None

    def _joined(self, parts: list[Table]) -> Table:
        """Sorted, and of rows that agree in the kind's order the last one."""
        table = pa.concat_tables(parts).combine_chunks()
        keys = [whole_numbers(table.column(name)) for name in self._kind.order]
        rises = np.zeros(table.num_rows - 1, np.bool_)
        for key in reversed(keys):
            rises = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & rises)
        if rises.all():
            return table
        order = np.lexsort(keys[::-1])
        same = np.ones(len(order) - 1, np.bool_)
        for key in keys:
            same &= key[order][1:] == key[order][:-1]
        self.duplicates += int(same.sum())
        return table.take(pa.array(order[np.r_[~same, True]]))
