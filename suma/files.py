"""Which video files a command means: files, folders, globs."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from suma.disk import on_disk
from suma.video import VIDEO_EXTENSIONS


def find_videos(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The video files that files, folders (all the way down) and glob patterns name, each once, in the order given.

    A file named outright is taken whatever its suffix; in a folder, those with one of VIDEO_EXTENSIONS, sorted, hidden
    ones left out; of a pattern's matches also those with the pattern's own suffix. Raises FileNotFoundError where a
    path or pattern matches nothing, ValueError where a folder holds no video.
    """
    found: dict[str, Path] = {}
    for entry in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(on_disk(entry))
        if path.is_dir():
            videos = _walk(path)
            if not videos:
                raise ValueError(f"no video in {path} (looked for {' '.join(sorted(VIDEO_EXTENSIONS))})")
        elif path.exists():
            videos = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            suffixes = VIDEO_EXTENSIONS | {path.suffix.lower()}
            kept = [match for match in matches if match.is_dir() or match.suffix.lower() in suffixes]
            videos = [video for match in kept for video in (_walk(match) if match.is_dir() else [match])]
            if not videos:
                raise FileNotFoundError(f"no such video, folder, or match of a pattern: {path}")
        found.update((os.path.abspath(video), video) for video in videos if os.path.abspath(video) not in found)
    return list(found.values())


def _walk(folder: Path) -> list[Path]:
    """Video files below a folder, sorted; each real folder is entered once, so that links cannot go round."""
    videos, entered = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in files if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_EXTENSIONS)
        videos += [Path(root, name) for name in names if Path(root, name).is_file()]
    return sorted(videos)
