"""Records what the Feed receives and writes: raw frames and ring slots, to Parquet, off the hot path (RECORD=1).

The Feed's loop only appends bytes to a chunk. A full chunk goes through a bounded queue to a thread, which writes, compresses and rotates
files. Without RECORD none of this exists: links and table are then the plain ones.

Invariants
  * The loop never waits for the disk. What the queue has no room for, and what the disk refuses, is lost, counted and said.
  * A file appears whole, under its name, when it is finished; at most ``ROTATE_S`` are lost when the process is killed.
  * All recordings together stay within ``max_bytes``: the oldest files go first, and are counted.
  * A frame's time is that of its socket read, and equal to ``received_ns`` of the slots that were made of it.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from picows import WSFrame, WSTransport

from src.clock import SECOND_NS, Clock, epoch_ms, iso, monotonic_ns
from src.conflate import RECORDS_DEFAULT, Conflator, Staged
from src.error_handler import Throttle, failure, lifecycle, warn
from src.links import Carrier, Link, MarketLink, PublicLink, Receiver, Route
from src.recordings import ADMITTED, ENDED, FRAMES, META, OPENED, SLOT_NAMES, SLOTS, VERSION
from src.ring_buffer import SLOT_DTYPE, WORD_CAPACITY, WORD_HEAD, Ring
from src.ring_memory import CONTROL_WORDS, SLOT_WORDS

CHUNK_BYTES = 1 << 20
CHUNK_SLOTS = 8_192
CHUNK_NS = SECOND_NS
"""A chunk is handed over when it is full or this old, whichever comes first."""
QUEUE_BYTES = 64 << 20
"""What may wait for the thread: half a minute of a busy market."""
ROTATE_S = 60.0
FILE_BYTES = 64 << 20
RETRY_S = 10.0
"""After a refusal of the disk nothing is tried for so long."""
CLOSE_S = 5.0
LOG_EVERY_S = 60.0
_FIN, _LAST = 64, 128
_HEAD = struct.Struct("=qIIB")
"""Of a frame: received_ns, bytes of payload, link, kind with _FIN and _LAST."""
_HEAD_DTYPE = np.dtype([("received_ns", "=i8"), ("bytes", "=u4"), ("link", "=u4"), ("kind", "u1")])


@dataclass(slots=True)
class _Frames:
    """Rows of the frames table that are not written yet: payloads end to end, and a head for each."""

    began_ns: int
    payload: bytearray = field(default_factory=bytearray)
    heads: bytearray = field(default_factory=bytearray)

    @property
    def rows(self) -> int:
        return len(self.heads) // _HEAD.size

    @property
    def nbytes(self) -> int:
        return len(self.payload) + len(self.heads)

    @property
    def links(self) -> list[int]:
        """Numbers of the connections, each once."""
        found: list[int] = np.unique(np.frombuffer(self.heads, _HEAD_DTYPE)["link"]).tolist()
        return found

    def table(self) -> Any:
        heads = np.frombuffer(self.heads, _HEAD_DTYPE)
        ends = np.r_[0, np.cumsum(heads["bytes"], dtype=np.int64)]
        payload = pa.LargeBinaryArray.from_buffers(pa.large_binary(), self.rows, [None, pa.py_buffer(ends), pa.py_buffer(self.payload)])
        received_ns, link, kind = (np.ascontiguousarray(heads[name]) for name in ("received_ns", "link", "kind"))
        return pa.table([received_ns, link, kind & 63, kind & _FIN > 0, kind & _LAST > 0, payload], FRAMES)


@dataclass(slots=True)
class _Slots:
    """Ring slots that are not written yet."""

    began_ns: int
    words: NDArray[np.uint64] = field(default_factory=lambda: np.empty((CHUNK_SLOTS, SLOT_WORDS), np.uint64))
    rows: int = 0

    @property
    def nbytes(self) -> int:
        return self.rows * SLOT_WORDS * 8

    def table(self) -> Any:
        rows = self.words[:self.rows].reshape(-1).view(SLOT_DTYPE)
        return pa.table([np.ascontiguousarray(rows[name]) for name in SLOT_NAMES], SLOTS)


@dataclass(slots=True)
class Tally:
    """What became of it. ``lost_*``: rows; ``rotated_out``: files that went to make room."""

    frames: int = 0
    slots: int = 0
    bytes: int = 0
    files: int = 0
    lost_frames: int = 0
    lost_slots: int = 0
    rotated_out: int = 0


class Tape:
    """The loop's end: takes rows, hands chunks over. Used on the loop's thread alone."""

    def __init__(self, queue: SimpleQueue[Any], queue_bytes: int = QUEUE_BYTES) -> None:
        self._queue = queue
        self._queue_bytes = queue_bytes
        self._frames = _Frames(0)
        self._slots = _Slots(0)
        self._next_slot = -1
        self.carriers: dict[int, tuple[Carrier, bool]] = {}
        self.handed = 0
        self.written = 0
        """Bytes, by the loop and by the thread: the difference waits."""
        self.lost_frames = self.lost_slots = 0

    def new_link(self, carrier: Carrier, held: bool) -> int:
        number = len(self.carriers)
        self.carriers[number] = (carrier, held)
        return number

    def row(self, link: int, kind: int, received_ns: int, payload: bytes) -> None:
        """One row of the frames table; ``kind`` with _FIN and _LAST."""
        chunk = self._frames
        chunk.payload += payload
        chunk.heads += _HEAD.pack(received_ns, len(payload), link, kind)
        if len(chunk.payload) > CHUNK_BYTES or received_ns - chunk.began_ns > CHUNK_NS:
            self._hand_over_frames(received_ns)

    def copy(self, ring: Ring) -> None:
        """The slots that were written since the last call: the writer calls it after every write, so none is overwritten meanwhile."""
        words = ring.words
        head, capacity = int(words[WORD_HEAD]), int(words[WORD_CAPACITY])
        at = self._next_slot if self._next_slot >= 0 else head
        while at < head:
            chunk, place = self._slots, at & (capacity - 1)
            count = min(head - at, capacity - place, CHUNK_SLOTS - chunk.rows)
            start = CONTROL_WORDS + place * SLOT_WORDS
            chunk.words[chunk.rows:chunk.rows + count] = words[start:start + count * SLOT_WORDS].reshape(count, SLOT_WORDS)
            chunk.rows += count
            at += count
            now_ns = int(chunk.words[chunk.rows - 1, 1])
            if chunk.rows == CHUNK_SLOTS or now_ns - chunk.began_ns > CHUNK_NS:
                self._hand_over_slots(now_ns)
        self._next_slot = head

    def begin_slots(self, ring: Ring) -> None:
        """What is written from now on."""
        self._next_slot = int(ring.words[WORD_HEAD])

    def finish(self) -> None:
        """Hand over what there is."""
        self._hand_over_frames(0)
        self._hand_over_slots(0)

    def _hand_over_frames(self, now_ns: int) -> None:
        chunk, self._frames = self._frames, _Frames(now_ns)
        if chunk.rows and not self._hand_over(chunk):
            self.lost_frames += chunk.rows

    def _hand_over_slots(self, now_ns: int) -> None:
        chunk, self._slots = self._slots, _Slots(now_ns)
        if chunk.rows and not self._hand_over(chunk):
            self.lost_slots += chunk.rows

    def _hand_over(self, chunk: _Frames | _Slots) -> bool:
        if self.handed - self.written + chunk.nbytes > self._queue_bytes:
            return False
        self.handed += chunk.nbytes
        self._queue.put(chunk)
        return True


# --- what stands in the plain ones' place ----------------------------------------------------------------------------------------------

class _Taped(Link):
    """A link whose frames are recorded, with the time of their read."""

    def __init__(self, tape: Tape, sink: Receiver, carrier: Carrier, hold: bool) -> None:
        super().__init__(sink, carrier, hold)
        self._tape = tape
        self._number = tape.new_link(carrier, hold)
        self._read_ns = 0
        self._begins = True

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        self._tape.row(self._number, OPENED, monotonic_ns(), b"")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        super().on_ws_disconnected(transport)
        self._tape.row(self._number, ENDED, monotonic_ns(), b"")

    def admit(self) -> None:
        self._tape.row(self._number, ADMITTED, monotonic_ns(), b"")
        super().admit()

    def _record(self, frame: WSFrame, before_ns: int) -> None:
        """After the frame was taken. ``before_ns``: when the link's last rows were received, before it was."""
        if self._received_ns != before_ns:  # the first row of a read: its time is this read's
            self._read_ns = self._received_ns
        elif self._begins:
            self._read_ns = monotonic_ns()
        self._begins = frame.last_in_buffer
        kind: int = frame.msg_type.value | (_FIN if frame.fin else 0) | (_LAST if frame.last_in_buffer else 0)
        self._tape.row(self._number, kind, self._read_ns, frame.get_payload_as_bytes())


class TapedMarketLink(_Taped, MarketLink):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        before_ns = self._received_ns
        MarketLink.on_ws_frame(self, transport, frame)
        self._record(frame, before_ns)


class TapedPublicLink(_Taped, PublicLink):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        before_ns = self._received_ns
        PublicLink.on_ws_frame(self, transport, frame)
        self._record(frame, before_ns)


class TapedConflator(Conflator):
    """A table whose slots are recorded as they reach the ring."""

    def __init__(self, tape: Tape, steps: Sequence[float], ring: Ring, records: int = RECORDS_DEFAULT, spare: int = 0) -> None:
        super().__init__(steps, ring, records, spare)
        self._tape = tape
        tape.begin_slots(ring)

    def flush(self, staged: Staged, rows: int, received_ns: int) -> int:
        status = super().flush(staged, rows, received_ns)
        self._tape.copy(self._ring)
        return status

    def _word(self, kind: int, symbol: int, now_ns: int, values: Any) -> bool:
        done = super()._word(kind, symbol, now_ns, values)
        self._tape.copy(self._ring)
        return done


# --- the thread ------------------------------------------------------------------------------------------------------------------------

class _File:
    """A file that is being written; under its name only once it is finished. ``links``: connections whose frames are in it."""

    def __init__(self, path: Path, schema: Any, now_ns: int) -> None:
        self.path = path
        self.began_ns = now_ns
        self.rows = 0
        self.links: set[int] = set()
        self._part = path.with_name(f".{path.name}.part")
        self._sink = self._part.open("wb")
        numbers = [f.name for f in schema if pa.types.is_int64(f.type) or pa.types.is_uint64(f.type)]
        self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd", compression_level=1, use_dictionary=["link", "kind", "sym", "flags"],
                                        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"), write_statistics=False)  # fmt: skip

    @property
    def nbytes(self) -> int:
        return 0 if self._sink.closed else self._sink.tell()

    def write(self, chunk: _Frames | _Slots) -> None:
        self._writer.write_table(chunk.table())
        self.rows += chunk.rows
        if isinstance(chunk, _Frames):
            self.links.update(chunk.links)

    def finish(self, said: dict[str, Any]) -> int:
        """Its size."""
        self._writer.add_key_value_metadata({META.decode(): json.dumps(said)})
        self._writer.close()
        self._sink.flush()
        os.fsync(self._sink.fileno())
        size = self._sink.tell()
        self._sink.close()
        self._part.rename(self.path)
        return size

    def drop(self) -> None:
        """The disk does not take it."""
        try:
            self._sink.close()
        except OSError as error:
            warn(f"{self.path.name} is not closed: {error}")
        self._part.unlink(missing_ok=True)


class Recorder:
    """One run's recording: ``with Recorder(…) as recorder`` while the Feed runs, which makes its links and table with it.

    ``root``: the folder of all recordings. ``max_bytes``: of all of them together.
    """

    def __init__(self, root: Path, clock: Clock, max_bytes: int) -> None:
        self._root = root
        self._clock = clock
        self._max_bytes = max_bytes
        self._file_bytes = min(FILE_BYTES, max_bytes // 8)
        self._queue: SimpleQueue[_Frames | _Slots | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._files: dict[str, _File] = {}
        self._numbers = {"frames": 0, "slots": 0}
        self._pause_until_ns = 0
        self._log = Throttle(LOG_EVERY_S)
        self._said_lost = 0
        self._steps: Any = None
        self._begun = False
        self.tape = Tape(self._queue)
        self.tally = Tally()
        self.folder = root / iso(epoch_ms())[:19].replace(":", "")

    # for the Feed

    def make_link(self, sink: Receiver, carrier: Carrier, hold: bool) -> Link:
        return (TapedMarketLink if carrier.route is Route.MARKET else TapedPublicLink)(self.tape, sink, carrier, hold)

    def make_conflator(self, steps: Sequence[float], ring: Ring, records: int = RECORDS_DEFAULT, spare: int = 0) -> Conflator:
        made = TapedConflator(self.tape, steps, ring, records, spare)
        self._steps = made.symbols["step"]
        return made

    def __enter__(self) -> Self:
        """Fatal is nothing here: a disk that refuses is said, and the Feed goes on."""
        self._thread.start()
        lifecycle(f"📼 Recording frames and slots to {self.folder}, at most {self._max_bytes / 1e9:g} GB in all")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.tape.finish()
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        t = self.tally
        lost = t.lost_frames + t.lost_slots + self.tape.lost_frames + self.tape.lost_slots
        lifecycle(f"📼 Recorded {t.frames:,} frames and {t.slots:,} slots in {t.files} files, {t.bytes / 1e6:,.1f} MB; {lost:,} lost, "
                  f"{t.rotated_out} old files gone")  # fmt: skip

    # in the thread

    def _run(self) -> None:
        try:
            self._sweep()
            while (chunk := self._next()) is not None:
                self._take(chunk)
            self._finish(*self._files)
        except Exception as error:  # the recording ends here; what comes is counted as lost, since nothing takes it from the queue
            failure("the recording ends", error)

    def _next(self) -> _Frames | _Slots | None:
        """The next chunk; files are finished meanwhile though nothing comes."""
        while True:
            try:
                return self._queue.get(timeout=ROTATE_S / 4)
            except Empty:
                self._rotate(monotonic_ns())

    def _take(self, chunk: _Frames | _Slots) -> None:
        kind, now_ns = ("frames" if isinstance(chunk, _Frames) else "slots"), monotonic_ns()
        if now_ns < self._pause_until_ns:
            self._count(kind, lost=chunk.rows)
        else:
            try:
                self._write(kind, chunk, now_ns)
            except OSError as error:
                self._count(kind, lost=chunk.rows)
                self._refused(kind, error)
        self.tape.written += chunk.nbytes
        self._say_lost(now_ns)
        self._rotate(now_ns)

    def _count(self, kind: str, *, kept: int = 0, lost: int = 0) -> None:
        if kind == "frames":
            self.tally.frames += kept
            self.tally.lost_frames += lost
        else:
            self.tally.slots += kept
            self.tally.lost_slots += lost

    def _write(self, kind: str, chunk: _Frames | _Slots, now_ns: int) -> None:
        file = self._files.get(kind)
        if file is None:
            self._begin_folder()
            self._numbers[kind] += 1
            path = self.folder / f"{kind}-{self._numbers[kind]:06d}.parquet"
            file = self._files[kind] = _File(path, FRAMES if kind == "frames" else SLOTS, now_ns)
        file.write(chunk)

    def _begin_folder(self) -> None:
        """Two runs that start in one second have two folders."""
        if self._begun:
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        while self.folder.exists():
            self.folder = self.folder.with_name(self.folder.name + "-again")
        self.folder.mkdir(parents=True)
        self._begun = True

    def _refused(self, kind: str, error: OSError) -> None:
        """The disk does not take it: what is in the open file is lost too."""
        warn(f"the recording is not written: {error}", folder=str(self.folder))
        self._pause_until_ns = monotonic_ns() + int(RETRY_S * SECOND_NS)
        file = self._files.pop(kind, None)
        if file is not None:
            self._count(kind, lost=file.rows)
            file.drop()

    def _say_lost(self, now_ns: int) -> None:
        lost = self.tally.lost_frames + self.tally.lost_slots + self.tape.lost_frames + self.tape.lost_slots
        if lost > self._said_lost and self._log.due(now_ns):
            self._said_lost = lost
            warn("the recording loses rows: the disk is too slow, or full", frames=self.tally.lost_frames + self.tape.lost_frames,
                 slots=self.tally.lost_slots + self.tape.lost_slots)  # fmt: skip

    def _rotate(self, now_ns: int) -> None:
        """Finish what is old or large, and make room."""
        old = [kind for kind, file in self._files.items() if now_ns - file.began_ns > ROTATE_S * SECOND_NS or file.nbytes > self._file_bytes]
        if old:
            self._finish(*old)

    def _finish(self, *kinds: str) -> None:
        """Rows count as recorded once their file stands under its name."""
        for kind in kinds:
            file = self._files[kind]
            try:
                self.tally.bytes += file.finish(self._said(file))
            except OSError as error:
                self._refused(kind, error)
                continue
            del self._files[kind]
            self.tally.files += 1
            self._count(kind, kept=file.rows)
        try:
            self._make_room()
        except OSError as error:
            warn(f"old recordings cannot be deleted: {error}", folder=str(self._root))

    def _said(self, file: _File) -> dict[str, Any]:
        carriers = dict(self.tape.carriers)
        places = {name: key & 0xFFFF for carrier in {id(c): c for c, _ in carriers.values()}.values() for name, key in dict(carrier.keys).items()}
        symbols = {index: (name, float(self._steps[index])) for name, index in places.items()}
        links = {number: {"route": carriers[number][0].route.value, "held": carriers[number][1], "symbols": sorted(dict(carriers[number][0].keys))}
                 for number in sorted(file.links)}  # fmt: skip
        clock = (self._clock.t0_ms, self._clock.m0_ns, self._clock.speed)
        return {"version": VERSION, "clock": clock, "symbols": symbols, "links": links}

    # all recordings

    def _sweep(self) -> None:
        """What a killed run left half written can be read by nobody."""
        for part in self._root.glob("*/.*.part"):
            part.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """For the two files that are written next, as large as they may get."""
        files = sorted(self._root.glob("*/*.parquet"), key=lambda file: (file.parent.name, file.name.rpartition("-")[2], file.name))
        sizes = [file.stat().st_size for file in files]
        total = sum(sizes) + 2 * self._file_bytes
        for file, size in zip(files, sizes, strict=True):
            if total <= self._max_bytes:
                return
            file.unlink()
            total -= size
            self.tally.rotated_out += 1
            if file.parent != self.folder and not any(file.parent.iterdir()):
                file.parent.rmdir()
