"""One source text for two libraries: torch, in which a model is trained and the app answers, and numpy, for a search
from the command line, since importing torch would take longer than the search.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")
Array = Any  # a torch tensor or a numpy array; what a function returns is of the library of what it was given


def library(x: Array) -> Any:
    """Return numpy or torch, whichever x is an array of. They share the names of what is used here."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def unit(x: Array) -> Array:
    """Scale rows (..., n) to length 1; a row of zeros stays.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    if not isinstance(x, np.ndarray):
        return library(x).nn.functional.normalize(x, dim=-1)
    return x / np.maximum(np.sqrt(np.square(x).sum(-1, keepdims=True)), 1e-12)


def constant(x: Array) -> Array:
    """Return x without its gradient."""
    return x if isinstance(x, np.ndarray) else x.detach()


def to_numpy(x: Array) -> np.ndarray:
    """Return x as a numpy array, from any device; bfloat16, which numpy has not, as float32."""
    if isinstance(x, np.ndarray):
        return x
    x = x.detach().cpu()
    return (x.float() if x.dtype == library(x).bfloat16 else x).numpy()


def no_grad(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function or a generator: if torch is loaded, it records no gradients while it runs."""

    @functools.wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        torch = sys.modules.get("torch")
        return function(*args, **kwargs) if torch is None else torch.no_grad()(function)(*args, **kwargs)

    return quiet
