"""Processes of their own for tests, forked from one that has imported torch and open_clip, which takes seconds."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

OTHERS = multiprocessing.get_context("forkserver")
OTHERS.set_forkserver_preload(["open_clip", "suma.model.suma"])


def with_environment(environment: dict[str, str], function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in such a process; what it raises goes to stderr, and the exit code is 1."""
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)
