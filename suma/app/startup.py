"""From the command line to an index and what visitors may do with it; environment variables serve Spaces."""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from suma import SUMA, VideoIndex
from suma.app import media
from suma.app.api import Options
from suma.app.uploads import Uploads
from suma.index.files import find_videos
from suma.index.store import FORMAT_VERSION, newest
from suma.index.video_index import model_of
from suma.model.checkpoint import BUNDLED, STRONGER

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def on_spaces() -> bool:
    """Return whether this runs on Hugging Face Spaces."""
    return bool(os.environ.get("SPACE_ID"))


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the command line; environment variables give its defaults."""
    p = argparse.ArgumentParser(prog="app.py", description=description)

    def add(flag: str, text: str, default: str = "", unset: str = "%(default)s", **more: Any) -> None:
        name = "SUMA_" + flag[2:].replace("-", "_").upper()
        value: Any = os.environ.get(name, default)
        if "action" in more:
            value = value.lower() in ("1", "true", "yes", "on")
        p.add_argument(flag, default=value, help=f"{text} (default: {unset}; env {name})", **more)

    model = "a SUMA folder, a Hub id, or an open_clip model NAME:TAG such as PE-Core-B-16:meta"
    add("--model", model, unset="that of --index, or the bundled model")
    index = "the folder of a saved index; with --videos, where their index is kept"
    add("--index", index, unset="the bundled gallery")
    videos = (
        "a folder of videos to index while the page is already open; videos in the index are skipped, those that are "
        "gone now stay, and what a .sumaignore names is left out"
    )
    add("--videos", videos, unset="none")
    add("--photos", "index the photographs of --videos too", unset="off", action="store_true")
    watch = "take up what is new, changed or removed in --videos, without a restart"
    add("--watch", watch, unset="off", action="store_true")
    optional, changes = argparse.BooleanOptionalAction, "whether visitors are kept from adding and removing videos"
    where = "read-only on Spaces and with --share, not elsewhere"
    add("--read-only", changes, str(int(on_spaces())), where, action=optional)
    folders = [folder for folder in os.environ.get("SUMA_FOLDERS", "").split(os.pathsep) if folder]
    allowed = "a folder of the server that visitors may add to the gallery; may be given again"
    more = f"{allowed} (env SUMA_FOLDERS, separated by {os.pathsep!r})"
    p.add_argument("--folder", action="append", default=folders, metavar="FOLDER", help=more)
    add("--library", "where uploads to the gallery are kept", unset="in the cache, see SUMA_CACHE")
    copies = "make copies of files that browsers cannot play as soon as they are added, in the background"
    add("--make-copies", copies, unset="when one is first shown", action="store_true")
    add("--max-megabytes", "largest upload", "200", type=int)
    add("--max-seconds", "longest upload", "600", type=float)
    add("--queue", "calls that may wait; further ones are asked to come back", "100", type=int)
    host = (
        "address to listen on; 0.0.0.0 opens it to the network. Behind a proxy that serves the app under a path of its "
        "site, give that path in env GRADIO_ROOT_PATH, like /videos; the proxy must pass the Host header on"
    )
    add("--host", host, "0.0.0.0" if on_spaces() else "127.0.0.1")
    add("--port", "port to listen on", "0", "the first free one from 7860 on", type=int)
    auth = "ask visitors for these; the environment keeps them secret, other users of the machine see command lines"
    add("--auth", auth, unset="nobody is asked", metavar="NAME:PASSWORD")
    p.add_argument("--share", action="store_true", help="also make a public link (through Gradio's servers)")
    mcp = "also serve the functions as tools for language models (MCP); needs pip install 'gradio[mcp]'"
    add("--mcp", mcp, unset="off", action="store_true")
    return p


def options_of(args: argparse.Namespace) -> Options:
    """Return what the operator allows. Raises ValueError or FileNotFoundError for a wrong option."""
    folders = [Path(folder).resolve() for folder in args.folder]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"--folder {folder} is not a folder")
    for option in ("max_megabytes", "max_seconds", "queue"):
        if not getattr(args, option) > 0:
            flag = option.replace("_", "-")
            raise ValueError(f"--{flag} must be greater than 0, got {getattr(args, option):g}")
    if args.auth and ":" not in args.auth:
        raise ValueError("--auth takes NAME:PASSWORD, got no colon")
    library = Path(args.library or media.CACHE / "library").resolve()
    uploads = Uploads(args.max_megabytes, args.max_seconds)
    return Options(args.read_only or args.share, folders, library, uploads, args.make_copies)


def use_own_temp() -> None:
    """Keep uploads in a folder of this run where gradio's own, often shared with other users, is not writable."""
    folder = Path(get_upload_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="suma-")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
        print(f"note: {folder}: {error.strerror}; uploads of this run go elsewhere (GRADIO_TEMP_DIR)", file=sys.stderr)


def load_model(model: str, index: str) -> SUMA:
    """Return the model that `--model` names, or else the one that the index remembers, or the bundled one."""
    return SUMA.from_pretrained(model or (model_of(index) if index else BUNDLED))


def open_index(
    model: SUMA,
    index: str,
    videos: str,
    read_only: bool = True,
    later: list[Path] | None = None,
    photos: bool = False,
) -> VideoIndex:
    """Return the index to show: a saved one, or one of a folder of videos, kept in `index` or else in the cache.

    Args:
        read_only: whether visitors cannot add videos. Where they can, the bundled index is copied to the cache first.
        photos: whether the photographs of the folder are added too.
        later: gets the videos of the folder, for the caller to add; without it they are added here.

    Raises ValueError or FileNotFoundError where there is nothing to show.
    """
    if index and not videos:
        return VideoIndex.load(index, model)
    if not videos:
        try:
            return _bundled_index(model, read_only)
        except (FileNotFoundError, ValueError) as error:
            videos = str(ASSETS / "gallery" / "videos")
            if not Path(videos).is_dir():
                raise FileNotFoundError("the installed package has no gallery: suma app --videos FOLDER") from error
            print(f"note: {error}; indexing the bundled videos now", file=sys.stderr)
    source_id = zlib.crc32(os.path.realpath(videos).encode())
    folder = Path(index) if index else _cached(model, f"{source_id:08x}")
    is_there = newest(folder)
    made = VideoIndex.load(folder, model) if is_there else VideoIndex(model)
    if not (is_there or model.source or Path(videos).is_relative_to(ASSETS)):
        print(STRONGER, file=sys.stderr)
    _keep(made, folder, must=bool(index))
    try:
        if later is not None:
            later += find_videos(videos, photos=photos)
            return made
        report = made.add(videos, photos=photos)
    except (ValueError, FileNotFoundError, PermissionError) as error:  # maybe of a drive that is not connected
        if not len(made):
            raise
        print(f"note: {error}; showing the {made.num_videos} videos of the index", file=sys.stderr)
        return made
    for line in [*(f"skipped {path}: {reason}" for path, reason in report.failed.items()), *report.notes()]:
        print(line, file=sys.stderr)
    return made


def _bundled_index(model: SUMA, read_only: bool) -> VideoIndex:
    bundled, kept = ASSETS / "gallery" / "index", _cached(model, "gallery")
    if read_only:
        return VideoIndex.load(bundled, model)
    if newest(kept):
        return VideoIndex.load(kept, model)
    found = VideoIndex.load(bundled, model)
    _keep(found, kept, must=False)
    return found


def _cached(model: SUMA, name: str) -> Path:
    return media.CACHE / "indexes" / f"{model.fingerprint()}-{name}-{FORMAT_VERSION}"


def _keep(index: VideoIndex, folder: Path, must: bool) -> None:
    """Save the index; where the folder cannot be written and it is no `must`, for this run only."""
    try:
        index.save(folder)
    except OSError:
        if must:
            raise
        if index.folder is not None:  # leave the one that was opened as it is
            index.save(Path(tempfile.mkdtemp(prefix="suma-"), "index"))
            atexit.register(shutil.rmtree, index.folder.parent, ignore_errors=True)
        print(f"note: {folder} cannot be written: this index lasts for this run", file=sys.stderr)
