"""What each process shows the others: heartbeat, losses, lag, equity, request weight. One writer a block, any number of readers.

Memory: one nameless shared mapping of 8-byte words, a block a process, each block on cache lines of its own (128 bytes, since machines
fetch lines in pairs)::

    supervisor ┤ heartbeat_ns, started_ns, state, ... ├ pad ┤ feed ┤ heartbeat_ns, ... ├ pad ┤ brain ...

Invariants: a field is one aligned word, so no read is torn (two fields read one after the other may be of two moments). Only the
process that a block is named for writes it, from one thread. Nothing here waits, locks or fails at run time; a name that does not exist
is a KeyError that lists those that do.

A new field is one line in the tables below.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from src.shared_memory import SharedWords

STARTING, READY, STOPPING = 0, 1, 2
"""Values of ``state``."""
HOLDS = ("start", "reconcile", "recheck", "stream", "journal", "venue", "mode", "copy", "stop")
"""What keeps the Brain from opening, in the order of the bits of ``holds``."""

EVERY: dict[str, type] = {
    "heartbeat_ns": int,  # CLOCK_MONOTONIC of the last beat
    "started_ns": int,  # CLOCK_MONOTONIC
    "state": int,
    "pid": int,
    "rss_bytes": int,
}
VENUE: dict[str, type] = {
    "weight_minute": int,  # the minute that weight_used belongs to: milliseconds since 1970 // 60,000
    "weight_used": int,
    "banned_until_ms": int,  # market time; 0 = not banned
}
FEED: dict[str, type] = {
    "frames": int,
    "trades": int,
    "quotes": int,
    "marks": int,
    "bad_frames": int,
    "bad_values": int,
    "late": int,
    "duplicates": int,
    "stale": int,
    "lost": int,
    "gaps": int,
    "healed": int,
    "unfilled": int,
    "reconnects": int,
    "sockets_live": int,
    "sockets_wanted": int,
    "mute_sockets": int,
    "mute_streams": int,
    "probes": int,
    "ring_full": int,
    "conflated": int,
    "last_frame_ns": int,
    "symbols": int,
    "began": int,
    "ended": int,
}
BRAIN: dict[str, type] = {
    "slots": int,
    "candles": int,
    "closes": int,
    "late_trades": int,
    "setups": int,
    "setups_refused": int,
    "signals": int,
    "rejected_signals": int,
    "orders_sent": int,
    "orders_rejected": int,
    "orders_unknown": int,
    "fills": int,
    "positions_open": int,
    "positions_unprotected": int,
    "lag_us_last": int,
    "lag_us_max": int,
    "stale_symbols": int,
    "last_tick_ns": int,
    "seq_errors": int,
    "missed_wakeups": int,
    "audit_equal": int,
    "audit_absent": int,
    "audit_gapped": int,
    "audit_late": int,
    "audit_partial": int,
    "audit_strange": int,
    "audit_unexplained": int,
    "handler_errors": int,
    "queue_full": int,
    "equity": float,  # USDT, as are the next three
    "wallet": float,
    "unrealised": float,
    "realised_today": float,
    "confidence_source": int,  # 0 teacher, 1 student
    "latched": int,  # how many limits are tripped
    "reconciled_ok": int,
    "holds": int,  # which of HOLDS are set: 1 for the first, 2 for the second, 4, 8, ...
    "foreign_positions": int,  # symbols of the account that others hold: each takes a slot
    "wal_bytes": int,
    "user_stream_live": int,
    "ws_api_live": int,
    "leverage_cap": float,
}
ORCHESTRATOR: dict[str, type] = {
    "reconciliations": int,
    "matches": int,
    "mismatches": int,
    "heartbeats": int,
    "maintenance_runs": int,
    "chore_errors": int,
}
BLOCKS: dict[str, dict[str, type]] = {
    "supervisor": EVERY,
    "feed": EVERY | VENUE | FEED,
    "brain": EVERY | VENUE | BRAIN,
    "orchestrator": EVERY | VENUE | ORCHESTRATOR,
    "exchange": EVERY | VENUE,
}

_LINE_WORDS = 16


class _Names(dict[str, Any]):
    """A dictionary whose KeyError says which names there are."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"{name!r} is not one of: {', '.join(self)}")


class Block:
    """One process's counters. ``ints`` and ``floats``: i64 and f64 arrays over the same words, for kernels; ``index`` finds a field."""

    __slots__ = ("_fields", "_index", "floats", "ints", "name")

    def __init__(self, name: str, words: Any) -> None:
        self.name = name
        self.ints = words.view(np.int64)
        self.floats = words.view(np.float64)
        views = {int: memoryview(self.ints), float: memoryview(self.floats)}
        self._index = _Names({field: index for index, field in enumerate(BLOCKS[name])})
        self._fields = _Names({field: (views[kind], index) for index, (field, kind) in enumerate(BLOCKS[name].items())})

    def index(self, name: str) -> int:
        """Where the field is in ``ints`` or ``floats``."""
        return int(self._index[name])

    def get(self, name: str) -> Any:
        """int or float, as the table says."""
        view, index = self._fields[name]
        return view[index]

    def set(self, name: str, value: float) -> None:
        """TypeError for a float in a whole-number field."""
        view, index = self._fields[name]
        view[index] = value

    def add(self, name: str, n: float = 1) -> None:
        view, index = self._fields[name]
        view[index] += n

    def max(self, name: str, value: float) -> None:
        """Keep the larger of what is there and ``value``."""
        view, index = self._fields[name]
        if value > view[index]:
            view[index] = value

    def beat(self, now_ns: int) -> None:
        """I am alive at this moment of CLOCK_MONOTONIC."""
        self.ints[0] = now_ns

    def spend_weight(self, minute: int, weight: int) -> None:
        """Add to this process's request weight of that minute; a new minute starts at 0. For an instant a reader may take
        the old sum for the new minute's."""
        if self.get("weight_minute") != minute:
            self.set("weight_minute", minute)
            self.set("weight_used", weight)
        else:
            self.add("weight_used", weight)

    def values(self) -> dict[str, Any]:
        return {field: view[index] for field, (view, index) in self._fields.items()}


class Counters:
    """All blocks. Made by ``create`` in the parent and handed to spawned children as an argument; each holder closes its own."""

    __slots__ = ("_blocks", "_memory")

    def __init__(self, memory: SharedWords) -> None:
        self._memory = memory
        self._blocks = _Names()
        start = 0
        for name, fields in BLOCKS.items():
            words = _padded(len(fields))
            self._blocks[name] = Block(name, memory.words[start:start + words])
            start += words

    @classmethod
    def create(cls) -> Counters:
        """All zero. OSError when the machine has no memory or descriptor left."""
        return cls(SharedWords.create("aegis-counters", sum(_padded(len(fields)) for fields in BLOCKS.values())))

    def __getstate__(self) -> Any:
        return self._memory

    def __setstate__(self, memory: SharedWords) -> None:
        self.__init__(memory)  # type: ignore[misc]

    def close(self) -> None:
        """Twice is harmless. A Block still held keeps the memory."""
        self._blocks = _Names()
        self._memory.close()

    def block(self, process: str) -> Block:
        """To write to: only in the process of that name."""
        block: Block = self._blocks[process]
        return block

    def get(self, process: str, name: str) -> Any:
        """int or float."""
        return self._blocks[process].get(name)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Every field of every process: {process: {field: int or float}}."""
        return {name: block.values() for name, block in self._blocks.items()}

    def age_s(self, process: str, now_ns: int) -> float:
        """Wall seconds since that process's last beat; infinite before its first."""
        beat = self.get(process, "heartbeat_ns")
        return (now_ns - beat) / 1e9 if beat else math.inf

    def weight_used(self, minute: int) -> int:
        """Request weight that all processes together have used in that minute: the venue counts by address, not by process."""
        return sum(block.get("weight_used") for name, block in self._blocks.items()
                   if "weight_used" in BLOCKS[name] and block.get("weight_minute") == minute)


def holds_of(bits: int) -> list[str]:
    """The names of the holds that are set."""
    return [name for place, name in enumerate(HOLDS) if bits >> place & 1]


def _padded(fields: int) -> int:
    return -(-fields // _LINE_WORDS) * _LINE_WORDS
