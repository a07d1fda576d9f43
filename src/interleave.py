"""Rows of many Parquet files as one stream in order of time, decoded ahead by a thread, in bounded memory.

Row groups are read in the order of their first rows; whatever is older than the first row of the next group is complete and can be given
out. So what is held is about one chunk and one row group of each file, and never a whole file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from src.error_handler import Fatal

READ_AHEAD = 4
"""Row groups that are decoded while the last ones are merged."""
_LATEST_MS = 2**62

Ints = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of many series in order of time; at equal times in the order the series were given. ``series``: index of each row's series.

    ``columns``: name → array; times as int64 milliseconds, booleans as uint8.
    """

    series: NDArray[np.uint16]
    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.series)


@dataclass(frozen=True, slots=True)
class _Group:
    """One row group of one series' file, not read yet."""

    first_ms: int
    series: int
    path: Path
    file: Any
    number: int


class _Held:
    """Decoded rows of one series that are not given out yet: parts, and how far into the first."""

    __slots__ = ("_parts", "_start", "_time")

    def __init__(self, time: str) -> None:
        self._time = time
        self._parts: deque[Columns] = deque()
        self._start = 0

    def add(self, rows: Columns) -> None:
        self._parts.append(rows)

    def count(self, before_ms: int) -> int:
        return sum(int(np.searchsorted(part[self._time], before_ms)) for part in self._parts) - self._start

    def time_at(self, place: int) -> int:
        """Of the row after so many."""
        place += self._start
        for part in self._parts:
            if place < len(part[self._time]):
                return int(part[self._time][place])
            place -= len(part[self._time])
        raise IndexError(place)

    def take(self, before_ms: int) -> Iterator[Columns]:
        """All rows older than that; each call's time is not before the last one's."""
        while self._parts:
            part = self._parts[0]
            end = int(np.searchsorted(part[self._time], before_ms))
            if end > self._start:
                yield {name: values[self._start:end] for name, values in part.items()}
            if end < len(part[self._time]):
                self._start = end
                return
            self._parts.popleft()
            self._start = 0


def interleaved(files: Sequence[tuple[int, Path, Any]], time: str, columns: Sequence[str], span: tuple[int, int], rows: int) -> Iterator[Chunk]:
    """Chunks of about ``rows`` with span[0] ≤ time < span[1]. ``files``: (index of the series, where, ``pyarrow.parquet.ParquetFile``), at
    most one each, sorted by the timestamp column ``time``; ``columns``: those that are wanted, ``time`` among them. Fatal: a file is damaged."""
    groups = sorted((group for file in files for group in _groups(*file, time, span)), key=lambda group: group.first_ms)
    held = {series: _Held(time) for series in sorted({group.series for group in groups})}
    waiting = 0
    for group, found, next_ms in _decoded(groups, time, columns, span):
        held[group.series].add(found)
        waiting += len(found[time])
        if waiting >= rows or next_ms == _LATEST_MS:
            for cut_ms in _cuts(held, next_ms, rows):
                chunk = _merged([(series, part) for series, one in held.items() for part in one.take(cut_ms)], time)
                if chunk is not None:
                    waiting -= len(chunk)
                    yield chunk


def _cuts(held: Mapping[int, _Held], until_ms: int, rows: int) -> Iterator[int]:
    """Times at which to cut what is older than ``until_ms``, so that no chunk has much more than ``rows``; the last one is ``until_ms``.
    What is older than a cut has been taken before the next is asked for."""
    while True:
        counts = {series: one.count(until_ms) for series, one in held.items()}
        due = sum(counts.values())
        if due <= 2 * rows:
            yield until_ms
            return
        busiest = max(counts, key=lambda series: counts[series])
        share = counts[busiest] * rows // due
        yield min(until_ms, max(held[busiest].time_at(share), held[busiest].time_at(0) + 1))


def _groups(series: int, path: Path, file: Any, time: str, span: tuple[int, int]) -> Iterator[_Group]:
    column = file.schema_arrow.names.index(time)
    for number in range(file.num_row_groups):
        found = file.metadata.row_group(number).column(column).statistics
        first, last = (round(value.timestamp() * 1000) for value in (found.min, found.max))
        if first < span[1] and last >= span[0]:
            yield _Group(first, series, path, file, number)


def _decoded(groups: Sequence[_Group], time: str, columns: Sequence[str], span: tuple[int, int]) -> Iterator[tuple[_Group, Columns, int]]:
    """Each group with its rows, and when the next group's first row is."""
    ahead: deque[Future[Columns]] = deque()
    with ThreadPoolExecutor(1, "interleave") as pool:
        try:
            for at, group in enumerate(groups):
                while len(ahead) < READ_AHEAD and at + len(ahead) < len(groups):
                    ahead.append(pool.submit(_decode, groups[at + len(ahead)], time, columns, span))
                yield group, ahead.popleft().result(), groups[at + 1].first_ms if at + 1 < len(groups) else _LATEST_MS
        finally:
            for future in ahead:
                future.cancel()


def _decode(group: _Group, time: str, columns: Sequence[str], span: tuple[int, int]) -> Columns:
    table = read_group(group.file, group.number, group.path, list(columns))
    rows = {name: _array(table.column(name)) for name in columns}
    start, end = np.searchsorted(rows[time], span)
    return rows if end - start == len(rows[time]) else {name: values[start:end] for name, values in rows.items()}


def read_group(file: Any, number: int, path: Path, columns: list[str] | None = None) -> Any:
    """A row group as a table. Fatal: the file is damaged."""
    try:
        return file.read_row_group(number, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Fatal(f"{path} is damaged ({error}): delete it and download that month again") from error


def _room(rows: int, kind: Any) -> NDArray[Any]:
    """An uninitialised array out of Arrow's pool, which keeps its pages: fresh ones would cost more than the sort."""
    kind = np.dtype(kind)
    return np.frombuffer(pa.allocate_buffer(rows * kind.itemsize), kind)


def _merged(parts: Sequence[tuple[int, Columns]], time: str) -> Chunk | None:
    if not parts:
        return None
    counts = [len(rows[time]) for _, rows in parts]
    owner = np.repeat(np.array([series for series, _ in parts], np.uint16), counts)
    joined = {name: np.concatenate([rows[name] for _, rows in parts], out=_room(len(owner), like.dtype)) for name, like in parts[0][1].items()}
    if parts[0][0] == parts[-1][0]:
        return Chunk(owner, joined)
    order = _order(joined[time])
    return Chunk(owner[order], {name: np.take(values, order, out=_room(len(order), values.dtype), mode="clip") for name, values in joined.items()})


def _order(times: Ints) -> Ints:
    """The stable order by time. Time and place share a word, so that the fastest sort there is will do."""
    start, bits = int(times.min()), len(times).bit_length()
    if (int(times.max()) - start).bit_length() + bits > 62:
        return np.argsort(times, kind="stable")
    keys: Ints = np.subtract(times, start, out=_room(len(times), times.dtype))
    keys <<= bits
    keys |= np.arange(len(times))
    keys.sort()
    keys &= (1 << bits) - 1
    return keys


def whole_numbers(column: Any) -> Ints:
    """A column of int64 or of times, as an array."""
    whole = column.combine_chunks()
    whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    values: Ints = whole.view(pa.int64()).to_numpy()
    return values


def _array(column: Any) -> NDArray[Any]:
    if pa.types.is_floating(column.type):
        return column.to_numpy()  # type: ignore[no-any-return]
    return column.cast(pa.uint8()).to_numpy() if pa.types.is_boolean(column.type) else whole_numbers(column)
