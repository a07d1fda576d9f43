"""Plain-Python twins of src/indicators.py, written from the definitions over whole lists."""

from __future__ import annotations

import math
from itertools import pairwise


def wilder_mean(values: list[float], period: int) -> list[float]:
    """Plain mean of the first ``period`` values, then Wilder's smoothing; NaN before."""
    out: list[float] = []
    for k in range(len(values)):
        if k + 1 < period:
            out.append(math.nan)
        elif k + 1 == period:
            out.append(sum(values[:period]) / period)
        else:
            out.append((out[-1] * (period - 1) + values[k]) / period)
    return out


def rsi(closes: list[float], period: int) -> list[float]:
    changes = [b - a for a, b in pairwise(closes)]
    gains = wilder_mean([max(c, 0.0) for c in changes], period)
    losses = wilder_mean([max(-c, 0.0) for c in changes], period)
    values = [50.0 if g + x == 0 else 100.0 * g / (g + x) for g, x in zip(gains, losses, strict=True)]
    return [math.nan, *values]


def true_ranges(highs: list[float], lows: list[float], closes: list[float]) -> list[float]:
    first = highs[0] - lows[0]
    return [first] + [max(highs[k], closes[k - 1]) - min(lows[k], closes[k - 1]) for k in range(1, len(closes))]


def ema(values: list[float], period: int) -> list[float]:
    out = [values[0]]
    alpha = 2.0 / (period + 1)
    for value in values[1:]:
        out.append(alpha * value + (1 - alpha) * out[-1])
    return out
