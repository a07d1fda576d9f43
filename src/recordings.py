"""Recordings of what the Feed received and wrote: their files, and how to read them.

A run is a folder ``<start>/`` of numbered Parquet files: ``frames-000001.parquet`` …, raw WebSocket frames in the order the Feed took them,
and ``slots-000001.parquet`` …, ring slots in the order it wrote them. Older numbers may be gone, for the space is bounded. Each file says
in its metadata, under ``aegis``, the run's clock, its symbol table and the connections its frames came by.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.clock import Clock
from src.error_handler import Fatal
from src.ring_buffer import SLOT_DTYPE

VERSION = 1
META = b"aegis"
GRID_TOLERANCE, PRICE_MAX, TIME_MAX_MS = 1e-6, 1e12, 10**14
"""What the Feed takes: quantities on the step's grid, prices and times that can be."""
OPENED, ENDED, ADMITTED = 16, 17, 18
"""Kinds of rows that are no frames (those are the protocol's opcodes, below 16): a link was opened, has ended, or a held one was let in."""
_MORE, _TEXT = 0, 1
FRAMES = pa.schema([
    ("received_ns", pa.int64()), ("link", pa.uint32()), ("kind", pa.uint8()), ("fin", pa.bool_()), ("last_in_read", pa.bool_()),
    ("payload", pa.large_binary()),
])
_ARROW = {"u1": pa.uint8(), "u2": pa.uint16(), "u4": pa.uint32(), "u8": pa.uint64(), "i8": pa.int64(), "f8": pa.float64()}
SLOT_NAMES: tuple[str, ...] = SLOT_DTYPE.names or ()
SLOTS = pa.schema([(name, _ARROW[SLOT_DTYPE[name].str.lstrip("<|")]) for name in SLOT_NAMES])


class Frame(NamedTuple):
    """A frame as it came. ``received_ns``: CLOCK_MONOTONIC when its socket read was taken; ``link``: number of the connection; ``kind``: the
    protocol's opcode, or OPENED, ENDED, ADMITTED; ``fin``: it ends its message; ``last``: it was the last one of its read."""

    received_ns: int
    link: int
    kind: int
    fin: bool
    last: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """What the files of a run say. ``symbols``: index → (name, stepSize); ``links``: number → {"route", "held", "symbols"}."""

    clock: Clock
    symbols: dict[int, tuple[str, float]]
    links: dict[int, dict[str, Any]]


def files_in(folder: Path, kind: str) -> list[Path]:
    """``frames`` or ``slots`` files of a run, or of all runs below a folder, oldest first."""
    return sorted([*folder.glob(f"{kind}-*.parquet"), *folder.glob(f"*/{kind}-*.parquet")], key=lambda file: (file.parent.name, file.name))


def describe(folder: str | Path) -> Run:
    """Fatal: there is no recording, or one of a newer version."""
    found = [_said(file) for kind in ("frames", "slots") for file in files_in(Path(folder), kind)]
    if not found:
        raise Fatal(f"{folder} holds no recording (frames-*.parquet)")
    symbols = {int(i): (str(name), float(step)) for said in found for i, (name, step) in said["symbols"].items()}
    links = {int(number): link for said in found for number, link in said["links"].items()}
    return Run(Clock(*found[-1]["clock"]), symbols, links)


def _said(file: Path) -> dict[str, Any]:
    with _opened(file) as opened:
        text = (opened.metadata.metadata or {}).get(META, b"null")
    try:
        said: Any = json.loads(text)
    except ValueError:
        said = None
    if not isinstance(said, dict) or not {"version", "clock", "symbols", "links"} <= said.keys() or said["version"] > VERSION:
        raise Fatal(f"{file} is no recording, or one of a newer version than {VERSION}")
    return said


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Fatal: it cannot be read, now or later on."""
    try:
        with pq.ParquetFile(file) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise Fatal(f"{file} cannot be read ({error}): move it away") from error


def rows_in(file: Path) -> int:
    """Fatal: it cannot be read."""
    with _opened(file) as opened:
        return int(opened.metadata.num_rows)


def frames(folder: str | Path) -> Iterator[Frame]:
    """Every frame of a run (or of all runs below the folder), in order; one row group in memory at a time."""
    for file in files_in(Path(folder), "frames"):
        _said(file)
        with _opened(file) as opened:
            for batch in opened.iter_batches(batch_size=8_192):
                columns = [batch.column(name) for name in FRAMES.names]
                yield from map(Frame, *(column.to_pylist() for column in columns))


def messages(file: Path) -> Iterator[tuple[int, bytes]]:
    """Every whole text message in a frames file, with the market time of its receipt (µs)."""
    clock = Clock(*_said(file)["clock"])
    begun: dict[int, bytes] = {}
    with _opened(file) as opened:
        for batch in opened.iter_batches(batch_size=8_192):
            for frame in map(Frame, *(batch.column(name).to_pylist() for name in FRAMES.names)):
                if frame.kind in (_TEXT, _MORE):
                    text = begun.pop(frame.link, b"") + frame.payload
                    if frame.fin:
                        yield clock.t0_ms * 1000 + int(clock.speed * (frame.received_ns - clock.m0_ns)) // 1000, text
                    else:
                        begun[frame.link] = text


def slots(folder: str | Path) -> Iterator[NDArray[np.void]]:
    """Every ring slot of a run, in order, as arrays of SLOT_DTYPE."""
    for file in files_in(Path(folder), "slots"):
        _said(file)
        with _opened(file) as opened:
            for batch in opened.iter_batches(batch_size=65_536):
                rows = np.empty(batch.num_rows, SLOT_DTYPE)
                for name in SLOT_NAMES:
                    rows[name] = batch.column(name).to_numpy()
                yield rows


class _Trade(msgspec.Struct, gc=False, tag_field="e", tag="aggTrade"):
    s: str
    a: int
    p: float
    q: float
    f: int
    l: int  # noqa: E741  (the venue's letter)
    T: int
    m: bool


class _TradeFrame(msgspec.Struct, gc=False):
    data: _Trade


_decode = msgspec.json.Decoder(_TradeFrame, strict=False).decode


def trades_of(files: Iterable[Path], symbols: Sequence[str] = ()) -> dict[str, Any]:
    """The aggregate trades that frames files hold: symbol → table of agg_id, time_ms, price, qty, buyer_is_maker, first_id, last_id, by id,
    each id once. Frames that are no such trade, and trades that the Feed would not take, are passed over."""
    found: dict[str, dict[int, tuple[int, float, float, bool, int, int]]] = {}
    for file in files:
        steps = {name: step for name, step in _said(file)["symbols"].values() if not symbols or name in symbols}
        with _opened(file) as opened:
            for batch in opened.iter_batches(batch_size=8_192, columns=["payload"]):
                for trade in _trades_in(batch.column(0).to_pylist()):
                    if _is_sound(trade, steps.get(trade.s, 0.0)):
                        found.setdefault(trade.s, {}).setdefault(trade.a, (trade.T, trade.p, trade.q, trade.m, trade.f, trade.l))
    names = ("agg_id", "time_ms", "price", "qty", "buyer_is_maker", "first_id", "last_id")
    columns = {symbol: zip(*((a, *rows[a]) for a in sorted(rows)), strict=True) for symbol, rows in sorted(found.items())}
    return {symbol: pa.table(dict(zip(names, map(list, parts), strict=True))) for symbol, parts in columns.items()}


def _trades_in(payloads: Iterable[bytes]) -> Iterator[_Trade]:
    for payload in payloads:
        if b'"aggTrade"' in payload[:96]:
            with contextlib.suppress(msgspec.DecodeError):  # rubbish was counted when it came
                yield _decode(payload).data


def _is_sound(trade: _Trade, step: float) -> bool:
    """``step`` 0: not one of the run's symbols."""
    steps = trade.q / step if step > 0 else 0.0
    whole = 0.5 < steps < 2**53 and abs(steps - round(steps)) <= GRID_TOLERANCE + steps * 1e-15
    return whole and 0.0 < trade.p < PRICE_MAX and 0 < trade.T < TIME_MAX_MS and all(0 < i < 2**63 for i in (trade.a, trade.f, trade.l))
