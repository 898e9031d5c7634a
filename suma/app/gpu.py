"""ZeroGPU: on Spaces that lend GPUs, each call of the model borrows one; elsewhere nothing changes."""

import os
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def zero_gpu() -> bool:
    """Return whether this is a Space that lends GPUs call by call."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")


def on_gpu(function: Function) -> Function:
    """Return the function, which borrows a GPU while it runs. ZeroGPU runs it in another process, so it must change
    nothing in this one."""
    if not zero_gpu():
        return function
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(function)
