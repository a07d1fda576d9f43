"""The journal: what we meant to do, written before it is done, and what the venue said of it. SQLite in WAL mode, one writer.

Invariants: an intent is committed before its first byte is sent; a client id stands once; a fill stands once, by (symbol, trade id);
a latch survives restarts until it is released. Intents and fills are committed at synchronous=NORMAL (after power loss the venue and the
id prefix are the truth), latches at FULL. The hot connection never checkpoints: ``checkpoint`` runs on a connection of its own, from a
worker thread. Readers (``read_only``) hold no transaction. Money is stored as text, to the last digit.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from src.error_handler import Degraded, Fatal
from src.models import ClosedTrade, Fill, Role, Side

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS intents(client_id TEXT PRIMARY KEY, symbol TEXT NOT NULL, role TEXT NOT NULL, side TEXT NOT NULL,
  qty TEXT NOT NULL, price TEXT NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
  made_ms INTEGER NOT NULL, ended_ms INTEGER) STRICT;
CREATE INDEX IF NOT EXISTS intents_open ON intents(state) WHERE state NOT IN ('done', 'dead');
CREATE TABLE IF NOT EXISTS fills(symbol TEXT NOT NULL, trade_id INTEGER NOT NULL, client_id TEXT NOT NULL, order_id INTEGER NOT NULL,
  side TEXT NOT NULL, price TEXT NOT NULL, qty TEXT NOT NULL, commission TEXT NOT NULL, commission_asset TEXT NOT NULL,
  realised TEXT NOT NULL, maker INTEGER NOT NULL, time_ms INTEGER NOT NULL, PRIMARY KEY(symbol, trade_id)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fills_time ON fills(time_ms);
CREATE TABLE IF NOT EXISTS slots(symbol TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trades(id INTEGER PRIMARY KEY, symbol TEXT NOT NULL, side TEXT NOT NULL, qty TEXT NOT NULL,
  entry_price TEXT NOT NULL, exit_price TEXT NOT NULL, entry_time_ms INTEGER NOT NULL, exit_time_ms INTEGER NOT NULL,
  realised TEXT NOT NULL, commission TEXT NOT NULL, confidence REAL NOT NULL, source TEXT NOT NULL, reason TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS outcomes(id INTEGER NOT NULL, symbol TEXT NOT NULL, kind INTEGER NOT NULL, side INTEGER NOT NULL,
  armed_ms INTEGER NOT NULL, entered_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, result INTEGER NOT NULL, gross_r REAL NOT NULL,
  cost_share REAL NOT NULL, score REAL NOT NULL, confidence REAL NOT NULL, features BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS latches(name TEXT PRIMARY KEY, reason TEXT NOT NULL, set_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS money(time_ms INTEGER NOT NULL, reason TEXT NOT NULL, wallet TEXT NOT NULL, transfer TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Intent:
    """One order we meant to send. ``state``: ``made`` (written, perhaps sent), ``live``, ``unknown``, ``done``, ``dead``."""

    client_id: str
    symbol: str
    role: Role
    side: Side
    qty: Decimal
    price: Decimal
    made_ms: int
    state: str = "made"
    reason: str = ""
    body: str = "{}"


class Journal:
    """The one writer. Every method is synchronous and commits before it returns; a disk that refuses raises ``Degraded``."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "journal.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _connect(self.path)
            self._db.executescript(_SCHEMA)
            version = self._db.execute("SELECT value FROM meta WHERE name='schema'").fetchone()
            if version is None:
                self._db.execute("INSERT INTO meta VALUES('schema', ?)", (str(SCHEMA_VERSION),))
        except (sqlite3.Error, OSError) as error:
            raise Fatal(f"STATE_DIR={str(folder)!r}: the journal cannot be opened ({error}); it must be a writable folder") from error
        if version is not None and version[0] != str(SCHEMA_VERSION):
            raise Fatal(f"{self.path} has schema {version[0]}, this version writes {SCHEMA_VERSION}: use the version that made it, or move it")
        self._db.execute("PRAGMA wal_autocheckpoint=0")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.Error as error:
            raise Degraded(f"the journal cannot be written: {error}", path=str(self.path)) from error

    # intents

    def intend(self, intent: Intent) -> None:
        """Before the wire. A second intent with the same client id is a bug."""
        with self._guarded() as db:
            try:
                db.execute("INSERT INTO intents VALUES(?,?,?,?,?,?,?,?,?,?,NULL)", (
                    intent.client_id, intent.symbol, intent.role.value, intent.side.value, str(intent.qty), str(intent.price),
                    intent.body, intent.state, intent.reason, intent.made_ms))  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise AssertionError(f"client id used twice: {intent.client_id}") from error

    def mark(self, client_id: str, state: str, *, reason: str = "", now_ms: int = 0) -> None:
        """An intent's new state; ``done`` and ``dead`` end it."""
        ended = now_ms if state in ("done", "dead") else None
        with self._guarded() as db:
            db.execute("UPDATE intents SET state=?, reason=?, ended_ms=? WHERE client_id=? AND state NOT IN ('done','dead')",
                       (state, reason, ended, client_id))

    def open_intents(self) -> list[Intent]:
        rows = self._db.execute("SELECT client_id,symbol,role,side,qty,price,made_ms,state,reason,body FROM intents "
                                "WHERE state NOT IN ('done','dead') ORDER BY made_ms").fetchall()
        return [Intent(r[0], r[1], Role(r[2]), Side(r[3]), Decimal(r[4]), Decimal(r[5]), r[6], r[7], r[8], r[9]) for r in rows]

    def known(self, client_id: str) -> bool:
        return self._db.execute("SELECT 1 FROM intents WHERE client_id=?", (client_id,)).fetchone() is not None

    # fills, slots and closed trades

    def fill(self, fill: Fill) -> bool:
        """True if it is new. The same fill told twice is stored once."""
        with self._guarded() as db:
            cursor = db.execute("INSERT OR IGNORE INTO fills VALUES(?,?,?,?,?,?,?,?,?,?,?,?)", (
                fill.symbol, fill.trade_id, fill.client_id, fill.order_id, fill.side.value, str(fill.price), str(fill.qty),
                str(fill.commission), fill.commission_asset, str(fill.realised), int(fill.maker), fill.time_ms))  # fmt: skip
            return cursor.rowcount == 1

    def has_fill(self, symbol: str, trade_id: int) -> bool:
        return self._db.execute("SELECT 1 FROM fills WHERE symbol=? AND trade_id=?", (symbol, trade_id)).fetchone() is not None

    def save_slot(self, symbol: str, body: dict[str, Any]) -> None:
        with self._guarded() as db:
            db.execute("INSERT OR REPLACE INTO slots VALUES(?,?)", (symbol, json.dumps(body, default=str)))

    def drop_slot(self, symbol: str) -> None:
        with self._guarded() as db:
            db.execute("DELETE FROM slots WHERE symbol=?", (symbol,))

    def slots(self) -> dict[str, dict[str, Any]]:
        return {symbol: json.loads(body) for symbol, body in self._db.execute("SELECT symbol, body FROM slots ORDER BY symbol")}

    def closed(self, trade: ClosedTrade) -> None:
        row = asdict(trade)
        names = list(row)
        with self._guarded() as db:
            db.execute(f"INSERT INTO trades({','.join(names)}) VALUES({','.join('?' * len(names))})",
                       [str(v) if isinstance(v, Decimal) else v for v in row.values()])

    def outcomes(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """What became of setups, taken or not: the experience a student learns from. Columns as in the schema; features as f64 bytes."""
        with self._guarded() as db:
            db.executemany("INSERT INTO outcomes VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)

    def realised_since(self, ms: int) -> Decimal:
        """Net of the trades that closed since then."""
        rows = self._db.execute("SELECT realised, commission FROM trades WHERE exit_time_ms>=?", (ms,))
        return sum((Decimal(realised) - Decimal(commission) for realised, commission in rows), Decimal(0))

    def trade_count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM trades").fetchone()[0])

    # latches, money and memory of small things

    def latch(self, name: str, reason: str, now_ms: int) -> None:
        """A limit that tripped. On disk before this returns, whatever happens to the power."""
        with self._guarded() as db:
            db.execute("PRAGMA synchronous=FULL")
            try:
                db.execute("INSERT OR IGNORE INTO latches VALUES(?,?,?)", (name, reason, now_ms))
            finally:
                db.execute("PRAGMA synchronous=NORMAL")

    def latches(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, reason FROM latches ORDER BY name").fetchall())

    def release(self, name: str = "") -> list[str]:
        """The operator's release of one latch, or of all. Returns what was released."""
        held = [n for n in self.latches() if name in ("", n)]
        with self._guarded() as db:
            db.executemany("DELETE FROM latches WHERE name=?", [(n,) for n in held])
        return held

    def money(self, time_ms: int, reason: str, wallet: Decimal, transfer: Decimal) -> None:
        with self._guarded() as db:
            db.execute("INSERT INTO money VALUES(?,?,?,?)", (time_ms, reason, str(wallet), str(transfer)))

    def remember(self, name: str, value: Any) -> None:
        with self._guarded() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES(?,?)", (name, json.dumps(value, default=str)))

    def recall(self, name: str, default: Any = None) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return json.loads(row[0]) if row else default

    def wal_bytes(self) -> int:
        wal = self.path.with_name(self.path.name + "-wal")
        return wal.stat().st_size if wal.exists() else 0


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=2.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    return db


def checkpoint(path: Path) -> int:
    """Moves the WAL into the database on a connection of its own. Returns the pages moved. Run it in a worker thread."""
    db = _connect(path)
    try:
        row = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        return int(row[2])
    finally:
        db.close()


def prune(path: Path, before_ms: int) -> int:
    """Deletes ended intents and money rows older than ``before_ms``; fills and closed trades stay. Returns the rows deleted."""
    db = _connect(path)
    try:
        gone = db.execute("DELETE FROM intents WHERE state IN ('done','dead') AND ended_ms < ?", (before_ms,)).rowcount
        return gone + db.execute("DELETE FROM money WHERE time_ms < ?", (before_ms,)).rowcount
    finally:
        db.close()


class Reader:
    """Another process's view: each call is its own short read, so the writer's WAL can always be emptied."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "journal.sqlite"

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        db = sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True, isolation_level=None, timeout=2.0)
        try:
            return db.execute(query, values).fetchall()
        finally:
            db.close()

    def slots(self) -> dict[str, dict[str, Any]]:
        return {symbol: json.loads(body) for symbol, body in self.rows("SELECT symbol, body FROM slots ORDER BY symbol")}

    def latches(self) -> dict[str, str]:
        return dict(self.rows("SELECT name, reason FROM latches ORDER BY name"))

    def trades_since(self, ms: int) -> list[tuple[Any, ...]]:
        """Closed trades since that market time: (symbol, side, realised, commission, reason, exit_time_ms)."""
        return self.rows("SELECT symbol, side, realised, commission, reason, exit_time_ms FROM trades WHERE exit_time_ms>=? ORDER BY id",
                         (ms,))
