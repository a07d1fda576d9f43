"""Whole numbers of ticks and steps as the decimal text of the wire, quickly."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from src.exchange.symbols import SymbolSpec

CACHE_MAX = 20_000


class Digits:
    """Text of ``n`` units of a decimal unit (a tick, a step), with the unit's own digits."""

    __slots__ = ("_cache", "_multiplier", "_places")

    def __init__(self, unit: Decimal) -> None:
        exponent = unit.as_tuple().exponent
        assert isinstance(exponent, int)
        self._places = max(0, -exponent)
        self._multiplier = int(unit.scaleb(self._places))
        self._cache: dict[int, str] = {}

    def __call__(self, n: int) -> str:
        found = self._cache.get(n)
        if found is None:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            found = self._cache[n] = self._text(n)
        return found

    def many(self, ns: list[int]) -> list[str]:
        get = self._cache.get
        return [get(n) or self(n) for n in ns]

    def _text(self, n: int) -> str:
        value, places = n * self._multiplier, self._places
        if not places:
            return str(value)
        padded = str(value).zfill(places + 1)
        return f"{padded[:-places]}.{padded[-places:]}"


class Wording:
    """Prices and sizes of every symbol as text."""

    def __init__(self, specs: Sequence[SymbolSpec]) -> None:
        self.price = [Digits(s.tick) for s in specs]
        self.qty = [Digits(s.step) for s in specs]
