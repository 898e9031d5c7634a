"""From the command line to an index and what the app may do with it; environment variables serve Spaces."""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

from gradio.utils import get_upload_folder

from suma import SUMA, VideoIndex
from suma.app import media
from suma.app.api import Options, on_spaces
from suma.app.uploads import Uploads
from suma.index.files import find_videos
from suma.index.store import MANIFEST
from suma.index.video_index import model_of
from suma.model.checkpoint import BUNDLED, STRONGER

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The command line; environment variables give its defaults."""
    p = argparse.ArgumentParser(prog="app.py", description=description)
    env = os.environ.get

    def yes(name: str, default: bool) -> bool:
        return env(name, str(int(default))).lower() in ("1", "true", "yes", "on")

    p.add_argument(
        "--model",
        default=env("SUMA_MODEL", ""),
        help="a SUMA folder, a Hub id, or an open_clip model NAME:TAG such as PE-Core-B-16:meta (default: "
        "that of --index, or the bundled model; env SUMA_MODEL)",
    )
    p.add_argument(
        "--index",
        default=env("SUMA_INDEX", ""),
        help="the folder of a saved index (default: the bundled gallery; env SUMA_INDEX); with --videos it "
        "is where their index is kept",
    )
    p.add_argument(
        "--videos",
        default=env("SUMA_VIDEOS", ""),
        help="a folder of videos to index while the page is open already; what is in the index is skipped, "
        "what is not there now stays, and what a .sumaignore names is left out (env "
        "SUMA_VIDEOS)",
    )
    p.add_argument(
        "--read-only",
        action=argparse.BooleanOptionalAction,
        default=yes("SUMA_READ_ONLY", on_spaces()),
        help="whether visitors can add and remove videos (default: read-only on Spaces and with --share, "
        "not elsewhere; env SUMA_READ_ONLY=1 or 0)",
    )
    p.add_argument(
        "--folder",
        action="append",
        default=[f for f in env("SUMA_FOLDERS", "").split(os.pathsep) if f],
        metavar="FOLDER",
        help="a folder of the server that visitors may add to the gallery; may be given "
        f"again (env SUMA_FOLDERS, separated by {os.pathsep!r})",
    )
    p.add_argument(
        "--library",
        default=env("SUMA_LIBRARY", ""),
        help="where uploads to the gallery are kept (default: in the cache, see SUMA_CACHE; env SUMA_LIBRARY)",
    )
    p.add_argument(
        "--make-copies",
        action="store_true",
        default=yes("SUMA_MAKE_COPIES", False),
        help="make the copies of files that browsers cannot play when videos are added, in the background, "
        "instead of when one is first shown (env SUMA_MAKE_COPIES=1)",
    )
    p.add_argument(
        "--max-megabytes",
        type=int,
        default=int(env("SUMA_MAX_MEGABYTES", "200")),
        help="largest upload (default: %(default)s; env SUMA_MAX_MEGABYTES)",
    )
    p.add_argument(
        "--max-seconds",
        type=float,
        default=float(env("SUMA_MAX_SECONDS", "600")),
        help="longest upload (default: %(default)g; env SUMA_MAX_SECONDS)",
    )
    p.add_argument(
        "--queue",
        type=int,
        default=int(env("SUMA_QUEUE", "100")),
        help="calls that may wait; more are told to come back (default: %(default)s; env SUMA_QUEUE)",
    )
    p.add_argument(
        "--host",
        default=env("SUMA_HOST", "0.0.0.0" if on_spaces() else "127.0.0.1"),
        help="address to listen on; 0.0.0.0 opens it to the network (default: %(default)s; env "
        "SUMA_HOST). Behind a proxy that serves the app under a path of its site, say that path by env "
        "GRADIO_ROOT_PATH, like /videos; the proxy must pass the Host header on",
    )
    p.add_argument(
        "--port",
        type=int,
        default=int(env("SUMA_PORT", "0")) or None,
        help="default: the first free one from 7860 on (env SUMA_PORT)",
    )
    p.add_argument(
        "--auth",
        default=env("SUMA_AUTH", ""),
        metavar="NAME:PASSWORD",
        help="ask visitors for these (better as env SUMA_AUTH, a secret: other users of the machine see command lines)",
    )
    p.add_argument("--share", action="store_true", help="also make a public link (through Gradio's servers)")
    p.add_argument(
        "--mcp",
        action="store_true",
        default=yes("SUMA_MCP", False),
        help="also serve the functions as tools for language models (MCP); needs pip install "
        "'gradio[mcp]' (env SUMA_MCP=1)",
    )
    return p


def options_of(args: argparse.Namespace) -> Options:
    """What the operator allows. Raises ValueError or FileNotFoundError for what cannot be."""
    folders = [Path(folder).resolve() for folder in args.folder]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"--folder {folder} is no folder")
    if args.max_megabytes < 1 or args.max_seconds <= 0 or args.queue < 1:
        raise ValueError("--max-megabytes, --max-seconds and --queue must be greater than 0")
    if args.auth and ":" not in args.auth:
        raise ValueError("--auth takes NAME:PASSWORD")
    library = Path(args.library or media.CACHE / "library").resolve()
    uploads = Uploads(args.max_megabytes, args.max_seconds)
    return Options(args.read_only or args.share, folders, library, uploads, args.make_copies)


def use_own_temp() -> None:
    """Let gradio keep uploads in a folder of this run where its own, often shared with other users, is not writable."""
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
    model: SUMA, index: str, videos: str, read_only: bool = True, later: list[Path] | None = None
) -> VideoIndex:
    """The index to show: loaded, or made of a folder of videos and kept in `index`, else in the cache.

    The bundled one is never written to: where visitors may add videos it is carried on in the cache. `later`: a list
    that gets the videos of the folder, for the caller to add them; else they are added here.
    Raises ValueError or FileNotFoundError where there is nothing to show.
    """
    if not videos:
        source = Path(index) if index else ASSETS / "gallery" / "index"
        kept = media.CACHE / "indexes" / f"{model.fingerprint()}-gallery"
        if not index and not read_only and (kept / MANIFEST).is_file():
            source = kept
        try:
            found = VideoIndex.load(source, model)
        except (FileNotFoundError, ValueError) as error:
            if index:
                raise
            print(f"note: {error}; indexing the bundled videos now", file=sys.stderr)
            videos = str(ASSETS / "gallery" / "videos")
        else:
            if not index and not read_only and source != kept:
                _keep(found, kept, must=False)
            return found
    source_id = zlib.crc32(os.path.realpath(videos).encode())
    folder = Path(index) if index else media.CACHE / "indexes" / f"{model.fingerprint()}-{source_id:08x}"
    is_there = (folder / MANIFEST).is_file()
    made = VideoIndex.load(folder, model) if is_there else VideoIndex(model)
    if not (is_there or model.source or Path(videos).is_relative_to(ASSETS)):
        print(STRONGER, file=sys.stderr)
    _keep(made, folder, must=bool(index))
    try:
        if later is not None:
            later += find_videos(videos)
            return made
        report = made.add(videos)
    except (ValueError, FileNotFoundError, PermissionError) as error:  # maybe of a drive that is not connected
        if not len(made):
            raise
        print(f"note: {error}; showing the {made.num_videos} videos of the index", file=sys.stderr)
        return made
    for line in [*(f"skipped {path}: {reason}" for path, reason in report.failed.items()), *report.notes()]:
        print(line, file=sys.stderr)
    return made


def _keep(index: VideoIndex, folder: Path, must: bool) -> None:
    try:
        index.save(folder)
    except OSError:
        if must:
            raise
        if index.folder is not None:  # the one that was opened stays as it is
            index.save(Path(tempfile.mkdtemp(prefix="suma-"), "index"))
            atexit.register(shutil.rmtree, index.folder.parent, ignore_errors=True)
        print(f"note: {folder} cannot be written: this index lasts for this run", file=sys.stderr)
