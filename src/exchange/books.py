"""The exchange's books on disk: a snapshot and an append-only log of changes, which together survive ``kill -9`` at any moment.

Files: ``snapshot.json`` names its generation g; ``log-g.jsonl`` holds what has changed since. A line is one step of the core and is
written whole, before anybody is told of that step, so the log cut off after any line is a consistent state. A torn or unreadable end is
cut off at the last whole line. fsync: the log once a second when it has grown, a snapshot before it replaces the old one; so a killed
process loses nothing, and a power failure at most the last second. A line without changes keeps the market time moving.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

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


class Snapshot(msgspec.Struct):
    """Everything, and what is needed to read it under other settings: names of symbols and keys of accounts, by index."""

    version: int
    generation: int
    symbols: list[str]
    keys: list[str]
    market: dict[str, Any]
    state: Line


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

    def restore(self, core: Core) -> None:
        """Put it all into a fresh core. Fatal: the books are of other accounts, or hold something in a symbol that is not listed."""
        state = core.state
        keys = [a.key for a in core.options.accounts]
        if self.snapshot.keys != keys[: len(self.snapshot.keys)]:
            raise Fatal("the exchange's books are of other accounts: use another directory, or the same accounts in the same order")
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
            raise Fatal(f"the exchange's books hold positions or orders in {names}: list these symbols too, or use another directory")
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
        self._file: BinaryIO | None = None
        self._size = 0
        self._grown = False
        self._core: Core | None = None
        self._market: dict[str, Any] = {}
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fatal(f"the exchange's books cannot be kept in {directory}: {error.strerror}") from None

    # ------------------------------------------------------------------ reading

    def load(self) -> Kept | None:
        """What the directory holds, or None when there are no books yet."""
        path = self._dir / SNAPSHOT
        if not path.exists():
            return None
        try:
            snapshot = msgspec.json.decode(path.read_bytes(), type=Snapshot)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            raise Fatal(f"the exchange's snapshot {path} cannot be read: {error}") from None
        if snapshot.version != VERSION:
            raise Fatal(f"the exchange's snapshot {path} is of version {snapshot.version}, and this reads version {VERSION}")
        self._generation = snapshot.generation
        kept = Kept(snapshot)
        log = self._log_path(snapshot.generation)
        if log.exists():
            self._replay(log.read_bytes(), kept)
        return kept

    @staticmethod
    def _replay(data: bytes, kept: Kept) -> None:
        decoder = msgspec.json.Decoder(Line)
        read = 0
        for raw in data.splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break
            try:
                kept.apply(decoder.decode(raw))
            except (msgspec.DecodeError, msgspec.ValidationError):
                break
            read += len(raw)
        if read != len(data):
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
        if self._file is not None and self._core is not None:
            self._append(Line(self._core.now_ms, self._ids(self._core.state), clean=True))
            self._sync()
            self._file.close()
            self._file = None

    def _append(self, line: Line) -> None:
        assert self._file is not None
        data = self._encoder.encode(line) + b"\n"
        try:
            self._file.write(data)
        except OSError as error:
            raise Fatal(f"the exchange's books cannot be written: {error.strerror}") from None
        self._size += len(data)
        self._grown = True

    def _sync(self) -> None:
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
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
        old, self._generation = self._generation, self._generation + 1
        whole = Line(
            state.now_ms, self._ids(state), orders=list(state.orders.values()), algos=list(state.algos.values()), accounts=state.accounts,
            fills=[f for mine in state.fills for f in mine], incomes=[r for mine in state.incomes for r in mine], jumps=core.market.jumps,
            amendments=state.amendments, margin_moves=state.margin_moves,
        )  # fmt: skip
        snapshot = Snapshot(VERSION, self._generation, [s.symbol for s in state.specs], [a.key for a in core.options.accounts], self._market, whole)
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
            self._log_path(old).unlink(missing_ok=True)
        except OSError as error:
            raise Fatal(f"the exchange's books cannot be written to {self._dir}: {error.strerror}") from None

    def _sync_directory(self) -> None:
        handle = os.open(self._dir, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
