"""Functions compiled by numba: for loops over numbers on a CPU that torch has no operation for.

numba is the `fast` extra. Modules that use this one are imported only where `is_installed()`; each
has a counterpart in tensor operations that says the same.
"""

from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from types import FunctionType
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def is_installed() -> bool:
    """Tells whether numba can be imported."""
    return find_spec("numba") is not None


@cache
def _has_threads() -> bool:
    """Tells whether numba has a thread pool here that several Python threads may use at once."""
    return any(find_spec(f"numba.np.ufunc.{pool}") for pool in ("omppool", "tbbpool"))


def enter_threads(num_elements: int, min_elements: int) -> bool:
    """Tells whether a loop should use threads; if so, sets as many as torch uses.

    A process with one thread, as a data worker is, starts no others.

    Args:
        num_elements: Of the loop.
        min_elements: From how many on threads pay.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or num_elements < min_elements or not _has_threads():
        return False
    import numba

    available: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(num_threads, available))
    return True


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Compiles a function on its first call; the result stays on disk where there is a place.

    Args:
        **options: See `numba.njit`; the interpreter's lock is let go of in any case.
    """
    import numba

    def decorate(function: Function) -> Function:
        try:
            result: Function = numba.njit(function, nogil=True, cache=True, **options)
        except RuntimeError:  # no folder can be written to
            result = numba.njit(function, nogil=True, **options)
        return result

    return decorate


def compiled_for_threads(min_elements: int) -> Callable[[Function], Callable[..., Any]]:
    """Compiles a function that loops over `numba.prange`, for one thread and for several.

    The result takes the number of elements, which decides between the two, before the function's
    arguments.

    Args:
        min_elements: See `enter_threads`.
    """

    def decorate(function: Function) -> Callable[..., Any]:
        alone = compiled()(function)
        # Under a name of its own, by which the result is found on disk.
        twin = FunctionType(function.__code__, function.__globals__, function.__name__)
        twin.__qualname__ = f"{function.__qualname__}_threaded"
        together = compiled(parallel=True)(twin)

        @wraps(function)
        def run(num_elements: int, *arguments: Any) -> Any:
            use_threads = enter_threads(num_elements, min_elements)
            return (together if use_threads else alone)(*arguments)

        return run

    return decorate
