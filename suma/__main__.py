"""The command line: `suma index | merge | search | captions | similar | duplicates | info | check | app | doctor`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core

import argparse
import contextlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suma.index.captions import read_captions
from suma.index.edit_list import write_list, writer_for
from suma.index.files import Part, find_videos, missing_parts
from suma.index.query import Filter, parse
from suma.index.search import NOTHING_FITS, Match
from suma.index.storage import Report, Row, is_server
from suma.index.store import refuse_other_things
from suma.index.video_index import VideoIndex, model_of
from suma.model.checkpoint import STRONGER
from suma.model.text_encoder import TextEncoder, load_for_search
from suma.options import build_parser
from suma.video.frames import SEGMENT

if TYPE_CHECKING:
    import torch

    from suma.model.suma import SUMA

PLAYERS = {"mpv": ("--start={}", "--"), "vlc": ("--start-time={}",)}


def _show(matches: Sequence[Match], args: argparse.Namespace) -> int:
    """Print the answers, then save, list and play them where that is asked for; the exit code."""
    if args.json:
        print(json.dumps([asdict(match) for match in matches], ensure_ascii=False))
    for match in [] if args.json else matches:
        why = "; ".join(name for name, _ in match.concepts)
        where = f"{match.path}  " + (f"at {match.moment:.1f} s" if match.duration else "photo")
        if args.links:
            where = f"{Path(match.path).absolute().as_uri()}#t={match.moment:.1f}"
        print(f"{match.score:.3f}  {where}  {why}".rstrip())
    code = 0 if matches else 1
    for match in matches if args.save else ():
        from suma.video.cut import save_clip

        try:
            clip = save_clip(match.path, match.start, match.end, args.save, args.padding)
            print(f"saved: {clip}", file=sys.stderr if args.json else sys.stdout)
        except (ValueError, OSError) as error:
            print(f"not saved: {error}", file=sys.stderr)
            code = 2
    if args.list:
        write_list(args.list, matches)
    if args.open and matches:
        play(matches[0].path, matches[0].moment)
    return code


def _check_kept(args: argparse.Namespace) -> None:
    """Raise for what cannot be saved, listed or played, before anything is searched."""
    if not 0 <= args.padding < math.inf:
        raise ValueError(f"--padding must be at least 0 seconds, got {args.padding:g}")
    if args.save and os.path.exists(args.save) and not os.path.isdir(args.save):
        raise ValueError(f"--save {args.save}: it is no folder: name one, new or not")
    if args.list:
        writer_for(args.list)
    if args.open:
        player()


def player() -> str:
    """Return the first player that is installed. Raises ValueError where there is none."""
    found = next(filter(shutil.which, PLAYERS), "")
    if not found:
        raise ValueError(f"--open needs one of {', '.join(PLAYERS)}, and none is installed: try `apt install mpv`")
    return found


def play(path: str, moment: float) -> None:
    """Start the player at `moment` (seconds), and leave it to itself."""
    name = player()
    command = [name, *(option.format(f"{moment:.2f}") for option in PLAYERS[name]), os.path.abspath(path)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def _show_duplicates(groups: Sequence[Sequence[Row]], as_json: bool) -> None:
    """Print groups of files, the first of each marked; the others may go."""
    if as_json:
        shown = [[{"path": f.path, "duration": f.duration, "size": f.size} for f in files] for files in groups]
        print(json.dumps(shown, ensure_ascii=False))
    elif groups:
        print("\n\n".join("\n".join("* "[n > 0] + f" {f.path}" for n, f in enumerate(files)) for files in groups))
    if not groups:
        print("no two videos show the same", file=sys.stderr)


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
    if args.command == "index":
        return _index(args)
    if args.command == "merge":
        return _merge(args)
    if args.command == "doctor":
        return _doctor(args)
    if args.command == "check":
        return _check(args)
    if args.command in ("search", "similar"):
        _check_kept(args)
    model = load_for_search(args.model or model_of(args.index))
    if not isinstance(model, TextEncoder):
        from suma.model.cpu import use_fast_matmul

        use_fast_matmul()
    index = VideoIndex.load(args.index, model)
    if args.command == "search":
        query = parse(args.query)
        more = {"within": args.within, "hubness": args.hubness, "min_confidence": args.min_confidence}
        matches = index.search(query, **more, **_page(args))
        answers = matches if args.all or args.page > 1 or all(match.fits for match in matches[:1]) else []
        if not answers and (matches or args.min_confidence > 0):
            print(f"{NOTHING_FITS} (--all shows the nearest)", file=sys.stderr)
        for note in query.notes(model.space):
            print(note, file=sys.stderr)
        return _show(answers, args)
    elif args.command == "similar":
        return _show(index.similar(args.video, **_page(args)), args)
    elif args.command == "duplicates":
        _show_duplicates(index.duplicates(), args.json)
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


def _check(args: argparse.Namespace) -> int:
    """Read all of an index and its model; return 0 where both are sound. Raise as their `verify` do."""
    model = _load_model(args.model or model_of(args.index))
    index = VideoIndex.load(args.index, model)
    index.store.verify()
    model.verify()
    print(json.dumps({"sound": True, "videos": index.num_videos}) if args.json else f"{args.index} is sound")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    """Print what `doctor` finds; return 0 where all is well, else 2."""
    from suma.doctor import check

    found = list(check(args.model or ""))
    if args.json:
        print(json.dumps([{"ok": fine, "found": text} for fine, text in found], ensure_ascii=False))
    else:
        print("\n".join(f"{'ok     ' if fine else 'PROBLEM'}  {text}" for fine, text in found))
    return 0 if all(fine for fine, _ in found) else 2


def _index(args: argparse.Namespace) -> int:
    """Add videos to an index, or to one part of it; return the exit code."""
    part = Part.parse(args.part) if args.part is not None else Part.of_process(os.environ)
    place = args.output
    if part and args.watch:
        raise ValueError(f"--watch follows whole folders, not part {part}: merge the parts, then watch")
    if part:
        if is_server(args.output):
            raise ValueError(
                f"part {part} of an index needs a folder, not {args.output}: index the parts in a folder, merge them, "
                f"then copy the index to Milvus with VideoIndex.load(FOLDER).save({args.output!r})"
            )
        refuse_other_things(Path(args.output))  # where the parts will be merged
        place = str(part.folder(args.output))
    model = _load_model(args.model or model_of(place if os.path.exists(place) else args.output))
    find_videos(args.videos, args.exclude, args.photos)  # nothing to add is an error before anything is written
    model.to(_device(os.environ))
    segment = args.segment
    if part:
        with contextlib.suppress(FileNotFoundError):
            segment = VideoIndex.load(args.output, model, segment).store.segment
    try:
        index = VideoIndex.load(place, model, segment)
    except FileNotFoundError:
        index = VideoIndex(model, SEGMENT if segment is None else segment)
        if not model.source:
            print(STRONGER, file=sys.stderr)
    if args.captions:
        index.set_captions([caption for found in read_captions(args.captions).values() for caption in found])
    index.save(place)
    how = {name: getattr(args, name) for name in ("workers", "prune", "retry", "time_limit", "bf16", "exact")}
    report = index.add(args.videos, exclude=args.exclude, part=part, photos=args.photos, **how)
    if args.hubness:
        index.keep_hubness()
    _show_report(report, f"{index.num_videos} videos in {place}", args.json)
    if part:
        told = f"when all {part.count} parts are done: {part.merge_command(args.output)}"
        print(told, file=sys.stderr if args.json else sys.stdout)
    if args.watch:
        return _watch(index, args, how)
    return 0 if part or len(index) else 1  # a part may have few files; as an error, it would end the other ranks


def _watch(index: VideoIndex, args: argparse.Namespace, how: dict[str, Any]) -> int:
    """Take up what changes in the folders until it is interrupted; return the exit code. how: the options of `add`."""
    from suma.index.watch import watch

    with contextlib.suppress(KeyboardInterrupt):
        for ready, gone in watch(index, args.videos, args.exclude, args.photos):
            report = index.add(filter(os.path.exists, ready), **how)
            report.pruned = [path for path in gone if index.remove([path])]
            _show_report(report, f"{index.num_videos} videos in {args.output}", args.json)
            sys.stdout.flush()
    return 0


def _merge(args: argparse.Namespace) -> int:
    """Merge indexes into one; return the exit code."""
    from suma.index.merge import merge_folders

    report, count = merge_folders(_load_model(args.model or model_of(args.indexes[0])), args.indexes, args.output)
    _show_report(report, f"{count} videos in {args.output}", args.json)
    for folder in missing_parts(args.indexes):
        print(f"not merged: {folder}: index this part, then merge again", file=sys.stderr)
    return 0 if count else 1


def _device(environ: Mapping[str, str]) -> "torch.device":
    """Return this process's own GPU, or the CPU where there is none or the launcher was told to use the CPU."""
    import torch

    if environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _load_model(name: str) -> "SUMA":
    from suma.model.cpu import use_fast_matmul
    from suma.model.suma import SUMA

    use_fast_matmul()
    return SUMA.from_pretrained(name)


def _show_report(report: Report, total: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    print(f"{report.summary()}; {total}")
    for path, reason in report.failed.items():
        print(f"failed: {path}: {reason}", file=sys.stderr)
    for note in report.notes():
        print(note, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; errors of the user's input are one line on stderr and exit code 2."""
    from suma import __version__

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["app"]:  # it parses its own options
        from suma.app.page import main as open_app

        return open_app(arguments[1:])
    parser = build_parser(__doc__)
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
