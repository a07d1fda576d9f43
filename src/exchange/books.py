"""The exchange's books on disk: a snapshot and an append-only log of changes, which together survive ``kill -9`` at any moment.

Files: ``snapshot.json`` names its generation g; ``log-g.jsonl`` holds what has changed since. A line is one step of the core and is
written whole, before anybody is told of that step, so the log cut off after any line is a consistent state. A torn or unreadable end is
cut off at the last whole line; one in the middle, with whole lines after it, is damage, and stops the exchange. What the disk did not
take whole is taken back, and nothing is written after it. fsync: the log once a second when it has grown, a snapshot before it replaces
the old one; so a killed process loses nothing, and a power failure at most the last second. A line without changes keeps the market time
moving. The directory is locked while its exchange lives.
"""

from __future__ import annotations

import fcntl
import os
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from src.error_handler import Fatal, warn
from src.exchange.core import Core
from src.exchange.history import Amendment, MarginMove
from src.exchange.ledger import AccountState, Position
from src.exchange.orders import AlgoOrder, Fill, Income, Order
from src.exchange.state import Changes, State

VERSION = 1
SNAPSHOT = "snapshot.json"
LOG_BYTES_MAX = 32 << 20
ROWS_KEPT_MAX = 100_000
SETTING = "BOOKS"
KEPT_MS = 90 * 86_400_000


class Line(msgspec.Struct, omit_defaults=True):
    """Rows that changed by market time ``t``; each replaces the one with its id. ``ids`` are the counters: order, algo, trade, tran."""

    t: int
    ids: tuple[int, int, int, int]
    clean: bool = False
    orders: list[Order] = []
    algos: list[AlgoOrder] = []
    accounts: list[AccountState] = []
    fills: list[Fill] = []
    incomes: list[Income] = []
    jumps: list[tuple[int, int, int]] = []
    amendments: list[Amendment] = []
    margin_moves: list[MarginMove] = []
    countdowns: list[tuple[int, int, int]] | None = None
    """All that run: account, symbol, when. None where none has changed."""


_decoder = msgspec.json.Decoder(Line)


class Snapshot(msgspec.Struct):
    """Everything, and what is needed to read it under other settings: names of symbols and keys of accounts, by index."""

    version: int
    generation: int
    symbols: list[str]
    keys: list[str]
    market: dict[str, Any]
    state: Line
    speed: float = 1.0


class Kept:
    """What the books held: a snapshot with its log applied."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        first = snapshot.state
        self.now_ms = first.t
        self.clean = first.clean
        self.ids = first.ids
        self.orders: dict[int, Order] = {}
        self.algos: dict[int, AlgoOrder] = {}
        self.accounts: dict[int, AccountState] = {}
        self.fills: list[Fill] = []
        self.incomes: list[Income] = []
        self.jumps: list[tuple[int, int, int]] = []
        self.amendments: list[Amendment] = []
        self.margin_moves: list[MarginMove] = []
        self.countdowns: list[tuple[int, int, int]] = []
        self.apply(first)

    @property
    def market(self) -> dict[str, Any]:
        return self.snapshot.market

    def apply(self, line: Line) -> None:
        self.now_ms, self.ids, self.clean = line.t, line.ids, line.clean
        self.orders.update((o.id, o) for o in line.orders)
        self.algos.update((a.id, a) for a in line.algos)
        self.accounts.update((a.index, a) for a in line.accounts)
        self.fills += line.fills
        self.incomes += line.incomes
        self.jumps += line.jumps
        self.amendments += line.amendments
        self.margin_moves += line.margin_moves
        if line.countdowns is not None:
            self.countdowns = line.countdowns

    def restore(self, core: Core) -> None:
        """Put it all into a fresh core. Fatal: the books are of other accounts, or hold something in a symbol that is not listed."""
        state = core.state
        keys = [a.key for a in core.options.accounts]
        if self.snapshot.keys != keys[: len(self.snapshot.keys)]:
            raise Fatal("the exchange's books are of other accounts: use another directory, or the same accounts in the same order",
                        setting=SETTING)  # fmt: skip
        place = self._symbols(state)
        for account in self.accounts.values():
            self._restore_account(state, account, place)
        for order in self.orders.values():
            if order.symbol in place:
                order.symbol = place[order.symbol]
                state.keep_order(order)
        for algo in self.algos.values():
            if algo.symbol in place:
                algo.symbol = place[algo.symbol]
                state.keep_algo(algo)
        for fill in self.fills:
            if fill.symbol in place:
                state.fills[fill.account].append(msgspec.structs.replace(fill, symbol=place[fill.symbol]))
        for row in self.incomes:
            state.incomes[row.account].append(msgspec.structs.replace(row, symbol=place.get(row.symbol, -1)))
        state.amendments = [msgspec.structs.replace(a, symbol=place[a.symbol]) for a in self.amendments if a.symbol in place]
        state.margin_moves = [msgspec.structs.replace(m, symbol=place[m.symbol]) for m in self.margin_moves if m.symbol in place]
        state.countdowns = {(account, place[symbol]): due for account, symbol, due in self.countdowns if symbol in place}
        for symbol, at_ms, ticks in self.jumps:
            if symbol in place:
                core.market.jump(place[symbol], at_ms, ticks)
        state.ids.order, state.ids.algo, state.ids.trade, state.ids.tran = self.ids
        for i in range(len(self.snapshot.keys), len(keys)):
            core.open_account(i)
        state.changes.clear()

    def held(self) -> tuple[str, ...]:
        """The symbols in which there are positions or open orders."""
        held = {o.symbol for o in self.orders.values() if o.open} | {a.symbol for a in self.algos.values() if a.open}
        held |= {p.symbol for a in self.accounts.values() for p in a.positions.values() if p.qty}
        return tuple(self.snapshot.symbols[i] for i in sorted(held))

    def _symbols(self, state: State) -> dict[int, int]:
        """From the index in the books to the index now."""
        place = {i: state.index[name] for i, name in enumerate(self.snapshot.symbols) if name in state.index}
        missing = [name for name in self.held() if name not in state.index]
        if missing:
            names = ", ".join(missing)
            raise Fatal(f"the exchange's books hold positions or orders in {names}: list these symbols too, or use another directory",
                        setting=SETTING)  # fmt: skip
        return place

    @staticmethod
    def _restore_account(state: State, account: AccountState, place: dict[int, int]) -> None:
        account.settings = {place[s]: v for s, v in account.settings.items() if s in place}
        positions: dict[str, Position] = {}
        for position in account.positions.values():
            if position.symbol in place:
                position.symbol = place[position.symbol]
                positions[f"{position.symbol}:{position.side}"] = position
        account.positions = positions
        state.accounts[account.index] = account


class Books:
    """One directory. Fatal when it cannot be read or written."""

    def __init__(self, directory: str) -> None:
        self._dir = Path(directory)
        self._encoder = msgspec.json.Encoder()
        self._generation = 0
        self._lock = -1
        self._file: FileIO | None = None
        self._size = 0
        self._grown = False
        self._core: Core | None = None
        self._market: dict[str, Any] = {}
        self._failed = False
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fatal(f"the exchange's books cannot be kept in {directory}: {error.strerror}", setting=SETTING, value=directory) from None

    def lock(self) -> None:
        """Be the only exchange that keeps its books here, until :meth:`close` or the process's end. Fatal: there is another."""
        self._lock = os.open(self._dir, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            why = "another exchange keeps its books there: stop it, or give this one a directory of its own"
            raise Fatal(f"the exchange's books cannot be kept in {self._dir}: {why}", setting=SETTING, value=str(self._dir)) from None

    # ------------------------------------------------------------------ reading

    def load(self) -> Kept | None:
        """What the directory holds, or None when there are no books yet."""
        path = self._dir / SNAPSHOT
        if not path.exists():
            return None
        try:
            snapshot = msgspec.json.decode(path.read_bytes(), type=Snapshot)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            raise Fatal(f"the exchange's snapshot {path} cannot be read: {error}", setting=SETTING, value=str(path)) from None
        if snapshot.version != VERSION:
            raise Fatal(f"the exchange's snapshot {path} is of version {snapshot.version}, and this reads version {VERSION}", setting=SETTING)
        self._generation = snapshot.generation
        kept = Kept(snapshot)
        log = self._log_path(snapshot.generation)
        if not log.exists():  # it is made before the snapshot that names it
            raise Fatal(f"the exchange's log {log} is missing: bring it back, or use another directory", setting=SETTING, value=str(log))
        self._replay(log, kept)
        return kept

    @staticmethod
    def _replay(path: Path, kept: Kept) -> None:
        data = path.read_bytes()
        read = 0
        for raw in data.splitlines(keepends=True):
            line = _decoded(raw)
            if line is None:
                break
            kept.apply(line)
            read += len(raw)
        if read == len(data):
            return
        if any(_decoded(raw) is not None for raw in data[read:].splitlines(keepends=True)[1:]):
            raise Fatal(f"the exchange's log {path} is damaged {read} bytes from its start, and goes on behind: use another directory, "
                        "or cut it off there", setting=SETTING, value=str(path))  # fmt: skip
        warn("the exchange's books ended in the middle of a line", bytes_lost=len(data) - read)

    # ------------------------------------------------------------------ writing

    def begin(self, core: Core, market: dict[str, Any]) -> None:
        """Start a new generation from the core as it stands."""
        self._core, self._market = core, market
        self._snapshot()

    def write(self, changes: Changes) -> None:
        """One step's changes, in the hands of the operating system when this returns."""
        assert self._core is not None
        state = self._core.state
        self._append(Line(
            state.now_ms, self._ids(state), orders=list(changes.orders.values()), algos=list(changes.algos.values()),
            accounts=[state.accounts[i] for i in sorted(changes.accounts)], fills=changes.fills,
            incomes=changes.incomes, jumps=changes.jumps, amendments=changes.amendments, margin_moves=changes.margin_moves,
            countdowns=_countdowns(state) if changes.countdowns else None,
        ))  # fmt: skip
        if self._size > LOG_BYTES_MAX:
            self._snapshot()

    def beat(self) -> None:
        """Once a second: keep the time, and sync what has been written."""
        assert self._core is not None
        if self._grown:
            self._sync()
        self._append(Line(self._core.now_ms, self._ids(self._core.state)))
        self._grown = False

    def close(self) -> None:
        """The end of it, said in the books unless they have failed."""
        if self._file is not None and self._core is not None:
            if not self._failed:
                self._append(Line(self._core.now_ms, self._ids(self._core.state), clean=True))
                self._sync()
            self._file.close()
            self._file = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _append(self, line: Line) -> None:
        """The whole line, or nothing of it and Fatal; after that nothing is written any more."""
        assert self._file is not None
        if self._failed:
            raise Fatal("the exchange's books cannot be written: they have failed before")
        rest = memoryview(self._encoder.encode(line) + b"\n")
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._failed = True
            self._file.truncate(self._size)
            raise Fatal(f"the exchange's books cannot be written: {error.strerror}") from None
        self._size += size
        self._grown = True

    def _sync(self) -> None:
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._failed = True
            raise Fatal(f"the exchange's books cannot be written: {error.strerror}") from None

    @staticmethod
    def _ids(state: State) -> tuple[int, int, int, int]:
        return state.ids.order, state.ids.algo, state.ids.trade, state.ids.tran

    def _log_path(self, generation: int) -> Path:
        return self._dir / f"log-{generation}.jsonl"

    def _snapshot(self) -> None:
        """Write everything anew, then forget the old log."""
        assert self._core is not None
        core, state = self._core, self._core.state
        forget_old(state)
        self._generation += 1
        whole = Line(
            state.now_ms, self._ids(state), orders=list(state.orders.values()), algos=list(state.algos.values()), accounts=state.accounts,
            fills=[f for mine in state.fills for f in mine], incomes=[r for mine in state.incomes for r in mine], jumps=core.market.jumps,
            amendments=state.amendments, margin_moves=state.margin_moves, countdowns=_countdowns(state),
        )  # fmt: skip
        snapshot = Snapshot(VERSION, self._generation, [s.symbol for s in state.specs], [a.key for a in core.options.accounts], self._market, whole,
                            core.options.speed)  # fmt: skip
        try:
            file = open(self._log_path(self._generation), "wb", buffering=0)  # noqa: SIM115
            temporary = self._dir / (SNAPSHOT + ".new")
            with open(temporary, "wb") as out:
                out.write(self._encoder.encode(snapshot))
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, self._dir / SNAPSHOT)
            self._sync_directory()
            if self._file is not None:
                self._file.close()
            self._file, self._size, self._grown = file, 0, False
            for path in self._dir.glob("log-*.jsonl"):
                if path != self._log_path(self._generation):
                    path.unlink()
        except OSError as error:
            self._failed = True
            raise Fatal(f"the exchange's books cannot be written to {self._dir}: {error.strerror}", setting=SETTING) from None

    def _sync_directory(self) -> None:
        handle = os.open(self._dir, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _countdowns(state: State) -> list[tuple[int, int, int]]:
    return [(account, symbol, due) for (account, symbol), due in state.countdowns.items()]


def _decoded(raw: bytes) -> Line | None:
    """A line of the log; None where it is torn or unreadable."""
    try:
        return _decoder.decode(raw) if raw.endswith(b"\n") else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def forget_old(state: State) -> None:
    """Drop what the venue would no longer show: ended orders, fills and income older than ninety days, and what is too much."""
    oldest = state.now_ms - KEPT_MS
    ended = [o for o in state.orders.values() if not o.open]
    gone = [o for n, o in enumerate(reversed(ended)) if n >= ROWS_KEPT_MAX or o.updated_ms < oldest]
    for order in gone:
        del state.orders[order.id]
        if state.orders_by_client[order.account].get(order.client_id) == order.id:
            del state.orders_by_client[order.account][order.client_id]
    over = [a for a in state.algos.values() if not a.open and a.order_id not in state.open_orders[a.account]]
    for algo in [a for n, a in enumerate(reversed(over)) if n >= ROWS_KEPT_MAX or a.updated_ms < oldest]:
        del state.algos[algo.id]
        if state.algos_by_client[algo.account].get(algo.client_id) == algo.id:
            del state.algos_by_client[algo.account][algo.client_id]
    state.amendments = [a for a in state.amendments[-ROWS_KEPT_MAX:] if a.time_ms >= oldest]
    state.margin_moves = [m for m in state.margin_moves[-ROWS_KEPT_MAX:] if m.time_ms >= oldest]
    for account in range(len(state.accounts)):
        state.fills[account] = [f for f in state.fills[account][-ROWS_KEPT_MAX:] if f.time_ms >= oldest]
        state.incomes[account] = [r for r in state.incomes[account][-ROWS_KEPT_MAX:] if r.time_ms >= oldest]
