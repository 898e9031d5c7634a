"""The options of the command line: a parser with one function for each group of commands."""

import argparse
import math
from pathlib import Path
from textwrap import fill

from suma.index.files import IGNORE_FILE, IGNORE_HELP
from suma.video.cut import PADDING
from suma.video.frames import SEGMENT
from suma.video.worker import TIME_LIMIT

EXIT_CODES = (
    "exit codes: 0 found (or done), 1 nothing found, or nothing that fits, 2 bad input, a damaged index, or something "
    "that is not there"
)
QUERIES = """
the query: a plain sentence means itself; besides there are
  +term -term        also this, not this; "several words" in quotes; term^2 weighs more, term^0.5 less
  [snow -1]          a concept banned; [ball 0.8]: made stronger
  in:FOLDER longer:10 shorter:60 after:2024-01-31 before:2024-03-01 score:0.2
a query that begins with - follows two of them: search INDEX -- "-night beach"

"""
MODEL_HELP = "a SUMA folder, a Hub id, or an open_clip model NAME:TAG such as PE-Core-B-16:meta"


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="suma", description=description, epilog=EXIT_CODES)
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command")

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        style = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(name, help=text, description=text, epilog=more + EXIT_CODES, formatter_class=style)
        sub.add_argument("--model", help=f"{MODEL_HELP} (default: the index's own, at first the bundled one)")
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    _add_indexing(command("index", "add videos to an index, or make one", fill(IGNORE_HELP, 100) + "\n\n"))
    merge = command("merge", "make one index of several: parts, or indexes made on several machines")
    merge.add_argument("indexes", nargs="+", help="their folders")
    merge.add_argument("-o", "--output", required=True, help="the folder of the merged index, new or not")
    search = command("search", "text -> videos", QUERIES)
    similar = command("similar", "video or image -> videos")
    captions = command("captions", "video -> captions of the index's list")
    info = command("info", "what an index holds, and the files it could not read")
    duplicates = command("duplicates", "videos that show the same: encoded anew, cropped, trimmed, with a logo, ...")
    check = command("check", "compare an index's features with their checksums, and its model with its fingerprint")
    for sub in (search, similar, captions, info, duplicates, check):
        sub.add_argument("index", help="the index's folder")
    search.add_argument("query", help="what happens in the video")
    for sub in (similar, captions):
        sub.add_argument("video", help="a video file, indexed or not")
    for sub in (search, similar, captions):
        sub.add_argument("-k", "--top-k", type=int, default=5, help="how many answers (default: 5)")
    for sub in (search, similar):
        _add_filters(sub)
    hubness = "take from every score what the video scores with texts at large"
    search.add_argument("--hubness", action="store_true", help=hubness)
    search.add_argument("--all", action="store_true", help="show the nearest also where nothing fits")
    least = "leave out what is less likely than that (0 to 1) to be right"
    search.add_argument("--min-confidence", type=float, default=0.0, metavar="SHARE", help=least)
    search.add_argument("--within", metavar="VIDEO", help="search the moments of this one video, indexed or not")
    command("doctor", "what this installation has and lacks; with --model, what would be downloaded")
    commands.add_parser("app", help="open the app in the browser (see suma app --help)", add_help=False)
    return parser


def _add_indexing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("videos", nargs="+", help="video files, folders or globs")
    sub.add_argument(
        "-o",
        "--output",
        "--store",
        required=True,
        help="the index's folder, or milvus://HOST:PORT/NAME, or milvus:FILE.db/NAME; all commands take these",
    )
    sub.add_argument(
        "--captions",
        type=Path,
        help="captions to search: a text file, one per line, JSON {video: captions}, JSON lines, or CSV",
    )
    sub.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    sub.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="SECONDS",
        help="without progress (nothing read, nothing computed), after which a video is given up until the next run",
    )
    sub.add_argument(
        "--prune",
        action="store_true",
        help="remove what is known to be gone from the folders that are given, or excluded now; what is out of reach, "
        "as on a drive that is not connected, stays",
    )
    sub.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help=f"names below the folders to leave out, may be given again; see below, also for {IGNORE_FILE}",
    )
    sub.add_argument("--photos", action="store_true", help="photographs below the folders too")
    watch = "go on with what is new, changed or removed in the folders, until Ctrl-C"
    sub.add_argument("--watch", action="store_true", help=watch)
    _add_reading(sub)


def _add_reading(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--retry", action="store_true", help="read files again that could not be read, or were removed")
    sub.add_argument(
        "--segment",
        type=float,
        help=f"seconds of the parts into which longer videos are cut, 0: none (default: {SEGMENT:g}, or the index's)",
    )
    sub.add_argument(
        "--bf16", action="store_true", help="encode in bfloat16, where the processor has it: twice as fast"
    )
    near = "decode each frame where it is wanted, also where a key frame is near, which is many times faster"
    sub.add_argument("--exact", action="store_true", help=near)
    sub.add_argument("--hubness", action="store_true", help="keep what `search --hubness` needs, from now on")
    sub.add_argument(
        "--part",
        metavar="K/N",
        help="index only part K of N, in a folder beside OUTPUT; `merge` makes one index of all parts (default: the "
        "part that RANK and WORLD_SIZE name, which accelerate launch and torchrun set, or else the whole)",
    )


def _add_filters(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--page", type=int, default=1, help="the next answers: 2, 3, ... (default: 1)")
    sub.add_argument("--min-score", type=float, default=-math.inf, help="leave out what scores less")
    sub.add_argument("--parts", action="store_true", help="answer with each part of a long video, not the best one")
    sub.add_argument("--in", dest="folder", default="", metavar="FOLDER", help="only files in a folder of this name")
    sub.add_argument("--longer", type=float, default=0.0, metavar="SECONDS", help="only videos of at least that")
    sub.add_argument("--shorter", type=float, default=math.inf, metavar="SECONDS", help="of at most that")
    sub.add_argument("--after", default="", metavar="DATE", help="only files from that day on, like 2024-01-31")
    sub.add_argument("--before", default="", metavar="DATE", help="only files of before that day")
    sub.add_argument("--save", metavar="FOLDER", help="save each answer as an mp4 there; nothing is replaced")
    pad = f"before and after what is saved (default: {PADDING:g})"
    sub.add_argument("--padding", type=float, default=PADDING, metavar="SECONDS", help=pad)
    kinds = "a new .csv, .json, or for editors .edl, .fcpxml or .otio"
    sub.add_argument("--list", metavar="FILE", help=f"write the answers to a file: {kinds}")
    sub.add_argument("--open", action="store_true", help="play the best answer at its moment, with mpv or vlc")
    sub.add_argument("--links", action="store_true", help="print answers as links that terminals open at the moment")
