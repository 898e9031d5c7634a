"""SUMA: search videos by what happens in them, in both directions, and see why a video was found."""

from suma.index import Match, VideoIndex
from suma.model import SUMA, SUMAConfig
from suma.video import read_frames

__version__ = "0.1.0"
__all__ = ["SUMA", "Match", "SUMAConfig", "VideoIndex", "__version__", "read_frames"]
