"""The audit: built candles against the venue's klines, by cause, and what follows from a difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from src.audit import KLINES_MAX, SETTLED, Auditor, Floats, compare
from src.bars import GAPPED, LATE, PARTIAL, SEEDED, STRANGE
from src.clock import clock_at
from src.counters import Block, Counters
from src.market_state import MarketState
from tests.markets import MINUTE, T0, random_bars, run, slots_of_bars, state_of

BARS = 100


@pytest.fixture
def block() -> Iterator[Block]:
    counters = Counters.create()
    yield counters.block("brain")
    counters.close()


class Venue:
    """Answers with klines of its own, and remembers what it was asked."""

    def __init__(self, bars: Floats) -> None:
        self.bars = bars.copy()
        self.asked: list[tuple[str, int, int]] = []

    async def fetch(self, symbol: str, start_ms: int, limit: int) -> Floats:
        self.asked.append((symbol, start_ms, limit))
        return self.bars[self.bars[:, 0] >= start_ms][:limit]


def built(bars: Floats) -> MarketState:
    state = state_of(1)
    run(state, slots_of_bars([bars]))
    return state


def auditor(state: MarketState, venue: Venue, block: Block, bars: int = BARS) -> Auditor:
    return Auditor(state, venue.fetch, clock_at(T0 + bars * MINUTE, 1.0), block)


@pytest.mark.parametrize(("flaw", "cause"), [
    (0, "unexplained"), (GAPPED, "gapped"), (LATE, "late"), (PARTIAL, "partial"), (STRANGE, "strange"), (GAPPED | STRANGE, "gapped"),
])  # fmt: skip
@pytest.mark.parametrize("column", range(1, 8))
def test_a_candle_that_differs_anywhere_is_counted_by_its_flaw(flaw: int, cause: str, column: int) -> None:
    own = random_bars(3, 1)
    venue = own.copy()
    venue[1, column] += 1
    assert compare(own, np.array([0, flaw, LATE], np.uint8), venue) == {"equal": 2, cause: 1}
    assert compare(own, np.zeros(3, np.uint8), np.delete(own, 0, axis=0)) == {"absent": 1, "equal": 2}


async def test_candles_built_from_trades_equal_klines_of_the_same_trades(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    bars = random_bars(BARS, 2)
    venue, settled = Venue(bars), BARS - 1 - SETTLED
    looking = auditor(built(bars), venue, block)
    with caplog.at_level("WARNING"):
        found = await looking.audit(0)
    assert "differ" not in caplog.text, "the candle that had begun before we listened is nothing to warn of"
    assert found["equal"] + found["partial"] == settled + 1 and not found["unexplained"] and found["partial"] <= 1
    assert venue.asked == [("S0USDT", T0, settled + 1)] and block.get("audit_equal") == found["equal"]
    assert await looking.audit(0) == Counter() and len(venue.asked) == 1, "each candle is looked at once"


async def test_a_difference_has_the_symbol_read_again_and_history_is_not_audited(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    bars = random_bars(BARS, 3)
    state, venue = built(bars), Venue(bars)
    venue.bars[50, 5] += 1
    assert state.tainted() == []
    found = await auditor(state, venue, block).audit(0)
    assert "1 candles of S0USDT differ from the venue's" in caplog.text
    assert found["unexplained"] == 1 and block.get("audit_unexplained") == 1 and state.tainted() == [0]
    state.seed(0, random_bars(4, 3, interval_ms=5 * MINUTE, start_ms=T0 + 60 * MINUTE), venue.bars[60:], until_ms=T0 + BARS * MINUTE)
    assert (state.flaws(0) == SEEDED).all()
    assert await auditor(state, venue, block).audit(0) == Counter() and len(venue.asked) == 1, "what was read from the venue is not held against it"


async def test_more_than_one_request_holds_is_looked_at_in_the_next_round(block: Block) -> None:
    bars = random_bars(KLINES_MAX + 50, 4)
    venue = Venue(bars)
    looking = auditor(built(bars), venue, block, len(bars))
    assert sum((await looking.audit(0)).values()) == KLINES_MAX
    assert sum((await looking.audit(0)).values()) == 50 - SETTLED
    assert [limit for *_, limit in venue.asked] == [KLINES_MAX, 50 - SETTLED]
