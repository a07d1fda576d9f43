"""Texts of ticks and steps: exact, and without a memory of every number there ever was."""

from __future__ import annotations

import tracemalloc
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from src.exchange.digits import Digits, Wording
from src.exchange.symbols import scaled_universe, spec

UNITS = ("1", "10", "1000", "0.1", "0.01", "0.05", "0.001", "0.0001", "0.00001", "0.0000100", "0.000001", "0.0000001")


@given(st.sampled_from(UNITS), st.lists(st.integers(0, 10**15), max_size=5))
def test_a_text_is_the_product_in_the_digits_of_its_unit(unit: str, numbers: list[int]) -> None:
    digits = Digits(Decimal(unit))
    wanted = [format(n * Decimal(unit), "f") for n in numbers]
    assert digits.many(numbers) == wanted and [digits(n) for n in numbers] == wanted


def test_many_different_prices_and_sizes_of_many_symbols_leave_next_to_nothing_behind() -> None:
    words = Wording([spec(name) for name in scaled_universe(60)])
    tracemalloc.start()
    try:
        for first in range(1_000, 21_000, 4_000):
            for price, qty in zip(words.price, words.qty, strict=True):
                price.many(list(range(first, first + 500)))
                qty.many(list(range(first, first + 500)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5_000_000
