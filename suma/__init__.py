"""SUMA: search videos by what happens in them, in both directions, and see why a video was found."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suma.index.query import Filter
    from suma.index.search import Match
    from suma.index.video_index import VideoIndex
    from suma.model.config import SUMAConfig
    from suma.model.suma import SUMA
    from suma.video.frames import read_frames

__version__ = "0.1.0"
__all__ = ["SUMA", "Filter", "Match", "SUMAConfig", "VideoIndex", "__version__", "read_frames"]
_HOMES = {
    "SUMA": "suma.model.suma",
    "SUMAConfig": "suma.model.config",
    "Filter": "suma.index.query",
    "Match": "suma.index.search",
    "VideoIndex": "suma.index.video_index",
    "read_frames": "suma.video.frames",
}


def __getattr__(name: str) -> Any:
    """The public names are imported when they are first used: a command that needs no torch starts without it."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'suma' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return globals()[name]
