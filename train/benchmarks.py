"""Read a benchmark as clips with captions: one function for each layout of annotations."""

import csv
import io
import json
import os
import re
import tempfile
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from video_files import fetch, hub_videos, local_videos, suffix, without_suffix

from suma.index.captions import read_text

MSRVTT = "friedrichor/MSR-VTT"
OPTIONS = ("video_column", "caption_column", "limit", "paragraph")  # of load_clips, on the command line
CLIP4CLIP = {
    "train_9k": "MSRVTT_train.9k.csv",
    "train_7k": "MSRVTT_train.7k.csv",
    "test_1k": "MSRVTT_JSFUSION_test.csv",
}
TABLES = (".csv", ".json", ".jsonl", ".parquet")
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
    """Return the clips of one config (a training or test split) of a benchmark, a local folder or a dataset on the Hub.

    Layouts: CLIP4Clip's files of MSR-VTT (`clip4clip`), MSVD's captions and lists (`msvd`), otherwise rows with a video
    and a caption column (`read_rows`). limit: only the first so many clips (0: all), and only their videos are fetched.
    paragraph: join each video's captions into one.
    Raise FileNotFoundError for an unknown folder; ValueError for an unknown config, a missing column, a video without
    a caption, an empty caption, a name that means two videos, and if there are no videos.
    """
    root = Path(data)
    if not root.is_dir() and not is_hub_id(data):
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


def is_hub_id(data: str) -> bool:
    """Return True if a benchmark's name means a dataset on the Hub, and there is no folder of that name."""
    return not Path(data).is_dir() and data.count("/") == 1 and not data.startswith((".", "/", "~"))


def check_clips(clips: Sequence[Clip], where: str) -> None:
    """Raise ValueError if there is no clip, a clip without text, or two clips with one id."""
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


# ---- annotations: each loader returns clips whose path is the video's name, with or without its suffix ---------------


def clip4clip(root: Path, config: str) -> list[Clip]:
    """Return MSR-VTT from CLIP4Clip's files: MSRVTT_data.json and a list, train_9k, train_7k, test_1k or its file name.

    The `sentence` column of a test list, if there is one, is the caption; otherwise all sentences of the json are.
    """
    file = root / CLIP4CLIP.get(config, config)
    if not file.is_file():
        lists = ", ".join(sorted(path.name for path in root.glob("*.csv"))) or "none"
        raise ValueError(f"{root} has no {file.name} ({config}); its lists: {lists}")
    listed = read_file(file)
    if not all("video_id" in row for row in listed):
        raise ValueError(f"{file} has no column video_id")
    annotations = json.loads(read_text(root / "MSRVTT_data.json"))
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
    """Return MSVD from captions_msvd.json {video: [captions]} and the list of a split, {config}_list.txt."""
    file = root / f"{config}_list.txt"
    if not file.is_file():
        lists = ", ".join(sorted(path.name.removesuffix("_list.txt") for path in root.glob("*_list.txt"))) or "none"
        raise ValueError(f"{root} has no {file.name}; its splits: {lists}")
    captions = json.loads(read_text(root / "captions_msvd.json"))
    names = read_text(file).split()
    unknown = [name for name in names if name not in captions]
    if unknown:
        raise ValueError(f"{file.name} lists {unknown[0]}, which has no captions in captions_msvd.json")
    return [Clip(name, Path(name), tuple(captions[name]), 0, msvd_source(name), "MSVD") for name in names]


def msvd_source(video_id: str) -> str:
    """Return the YouTube video that an MSVD clip was cut from.

    >>> msvd_source("-4wsuPCjDBc_5_15")
    '-4wsuPCjDBc'
    """
    return re.sub(r"_\d+_\d+$", "", video_id)


def clips_of_rows(rows: Iterable[Row], video_column: str, caption_column: str) -> list[Clip]:
    """Return the clips of rows with a video's file name and its caption or captions; rows of one video are one clip.

    Optional columns: video_id, category, url (of the source video), source (the label).
    """
    clips: dict[str, Clip] = {}
    for number, row in enumerate(rows, start=1):
        for column, flag in ((video_column, "--video-column"), (caption_column, "--caption-column")):
            if column not in row:
                raise ValueError(f"row {number} has no column {column}, but {', '.join(map(str, row))}: give {flag}")
        video, captions = row[video_column], row[caption_column]
        if not isinstance(video, str) or not video.strip():
            raise ValueError(f"row {number} has the {video_column} {video!r}: expected the name of a file")
        video = unicodedata.normalize("NFC", video)
        captions = tuple(captions) if isinstance(captions, (list, tuple)) else (captions,)
        if video in clips:
            clips[video] = replace(clips[video], captions=clips[video].captions + captions)
            continue
        name, label = str(row.get("video_id") or without_suffix(video)), str(row.get("source") or "")
        source = row.get("url") or (msvd_source(name) if label == "MSVD" else name)
        category = row.get("category")
        category = category if isinstance(category, (int, str)) else 0
        clips[video] = Clip(name, Path(video), captions, category, str(source), label)
    return list(clips.values())


def read_rows(data: str, config: str) -> Iterable[Row]:
    """Return the rows of a config or split that the README's head names, or of a metadata file, by its name or stem.

    On the Hub, friedrichor/MSR-VTT has the configs train_9k, train_7k and test_1k, friedrichor/MSVD the splits train,
    validation and test, and friedrichor/ActivityNet_Captions train, val1 and val2.
    """
    root = Path(data)
    if root.is_dir():
        names = [config] if (root / config).is_file() else sorted(path.name for path in root.iterdir())
    else:
        from huggingface_hub import HfApi

        names = HfApi().list_repo_files(data, repo_type="dataset")
    files = [name for name in names if config in (name, os.path.splitext(name)[0]) and suffix(name) in TABLES]
    configs = [] if config in files else described_configs(data, names)
    if files and config not in configs:
        if len(files) > 1:
            raise ValueError(f"{data} has {' and '.join(files)}: give one of them as the config")
        return read_file(fetch(data, files[0]))
    choices = [*configs, *(name for name in names if suffix(name) in TABLES)]
    if config in configs or (len(configs) < 2 and (configs or not root.is_dir())):
        from datasets import load_dataset

        with tempfile.TemporaryDirectory() as fresh:  # its cache confuses folders of one name, and does not see edits
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
    """Return the configs in the YAML head of the README among a dataset's files."""
    if "README.md" not in names:
        return []
    from huggingface_hub import metadata_load

    head = metadata_load(fetch(data, "README.md")) or {}
    return [config.get("config_name", "default") for config in head.get("configs", [])]


def read_file(file: Path) -> list[Row]:
    """Return the rows of a csv, json, jsonl or parquet file. Raise ValueError for any other content."""
    try:
        match suffix(file.name):
            case ".csv":
                rows = list(csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True))
            case ".json":
                rows = json.loads(read_text(file))
            case ".jsonl":
                rows = [json.loads(line) for line in read_text(file).split("\n") if line.strip()]
            case _:
                from pyarrow.parquet import read_table

                rows = read_table(file).to_pylist()
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} cannot be read: expected a list of rows")
    return rows
