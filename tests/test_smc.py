"""Structure against a plain-Python twin of the definitions, by hand-made markets, and prefix by prefix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from src.indicators import series
from src.smc import EVENT_NAMES, EVENTS_MAX, scan
from tests.markets import MINUTE, T0, random_bars
from tests.oracle_smc import Bars, Twin

Floats = npt.NDArray[np.float64]


def _events(bars: Floats) -> list[tuple[object, ...]]:
    """(kind, side, origin bar, known bar, end bar or None, near, deep) in the order of knowing."""
    _, events = scan(bars, MINUTE, events=20 * len(bars))
    return [(EVENT_NAMES[e["kind"]], int(e["side"]), (int(e["origin_ms"]) - T0) // MINUTE, (int(e["known_ms"]) - T0) // MINUTE - 1,
             (int(e["end_ms"]) - T0) // MINUTE - 1 if e["end_ms"] else None, float(e["near"]), float(e["deep"])) for e in events]


def _twin(bars: Floats) -> list[tuple[object, ...]]:
    columns = Bars(*(bars[:, k].tolist() for k in (1, 2, 3, 4)))
    twin = Twin(columns, series(bars)["atr"].tolist()).run()
    kept: list[tuple[object, ...]] = []
    for e in twin.events:
        if e.kind == "zone of sweep":
            kept[-1] = (*kept[-1][:4], e.end, *kept[-1][5:])
            continue
        kept.append((e.kind, e.side, e.origin, e.known, e.end, e.near, e.deep))
    return kept


def _made(*candles: tuple[float, float, float, float]) -> Floats:
    """Bars from (open, high, low, close)."""
    return np.array([(T0 + k * MINUTE, *candle, 10.0, 1.0, 5.0) for k, candle in enumerate(candles)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("volatility", [0.002, 0.02])
def test_every_event_equals_the_twins(seed: int, volatility: float) -> None:
    bars = random_bars(700, seed, volatility=volatility)
    ours, twins = _events(bars), _twin(bars)
    assert len(ours) > 300
    late = len(bars) - 1
    assert [e[:4] + e[5:] for e in ours] == [e[:4] + e[5:] for e in twins]
    ended = [(a, b) for a, b in zip(ours, twins, strict=True) if a[4] != b[4]]
    # An event that left the log of the last EVENTS_MAX before it ended keeps end 0; the others end when their twins do.
    assert all(a[4] is None and b[3] is not None for a, b in ended), ended[:3]
    position = {id(e): k for k, e in enumerate(ours)}
    for a, b in ended:
        known_by_then = sum(1 for e in ours if isinstance(e[3], int) and e[3] <= (b[4] if isinstance(b[4], int) else late))
        assert known_by_then - position[id(a)] > EVENTS_MAX - 4, (a, b)


@pytest.mark.parametrize("cut", [5, 17, 100, 251, 333])
def test_what_is_known_never_changes_later(cut: int) -> None:
    bars = random_bars(400, 7)
    whole, part = _events(bars), _events(bars[:cut])
    known = [e for e in whole if isinstance(e[3], int) and e[3] < cut]
    assert [e[:4] + e[5:] for e in known] == [e[:4] + e[5:] for e in part]
    for before, after in zip(part, known, strict=True):
        assert before[4] == (after[4] if isinstance(after[4], int) and after[4] < cut else None)


def test_no_event_is_known_before_it_began() -> None:
    lags: dict[str, set[int]] = {}
    for kind, _, origin, known, *_ in _events(random_bars(2_000, 8)):
        assert isinstance(origin, int) and isinstance(known, int)
        lags.setdefault(str(kind), set()).add(known - origin)
    for kind in sorted(lags):
        print(f"{kind}: known {min(lags[kind])} to {max(lags[kind])} bars after its bar")
    assert lags["pivot"] == {3} and lags["fair value gap"] == {1} and lags["sweep"] == {0}
    assert min(lags["BOS"] | lags["CHoCH"]) > 3 and min(lags["order block"]) >= 1


def test_a_close_above_the_last_high_makes_a_block_of_the_lowest_down_candle() -> None:
    bars = _made((10, 11, 9, 10), (10, 12, 10, 11), (11, 13, 10, 12), (12, 20, 12, 15), (15, 16, 11, 12), (12, 13, 8, 9), (9, 12, 9, 11),
                 (11, 15, 10, 14), (14, 22, 13, 21), (21, 25, 20, 24))  # fmt: skip
    kinds = [e for e in _events(bars) if e[0] in ("BOS", "order block")]
    assert kinds == [("BOS", 1, 3, 8, 8, 20.0, 21.0), ("order block", 1, 5, 8, None, 13.0, 8.0)]


def test_a_gap_ends_when_price_has_been_through_all_of_it() -> None:
    bars = _made((10, 11, 9, 10), (10, 15, 10, 15), (15, 18, 14, 17), (17, 18, 12, 13), (13, 14, 10, 12))
    assert ("fair value gap", 1, 1, 2, 4, 14.0, 11.0) in _events(bars)


def test_a_wick_beyond_a_high_that_closes_below_it_sweeps_it() -> None:
    bars = _made((10, 11, 9, 10), (10, 12, 10, 11), (11, 13, 10, 12), (12, 20, 12, 15), (15, 16, 11, 12), (12, 13, 8, 9), (9, 12, 9, 11),
                 (11, 21, 10, 18))  # fmt: skip
    events = _events(bars)
    assert [e[:4] + e[5:] for e in events if e[0] == "sweep"] == [("sweep", -1, 7, 7, 20.0, 21.0)]
    assert not [e for e in events if e[0] == "BOS"]
    assert next(e for e in events if e[:3] == ("pivot", 1, 3))[4] == 7
