"""What a VideoIndex keeps on disk: a manifest and arrays in one folder, whole after a kill at any moment.

Shapes: N videos, F frames, D joint width.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass
class Row:
    """One video file of the index. An unreadable one keeps its `reason` and has no frames."""

    path: str
    size: int  # bytes
    mtime: float  # seconds
    digest: str  # of the content
    duration: float = 0.0  # seconds
    times: list[float] = field(default_factory=list)  # of its frames, seconds
    reason: str = ""


@dataclass
class Contents:
    """An index's state: `rows` with their features, the files that failed, and the caption list."""

    rows: list[Row]
    failed: list[Row]
    videos: list[np.ndarray]  # of each row (D,) float16
    frames: list[np.ndarray]  # of each row (F, D) float16
    captions: list[str]


def key(path: str | Path) -> str:
    """How a file is named in the index: its absolute path, links in the folder's name kept."""
    return os.path.abspath(path)


def _relative(path: str, folder: Path) -> str:
    """Videos below the folder that holds the index are named relative to it, so that both can move together."""
    return os.path.relpath(path, folder.parent) if Path(path).is_relative_to(folder.parent) else path


def describe(path: Path) -> Row:
    """A file's size and time, without reading it; `digest_of` adds its content."""
    try:
        stat = path.stat()
    except OSError as error:
        return Row(key(path), 0, 0.0, "", reason=str(error))
    return Row(key(path), stat.st_size, stat.st_mtime, "")


def digest_of(path: str) -> str:
    """sha256 of a file's content; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def save(folder: Path, model: str, contents: Contents, dim: int) -> None:
    """Write an index made with `model` (a fingerprint); the manifest is renamed into place last.

    Raises ValueError for a folder that holds other things.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} holds other things than an index: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    nothing = np.zeros((0, dim), np.float16)
    arrays = {
        "videos": _write_array(folder, "videos", np.stack(contents.videos) if contents.videos else nothing),
        "frames": _write_array(folder, "frames", np.concatenate([*contents.frames, nothing])),
    }
    rows = {
        name: [{**asdict(row), "path": _relative(row.path, folder)} for row in kept]
        for name, kept in (("rows", contents.rows), ("failed", contents.failed))
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "model": model,
        "arrays": arrays,
        "captions": contents.captions,
        **rows,
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    for stale in folder.glob("*.npy"):
        if stale.name not in {a["file"] for a in arrays.values()}:
            stale.unlink()


def load(folder: Path, model: str, dim: int) -> Contents:
    """Read an index. Raises FileNotFoundError where there is none, ValueError for a damaged or foreign one, or one
    made with another model (naming both)."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no index ({MANIFEST} is missing)")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, made_with, arrays = manifest["format_version"], manifest["model"], manifest["arrays"]
        rows, failed = ([Row(**row) for row in manifest[name]] for name in ("rows", "failed"))
        captions = [str(caption) for caption in manifest["captions"]]
        entries = [arrays[name] for name in ("videos", "frames")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged or no index manifest: {error}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{folder} has index format {version}, this SUMA reads {FORMAT_VERSION}: index again")
    if made_with != model:
        raise ValueError(
            f"{folder} was made with model {made_with}, not {model}: load that model, or index again with this one"
        )
    for row in rows + failed:
        row.path = key(folder.parent / row.path)
    counts = [len(row.times) for row in rows]
    videos = list(_read_array(folder, entries[0], (len(rows), dim)))
    frames = _read_array(folder, entries[1], (sum(counts), dim))
    return Contents(rows, failed, videos, np.split(frames, np.cumsum(counts)[:-1]) if rows else [], captions)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: a temporary file, flushed to the disk, renamed."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _write_array(folder: Path, name: str, array: np.ndarray) -> dict[str, str]:
    """An array under a name made of its content, so that no state on disk is ever overwritten."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    file = f"{name}-{digest[:16]}.npy"
    if not (folder / file).exists():
        partial = folder / (file + ".partial")
        with partial.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(folder / file)
    return {"file": file, "sha256": digest}


def _read_array(folder: Path, entry: dict[str, str], shape: tuple[int, ...]) -> np.ndarray:
    path = folder / Path(entry["file"]).name
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}; index again") from error
    if array.shape != shape or array.dtype != np.float16:
        raise ValueError(f"{path} is {array.dtype}{array.shape}, expected float16{shape}: index again")
    if hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path} is damaged (its checksum differs): index again")
    return array
