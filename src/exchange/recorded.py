"""Raw frames of a venue's combined streams as recorders wrote them down: files read, checked, merged by the time they were received.

A line that is neither a frame nor one of a recorder's own is Fatal, with file and line; a last line that was cut off is left out.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from src.data import frame_files, load_messages
from src.error_handler import Fatal
from src.exchange.market import Frame

ACCEPTED = """\
a file, a folder of files, or several of them separated by commas; plain, .gz or .zst; a line each, of one of these forms:
  1721347021080832061 {"stream":…,"data":…}             when it was received, in µs or ns, and the frame
  {"t":"recv","ts":1626992741.06,"data":"{\\"stream\\":…}"}   a capture of cryptofeed, format 2; {"t":"http",…} holds a depth snapshot
  1617647797.59: {"stream":…,"data":…}                  an older capture; https://… -> 1617647797.90: {…} holds a snapshot
or a folder of recordings (RECORD=1)"""
BYTES_MAX = 1 << 29
_NS = 10**18
_EARLIEST_US, _LATEST_US = 10**15, 10**16
"""2001 to 2286: what is no such time is a line of something else."""
_WRAPPED = b'{"stream":'


class Snapshot(NamedTuple):
    """A depth snapshot that the recorder asked for by REST. ``symbol`` is empty where the file is of one symbol alone."""

    at_us: int
    symbol: str
    body: bytes


class _Combined(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _Captured(msgspec.Struct):
    t: str
    ts: float = 0.0
    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    """Frames in the order of their receipt, snapshots beside. ``identity`` changes when the files do."""

    frames: list[Frame]
    snapshots: list[Snapshot]
    identity: str


def load_frames(path: str, symbols: tuple[str, ...]) -> Recording:
    """All frames of the streams of these symbols and of all-market streams (no symbol named: of all). Fatal: nothing that could be played."""
    frames: list[Frame] = []
    snapshots: list[Snapshot] = []
    wanted, names = {symbol.lower() for symbol in symbols}, dict[str, str]()
    digest, size = sha256(), 0
    for file in _files(path):
        found, begun, subject = _items(file), len(snapshots), ""
        for item in found:
            if isinstance(item, Snapshot):
                snapshots.append(item)
                continue
            size += len(item.payload)
            if size > BYTES_MAX:
                raise Fatal(f"SIM_DATA={path} holds more than {BYTES_MAX >> 20} MiB of frames; choose fewer files", setting="SIM_DATA", value=path)
            of = item.stream.partition("@")[0]
            subject = subject or of
            if not wanted or of in wanted or of.startswith("!"):
                frames.append(item._replace(stream=names.setdefault(item.stream, item.stream)))
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        snapshots[begun:] = [s if s.symbol else s._replace(symbol=subject.upper()) for s in snapshots[begun:]]
    if not frames:
        raise Fatal(f"SIM_DATA={path}: it holds no frames{' of ' + ', '.join(symbols) if symbols else ''}. Wanted: {ACCEPTED}", setting="SIM_DATA")
    frames.sort(key=lambda f: f.at_us)
    snapshots.sort(key=lambda s: s.at_us)
    return Recording(frames, snapshots, digest.hexdigest()[:16])


def _files(path: str) -> list[Path]:
    found: list[Path] = []
    for part in path.split(",") if path else ():
        where = Path(part).expanduser()
        if where.is_dir():
            found += frame_files(where) or sorted(p for p in where.iterdir() if p.is_file())
        else:
            found.append(where)
    if not found or not all(p.is_file() for p in found):
        raise Fatal(f"SIM_DATA={path}: there is no such file. Wanted: {ACCEPTED}", setting="SIM_DATA", value=path)
    return found


def _items(file: Path) -> Iterator[Frame | Snapshot]:
    if file.suffix != ".parquet":
        return _lines(file, _read(file))
    return _messages(file)


def _messages(file: Path) -> Iterator[Frame | Snapshot]:
    """Of a recording of ours, which holds whatever came: what is no frame is passed over."""
    for at_us, message in load_messages(file):
        with contextlib.suppress(ValueError, msgspec.DecodeError):
            item = _frame(at_us, message)
            if isinstance(item, Frame):
                yield item


def _read(file: Path) -> bytes:
    try:
        if file.suffix == ".zst":
            with pa.CompressedInputStream(pa.OSFile(str(file)), "zstd") as stream:
                data: bytes = stream.read(BYTES_MAX + 1)
        elif file.suffix == ".gz":
            with gzip.open(file) as opened:
                data = opened.read(BYTES_MAX + 1)
        else:
            data = file.read_bytes()
    except (OSError, EOFError) as error:
        raise Fatal(f"SIM_DATA: {file} cannot be read: {error}", setting="SIM_DATA", value=str(file)) from None
    if len(data) > BYTES_MAX:
        raise Fatal(f"SIM_DATA: {file} holds more than {BYTES_MAX >> 20} MiB of frames", setting="SIM_DATA", value=str(file))
    return data


def _lines(file: Path, data: bytes) -> Iterator[Frame | Snapshot]:
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            item = _item(line)
        except (ValueError, OverflowError, msgspec.DecodeError):
            if number == len(lines):
                return  # cut off while it was written
            raise Fatal(f"SIM_DATA: {file}, line {number} is no frame: {line[:80]!r}. Wanted: {ACCEPTED}", setting="SIM_DATA") from None
        if item is not None:
            yield item


def _item(line: bytes) -> Frame | Snapshot | None:
    """What a line holds; None for what is neither frame nor snapshot. ValueError, DecodeError: rubbish."""
    if not line.strip() or line.startswith((b"configuration:", b"wss://")):
        return None
    if line.startswith(b'{"t":'):
        return _captured(_capture(line))
    if line.startswith(b"https://"):
        url, _, rest = line.partition(b" -> ")
        moment, _, body = rest.partition(b": ")
        return _snapshot(_moment(float(moment) * 1e6), url.decode(), body)
    moment, _, body = line.partition(b" ")
    if moment.endswith(b":"):
        return _frame(_moment(float(moment[:-1]) * 1e6), body)
    at = int(moment)
    return _frame(_moment(at // 1000 if at >= _NS else at), body)


def _moment(at_us: float) -> int:
    """ValueError: nothing was received then."""
    if not _EARLIEST_US <= at_us < _LATEST_US:
        raise ValueError(f"{at_us} is no time in µs")
    return int(at_us)


def _captured(capture: _Captured) -> Frame | Snapshot | None:
    if capture.t == "recv":
        return _frame(_moment(capture.ts * 1e6), capture.data.encode())
    return _snapshot(_moment(capture.ts * 1e6), capture.url, capture.data.encode()) if capture.t == "http" else None


def _frame(at_us: int, body: bytes) -> Frame | Snapshot | None:
    if b'"lastUpdateId"' in body[:40]:
        return Snapshot(at_us, "", body)
    if not body.startswith(_WRAPPED):
        if b'"result"' in body[:40]:
            return None
        raise ValueError("neither a frame of a combined stream nor a snapshot")
    combined = _combined(body)
    return Frame(at_us, combined.stream, bytes(combined.data))


def _snapshot(at_us: int, url: str, body: bytes) -> Snapshot | None:
    path, _, query = url.partition("?")
    if not path.endswith("/depth"):
        return None
    symbol = next((pair.removeprefix("symbol=") for pair in query.split("&") if pair.startswith("symbol=")), "")
    return Snapshot(at_us, symbol, body)


_combined = msgspec.json.Decoder(_Combined).decode
_capture = msgspec.json.Decoder(_Captured).decode
