"""A kernel that does without the counting of references and may not is refused when it is compiled, instead of reading freed memory."""

from __future__ import annotations

import ast
from pathlib import Path
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


def _taken(path: Path) -> dict[str, set[str]]:
    """Of a module: what it imports from which of ours."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    return {str(node.module): {name.name for name in node.names} for node in found}


def test_lean_kernels_call_only_lean_ones() -> None:
    """A kernel that counts references, called by one that does not, would leak what it makes."""
    taken = {f"src.{path.stem}": _taken(path) for path in Path("src").glob("*.py")}
    lean = {module for module, names in taken.items() if "lean_njit" in names.get("src.compiler", ())}
    counting = {module for module, names in taken.items() if "njit" in names.get("src.compiler", ())}
    assert len(lean) >= 3 and counting
    assert not lean & counting
    assert not {(module, other) for module in lean for other in taken[module] if other in counting}
