"""Seconds from the command to all processes running and /health ready: cold (kernels compiled) and warm, with the exchange spawned.

The reference is a bare interpreter that imports what the Brain imports.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from src.clock import monotonic_ns
from tests.bench import Row, row
from tests.daemon import daemon_env, get, health_url, running, until

WARM_STARTS = 5


def _start_s(cache: str) -> float:
    """The market runs at speed 1 here: a start is not slowed by a fast one."""
    began = monotonic_ns()
    with tempfile.TemporaryDirectory() as folder, running([], daemon_env(Path(folder), NUMBA_CACHE_DIR=cache, SIM_SPEED="1")) as process:
        process.wait_line("✅ All processes running")
        url = health_url(process)
        until(lambda: get(url)[0] == 200, 60, what="/health 200")
        return (monotonic_ns() - began) / 1e9


def _imports_s() -> float:
    began = monotonic_ns()
    subprocess.run([sys.executable, "-c", "import src.brain_process"], check=True)
    return (monotonic_ns() - began) / 1e9


def run() -> Iterator[Row]:
    imports = statistics.median(_imports_s() for _ in range(3))
    with tempfile.TemporaryDirectory() as cache:
        cold = _start_s(cache)
        warm = statistics.median(_start_s(cache) for _ in range(WARM_STARTS))
    for case, value in (("cold", cold), ("warm", warm)):
        yield row("start", case, "seconds", value, reference="imports of one process", reference_value=imports)
