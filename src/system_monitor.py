"""What the daemon is doing, for people: the heartbeat block and the verdict of /health. Pure: figures in, text out.

``judge`` is the one definition of healthy: every process beats, data are fresh, every position has its stop, the venue answers,
reconciliation has passed and nothing holds entries. A latch is shown, and does not make the daemon unhealthy: it protects money and works
as meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from src.clock import iso
from src.counters import READY, holds_of

PROCESSES = ("supervisor", "feed", "brain", "orchestrator", "exchange")
Figures = Mapping[str, Mapping[str, int | float]]


@dataclass(frozen=True, slots=True)
class Limits:
    """``hung_s``: age of a beat. ``stale_s``: age of the newest market frame. Wall seconds."""

    hung_s: float
    stale_s: float
    exchange: bool


def judge(figures: Figures, limits: Limits, now_ns: int) -> list[str]:
    """Why the daemon is not healthy; empty when it is."""
    reasons = []
    for name in PROCESSES:
        if name == "exchange" and not limits.exchange:
            continue
        block = figures[name]
        age = (now_ns - block["heartbeat_ns"]) / 1e9
        if not block["heartbeat_ns"] or block["state"] != READY:
            reasons.append(f"{name} is not ready")
        elif age > limits.hung_s:
            reasons.append(f"{name} has not beaten for {age:.0f} s")
    feed, brain = figures["feed"], figures["brain"]
    silence = (now_ns - feed["last_frame_ns"]) / 1e9
    if feed["state"] == READY and (not feed["last_frame_ns"] or silence > limits.stale_s):
        reasons.append(f"data are stale: no market frame for {silence:.0f} s" if feed["last_frame_ns"] else "no market data yet")
    if brain["state"] == READY:
        if brain["positions_unprotected"]:
            reasons.append(f"{brain['positions_unprotected']:.0f} positions without a confirmed stop")
        reasons += [f"{what} is down" for what, name in (("the user stream", "user_stream_live"), ("the WS API", "ws_api_live")) if not brain[name]]
        if not brain["reconciled_ok"]:
            reasons.append("positions are not reconciled with the venue")
        held = holds_of(int(brain["holds"]))
        reasons += [what for what, name in (
            ("the journal cannot be written", "journal"), ("the venue lets this account reduce only", "venue"),
            ("the account is in multi-asset mode", "mode"), ("a newer copy of the daemon trades this account", "copy")) if name in held]
    return reasons


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot as the journal has it, for the heartbeat."""

    symbol: str
    side: str
    state: str
    qty: Decimal
    entry_price: Decimal
    confidence: float


def slot_of(body: Mapping[str, object]) -> Slot:
    opened, left, paid = (Decimal(str(body[n])) for n in ("opened", "left", "paid"))
    return Slot(str(body["symbol"]), str(body["side"]), str(body["state"]), opened - left, paid / opened if opened else Decimal(0),
                float(str(body["confidence"])))


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a heartbeat needs beside the counters. ``closed_24h``: net results of the trades closed in the last 24 hours. ``memory_bytes``: of
    all processes, what they share counted once."""

    mode: str
    market_ms: int
    uptime_s: float
    slots: Sequence[Slot]
    closed_24h: Sequence[Decimal]
    latches: Mapping[str, str]
    max_positions: int
    leverage_cap: int
    teacher: bool
    evidence_note: str
    memory_bytes: int


def heartbeat(figures: Figures, pulse: Pulse, reasons: Sequence[str], now_ns: int) -> str:
    """One block that a person can read in ten seconds."""
    feed, brain = figures["feed"], figures["brain"]
    beats = ", ".join(f"{n} {(now_ns - figures[n]['heartbeat_ns']) / 1e9:.1f} s" for n in PROCESSES if figures[n]["heartbeat_ns"])
    wins = sum(r > 0 for r in pulse.closed_24h)
    losses = sum(feed[name] for name in ("bad_frames", "bad_values", "late", "lost", "gaps")) + brain["seq_errors"] + brain["queue_full"]
    lines = [
        f"💓 Heartbeat · {pulse.mode} · market {iso(pulse.market_ms)[:19]} · up {_span(pulse.uptime_s)} · "
        + ("healthy" if not reasons else "NOT HEALTHY: " + "; ".join(reasons)),
        f"   processes  beats {beats} ago · memory {pulse.memory_bytes / 1e6:.0f} MB",
        f"   market     {feed['symbols']:.0f} symbols · {feed['trades']:,.0f} trades · {feed['quotes']:,.0f} quotes · "
        f"{brain['candles']:,.0f} candles{_audit(brain)} · lag {brain['lag_us_last'] / 1000:.1f} ms (worst {brain['lag_us_max'] / 1000:.1f})",
        f"   losses     {losses:.0f} (bad frames {feed['bad_frames']:.0f}, bad values {feed['bad_values']:.0f}, late {feed['late']:.0f}, "
        f"lost {feed['lost']:.0f}, gaps {feed['gaps']:.0f} healed {feed['healed']:.0f} unfilled {feed['unfilled']:.0f}) · "
        f"reconnects {feed['reconnects']:.0f} · ring full {feed['ring_full']:.0f}",
        f"   decisions  {brain['setups']:.0f} setups · {brain['signals']:.0f} signals, {brain['rejected_signals']:.0f} refused · "
        f"{brain['orders_sent']:.0f} orders, {brain['orders_rejected']:.0f} refused · {brain['fills']:.0f} fills",
        f"   money      equity {brain['equity']:,.2f} · wallet {brain['wallet']:,.2f} · open {brain['unrealised']:+,.2f} · "
        f"today {brain['realised_today']:+,.2f} · 24 h {sum(pulse.closed_24h, Decimal(0)):+,.2f} in {len(pulse.closed_24h)} trades, {wins} won",
        f"   slots      {sum(s.qty > 0 for s in pulse.slots)} of {pulse.max_positions} held"
        + (f", {brain['foreign_positions']:.0f} more by positions of others" if brain["foreign_positions"] else "")
        + f" · leverage cap {pulse.leverage_cap}× · "
        + ("the teacher decides" if pulse.teacher else "the student decides") + (f" · {pulse.evidence_note}" if pulse.evidence_note else ""),
    ]  # fmt: skip
    lines += [f"              {s.side:<4} {s.symbol:<12} {s.qty.normalize():f} at {s.entry_price:.8g} · {s.state} · confidence {s.confidence:.3f}"
              for s in pulse.slots]
    lines += [f"   🛑 {name} latched: {reason} (release with: python -m src.main release)" for name, reason in pulse.latches.items()]
    return "\n".join(lines)


def _audit(brain: Mapping[str, int | float]) -> str:
    """How candles compare with the venue's; those that differ by cause."""
    differing = [f"{n:.0f} {cause}" for cause in ("gapped", "late", "partial", "strange", "unexplained") if (n := brain[f"audit_{cause}"])]
    words = f"differ: {', '.join(differing)}" if differing else "0 differ"
    return f" ({brain['audit_equal']:,.0f} equal the venue's, {words})" if brain["audit_equal"] or differing else ""


def _span(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours // 24} d {hours % 24} h" if hours >= 24 else f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
