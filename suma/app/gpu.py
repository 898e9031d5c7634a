"""ZeroGPU: where Hugging Face's `spaces` is installed, the model's calls borrow a GPU; elsewhere nothing changes."""

import os
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def zero_gpu() -> bool:
    """Whether this is a Space that lends GPUs call by call."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")


def on_gpu(function: Function) -> Function:
    """Let a function that changes nothing in this process (ZeroGPU runs it in another) borrow a GPU while it runs."""
    if not zero_gpu():
        return function
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(function)
