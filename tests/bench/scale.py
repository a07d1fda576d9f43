"""Cost grows with work: the whole daemon with 20, 100, 300 and 600 symbols: processor, memory, lag; a table, and docs/scale.svg.

Real processes, the local exchange and its synthetic market included, at the speed of the clock, where the market is quiet and symbols are what
costs, and at twenty times that, where there are frames as on a busy venue and twenty times the closes; the plot is of the latter. Processor time
and memory (PSS) of each process over half a minute after everything runs; frames of the Feed; age of the oldest slot of a batch at the Brain,
asked for ten times a second. The reference of each row is the same figure with the fewest symbols.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from src.clock import monotonic_ns
from tests.bench import Row, percentile, row
from tests.bench.memory import pss_mb
from tests.daemon import ROOT, Process, daemon_env, descendants, get, health_url, running, until

SYMBOLS = (20, 100, 300, 600)
SPEEDS = (1, 20)
SETTLE_S, MEASURE_S, ASK_S = 20.0, 30.0, 0.1
PROCESSES = ("feed", "brain", "orchestrator", "exchange")
OURS = ("feed", "brain", "orchestrator", "supervisor")
LAG, FRAMES = 'aegis_lag_us_last{process="brain"}', 'aegis_frames{process="feed"}'
TICKS = os.sysconf("SC_CLK_TCK")
Figures = dict[str, float]


def _processes(pid: int) -> dict[str, int]:
    """{name: its number}; what has no name of its own belongs to the supervisor and is left out."""
    found = {"supervisor": pid}
    for child in descendants(pid):
        name = Path(f"/proc/{child}/cmdline").read_bytes().decode().rstrip("\0").removeprefix("aegis: ")
        if name in PROCESSES:
            found[name] = child
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _metrics(url: str) -> Figures:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            with suppress(ValueError):
                found[name] = float(value)
    return found


def _wait(process: Process, seconds: float) -> None:
    """Time passes while the daemon runs; it is an error when it does not run on."""
    with suppress(subprocess.TimeoutExpired):
        process.process.wait(seconds)
        raise RuntimeError(f"the daemon ended:\n{process.output}")


def measure(symbols: int, speed: int) -> Figures:
    """{what: figure} of a daemon with so many symbols, in a market so many times as fast as the clock."""
    settings = {"UNIVERSE_SIZE": str(symbols), "SIM_SPEED": str(speed)}
    with tempfile.TemporaryDirectory() as folder, running([], daemon_env(Path(folder), **settings)) as process:
        process.wait_line("✅ All processes running")
        base = health_url(process).removesuffix("/health")
        until(lambda: get(f"{base}/health")[0] == 200, 300.0, what="readiness")
        _wait(process, SETTLE_S)
        found = _processes(process.process.pid)
        before, began, cpu, lags = _metrics(base), monotonic_ns(), {name: _cpu_s(pid) for name, pid in found.items()}, []
        while (seconds := (monotonic_ns() - began) / 1e9) < MEASURE_S:
            _wait(process, ASK_S)
            lags.append(_metrics(base)[LAG])
        figures = {f"cpu {name}": 100 * (_cpu_s(pid) - cpu[name]) / seconds for name, pid in found.items()}
        figures |= {f"pss {name}": pss_mb(pid) for name, pid in found.items()}
        frames = _metrics(base)[FRAMES] - before[FRAMES]
    return figures | {"frames": frames / seconds, "lag p50": statistics.median(lags), "lag p99": percentile(lags, 0.99)}


def run() -> Iterator[Row]:
    for speed in SPEEDS:
        found = {symbols: measure(symbols, speed) for symbols in SYMBOLS}
        for symbols, figures in found.items():
            yield from _rows(f"{symbols} symbols, speed {speed}", figures, found[SYMBOLS[0]])
    (ROOT / "docs" / "scale.svg").write_text(drawn(found))


def _rows(who: str, figures: Figures, least: Figures) -> Iterator[Row]:
    for name, value in figures.items():
        kind, _, what = name.partition(" ")
        metric = {"cpu": "percent_of_core", "pss": "mb", "frames": "frames_per_s", "lag": f"{what}_us"}[kind]
        case = {"cpu": f"processor, {what}", "pss": f"memory (PSS), {what}", "frames": "frames", "lag": "lag at the Brain"}[kind]
        yield row("scale", f"{who}: {case}", metric, value, reference=f"{SYMBOLS[0]} symbols", reference_value=least[name])


# --- the plot ----------------------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, TOP, GAP = 260, 180, 50, 40, 80
PANELS = (("processor, % of a core", "cpu", OURS), ("memory (PSS), MB", "pss", OURS), ("lag at the Brain, µs", "lag", ("p50", "p99")))
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#7f7f7f")


def drawn(found: dict[int, Figures]) -> str:
    """An SVG of three panels over the number of symbols. The exchange is not drawn: in live trading it is not ours."""
    panels = [_panel(place, panel, found) for place, panel in enumerate(PANELS)]
    width = LEFT + len(PANELS) * (WIDTH + GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 70}" font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *panels, "</svg>", ""])


def _panel(place: int, panel: tuple[str, str, tuple[str, ...]], found: dict[int, Figures]) -> str:
    title, kind, names = panel
    left, bottom = LEFT + place * (WIDTH + GAP), TOP + HEIGHT
    most = _round_above(max(figures[f"{kind} {name}"] for figures in found.values() for name in names))
    parts = [f'<text x="{left}" y="{TOP - 15}" font-size="13">{title}</text>',
             f'<path d="M{left} {TOP}V{bottom}H{left + WIDTH}" fill="none" stroke="black"/>']
    parts += [f'<text x="{left - 5}" y="{bottom - share * HEIGHT + 4:.0f}" text-anchor="end">{_label(most * share)}</text>'
              for share in (0.0, 0.5, 1.0)]  # fmt: skip
    parts += [f'<text x="{left + _across(symbols):.0f}" y="{bottom + 15}" text-anchor="middle">{symbols}</text>' for symbols in found]
    legend = left + 8
    for name, colour in zip(names, COLOURS, strict=False):
        points = [(left + _across(symbols), bottom - figures[f"{kind} {name}"] / most * HEIGHT) for symbols, figures in found.items()]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{legend}" y="{bottom + 40}" fill="{colour}">{name}</text>')
        legend += 7 * len(name) + 16
    return "\n".join(parts)


def _round_above(value: float) -> float:
    """The next 1, 2, 4, 6 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _across(symbols: int) -> float:
    return symbols / max(SYMBOLS) * WIDTH
