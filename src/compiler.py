"""Numba's compiler without SciPy: every module with kernels takes ``njit`` or ``lean_njit`` from here.

Numba looks for SciPy's linear algebra when it starts, and so loads it into every process. No kernel of ours multiplies matrices, and a process
saves 9 MB and half a second of its start. SciPy can be imported afterwards as ever; LightGBM needs it where there is a model.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module

from numba import njit as njit

lean_njit = partial(njit, _nrt=False)
"""For kernels that neither make arrays nor return them, only work on those they are given, and call only lean ones. Numba counts references to
an array at every call between kernels, atomically; without that the Feed's take a third of the time. What makes or returns an array does not
compile."""

ALGEBRA = "scipy.linalg"


def _without_algebra(module: str) -> None:
    """Import a module that goes on without SciPy's linear algebra where there is none, unless that is loaded already."""
    if ALGEBRA in sys.modules:
        return
    sys.modules[ALGEBRA] = None  # type: ignore[assignment]  # Python's own word for: cannot be imported
    try:
        import_module(module)
    finally:
        del sys.modules[ALGEBRA]


_without_algebra("numba.np.arraymath")  # it is this part that looks
