"""The journal: an intent before its order, each fill once, latches for ever, and a reader that never blocks the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from decimal import Decimal as D
from pathlib import Path

import pytest

from src.error_handler import Fatal
from src.journal import Intent, Journal, Reader, checkpoint, prune
from src.models import ClosedTrade, Fill, Role, Side

INTENT = Intent("aegis-1-1-e", "BTCUSDT", Role.ENTRY, Side.BUY, D("0.0010"), D("50000.10"), 7)
FILL = Fill("BTCUSDT", 5, "aegis-1-1-e", 9, Side.BUY, D("50000.10"), D("0.0010"), D("0.02500005"), "USDT", D("0.00"), False, 8)


def test_an_intent_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.intend(INTENT)
    assert journal.open_intents() == [INTENT] and journal.known("aegis-1-1-e") and not journal.known("other")
    journal.mark("aegis-1-1-e", "done", now_ms=9)
    assert journal.open_intents() == []


def test_an_ended_intent_stays_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.intend(INTENT)
    journal.mark("aegis-1-1-e", "dead", reason="refused", now_ms=9)
    journal.mark("aegis-1-1-e", "live")
    assert journal.open_intents() == []


def test_a_client_id_used_twice_is_a_bug(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.intend(INTENT)
    with pytest.raises(AssertionError):
        journal.intend(INTENT)


def test_a_fill_is_stored_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.fill(FILL) and not journal.fill(FILL)
    rows = Reader(tmp_path).rows("SELECT price, qty, commission FROM fills")
    assert rows == [("50000.10", "0.0010", "0.02500005")]


def test_slots_latches_and_memory_survive_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.save_slot("BTCUSDT", {"qty": D("1.50")})
    journal.latch("drawdown", "too much", 3)
    journal.latch("drawdown", "again", 4)
    journal.remember("limits", {"day": 3})
    journal.close()
    again = Journal(tmp_path)
    assert again.slots() == {"BTCUSDT": {"qty": "1.50"}} and again.latches() == {"drawdown": "too much"}
    assert again.recall("limits") == {"day": 3} and again.recall("nothing", 5) == 5
    assert again.release() == ["drawdown"] and again.latches() == {}


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import os,signal,sys; from decimal import Decimal as D; from src.journal import *; from src.models import *\n"
        "j=Journal(sys.argv[1])\n"
        "for i in range(200): j.intend(Intent(f'aegis-1-{i}-e','BTCUSDT',Role.ENTRY,Side.BUY,D(1),D(1),i))\n"
        "j.latch('halt','x',1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent.parent, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(tmp_path)
    assert len(journal.open_intents()) == 200 and journal.latches() == {"halt": "x"}


def test_a_checkpoint_empties_the_log_beside_the_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for i in range(500):
        journal.remember(f"n{i}", "x" * 300)
    before = journal.wal_bytes()
    assert checkpoint(journal.path) > 0
    journal.remember("one more", 1)
    assert before > 100_000 and journal.recall("n499") == "x" * 300


def test_pruning_keeps_fills_and_trades(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.intend(INTENT)
    journal.mark(INTENT.client_id, "done", now_ms=10)
    journal.fill(FILL)
    journal.closed(ClosedTrade("BTCUSDT", Side.BUY, D(1), D(1), D(2), 1, 2, D("1.10"), D("0.10"), 0.6, "teacher", "target"))
    assert prune(journal.path, 11) == 1
    assert Reader(tmp_path).trades_since(0) == [("BTCUSDT", "BUY", "1.10", "0.10", "target", 2)]
    assert len(Reader(tmp_path).rows("SELECT 1 FROM fills")) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Fatal, match="STATE_DIR"):
        Journal(file / "below")


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal._db.execute("UPDATE meta SET value='99' WHERE name='schema'")
    journal.close()
    with pytest.raises(Fatal, match="schema 99"):
        Journal(tmp_path)


def test_rubbish_in_place_of_the_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Fatal, match="cannot be opened"):
        Journal(tmp_path)


def test_a_reader_of_nothing_reads_nothing(tmp_path: Path) -> None:
    assert Reader(tmp_path).slots() == {} and Reader(tmp_path).latches() == {}


def test_a_reader_finds_the_journal_whatever_the_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "50% of #1?"
    journal = Journal(folder)
    journal.latch("halt", "said by the test", 1)
    assert Reader(folder).latches() == {"halt": "said by the test"}
    journal.close()
