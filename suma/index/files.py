"""Find the video files that a command names, leave out what is excluded, share them among processes, and tell which
indexed files are gone."""

import fnmatch
import functools
import glob
import hashlib
import itertools
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from suma.atomic_io import on_disk
from suma.index.storage import key

NOTATION = "write K/N with K from 1 to N, such as 2/8 for the second of eight parts"
VIDEO_EXTENSIONS = frozenset(
    (".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv")
    + (".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob")
    + (".webm", ".wmv")
)
PHOTO_EXTENSIONS = frozenset((".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
IGNORE_FILE = ".sumaignore"
LEFT_OUT = (  # always: hidden names; file servers' bins, snapshots and thumbnails. `!@eaDir/` takes one back
    ".*",
    "@eaDir/",
    "@Recycle/",
    "@Recently-Snapshot/",
    "@__thumb/",
    "#recycle/",
    "#snapshot/",
    "$RECYCLE.BIN/",
    "RECYCLER/",
    "System Volume Information/",
    "lost+found/",
)
IGNORE_HELP = (
    f"--exclude PATTERN, or a line of a file {IGNORE_FILE} in a folder, leaves out names below that folder, as in a "
    ".gitignore: *.mov for files and folders, drafts/ for folders, old/*.mp4 or /old/ for paths from there on; * also "
    "stands for /, ! takes back, # begins a comment (\\# a name), case does not matter, and the last line that fits "
    "counts. Hidden names and the bins, snapshots and thumbnails of file servers (@eaDir, #recycle, $RECYCLE.BIN, "
    "lost+found and others) are left out anyway."
)


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, counted from 1. Raises ValueError unless 1 <= number <= count."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"there is no part {self}: {NOTATION}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Return the part that a text like 2/8 names. Raises ValueError for any other text."""
        if found := re.fullmatch(r"([0-9]+)/([0-9]+)", text):
            return cls(int(found[1]), int(found[2]))
        raise ValueError(f"there is no part {text!r}: {NOTATION}")

    @classmethod
    def of_process(cls, environ: Mapping[str, str]) -> "Part | None":
        """Return this process's part under `accelerate launch` or `torchrun`, which set RANK and WORLD_SIZE.

        None for a single process. Raises ValueError for values that no launcher sets.

        >>> print(Part.of_process({"RANK": "1", "WORLD_SIZE": "4"}), Part.of_process({}))
        2/4 None
        """
        world = environ.get("WORLD_SIZE", "1")
        rank = environ.get("RANK", "0" if world == "1" else "missing")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ValueError(f"RANK={rank} and WORLD_SIZE={world} must be numbers, RANK less than WORLD_SIZE")
        return cls(int(rank) + 1, int(world)) if int(world) > 1 else None

    def holds(self, path: str | Path) -> bool:
        """Return True if a file belongs to this part; `path`: below the folder that was given."""
        name = unicodedata.normalize("NFC", Path(path).as_posix())  # some systems store letters and accents apart
        return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) % self.count == self.number - 1

    def folder(self, output: str | Path) -> Path:
        """Return where the part of an index is kept: beside it."""
        return Path(f"{os.path.abspath(output)}.part-{self.number}-of-{self.count}")

    def merge_command(self, output: str | Path) -> str:
        """Return the command that makes the index of its parts."""
        output = shlex.quote(os.path.abspath(output))
        return f"python -m suma merge {output}.part-*-of-{self.count} -o {output}"


def missing_parts(folders: Iterable[str | Path]) -> list[str]:
    """Return the folders of the parts that are missing among these.

    >>> missing_parts(["a.index", "b.part-1-of-3", "b.part-3-of-3"])
    ['b.part-2-of-3']
    """
    names = [str(folder).rstrip(os.sep) for folder in folders]
    found = [match for name in names if (match := re.fullmatch(r"(.*\.part-)[0-9]+-of-([0-9]+)", name))]
    wanted = [
        f"{start}{k}-of-{n}" for start, n in dict.fromkeys(m.groups() for m in found) for k in range(1, int(n) + 1)
    ]
    return [name for name in wanted if name not in names]


def readable(name: str) -> str:
    """Return a file name as text for people and JSON: control characters, and bytes that are not UTF-8, as \\xNN."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda c: f"\\x{ord(c[0]) & 0xFF:02x}", name)


@dataclass
class Found:
    """The video files that were found, and what was left out."""

    suffixes: frozenset[str] | set[str]  # that were looked for
    videos: list[Path] = field(default_factory=list)
    other_folders: set[str] = field(default_factory=set)  # real paths of folders that hold videos of other parts
    excluded: set[str] = field(default_factory=set)  # real paths of files and folders that a pattern leaves out
    unreadable: dict[str, str] = field(default_factory=dict)  # folder or file: reason

    def note(self, error: OSError) -> None:
        """Record why a folder or file could not be read."""
        self.unreadable[str(error.filename)] = error.strerror or str(error)

    def leaves_out(self, path: str) -> bool:
        """Return True if a pattern leaves out this file, or a folder above it."""
        above = os.path.dirname(path)
        return path in self.excluded or (above != path and self.leaves_out(above))


def find_videos(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], exclude: Sequence[str] = (), photos: bool = False
) -> list[Path]:
    """Return the video files that `paths` (files, folders, glob patterns) name, each once, in that order.

    A file that is named itself may have any name. A folder is searched all the way down for VIDEO_EXTENSIONS (with
    `photos` also for PHOTO_EXTENSIONS), and sorted. A pattern's matches need one of these or the pattern's own suffix.
    `exclude`: patterns of names to leave out below folders (IGNORE_HELP). Raises FileNotFoundError if a path or
    pattern matches nothing, ValueError if a folder holds no video, and another OSError if it cannot be read.
    """
    return look_for(paths, exclude, photos=photos).videos


def look_for(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    exclude: Sequence[str] = (),
    part: Part | None = None,
    photos: bool = False,
) -> Found:
    """Find videos as `find_videos` does; return also what was left out or could not be read.

    With `part`, only the videos of this part count. Its hash is over a file's path below the folder in `paths`, or over
    the path of a file or a pattern's match as it is.
    """
    found, videos = Found(VIDEO_EXTENSIONS | (PHOTO_EXTENSIONS if photos else set())), dict[str, tuple[Path, Path]]()
    real_folder = functools.cache(os.path.realpath)
    for entry in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(on_disk(entry))
        if path.is_dir():
            some = _walk(path, _Ignored(str(path), exclude), found)
            if not some:
                os.listdir(path)  # raises OSError where it cannot be read
                raise ValueError(f"no video in {path} (looked for {' '.join(sorted(found.suffixes))})")
        elif path.exists():
            some = [path]
        else:
            some = _matches(path, exclude, found)
            if not some:
                raise FileNotFoundError(f"no such video, folder, or match of a pattern: {path}")
        for video in some:
            videos.setdefault(key(video, real_folder), (video, path))
    for name, (video, path) in videos.items():
        if part is None or part.holds(video.relative_to(path) if path in video.parents else video):
            found.videos.append(video)
        else:
            found.other_folders.add(os.path.dirname(name))
    return found


def _matches(pattern: Path, exclude: Sequence[str], found: Found) -> list[Path]:
    """Return the videos that a glob pattern matches, and those below the folders that it matches."""
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1]))
    ignored = _Ignored(os.path.join("", *fixed), exclude)
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    kept = [match for match in matches if not ignored.holds_above(match)]
    suffixes = found.suffixes | {pattern.suffix.lower()}
    named = [match for match in kept if match.is_dir() or match.suffix.lower() in suffixes]
    return [video for match in named for video in (_walk(match, ignored, found) if match.is_dir() else [match])]


def _walk(folder: Path, ignored: "_Ignored", found: Found) -> list[Path]:
    """Return the video files below a folder, sorted. Each real folder is entered once, so links cannot loop."""
    videos: list[Path] = []
    entered: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=found.note, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        videos_here = [name for name in files if Path(name).suffix.lower() in found.suffixes]
        for names, is_folder in ((folders, True), (videos_here, False)):
            out = [name for name in names if ignored.holds(os.path.join(root, name), is_folder)]
            found.excluded.update(os.path.join(real, name) for name in out)
            names[:] = sorted(set(names).difference(out))
        videos += [Path(root, name) for name in videos_here if _is_file(os.path.join(root, name), found)]
    return sorted(videos)


def _is_file(path: str, found: Found) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        found.note(error)
        return False


class _Rule(NamedTuple):
    """One line of an IGNORE_FILE, or one pattern."""

    base: str  # the folder below which it applies
    pattern: str
    takes_back: bool
    only_folders: bool
    whole_path: bool  # compared with a slash and the path below `base`, not with the name alone


class _Ignored:
    """Tell which names below a folder are left out: by LEFT_OUT, its IGNORE_FILEs, or the given patterns."""

    def __init__(self, root: str, patterns: Sequence[str]):
        self.root = root
        self._always, self._given = _rules(root, LEFT_OUT, False), _rules(root, patterns, False)
        self._of: dict[str, list[_Rule]] = {}  # by folder, with those of the folders above it

    def holds(self, path: str, is_folder: bool) -> bool:
        """Return True if a file or folder itself is left out. The last rule that matches decides."""
        out = False
        for rule in (*self._always, *self._below(os.path.dirname(path)), *self._given):
            if out == rule.takes_back and (is_folder or not rule.only_folders):
                name = "/" + os.path.relpath(path, rule.base) if rule.whole_path else os.path.basename(path)
                if fnmatch.fnmatchcase(_plain(name), rule.pattern):
                    out = not rule.takes_back
        return out

    def holds_above(self, path: Path) -> bool:
        """Return True if a file or folder is left out, itself or with a folder above it."""
        below_root = len(path.parts) - len(Path(self.root).parts)
        folders = list(path.parents)[: below_root - 1]
        return self.holds(str(path), path.is_dir()) or any(self.holds(str(folder), True) for folder in folders)

    def _below(self, folder: str) -> list[_Rule]:
        """Return the rules of the IGNORE_FILEs in a folder and above it, up to the root."""
        if folder not in self._of:
            above = self._below(os.path.dirname(folder)) if folder != self.root else []
            try:
                text = Path(folder, IGNORE_FILE).read_text(encoding="utf-8-sig", errors="surrogateescape")
            except FileNotFoundError:
                text = ""
            self._of[folder] = [*above, *_rules(folder, text.splitlines(), True)]
        return self._of[folder]


def _rules(base: str, lines: Iterable[str], has_comments: bool) -> list[_Rule]:
    rules = []
    for line in lines:
        line = line.strip()
        if not line or (has_comments and line.startswith("#")):
            continue
        takes_back = line.startswith("!")
        pattern = _plain(line[takes_back:].removeprefix("\\"))
        only_folders, pattern = pattern.endswith("/"), pattern.rstrip("/")
        if whole_path := "/" in pattern:
            pattern = "*" + pattern[2:] if pattern.startswith("**/") else "/" + pattern.removeprefix("/")
        rules.append(_Rule(base, pattern, takes_back, only_folders, whole_path))
    return rules


def _plain(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return unicodedata.normalize("NFC", name).casefold()


def sort_missing(paths: Iterable[str], other_folders: Iterable[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Return which of these files are gone, and which are out of reach, with the reason.

    A file is gone if its folder can be read and lacks it, but has another of these files, in it or below, or holds
    videos of other parts (`other_folders`). Otherwise the folder may be on a drive that is not connected.
    """
    of_folder: dict[str, list[str]] = {}
    for path in paths:
        of_folder.setdefault(os.path.dirname(path), []).append(path)
    missing: dict[str, list[str]] = {}
    why_not: dict[str, str] = {}  # by folder
    have_files = set(other_folders)
    for folder, files in of_folder.items():
        try:
            names = set(os.listdir(folder))
        except OSError as error:
            missing[folder], why_not[folder] = files, f"{folder}: {error.strerror or error}"
            continue
        lost = [path for path in files if os.path.basename(path) not in names]
        missing[folder] = [path for path in lost if not os.path.lexists(path)]  # another case or form of the name
        if len(missing[folder]) < len(files):
            have_files.add(folder)
    in_use = _with_folders_above(have_files)
    gone: list[str] = []
    out_of_reach: dict[str, str] = {}
    for folder, files in missing.items():
        if folder in in_use and folder not in why_not:
            gone += files
        else:
            reason = why_not.get(folder, f"{folder} has none of its videos any more")
            out_of_reach.update(dict.fromkeys(files, reason))
    return gone, out_of_reach


def _with_folders_above(folders: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = os.path.dirname(folder)
    return found
