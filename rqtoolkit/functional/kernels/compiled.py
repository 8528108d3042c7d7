"""How functions are compiled: without the GIL, kept on disk where that is possible."""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["compiled"]


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of arrays with numba at its first call.

    Sums keep their order and their rounding (no `fastmath`): results are those of plain torch. The
    machine code is cached beside the source or in the user's cache folder; where neither can be
    written, each process compiles anew.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # "no locator available": nowhere to write
        return numba.njit(function, **options)
