"""`python -m suma index | search | captions | similar | info | check`: the index from the command line."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from suma.cpu import use_fast_matmul
from suma.files import find_videos
from suma.index import Match, VideoIndex
from suma.model import SUMA

MODEL = str(Path(__file__).resolve().parents[1] / "assets" / "model")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m suma", description=__doc__)
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--model", default=MODEL, help="a SUMA folder or Hub id (default: the bundled model)")
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    index = command("index", "add videos to an index, or make one")
    index.add_argument("videos", nargs="+", help="video files, folders or globs")
    index.add_argument(
        "-o",
        "--output",
        "--store",
        required=True,
        help="the index's folder, or milvus://HOST:PORT/NAME, or milvus:FILE.db/NAME, also for the other commands",
    )
    index.add_argument(
        "--captions",
        type=Path,
        help="captions to search: a text file, one per line, or JSON {video: captions}",
    )
    index.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    index.add_argument("--time-limit", type=float, default=60.0, help="seconds after which a video is given up")
    index.add_argument("--prune", action="store_true", help="remove what is gone from the folders that are given")
    index.add_argument("--retry", action="store_true", help="read files again that could not be read")
    index.add_argument("--bf16", action="store_true", help="encode in bfloat16: faster, cosines off by less than 1e-3")
    search = command("search", "text -> videos")
    search.add_argument("index", help="the index's folder")
    search.add_argument("query", help="what happens in the video")
    captions = command("captions", "video -> captions of the index's list")
    similar = command("similar", "video or image -> videos")
    for sub in (captions, similar):
        sub.add_argument("index", help="the index's folder")
        sub.add_argument("video", help="a video file, indexed or not")
    for sub in (search, captions, similar):
        sub.add_argument("-k", "--top-k", type=int, default=5, help="how many answers")
    info = command("info", "what an index holds, and the files it could not read")
    check = command("check", "compare all features of an index with their checksums")
    for sub in (info, check):
        sub.add_argument("index", help="the index's folder")
    return parser


def _read_captions(file: Path) -> list[str]:
    """Captions of a text file, one per line, or of a JSON object whose values are captions or lists of them."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".json":
        return text.splitlines()
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"{file} must be an object of captions by video")
    return [str(caption) for value in values.values() for caption in (value if isinstance(value, list) else [value])]


def _show(matches: Sequence[Match], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(match) for match in matches], ensure_ascii=False))
        return
    for match in matches:
        why = "; ".join(name for name, _ in match.concepts)
        print(f"{match.score:.3f}  {match.path}  at {match.moment:.1f} s  {why}".rstrip())


def run(args: argparse.Namespace) -> int:
    """Do what the parsed command line says; the exit code."""
    use_fast_matmul()
    model = SUMA.from_pretrained(args.model)
    if args.command == "index":
        find_videos(args.videos)  # nothing to add is an error before anything is written
        try:
            index = VideoIndex.load(args.output, model)
        except FileNotFoundError:
            index = VideoIndex(model)
        if args.captions:
            index.set_captions(_read_captions(args.captions))
        index.save(args.output)
        report = index.add(args.videos, args.workers, args.prune, args.retry, args.time_limit, args.bf16)
        if args.json:
            print(json.dumps(asdict(report), ensure_ascii=False))
        else:
            done = f"{len(report.added)} added, {len(report.skipped)} unchanged, {len(report.failed)} failed"
            for name in ("moved", "duplicates", "missing", "pruned"):
                count = len(getattr(report, name))
                done += f", {count} {name}" * bool(count)
            print(f"{done}; {len(index)} videos in {args.output}")
            for path, reason in report.failed.items():
                print(f"failed: {path}: {reason}", file=sys.stderr)
        return 0 if len(index) else 1
    index = VideoIndex.load(args.index, model)
    if args.command == "check":
        index.store.verify()
        print(json.dumps({"sound": True, "videos": len(index)}) if args.json else f"{args.index} is sound")
    elif args.command == "search":
        _show(index.search(args.query, args.top_k), args.json)
    elif args.command == "similar":
        _show(index.similar(args.video, args.top_k), args.json)
    elif args.command == "captions":
        found = index.captions(args.video, args.top_k)
        print(json.dumps(found, ensure_ascii=False) if args.json else "\n".join(f"{s:.3f}  {c}" for c, s in found))
    else:
        values = {
            "videos": len(index), "seconds": round(sum(row.duration for row in index.rows), 1),
            "captions": len(index.caption_list), "failed": {row.path: row.reason for row in index.failed},
        }  # fmt: skip
        print(json.dumps(values, ensure_ascii=False, indent=None if args.json else 2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; errors of the user's input are one line on stderr and exit code 2."""
    from suma import __version__

    parser = _parser()
    args = parser.parse_args(argv)
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


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names that are no text
    sys.exit(main())
