"""The command line: `suma index | merge | search | captions | similar | info | check | app | doctor`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill as fill_text
from typing import TYPE_CHECKING, Any

from suma.index.caption_files import read_captions
from suma.index.files import IGNORE_FILE, IGNORE_HELP, find_videos
from suma.index.milvus import is_server
from suma.index.query import Filter
from suma.index.search import Match
from suma.index.video_index import VideoIndex, model_of
from suma.model.checkpoint import STRONGER
from suma.model.text_encoder import Reader, load_reader
from suma.video.frames import SEGMENT
from suma.video.worker import TIME_LIMIT

if TYPE_CHECKING:
    from suma.index.ingest import Report

EXIT_CODES = (
    "exit codes: 0 found (or done), 1 nothing found, 2 bad input, a damaged index, or something that is not there"
)
QUERIES = """
the query: a plain sentence means itself; besides there are
  +term -term        also this, not this; "several words" in quotes; term^2 weighs more, term^0.5 less
  [snow -1]          a concept banned; [ball 0.8]: made stronger
  in:FOLDER longer:10 shorter:60 after:2024-01-31 before:2024-03-01 score:0.2
a query that begins with - follows two of them: search INDEX -- "-night beach"

"""
MODEL_HELP = "a SUMA folder, a Hub id, or an open_clip model NAME:TAG such as PE-Core-B-16:meta"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="suma", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command")

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=more + EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--model", help=f"{MODEL_HELP} (default: the index's own, at first the bundled one)")
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    index = command("index", "add videos to an index, or make one", fill_text(IGNORE_HELP, 100) + "\n\n")
    index.add_argument("videos", nargs="+", help="video files, folders or globs")
    index.add_argument(
        "-o",
        "--output",
        "--store",
        required=True,
        help="the index's folder, or milvus://HOST:PORT/NAME, or milvus:FILE.db/NAME; all commands take these",
    )
    index.add_argument(
        "--captions",
        type=Path,
        help="captions to search: a text file, one per line, JSON {video: captions}, JSON lines, or CSV",
    )
    index.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    index.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="SECONDS",
        help="without progress (nothing read, nothing computed), after which a video is given up until the next run",
    )
    index.add_argument(
        "--prune",
        action="store_true",
        help="remove what is known to be gone from the folders that are given, or excluded now; what is out of reach, "
        "as on a drive that is not connected, stays",
    )
    index.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help=f"names below the folders to leave out, may be given again; see below, also for {IGNORE_FILE}",
    )
    index.add_argument("--retry", action="store_true", help="read files again that could not be read, or were removed")
    index.add_argument(
        "--segment",
        type=float,
        help=f"seconds of the parts into which longer videos are cut, 0: none (default: {SEGMENT:g}, or the index's)",
    )
    index.add_argument(
        "--bf16", action="store_true", help="encode in bfloat16, where the processor has it: twice as fast"
    )
    index.add_argument("--hubness", action="store_true", help="keep what `search --hubness` needs, from now on")
    merge = command("merge", "bring indexes made on several machines into one")
    merge.add_argument("indexes", nargs="+", help="their folders")
    merge.add_argument("-o", "--output", required=True, help="the folder of the one that takes them in, new or not")
    search = command("search", "text -> videos", QUERIES)
    search.add_argument("index", help="the index's folder")
    search.add_argument("query", help="what happens in the video")
    search.add_argument(
        "--hubness", action="store_true", help="take from every score what the video scores with texts at large"
    )
    captions = command("captions", "video -> captions of the index's list")
    search.add_argument("--within", metavar="VIDEO", help="search the moments of this one video, indexed or not")
    similar = command("similar", "video or image -> videos")
    for sub in (captions, similar):
        sub.add_argument("index", help="the index's folder")
        sub.add_argument("video", help="a video file, indexed or not")
    for sub in (search, captions, similar):
        sub.add_argument("-k", "--top-k", type=int, default=5, help="how many answers (default: 5)")
    for sub in (search, similar):
        sub.add_argument("--page", type=int, default=1, help="the next answers: 2, 3, ... (default: 1)")
        sub.add_argument("--min-score", type=float, default=-math.inf, help="leave out what scores less")
        sub.add_argument("--parts", action="store_true", help="answer with each part of a long video, not the best one")
        sub.add_argument(
            "--in", dest="folder", default="", metavar="FOLDER", help="only files in a folder of this name"
        )
        sub.add_argument("--longer", type=float, default=0.0, metavar="SECONDS", help="only videos of at least that")
        sub.add_argument("--shorter", type=float, default=math.inf, metavar="SECONDS", help="of at most that")
        sub.add_argument("--after", default="", metavar="DATE", help="only files from that day on, like 2024-01-31")
        sub.add_argument("--before", default="", metavar="DATE", help="only files of before that day")
    info = command("info", "what an index holds, and the files it could not read")
    check = command("check", "compare all features of an index with their checksums")
    for sub in (info, check):
        sub.add_argument("index", help="the index's folder")
    command("doctor", "what this installation has and lacks; with --model, what would be downloaded")
    commands.add_parser("app", help="open the app in the browser (see suma app --help)", add_help=False)
    return parser


def _show(matches: Sequence[Match], as_json: bool) -> int:
    """Print the answers; the exit code."""
    if as_json:
        print(json.dumps([asdict(match) for match in matches], ensure_ascii=False))
    for match in [] if as_json else matches:
        why = "; ".join(name for name, _ in match.concepts)
        print(f"{match.score:.3f}  {match.path}  at {match.moment:.1f} s  {why}".rstrip())
    return 0 if matches else 1


def _page(args: argparse.Namespace) -> dict[str, Any]:
    """What `search` and `similar` have in common, for VideoIndex."""
    if args.page < 1:
        raise ValueError(f"--page must be at least 1, got {args.page}")
    return {
        "top_k": args.top_k,
        "offset": (args.page - 1) * args.top_k,
        "min_score": args.min_score,
        "filter": Filter(args.folder, args.longer, args.shorter, args.after, args.before),
        "group": not args.parts,
    }


def run(args: argparse.Namespace) -> int:
    """Do what the parsed command line says; the exit code."""
    if args.command in ("index", "merge"):
        return fill(args)
    if args.command == "doctor":
        return examine(args)
    model = load_reader(args.model or model_of(args.index))
    if not isinstance(model, Reader):
        from suma.model.cpu import use_fast_matmul

        use_fast_matmul()
    index = VideoIndex.load(args.index, model)
    if args.command == "check":
        index.store.verify()
        print(json.dumps({"sound": True, "videos": index.num_videos}) if args.json else f"{args.index} is sound")
    elif args.command == "search":
        answers = index.search(args.query, within=args.within, hubness=args.hubness, **_page(args))
        return _show(answers, args.json)
    elif args.command == "similar":
        return _show(index.similar(args.video, **_page(args)), args.json)
    elif args.command == "captions":
        found = index.captions(args.video, args.top_k)
        print(json.dumps(found, ensure_ascii=False) if args.json else "\n".join(f"{s:.3f}  {c}" for c, s in found))
    else:
        values = {
            "videos": index.num_videos,
            "parts": len(index),
            "segment": index.store.segment,
            "seconds": round(sum({row.digest: row.duration for row in index.rows}.values()), 1),
            "captions": len(index.caption_list),
            "failed": {row.path: row.reason for row in index.failed},
        }
        print(json.dumps(values, ensure_ascii=False, indent=None if args.json else 2))
    return 0


def examine(args: argparse.Namespace) -> int:
    """Print what `doctor` finds; return 0 where all is well, else 2."""
    from suma.doctor import check

    found = list(check(args.model or ""))
    if args.json:
        print(json.dumps([{"ok": fine, "found": text} for fine, text in found], ensure_ascii=False))
    else:
        print("\n".join(f"{'ok     ' if fine else 'PROBLEM'}  {text}" for fine, text in found))
    return 0 if all(fine for fine, _ in found) else 2


def fill(args: argparse.Namespace) -> int:
    """`index` and `merge`, which write, with the whole model; the exit code."""
    from suma.model.cpu import use_fast_matmul
    from suma.model.suma import SUMA

    use_fast_matmul()
    name = args.model or model_of(args.output if args.command == "index" else args.indexes[0])
    model = SUMA.from_pretrained(name)
    if args.command == "merge":
        from suma.index.merge import merge_folders

        report, count = merge_folders(model, args.indexes, args.output)
        done = f"{len(report.added)} added, {len(report.duplicates)} duplicates; {count} videos in {args.output}"
        print(json.dumps(asdict(report), ensure_ascii=False) if args.json else done)
        return 0
    from suma.index import shards

    place = shards.place(os.environ)
    in_folder = not is_server(args.output)
    if place[1] > 1 and not in_folder:
        raise ValueError(f"several processes can fill an index in a folder only, not {args.output}")
    shared = in_folder and (place[1] > 1 or shards.folder_of(args.output).is_dir())  # left by ranks that died

    def add(index: VideoIndex, paths: Sequence[str | Path], whole: bool) -> "Report":
        prune, retry = args.prune and whole, args.retry and not (shared and whole)
        return index.add(paths, args.workers, prune, retry, args.time_limit, args.bf16, args.exclude)

    find_videos(args.videos, args.exclude)  # nothing to add is an error before anything is written
    model.to(shards.device(os.environ))
    if shared:
        shards.fill(model, args.output, args.videos, place, add, args.retry, args.segment, args.exclude)
        if place[0]:
            return 0
    length = SEGMENT if args.segment is None else args.segment
    try:
        index = VideoIndex.load(args.output, model, args.segment)
    except FileNotFoundError:
        index = VideoIndex(model, length)
        if not model.source:
            print(STRONGER, file=sys.stderr)
    if args.captions:
        index.set_captions([caption for found in read_captions(args.captions).values() for caption in found])
    index.save(args.output)
    report = shards.gather(index, args.videos, add, args.exclude) if shared else add(index, args.videos, True)
    if args.hubness:
        index.keep_hubness()
    if args.json:
        print(json.dumps(asdict(report), ensure_ascii=False))
    else:
        done = f"{len(report.added)} added, {len(report.skipped)} unchanged, {len(report.failed)} failed"
        for name in ("moved", "duplicates", "missing", "excluded", "pruned", "out_of_reach"):
            count = len(getattr(report, name))
            done += f", {count} {name.replace('_', ' ')}" * bool(count)
        print(f"{done}; {index.num_videos} videos in {args.output}")
        for path, reason in report.failed.items():
            print(f"failed: {path}: {reason}", file=sys.stderr)
        for note in report.notes():
            print(note, file=sys.stderr)
    return 0 if len(index) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; errors of the user's input are one line on stderr and exit code 2."""
    from suma import __version__

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["app"]:  # has options of its own
        from suma.app.page import main as open_app

        return open_app(arguments[1:])
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.version:
        print(__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return run(args)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def command() -> None:
    """Run the `suma` command."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names that are no text
    sys.exit(main())


if __name__ == "__main__":
    command()
