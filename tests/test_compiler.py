"""A kernel that does without the counting of references and may not is refused when it is compiled, instead of reading freed memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba.core.errors import NumbaError

from src.compiler import lean_njit


def _made(numbers: Any) -> Any:
    return np.zeros(len(numbers))


def _part(numbers: Any) -> Any:
    return numbers[1:]


def _made_inside(numbers: Any) -> Any:
    return np.zeros(len(numbers)).sum()


def _sum(numbers: Any) -> Any:
    total = 0.0
    for number in numbers[1:]:
        total += number
    return total


@pytest.mark.parametrize("function", [_made, _part, _made_inside])
def test_a_kernel_that_makes_or_returns_arrays_is_not_compiled_lean(function: Any) -> None:
    with pytest.raises((NumbaError, RuntimeError)):
        lean_njit(function)(np.ones(5))


def test_a_kernel_that_only_works_on_what_it_is_given_is() -> None:
    numbers = np.arange(5.0)
    assert lean_njit(_sum)(numbers) == 10.0
    numbers[:] = 1.0
    assert lean_njit(_sum)(numbers) == 4.0
