"""SUMA: search videos by what happens in them, in both directions, and see why a video was found."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suma.config import SUMAConfig
    from suma.index import VideoIndex
    from suma.model import SUMA
    from suma.query import Filter
    from suma.search import Match
    from suma.video import read_frames

__version__ = "0.1.0"
__all__ = ["SUMA", "Filter", "Match", "SUMAConfig", "VideoIndex", "__version__", "read_frames"]
_HOMES = {
    "SUMA": "suma.model", "SUMAConfig": "suma.config", "Match": "suma.search", "VideoIndex": "suma.index",
    "read_frames": "suma.video", "Filter": "suma.query",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names are imported when they are first used: a command that needs no torch starts without it."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'suma' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return globals()[name]
