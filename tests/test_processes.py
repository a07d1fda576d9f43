"""Each process loads what it needs and nothing else: a library that is loaded for nothing costs memory in every run, and time at every start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench.memory import IMPORTS

LIBRARIES = {"pyarrow", "lightgbm", "scipy.linalg", "numba", "aiohttp", "src.ring_buffer", "src.exchange.server"}
NEEDED = {
    "supervisor": set(), "orchestrator": {"aiohttp"}, "exchange": {"aiohttp", "numba", "src.exchange.server"},
    "feed": {"aiohttp", "numba", "src.ring_buffer"}, "brain": {"aiohttp", "numba", "src.ring_buffer"},
}  # fmt: skip


@pytest.mark.parametrize("process", NEEDED)
def test_a_process_loads_only_the_libraries_that_it_needs(process: str) -> None:
    code = f"import sys, {IMPORTS[process]}\nprint(*sorted({LIBRARIES} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == NEEDED[process]
