"""Recordings that are damaged, or are none, are named, whoever reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.clock import MS
from src.data import load_recording
from src.error_handler import Fatal
from src.exchange.recorded import load_frames
from src.recordings import FRAMES, META, SLOTS, VERSION, describe, frames, slots
from src.ring_buffer import SLOT_DTYPE
from tests.test_exchange_frames import T0, trade

SAID = {"version": VERSION, "clock": [T0, 0, 1.0], "symbols": {"0": ["BTCUSDT", 0.001]}, "links": {}}
READERS: dict[str, Callable[[Path], Any]] = {
    "the trades": lambda root: load_recording(str(root)), "raw frames": lambda root: load_frames(str(root), ()),
    "frames": lambda root: list(frames(root)), "slots": lambda root: list(slots(root)),
}  # fmt: skip


def recorded(root: Path, said: Any = SAID) -> list[Path]:
    """A file of frames and one of slots, in the folder of a run."""
    rows = [(i * MS, 1, 1, True, True, trade(T0 + i, f"{60_000 + i % 50}.00", "0.500", i + 1).encode()) for i in range(2_000)]
    ring = np.frombuffer(np.random.default_rng(1).bytes(2_000 * SLOT_DTYPE.itemsize), SLOT_DTYPE)
    tables = {"frames": pa.table(list(map(list, zip(*rows, strict=True))), FRAMES), "slots": pa.table([ring[n].copy() for n in SLOTS.names], SLOTS)}
    (root / "run").mkdir()
    for kind, table in tables.items():
        pq.write_table(table.replace_schema_metadata({META: json.dumps(said).encode()}), root / f"run/{kind}-000001.parquet")
    return [root / f"run/{kind}-000001.parquet" for kind in tables]


def cut_off(body: bytes) -> bytes:
    return body[:-50]


def empty(_: bytes) -> bytes:
    return b""


def damaged(body: bytes) -> bytes:
    """All that its footer leads to."""
    return body[:4] + b"\xff" * (len(body) - 8_000) + body[4 + len(body) - 8_000:]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("spoil", [cut_off, empty, damaged])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes], read: Callable[[Path], Any]) -> None:
    for file in recorded(tmp_path):
        file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(Fatal, match=r"(frames|slots)-000001\.parquet cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("read", [*READERS.values(), describe], ids=[*READERS.keys(), "describe"])
@pytest.mark.parametrize("said", [{"version": 1, "kind": "aggTrades"}, SAID | {"version": VERSION + 1}, [], None])
def test_a_file_of_others_is_named(tmp_path: Path, said: Any, read: Callable[[Path], Any]) -> None:
    recorded(tmp_path, said)
    with pytest.raises(Fatal, match=r"(frames|slots)-000001\.parquet is no recording"):
        read(tmp_path)


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    recorded(tmp_path)
    assert len(load_recording(str(tmp_path)).trades["BTCUSDT"].time_ms) == len(load_frames(str(tmp_path), ()).frames) == 2_000
    assert sum(1 for _ in frames(tmp_path)) == sum(map(len, slots(tmp_path))) == 2_000 and describe(tmp_path).symbols == {0: ("BTCUSDT", 0.001)}


def test_a_recording_that_cannot_be_played_names_the_setting(tmp_path: Path) -> None:
    for file in recorded(tmp_path):
        file.write_bytes(cut_off(file.read_bytes()))
    with pytest.raises(Fatal, match=rf"SIM_DATA={tmp_path}: .*cannot be read"):
        load_recording(str(tmp_path))
