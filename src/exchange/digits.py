"""Whole numbers of ticks and steps as the decimal text of the wire, quickly.

What stands behind the point is looked up in tables that all symbols share: a table of a symbol's own whole texts would fill with every
quantity that is ever traded, three hundred symbols long.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import cache

from src.exchange.symbols import SymbolSpec

FRACTIONS_MAX = 20_000
"""Texts kept of one number of places: all there are up to four, and of more as many as the prices in use have."""


class _Fractions(dict[int, str]):
    """The text behind the point of so many ``places``, point included, by its digits as a number; made when first asked for."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self._places = places

    def __missing__(self, digits: int) -> str:
        if len(self) >= FRACTIONS_MAX:
            self.clear()
        text = self[digits] = f".{digits:0{self._places}d}" if self._places else ""
        return text


_fractions = cache(_Fractions)


class Digits:
    """Text of ``n`` units, 0 or more, of a decimal unit (a tick, a step), with the unit's own digits."""

    __slots__ = ("_fractions", "_multiplier", "_one")

    def __init__(self, unit: Decimal) -> None:
        exponent = unit.as_tuple().exponent
        assert isinstance(exponent, int)
        places = max(0, -exponent)
        self._one = 10**places
        self._multiplier = int(unit * self._one)
        self._fractions = _fractions(places)

    def __call__(self, n: int) -> str:
        value = n * self._multiplier
        return f"{value // self._one}{self._fractions[value % self._one]}"

    def many(self, ns: list[int]) -> list[str]:
        one, multiplier, fractions = self._one, self._multiplier, self._fractions
        if multiplier != 1:
            ns = [n * multiplier for n in ns]
        return [f"{n // one}{fractions[n % one]}" for n in ns]


class Wording:
    """Prices and sizes of every symbol as text."""

    def __init__(self, specs: Sequence[SymbolSpec]) -> None:
        self.price = [Digits(s.tick) for s in specs]
        self.qty = [Digits(s.step) for s in specs]
