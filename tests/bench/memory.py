"""Memory of the whole daemon: proportional set size (PSS) of all its processes, exchange included, with 20 and 300 symbols.

The reference is what the imports alone cost: as many bare processes that import what each child imports. Kernels are compiled first, so that
a warm start is measured.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from src.life import pss_bytes
from tests.bench import Row, row
from tests.daemon import daemon_env, descendants, running

SETTLE_S = 30.0
IMPORTS = {
    "supervisor": "src.supervisor, src.config, src.ring_memory, src.processes",
    "feed": "src.feed, src.market_universe, src.life",
    "brain": "src.brain_process, src.life",
    "orchestrator": "src.orchestrator",
    "exchange": "src.exchange.server, src.life",
}


def pss_mb(pid: int) -> float:
    return pss_bytes(pid) / (1 << 20)


def _imports_mb() -> float:
    """The same imports in as many bare processes, all alive at once."""
    code = "import {}\nprint('ready', flush=True)\ninput()"
    alive = [subprocess.Popen([sys.executable, "-c", code.format(names)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
             for names in IMPORTS.values()]  # fmt: skip
    try:
        for process in alive:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return sum(pss_mb(process.pid) for process in alive)
    finally:
        for process in alive:
            process.kill()
            process.wait()


def _daemon_mb(symbols: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, running([], daemon_env(Path(folder), UNIVERSE_SIZE=str(symbols), SIM_SPEED="10")) as process:
        process.wait_line("✅ All processes running")
        try:
            process.process.wait(seconds)
        except subprocess.TimeoutExpired:
            found = {}
            for pid in [process.process.pid, *descendants(process.process.pid)]:
                name = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").removeprefix("aegis: ")
                name = name if name in IMPORTS else "supervisor"
                found[name] = found.get(name, 0.0) + pss_mb(pid)
            return found
    raise RuntimeError(f"the daemon ended:\n{process.output}")


def run() -> Iterator[Row]:
    imports = _imports_mb()
    _daemon_mb(20, 1.0)  # compiles, where that is still to do
    for symbols in (20, 300):
        found = _daemon_mb(symbols, SETTLE_S)
        for name, value in sorted(found.items()):
            yield row("memory", f"{name}, {symbols} symbols", "pss_mb", value)
        yield row("memory", f"all processes, {symbols} symbols", "pss_mb", sum(found.values()), reference="imports alone", reference_value=imports)
