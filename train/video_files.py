"""Find the videos of a benchmark: files of a folder or of a dataset on the Hub, or members of one zip of these.

The members of the zip are unpacked into SUMA_CACHE.
"""

import hashlib
import os
import re
import shutil
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from suma.atomic_io import cache_folder
from suma.index.files import VIDEO_EXTENSIONS
from suma.progress import Progress

CACHE = cache_folder()


def suffix(name: str) -> str:
    """Return the suffix of a file's name in lower case."""
    return PurePosixPath(name).suffix.lower()


def without_suffix(name: str) -> str:
    """Return a video's name without the suffix of a video; other dots are part of the name.

    >>> [without_suffix(name) for name in ("a.MP4", "x/clip_v1.0", "clip_v1.0.webm")]
    ['a', 'x/clip_v1.0', 'clip_v1.0']
    """
    return os.path.splitext(name)[0] if suffix(name) in VIDEO_EXTENSIONS else name


def fetch(data: str, name: str) -> Path:
    """Return a file of a local folder, or of a dataset on the Hub, downloaded once."""
    if Path(data).is_dir():
        return Path(data) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(data, name, repo_type="dataset"))


def _key(name: str) -> str:
    """Return the form in which files' names are compared."""
    base = without_suffix(name)
    return unicodedata.normalize("NFC", base) + name[len(base) :].lower()


def match(names: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """Return for each video name the file whose path ends with it; a name without suffix matches any video suffix.

    Names without a file are left out. Letters are compared composed (NFC), video suffixes in lower case; of several
    files, one spelled exactly as the name is chosen. Raise ValueError for a name that matches two files, or that
    leaves the folder.

    >>> match(["a.mp4", "b", "c"], ["x/a.MP4", "x/b.avi", "x/b.txt"])
    {'a.mp4': 'x/a.MP4', 'b': 'x/b.avi'}
    """
    named: dict[str, list[str]] = {}
    for file in files:
        key = _key(file)
        for name in {PurePosixPath(key).name, PurePosixPath(without_suffix(key)).name}:
            named.setdefault(name, []).append(file)
    found = {}
    for name in names:
        wanted = PurePosixPath(_key(name))
        if wanted.is_absolute() or ".." in wanted.parts or not wanted.name:
            raise ValueError(f"video {name!r} is not inside the benchmark's folder")
        folder = wanted.parts[:-1]
        fitting = [
            f for f in named.get(wanted.name, []) if PurePosixPath(_key(f)).parts[-1 - len(folder) : -1] == folder
        ]
        fitting = [file for file in fitting if file.endswith(name)] or fitting
        if len(fitting) > 1 and name not in fitting:
            raise ValueError(f"video {name} may be {' or '.join(sorted(fitting)[:2])}: names must be unique")
        if fitting:
            found[name] = name if name in fitting else fitting[0]
    return found


def local_videos(root: Path, names: Sequence[str]) -> list[Path]:
    """Return each name's file: in the folder `video` if there is one, else anywhere below root, or in root's zip.

    A missing video gets the path where it was expected, so that decoding reports it.
    """
    leaving = [name for name in names if ".." in PurePosixPath(name).parts]
    if leaving:
        raise ValueError(f"video {leaving[0]!r} is not inside the benchmark's folder")
    folder = root / "video" if (root / "video").is_dir() else root
    found = {name: root / name for name in names if (root / name).is_file()}
    rest = [name for name in names if name not in found]
    if rest:
        walk = os.walk(folder, followlinks=True)
        files = [Path(top, file).relative_to(folder).as_posix() for top, _, inside in walk for file in inside]
        found |= {name: folder / file for name, file in match(rest, files).items()}
        rest = [name for name in rest if name not in found]
    if rest and folder == root:
        archives = sorted(root.glob("*.zip"))
        if archive := only_zip(str(root), [path.name for path in archives], bool(found)):
            path = (root / archive).resolve()
            with path.open("rb") as file:
                found |= unpack(file, archive, rest, video_cache(f"{path}{path.stat().st_size}"))
    return [found.get(name, folder / name) for name in names]


def hub_videos(data: str, names: Sequence[str], by_range: bool) -> list[Path]:
    """Return each name's file from a dataset on the Hub: a file of the repository, or a member of its zip.

    The zip is downloaded once, and its sha256 compared with the Hub's. by_range: read only the bytes of the members
    instead (each has a checksum in the zip).
    """
    from huggingface_hub import HfApi, HfFileSystem

    files = HfApi().list_repo_files(data, repo_type="dataset")
    matched = match(names, files)
    with ThreadPoolExecutor(8) as pool:
        steps = pool.map(lambda name: fetch(data, matched[name]), matched)
        found = dict(zip(matched, Progress(steps, total=len(matched), desc="download", unit="video"), strict=True))
    rest = [name for name in names if name not in found]
    tars = [file for file in files if ".tar" in PurePosixPath(file).name]
    archives = [file for file in files if suffix(file) == ".zip"]
    if rest and not archives and tars:
        raise ValueError(f"{data} has its videos in {tars[0]}: unpack it beside the annotations, and give that folder")
    if rest and (archive := only_zip(data, archives, bool(found))):
        infos: list[Any] = HfApi().get_paths_info(data, archive, repo_type="dataset")
        (info,) = infos
        target = video_cache(f"{data}/{archive}@{info.blob_id}")
        remote = f"datasets/{data}/{archive}"
        whole = None if by_range else checked(fetch(data, archive), info.lfs and info.lfs.sha256, target)
        with HfFileSystem().open(remote, block_size=2**18) if whole is None else whole.open("rb") as file:
            found |= unpack(file, archive, rest, target)
    return [found.get(name, Path(data) / name) for name in names]


def checked(file: Path, sha256: str | None, target: Path) -> Path:
    """Return a downloaded file after comparing its checksum with the Hub's, if there is one; note it in `target`.

    Raise ValueError if they differ, and remove the file, so that the next call downloads it again.
    """
    noted = target / "sha256"
    if sha256 and not (noted.is_file() and noted.read_text() == sha256):
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != sha256:
            file.resolve().unlink()
            raise ValueError(f"{file.name} is damaged: its sha256 is {found}, not {sha256}; run again to download it")
        target.mkdir(parents=True, exist_ok=True)
        noted.write_text(sha256)
    return file


def only_zip(data: str, archives: Sequence[str], some_found: bool) -> str:
    """Return the one zip of the videos, or "" if there is no zip and some videos are files."""
    if not archives and some_found:
        return ""
    if len(archives) != 1:
        raise ValueError(f"{data} must hold the videos, or one zip of them: found {len(archives)} zip files")
    return archives[0]


def video_cache(key: str) -> Path:
    """Return the folder for the videos of one zip."""
    return CACHE / "videos" / hashlib.sha256(key.encode()).hexdigest()[:12]


def unpack(file: BinaryIO, label: str, names: Sequence[str], target: Path) -> dict[str, Path]:
    """Unpack the videos of these names from a zip to target/video, if they are not there yet; return path by name.

    Raise ValueError for a damaged zip (checksums are compared), for names in it that leave its folder, and if it has
    none of the videos.
    """
    paths = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
            for name in members:
                if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
                    raise ValueError(f"{label} holds {name!r}, which leaves its folder")
            chosen = match(names, members)
            if not chosen:
                raise ValueError(f"{label} has none of the {len(names)} videos, such as {names[0]}")
            for name, member in Progress(chosen.items(), desc=f"unpack {label}", unit="video"):
                path = target / "video" / PurePosixPath(name).with_name(PurePosixPath(member).name)
                paths[name] = path
                if path.exists() and path.stat().st_size == members[member].file_size:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # several processes may unpack
                with archive.open(members[member]) as source, partial.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                partial.replace(path)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{label} is damaged: {error}") from error
    return paths
