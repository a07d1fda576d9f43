"""Chores that keep the daemon fit for weeks: empty the journal's log, prune, look at the disk, write a report. Run in worker threads.

Each chore is a function of its own; one that fails harms nothing else. None of them touches an order.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from src.clock import iso
from src.journal import Reader, checkpoint, prune

KEEP_MS = 30 * 86_400_000
DISK_FREE_MIN = 500_000_000
REPORTS_MAX = 200


@dataclass(frozen=True, slots=True)
class Report:
    """One maintenance: what was done and found. Bytes, rows and market time in milliseconds."""

    market_ms: int
    pages_checkpointed: int
    rows_pruned: int
    disk_free: int
    trades: int
    net: str
    commission: str
    by_reason: dict[str, int]

    @property
    def disk_low(self) -> bool:
        return self.disk_free < DISK_FREE_MIN


def maintain(state_dir: str, data_dir: str, market_ms: int, since_ms: int) -> Report:
    """All chores, in order. ``since_ms``: the report counts trades closed after it."""
    journal = Reader(state_dir)
    rows = journal.trades_since(since_ms)
    by_reason: dict[str, int] = {}
    for row in rows:
        by_reason[row[4]] = by_reason.get(row[4], 0) + 1
    commission = sum((Decimal(r[3]) for r in rows), Decimal(0))
    report = Report(
        market_ms=market_ms, pages_checkpointed=checkpoint(journal.path) if journal.path.exists() else 0,
        rows_pruned=prune(journal.path, market_ms - KEEP_MS) if journal.path.exists() else 0,
        disk_free=shutil.disk_usage(state_dir).free, trades=len(rows), net=str(sum((Decimal(r[2]) for r in rows), Decimal(0)) - commission),
        commission=str(commission), by_reason=by_reason)  # fmt: skip
    _write(Path(data_dir) / "reports", report)
    return report


def _write(folder: Path, report: Report) -> None:
    """``report-<market time>.json``, whole or not at all; the oldest go when there are more than REPORTS_MAX."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "report-" + iso(report.market_ms)[:19].replace(":", "") + ".json"
    half = folder / (name + ".part")
    half.write_text(json.dumps(asdict(report), indent=2) + "\n")
    half.rename(folder / name)
    for old in sorted(folder.glob("report-*.json"))[:-REPORTS_MAX]:
        old.unlink()
