"""A benchmark -> clips with captions: each layout of annotations is read by one function, and the videos are found.

Videos are files beside the annotations, or members of one zip, which are unpacked into SUMA_CACHE.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tqdm import tqdm

from suma.video import VIDEO_EXTENSIONS

MSRVTT = "friedrichor/MSR-VTT"
CACHE = Path(os.environ.get("SUMA_CACHE", Path.home() / ".cache" / "suma"))
OPTIONS = ("video_column", "caption_column", "limit", "paragraph")  # of load_clips, on the command line
CLIP4CLIP = {
    "train_9k": "MSRVTT_train.9k.csv", "train_7k": "MSRVTT_train.7k.csv", "test_1k": "MSRVTT_JSFUSION_test.csv",
}  # fmt: skip
LEAK = "372 of MSR-VTT's 1,000 test clips share a source video with clips of train_9k: train_7k shares none"

Row = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """One video of a benchmark. Clips cut from one source video share `source`; `category` is the benchmark's."""

    video_id: str
    path: Path
    captions: tuple[str, ...]
    category: int | str
    source: str
    label: str  # the row's "source" column: the dataset's name, or the kind of a minimal pair


def load_clips(
    data: str,
    config: str,
    video_column: str = "video",
    caption_column: str = "caption",
    limit: int = 0,
    paragraph: bool = False,
) -> list[Clip]:
    """The clips of one config (a training or test split) of a benchmark: a local folder, or a dataset on the Hub.

    Read are CLIP4Clip's files of MSR-VTT (`clip4clip`), MSVD's captions and lists (`msvd`), and otherwise rows with a
    video and a caption column (`read_rows`). The first `limit` clips only (0: all): then only their videos are fetched.
    paragraph: each video's captions are joined into one.
    Raises FileNotFoundError for an unknown folder; ValueError for an unknown config, a missing column, a video without
    a caption, an empty caption, a name that means two videos, and where there are no videos.
    """
    root = Path(data)
    if not root.is_dir() and (data.startswith((".", "/", "~")) or data.count("/") != 1):
        raise FileNotFoundError(f"no benchmark folder {data} (a Hub id has the form owner/name)")
    if limit < 0:
        raise ValueError(f"limit={limit}: expected a number of clips, or 0 for all")
    if (root / "MSRVTT_data.json").is_file():
        clips = clip4clip(root, config)
    elif (root / "captions_msvd.json").is_file():
        clips = msvd(root, config)
    else:
        clips = clips_of_rows(read_rows(data, config), video_column, caption_column)
    check_clips(clips, f"{config} of {data}")
    if len(clips) == 9000 and clips[0].label == "MSR-VTT":
        warnings.warn(LEAK, stacklevel=2)
    clips = clips[: limit or None]
    if paragraph:
        clips = [replace(clip, captions=(" ".join(clip.captions),)) for clip in clips]
    names = [str(clip.path) for clip in clips]
    paths = local_videos(root, names) if root.is_dir() else hub_videos(data, names, by_range=limit > 0)
    return [replace(clip, path=path) for clip, path in zip(clips, paths, strict=True)]


def check_clips(clips: Sequence[Clip], where: str) -> None:
    """Raises ValueError where there is no clip, a clip without text, or two clips of one id."""
    if not clips:
        raise ValueError(f"{where} has no clips")
    seen: set[str] = set()
    for clip in clips:
        if clip.video_id in seen:
            raise ValueError(f"{where} has two videos {clip.video_id}")
        seen.add(clip.video_id)
        if not clip.captions:
            raise ValueError(f"{where} has no caption of video {clip.video_id}")
        for caption in clip.captions:
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(f"{where} has the caption {caption!r} of video {clip.video_id}: expected some text")


# ---- annotations: each loader gives clips whose path is the video's name, with or without its suffix -----------------


def clip4clip(root: Path, config: str) -> list[Clip]:
    """MSR-VTT in CLIP4Clip's files: MSRVTT_data.json, and a list MSRVTT_*.csv: train_9k, train_7k, test_1k or its name.

    A list's `sentence` column, where it has one, is the test caption; training takes all sentences of the json.
    """
    file = root / CLIP4CLIP.get(config, config)
    if not file.is_file():
        lists = ", ".join(sorted(path.name for path in root.glob("*.csv"))) or "none"
        raise ValueError(f"{root} has no {file.name} ({config}); its lists: {lists}")
    listed = read_file(file)
    if not all("video_id" in row for row in listed):
        raise ValueError(f"{file} has no column video_id")
    annotations = json.loads((root / "MSRVTT_data.json").read_text(encoding="utf-8"))
    try:
        videos = {video["video_id"]: (video["category"], video["url"]) for video in annotations["videos"]}
        sentences: dict[str, list[str]] = {name: [] for name in videos}
        for sentence in annotations["sentences"]:
            sentences[sentence["video_id"]].append(sentence["caption"])
    except KeyError as error:
        raise ValueError(f"{root / 'MSRVTT_data.json'} lacks {error}") from error
    clips = []
    for row in listed:
        name = row["video_id"]
        if name not in videos:
            raise ValueError(f"{file.name} lists {name}, which is not in MSRVTT_data.json")
        captions = [row["sentence"]] if "sentence" in row and "train" not in file.name else sentences[name]
        clips.append(Clip(name, Path(name), tuple(captions), *videos[name], "MSR-VTT"))
    return clips


def msvd(root: Path, config: str) -> list[Clip]:
    """MSVD: captions_msvd.json {video: [captions]} and the lists of its splits, {config}_list.txt."""
    file = root / f"{config}_list.txt"
    if not file.is_file():
        lists = ", ".join(sorted(path.name.removesuffix("_list.txt") for path in root.glob("*_list.txt"))) or "none"
        raise ValueError(f"{root} has no {file.name}; its splits: {lists}")
    captions = json.loads((root / "captions_msvd.json").read_text(encoding="utf-8"))
    names = file.read_text(encoding="utf-8").split()
    unknown = [name for name in names if name not in captions]
    if unknown:
        raise ValueError(f"{file.name} lists {unknown[0]}, which has no captions in captions_msvd.json")
    return [Clip(name, Path(name), tuple(captions[name]), 0, msvd_source(name), "MSVD") for name in names]


def msvd_source(video_id: str) -> str:
    """The YouTube video an MSVD clip was cut from.

    >>> msvd_source("-4wsuPCjDBc_5_15")
    '-4wsuPCjDBc'
    """
    return re.sub(r"_\d+_\d+$", "", video_id)


def clips_of_rows(rows: Iterable[Row], video_column: str, caption_column: str) -> list[Clip]:
    """Rows with a video's file name and its caption or list of captions -> clips; rows of one video become one clip.

    Other columns that are read where present: video_id, category, url (of the source video), source (the label).
    """
    clips: dict[str, Clip] = {}
    for number, row in enumerate(rows, start=1):
        for column, flag in ((video_column, "--video-column"), (caption_column, "--caption-column")):
            if column not in row:
                raise ValueError(f"row {number} has no column {column}, but {', '.join(map(str, row))}: give {flag}")
        video, captions = row[video_column], row[caption_column]
        if not isinstance(video, str) or not video.strip():
            raise ValueError(f"row {number} has the {video_column} {video!r}: expected the name of a file")
        captions = tuple(captions) if isinstance(captions, (list, tuple)) else (captions,)
        if video in clips:
            clips[video] = replace(clips[video], captions=clips[video].captions + captions)
            continue
        name, label = str(row.get("video_id") or os.path.splitext(video)[0]), str(row.get("source") or "")
        source = row.get("url") or (msvd_source(name) if label == "MSVD" else name)
        category = row.get("category")
        category = category if isinstance(category, (int, str)) else 0
        clips[video] = Clip(name, Path(video), captions, category, str(source), label)
    return list(clips.values())


def read_rows(data: str, config: str) -> Iterable[Row]:
    """The rows of a config or split that the README's head names, or of a metadata file, by its name (or its stem).

    On the Hub, friedrichor/MSR-VTT has the configs train_9k, train_7k and test_1k, friedrichor/MSVD the splits train,
    validation and test, and friedrichor/ActivityNet_Captions train, val1 and val2.
    """
    root = Path(data)
    if root.is_dir():
        names = [config] if (root / config).is_file() else sorted(path.name for path in root.iterdir())
    else:
        from huggingface_hub import HfApi

        names = HfApi().list_repo_files(data, repo_type="dataset")
    files = [name for name in names if config in (name, os.path.splitext(name)[0]) and suffix(name) in READERS]
    configs = [] if config in files else described_configs(data, names)
    if files and config not in configs:
        if len(files) > 1:
            raise ValueError(f"{data} has {' and '.join(files)}: give one of them as the config")
        return read_file(fetch(data, files[0]))
    choices = [*configs, *(name for name in names if suffix(name) in READERS)]
    if config in configs or (len(configs) < 2 and (configs or not root.is_dir())):
        from datasets import load_dataset

        with tempfile.TemporaryDirectory() as fresh:  # its cache takes folders of one name as one, edited or not
            own = {"cache_dir": fresh, "keep_in_memory": True} if root.is_dir() else {}
            splits = load_dataset(data, config if config in configs else next(iter(configs), None), **own)
        chosen = next(iter(splits)) if config in configs and len(splits) == 1 else config
        if chosen in splits:
            inside = [name for name, kind in splits[chosen].features.items() if type(kind).__name__ == "Video"]
            if inside:
                raise ValueError(f"{data} keeps its videos inside of column {inside[0]}: expected the names of files")
            return splits[chosen]
        choices = list(splits)
    raise ValueError(f"{data} has no config, split or metadata file {config}; it has {', '.join(choices) or 'none'}")


def described_configs(data: str, names: Sequence[str]) -> list[str]:
    """The configs in the YAML head of the README among a dataset's files."""
    if "README.md" not in names:
        return []
    from huggingface_hub import metadata_load

    head = metadata_load(fetch(data, "README.md")) or {}
    return [config.get("config_name", "default") for config in head.get("configs", [])]


def read_csv(file: Path) -> list[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines, strict=True))


def read_json(file: Path) -> list[Row]:
    return json.loads(file.read_text(encoding="utf-8"))


def read_jsonl(file: Path) -> list[Row]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def read_parquet(file: Path) -> list[Row]:
    from pyarrow.parquet import read_table

    return read_table(file).to_pylist()


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".csv": read_csv, ".json": read_json, ".jsonl": read_jsonl, ".parquet": read_parquet,
}  # fmt: skip


def read_file(file: Path) -> list[Row]:
    """The rows of a csv, json, jsonl or parquet file; ValueError names a file that is none, or no list of rows."""
    try:
        rows = READERS[suffix(file.name)](file)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} cannot be read: expected a list of rows")
    return rows


def suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def fetch(data: str, name: str) -> Path:
    """A file of a local folder, or of a dataset on the Hub, downloaded once."""
    if Path(data).is_dir():
        return Path(data) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(data, name, repo_type="dataset"))


# ---- videos ----------------------------------------------------------------------------------------------------------


def match(names: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """Video name -> the file whose path ends with it, with any video suffix where the name has none.

    Names without a file are left out. Raises ValueError for a name that two files answer to, or that leaves the folder.

    >>> match(["a.mp4", "b", "c"], ["x/a.mp4", "x/b.avi", "x/b.txt"])
    {'a.mp4': 'x/a.mp4', 'b': 'x/b.avi'}
    """
    stems: dict[str, list[PurePosixPath]] = {}
    for file in map(PurePosixPath, files):
        stems.setdefault(file.stem, []).append(file)
    found = {}
    for name in names:
        wanted = PurePosixPath(name)
        if wanted.is_absolute() or ".." in wanted.parts or not wanted.name:
            raise ValueError(f"video {name!r} is not inside of the benchmark's folder")
        exact = [file for file in stems.get(wanted.stem, []) if file.name == wanted.name]
        named = exact or [file for file in stems.get(wanted.name, []) if file.suffix.lower() in VIDEO_EXTENSIONS]
        folder = wanted.parts[:-1]
        fitting = [str(file) for file in named if file.parts[:-1][len(file.parts) - 1 - len(folder) :] == folder]
        if len(fitting) > 1 and name not in fitting:
            raise ValueError(f"video {name} may be {' or '.join(sorted(fitting)[:2])}: names must be unique")
        if fitting:
            found[name] = name if name in fitting else fitting[0]
    return found


def local_videos(root: Path, names: Sequence[str]) -> list[Path]:
    """Each name's file: in the folder `video` where there is one, or anywhere below root, or in root's zip.

    Single videos that are missing get the path at which they were looked for: decoding reports them.
    """
    leaving = [name for name in names if ".." in PurePosixPath(name).parts]
    if leaving:
        raise ValueError(f"video {leaving[0]!r} is not inside of the benchmark's folder")
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
    """Each name's file, from a dataset on the Hub: files of the repository, or members of its zip.

    The zip is downloaded once and its sha256 compared with the Hub's; by_range: it is never downloaded, only the bytes
    of the members are read (each has a checksum in the zip).
    """
    from huggingface_hub import HfApi, HfFileSystem

    files = HfApi().list_repo_files(data, repo_type="dataset")
    matched = match(names, files)
    with ThreadPoolExecutor(8) as pool:
        steps = pool.map(lambda name: fetch(data, matched[name]), matched)
        found = dict(zip(matched, tqdm(steps, total=len(matched), desc="download", disable=None), strict=True))
    rest = [name for name in names if name not in found]
    tars = [file for file in files if ".tar" in PurePosixPath(file).name]
    archives = [file for file in files if suffix(file) == ".zip"]
    if rest and not archives and tars:
        raise ValueError(f"{data} has its videos in {tars[0]}: unpack it beside the annotations, and give that folder")
    if rest and (archive := only_zip(data, archives, bool(found))):
        (info,) = HfApi().get_paths_info(data, archive, repo_type="dataset")
        target = video_cache(f"{data}/{archive}@{info.blob_id}")
        remote = f"datasets/{data}/{archive}"
        whole = None if by_range else checked(fetch(data, archive), info.lfs and info.lfs.sha256, target)
        with HfFileSystem().open(remote, block_size=2**18) if whole is None else whole.open("rb") as file:
            found |= unpack(file, archive, rest, target)
    return [found.get(name, Path(data) / name) for name in names]


def checked(file: Path, sha256: str | None, target: Path) -> Path:
    """A downloaded file whose content is what the Hub says it is (where it says so); noted in the folder `target`.

    Raises ValueError for another, which is removed, so that the next call downloads it again.
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
    """The one zip of the videos; "" where there is none to be missed, as some videos are there as files."""
    if not archives and some_found:
        return ""
    if len(archives) != 1:
        raise ValueError(f"{data} must hold the videos, or one zip of them: found {len(archives)} zip files")
    return archives[0]


def video_cache(key: str) -> Path:
    """Where the videos of one zip are unpacked."""
    return CACHE / "videos" / hashlib.sha256(key.encode()).hexdigest()[:12]


def unpack(file: BinaryIO, label: str, names: Sequence[str], target: Path) -> dict[str, Path]:
    """Unpack the videos of these names from a zip to target/video; name -> path. Members that are there are kept.

    Raises ValueError for a damaged zip (checksums are compared), for one with names that leave its folder, and where it
    has none of the videos.
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
            for name, member in tqdm(chosen.items(), desc=f"unpack {label}", disable=None):
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
