"""Benchmarks: every layout of annotations on small replicas and on the real files, and where the videos are found."""

import csv
import inspect
import io
import json
import multiprocessing
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import evaluate
import mixture
import pyarrow
import pyarrow.parquet
import pytest
import video_files
from accelerate.state import AcceleratorState
from benchmarks import OPTIONS, Clip, clips_of_rows, load_clips
from config import parse
from hub import Hub, running_hub
from test_data import benchmark, readme, row, write_layout  # noqa: F401  (a fixture)
from video_files import match, unpack

import train
from suma import SUMA

SHARED = Path(__file__).resolve().parents[2] / "shared"


def made(folder: Path, files: dict[str, Any]) -> Path:
    """Write files: text and bytes as they are, anything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def counts(clips: Sequence[Clip]) -> tuple[int, int]:
    return len(clips), sum(len(clip.captions) for clip in clips)


def linked(folder: Path, source: Path, names: dict[str, str]) -> Path:
    """A folder of no videos with links to the real annotations; skips the test where they are not here."""
    if not source.is_dir():
        pytest.skip(f"{source.name} is not here")
    (folder / "video").mkdir()
    for name, target in names.items():
        os.symlink(source / target, folder / name)
    return folder


# ---- MSR-VTT as hosted -----------------------------------------------------------------------------------------------


def test_rows_become_clips_with_one_or_many_captions(benchmark: Path):  # noqa: F811
    train, test = load_clips(str(benchmark), "train_9k"), load_clips(str(benchmark), "test_1k")
    assert [c.captions for c in train] == [(f"clip {n} moves", f"number {n}") for n in range(4)]
    assert [c.captions for c in test] == [("clip 4",), ("clip 5",)]
    assert [c.video_id for c in train + test] == [f"video{n}" for n in range(6)]
    assert [c.source for c in train] == [f"https://example.org/{n}" for n in (0, 0, 1, 1)]
    assert [c.category for c in train] == [0, 1, 2, 0] and {c.label for c in train} == {"MSR-VTT"}
    assert all(c.path.is_file() and c.path.name == f"{c.video_id}.mp4" for c in train + test)


@pytest.mark.parametrize(
    ("config", "clips", "captions", "sources_shared_with_test"),
    [
        pytest.param("train_9k", 9000, 180_000, 372, marks=pytest.mark.slow),
        pytest.param("train_7k", 7010, 140_200, 0, marks=pytest.mark.slow),
        ("test_1k", 1000, 1000, 1000),
    ],
)
def test_msrvtt_has_its_published_size(tmp_path: Path, config, clips, captions, sources_shared_with_test):
    files = {name: f"msrvtt_{name}.json" for name in {config, "test_1k"}}
    linked(tmp_path, SHARED / "msrvtt" / "friedrichor", {file: file for file in files.values()})
    (tmp_path / "README.md").write_text(readme(files))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = load_clips(str(tmp_path), config)
    told = [str(warning.message) for warning in caught if "source video" in str(warning.message)]
    assert [("372" in text, "train_7k" in text) for text in told] == [(True, True)] * (config == "train_9k")
    assert counts(got) == (clips, captions)
    sources = {c.source for c in got}
    assert sum(c.source in sources for c in load_clips(str(tmp_path), "test_1k")) == sources_shared_with_test


def test_another_folder_of_the_same_name_and_an_edited_one_are_read_anew(tmp_path: Path):
    for text in ("one", "two"):
        folder = made(tmp_path / text / "data", {"video3.mp4": b"3"})
        write_layout(folder, [row(1, ["a"])], [row(3, text)])
        assert load_clips(str(folder), "test_1k")[0].captions == (text,)
    write_layout(folder, [row(1, ["a"])], [row(3, "three")])
    assert load_clips(str(folder), "test_1k")[0].captions == ("three",)


# ---- MSR-VTT in CLIP4Clip's files ---------------------------------------------------------------------------------


def clip4clip_files(**changes: Any) -> dict[str, Any]:
    videos = [{"video_id": f"video{n}", "category": n, "url": f"https://example.org/{n // 2}"} for n in range(3)]
    sentences = [{"video_id": f"video{n % 3}", "caption": f"sentence {n}"} for n in range(6)]
    return {
        "MSRVTT_data.json": {"videos": videos, "sentences": sentences},
        "MSRVTT_train.9k.csv": "video_id\nvideo0\nvideo1\n",
        "MSRVTT_JSFUSION_test.csv": 'key,vid_key,video_id,sentence\nret0,msr2,video2,"one, two"\n',
        "videos/all/video0.mp4": b"0",
        "videos/all/video1.webm": b"1",
        "videos/all/video2.mp4": b"2",
        **changes,
    }


@pytest.mark.parametrize("as_name", [False, True])
def test_clip4clips_lists_are_read_by_split_or_by_name(tmp_path: Path, as_name: bool):
    made(tmp_path, clip4clip_files())
    train = load_clips(str(tmp_path), "MSRVTT_train.9k.csv" if as_name else "train_9k")
    test = load_clips(str(tmp_path), "MSRVTT_JSFUSION_test.csv" if as_name else "test_1k")
    assert [c.captions for c in train] == [("sentence 0", "sentence 3"), ("sentence 1", "sentence 4")]
    assert [c.captions for c in test] == [("one, two",)]
    assert [(c.video_id, c.category, c.source) for c in train + test] == [
        ("video0", 0, "https://example.org/0"),
        ("video1", 1, "https://example.org/0"),
        ("video2", 2, "https://example.org/1"),
    ]
    assert [c.path.read_bytes() for c in train + test] == [b"0", b"1", b"2"]


def test_a_training_list_takes_all_sentences_even_if_it_has_a_column_of_them(tmp_path: Path):
    made(tmp_path, clip4clip_files(**{"MSRVTT_train.9k.csv": "key,vid_key,video_id,sentence\nret0,msr0,video0,one\n"}))
    assert load_clips(str(tmp_path), "train_9k")[0].captions == ("sentence 0", "sentence 3")


@pytest.mark.parametrize(
    ("config", "changes", "told"),
    [
        ("train_7k", {}, r"MSRVTT_train\.7k\.csv .*lists: MSRVTT_JSFUSION_test\.csv, MSRVTT_train\.9k\.csv"),
        ("train_9k", {"MSRVTT_train.9k.csv": "id\nvideo0\n"}, "no column video_id"),
        ("train_9k", {"MSRVTT_train.9k.csv": "video_id\nvideo9\n"}, "video9, which is not in MSRVTT_data.json"),
        ("train_9k", {"MSRVTT_train.9k.csv": "video_id\nvideo1\nvideo1\n"}, "two videos video1"),
        ("train_9k", {"MSRVTT_data.json": {"videos": []}}, "MSRVTT_data.json lacks 'sentences'"),
        ("test_1k", {"MSRVTT_JSFUSION_test.csv": "video_id,sentence\nvideo2, \n"}, "caption ' ' of video video2"),
    ],
)
def test_what_is_wrong_in_clip4clips_files_is_named(tmp_path: Path, config: str, changes: dict, told: str):
    with pytest.raises(ValueError, match=told):
        load_clips(str(made(tmp_path, clip4clip_files(**changes))), config)


def test_clip4clips_real_test_list_is_the_hosted_one(tmp_path: Path):
    folder = linked(tmp_path, SHARED / "msrvtt", {"MSRVTT_JSFUSION_test.csv": "MSRVTT_JSFUSION_test.csv"})
    rows = json.loads((SHARED / "msrvtt" / "friedrichor" / "msrvtt_test_1k.json").read_text())
    videos = [{name: r[name] for name in ("video_id", "category", "url")} for r in rows]
    made(folder, {"MSRVTT_data.json": {"videos": videos, "sentences": []}})
    got = {c.video_id: (c.captions, c.source) for c in load_clips(str(folder), "test_1k")}
    assert len(got) == 1000 and got == {r["video_id"]: ((r["caption"],), r["url"]) for r in rows}


# ---- MSVD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "videos", "captions"), [("train", 1200, 48_774), ("val", 100, 4290), ("test", 670, 27_763)]
)
def test_msvd_has_its_published_size(tmp_path: Path, config: str, videos: int, captions: int):
    names = ["captions_msvd.json", *(f"{split}_list.txt" for split in ("train", "val", "test"))]
    folder = linked(tmp_path, SHARED / "msvd", {name: name for name in names})
    assert counts(load_clips(str(folder), config)) == (videos, captions)


MSVD = {
    "captions_msvd.json": {"-4ws_x_5_15": ["a", "b"], "-4ws_x_20_30": ["c"], "other_1_2": ["d"]},
    "train_list.txt": "-4ws_x_5_15\n-4ws_x_20_30\n",
    "test_list.txt": "other_1_2\n",
    "YouTubeClips/-4ws_x_5_15.avi": b"1",
    "YouTubeClips/-4ws_x_20_30.avi": b"2",
    "YouTubeClips/other_1_2.mp4": b"3",
}


def test_msvd_clips_of_one_youtube_video_share_their_source(tmp_path: Path):
    train, test = (load_clips(str(made(tmp_path, MSVD)), split) for split in ("train", "test"))
    assert [c.source for c in train + test] == ["-4ws_x", "-4ws_x", "other"]
    assert [c.captions for c in train + test] == [("a", "b"), ("c",), ("d",)]
    assert [c.path.read_bytes() for c in train + test] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("config", "changes", "told"),
    [
        ("val", {}, "no val_list.txt; its splits: test, train"),
        ("train", {"train_list.txt": "new_1_2"}, "new_1_2, which has no captions"),
        ("train", {"train_list.txt": "other_1_2 other_1_2"}, "two videos other_1_2"),
        ("train", {"train_list.txt": ""}, "has no clips"),
        ("test", {"captions_msvd.json": {"other_1_2": []}}, "no caption of video other_1_2"),
        ("test", {"captions_msvd.json": {"other_1_2": ["d", ""]}}, "caption '' of video other_1_2"),
        ("test", {"more/other_1_2.avi": b""}, "other_1_2 may be YouTubeClips/other_1_2.mp4 or more/other_1_2.avi"),
    ],
)
def test_what_is_wrong_in_msvds_files_is_named(tmp_path: Path, config: str, changes: dict, told: str):
    with pytest.raises(ValueError, match=told):
        load_clips(str(made(tmp_path, {**MSVD, **changes})), config)


# ---- MSVD and ActivityNet Captions as hosted: one config of several splits -------------------------------------------


def one_config(files: dict[str, str]) -> str:
    """The head of a README with one config, default, of several splits."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, file in files.items():
        lines += [f"  - split: {split}", f"    path: {file}"]
    return "\n".join([*lines, "---"])


HOSTED_MSVD = {
    "README.md": one_config({"train": "msvd_train.json", "validation": "msvd_val.json", "test": "msvd_test.json"}),
    **{
        f"msvd_{split}.json": [
            {"video_id": f"x_{n}_9", "video": f"x_{n}_9.avi", "caption": [f"{n}", "same"], "source": "MSVD"}
        ]
        for n, split in enumerate(("train", "val", "test"))
    },
}
SENTENCES = ["A man runs.", "He falls."]
ACTIVITYNET = {
    "README.md": one_config({name: f"activitynet_captions_{name}.json" for name in ("train", "val1", "val2")}),
    **{
        f"activitynet_captions_{split}.json": [
            {
                "video_id": f"v_{split}",
                "video": f"v_{split}.mp4",
                "caption": " ".join(SENTENCES),
                "source": "ActivityNet_Captions",
                "duration": 82.7,
                "timestamps": [[0.0, 1.0], [1.0, 2.0]],
                "sentences": SENTENCES,
            }
        ]
        for split in ("train", "val1", "val2")
    },
}


def test_a_split_of_the_only_config_is_chosen_by_its_name(tmp_path: Path):
    made(tmp_path, {**HOSTED_MSVD, "MSVD/x_2_9.avi": b"", "MSVD/x_1_9.avi": b""})
    (clip,) = load_clips(str(tmp_path), "test")
    assert clip == Clip("x_2_9", tmp_path / "MSVD" / "x_2_9.avi", ("2", "same"), 0, "x", "MSVD")
    assert load_clips(str(tmp_path), "validation")[0].video_id == "x_1_9"
    for config in ("val", "default"):
        with pytest.raises(ValueError, match=f"{config}; .*train, validation, test"):
            load_clips(str(tmp_path), config)


def test_activitynets_sentences_become_one_paragraph(tmp_path: Path):
    folder = str(made(tmp_path, {**ACTIVITYNET, "Activity_Videos/v_val1.mp4": b""}))
    (hosted,) = load_clips(folder, "val1", paragraph=True)
    (joined,) = load_clips(folder, "val1", caption_column="sentences", paragraph=True)
    (apart,) = load_clips(folder, "val1", caption_column="sentences")
    assert hosted.captions == joined.captions == ("A man runs. He falls.",) and apart.captions == tuple(SENTENCES)
    assert hosted.path == tmp_path / "Activity_Videos" / "v_val1.mp4"


# ---- any rows --------------------------------------------------------------------------------------------------------

ROWS = [
    {"file": "b.mp4", "text": 'one, "two"'},
    {"file": "in/a.mp4", "text": "three"},
    {"file": "b.mp4", "text": "null"},
]


def metadata(kind: str) -> bytes:
    """ROWS as a file of this kind."""
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["file", "text"])
        writer.writeheader()
        writer.writerows(ROWS)
        return ("\ufeff" + text.getvalue()).encode()
    if kind == "parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
        return buffer.getvalue()
    return ("\n".join(map(json.dumps, ROWS)) + "\n" if kind == "jsonl" else json.dumps(ROWS)).encode()


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("by_stem", [True, False])
def test_rows_of_one_video_are_merged_in_every_kind_of_file(tmp_path: Path, kind: str, by_stem: bool):
    folder = str(made(tmp_path, {f"train.{kind}": metadata(kind), "b.mp4": b"", "in/a.mp4": b"", "out/a.mp4": b""}))
    clips = load_clips(folder, "train" if by_stem else f"train.{kind}", "file", "text")
    assert [(c.video_id, c.captions, c.path) for c in clips] == [
        ("b", ('one, "two"', "null"), tmp_path / "b.mp4"),
        ("in/a", ("three",), tmp_path / "in" / "a.mp4"),
    ]


def test_a_missing_column_names_those_there_are_and_the_flag(tmp_path: Path):
    folder = str(made(tmp_path, {"train.json": ROWS, "b.mp4": b"", "in/a.mp4": b""}))
    with pytest.raises(ValueError, match=r"row 1 .* file, text.*--video-column"):
        load_clips(folder, "train")
    with pytest.raises(ValueError, match=r"row 1 .* file, text.*--caption-column"):
        load_clips(folder, "train", "file")
    with pytest.raises(ValueError, match=r"row 2 .*text"):
        clips_of_rows([ROWS[0], {"file": "a"}], "file", "text")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no clips"),
        ([{"video": "a.mp4", "caption": []}], "no caption of video a"),
        ([{"video": "a.mp4", "caption": None}], "caption None of video a"),
        ([{"video": "a.mp4", "caption": ["x", "\n"]}], "of video a: expected some text"),
        ([{"video": "a.mp4", "caption": 3}], "caption 3 of video a"),
        ([{"video": "", "caption": "x"}], "row 1 has the video ''"),
        ([{"video": {"bytes": ""}, "caption": "x"}], "expected the name of a file"),
        ([{"video": f"{n}.mp4", "video_id": "a", "caption": "x"} for n in "12"], "two videos a"),
        ([{"video": "../a.mp4", "caption": "x"}], "not inside"),
        ([{"video": "/no/a.mp4", "caption": "x"}], "not inside"),
    ],
)
def test_what_is_wrong_in_rows_is_named(tmp_path: Path, rows: list, told: str):
    with pytest.raises(ValueError, match=told):
        load_clips(str(made(tmp_path, {"data/train.json": rows, "data/a.mp4": b""}) / "data"), "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.json", "{"), ("t.json", '{"a": 1}'), ("t.jsonl", "1\n"), ("t.csv", 'a,b\n"x'), ("t.parquet", b"PAR1")],
)
def test_a_damaged_metadata_file_is_named(tmp_path: Path, name: str, content: str):
    with pytest.raises(ValueError, match=rf"t\.{name[2:]} cannot be read"):
        load_clips(str(made(tmp_path, {name: content})), "t")


def test_what_is_missing_is_named(benchmark: Path, tmp_path: Path):  # noqa: F811
    for name in ("no-such-folder", "./nowhere", "/nowhere/at/all"):
        with pytest.raises(FileNotFoundError, match=name):
            load_clips(name, "train_9k")
    with pytest.raises(ValueError, match=r"train_8k; .*train_9k, test_1k"):
        load_clips(str(benchmark), "train_8k")
    made(tmp_path, {"a.csv": "video,caption\na.mp4,x\n"})
    with pytest.raises(ValueError, match=r" b; .*a\.csv"):
        load_clips(str(tmp_path), "b")
    with pytest.raises(ValueError, match="0 zip"):
        load_clips(str(tmp_path), "a")
    made(tmp_path, {"a.zip": b"", "b.zip": b"", "a.jsonl": ""})
    with pytest.raises(ValueError, match="2 zip"):
        load_clips(str(tmp_path), "a.csv")
    with pytest.raises(ValueError, match=r"a\.csv and a\.jsonl"):
        load_clips(str(tmp_path), "a")


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_a_limit_keeps_the_first_clips(benchmark: Path, limit: int):  # noqa: F811
    folder = str(benchmark)
    assert load_clips(folder, "train_9k", limit=limit) == load_clips(folder, "train_9k")[:limit]
    with pytest.raises(ValueError, match="limit=-1"):
        load_clips(folder, "train_9k", limit=-1)


# ---- videos ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_videos_is_used_as_it_is(tmp_path: Path):
    write_layout(tmp_path, [row(0, ["a"])], [row(1, "b")])
    made(tmp_path, {"video/video0.mp4": b"", "other/video1.mp4": b"", "Videos.zip": b"no zip"})
    assert load_clips(str(tmp_path), "train_9k")[0].path == tmp_path / "video" / "video0.mp4"
    assert load_clips(str(tmp_path), "test_1k")[0].path == tmp_path / "video" / "video1.mp4"  # to be missed by name


def test_one_missing_video_does_not_stop_the_loading(tmp_path: Path):
    """It may be skipped later; where none is found, the folder is wrong."""
    made(tmp_path, {"t.json": [{"video": f"{n}.mp4", "caption": "x"} for n in "ab"], "videos/b.mp4": b""})
    assert [c.path for c in load_clips(str(tmp_path), "t")] == [tmp_path / "a.mp4", tmp_path / "videos" / "b.mp4"]


def test_a_linked_folder_and_a_full_path_are_followed(tmp_path: Path):
    made(tmp_path, {"disk/a.mp4": b"", "disk/b.mp4": b""})
    rows = [{"video": name, "caption": "x"} for name in ("a.mp4", str(tmp_path / "disk" / "b.mp4"))]
    made(tmp_path, {"data/t.json": rows})
    os.symlink(tmp_path / "disk", tmp_path / "data" / "clips")
    got = [c.path for c in load_clips(str(tmp_path / "data"), "t")]
    assert got == [tmp_path / "data" / "clips" / "a.mp4", tmp_path / "disk" / "b.mp4"]


def test_a_name_with_folders_only_fits_a_path_that_ends_with_it():
    assert match(["x/a.mp4"], ["deep/x/a.mp4", "y/a.mp4", "a.mp4"]) == {"x/a.mp4": "deep/x/a.mp4"}
    assert match(["x/a.mp4"], ["a.mp4", "xx/a.mp4"]) == match(["a.avi", "a.b"], ["a.mp4", "a"]) == {}
    assert match(["a.mp4"], ["x/a.mp4", "a.mp4"]) == {"a.mp4": "a.mp4"}
    with pytest.raises(ValueError, match=r"a\.mp4 may be x/a\.mp4 or y/a\.mp4"):
        match(["a.mp4"], ["y/a.mp4", "x/a.mp4"])
    with pytest.raises(ValueError, match=r"a may be a\.mkv or a\.mp4"):
        match(["a"], ["a.mp4", "a.mkv", "a.txt"])


def test_names_are_matched_composed_and_suffixes_in_lower_case():
    nfd = "cafe\u0301"
    assert match(["caf\u00e9.mp4"], [f"{nfd}/{nfd}.MP4"]) == {"caf\u00e9.mp4": f"{nfd}/{nfd}.MP4"}
    assert match(["caf\u00e9/x"], [f"in/{nfd}/x.Mkv"]) == {"caf\u00e9/x": f"in/{nfd}/x.Mkv"}
    assert match(["a.mp4"], ["x/a.MP4", "x/a.mp4"]) == {"a.mp4": "x/a.mp4"}
    assert match(["S01.E01", "a"], ["S01.E01.mp4", "S01.E02.mp4", "a", "a.mp4"]) == {"S01.E01": "S01.E01.mp4", "a": "a"}


@pytest.mark.parametrize(
    "names", [("AO8RW_0.0_6.9", "AO8RW_0.0_6.5"), ("S01.E01", "S01.E02"), ("v1.mp4.0", "v1.mp4.1")]
)
@pytest.mark.parametrize("suffix", ["", ".mp4"])
def test_dots_in_a_videos_name_belong_to_it(tmp_path: Path, names: tuple[str, str], suffix: str):
    rows = "".join(f"{name}{suffix},a man\n" for name in names)
    made(tmp_path, {"train.csv": f"video,caption\n{rows}", **{f"video/{name}.mp4": b"" for name in names}})
    clips = load_clips(str(tmp_path), "train")
    assert [(c.video_id, c.path.name, c.source) for c in clips] == [(n, f"{n}.mp4", n) for n in names]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_annotations_may_begin_with_a_byte_order_mark(tmp_path: Path, kind: str, encoding: str):
    text = metadata(kind).decode("utf-8-sig").encode(encoding)
    made(tmp_path, {f"train.{kind}": text, "b.mp4": b"", "in/a.mp4": b""})
    assert [c.video_id for c in load_clips(str(tmp_path), "train", "file", "text")] == ["b", "in/a"]


def test_a_name_is_one_video_however_its_letters_are_composed(tmp_path: Path):
    rows = "cafe\u0301.mp4,x\ncaf\u00e9.mp4,y\n"
    made(tmp_path, {"train.csv": f"video,caption\n{rows}", "video/cafe\u0301.mp4": b""})
    (clip,) = load_clips(str(tmp_path), "train")
    assert (clip.video_id, clip.captions, clip.path.is_file()) == ("caf\u00e9", ("x", "y"), True)


def opened(members: dict[str, bytes], names: Sequence[str], target: Path) -> dict[str, Path]:
    return unpack(io.BytesIO(zipped(members)), "v.zip", names, target)


@pytest.mark.parametrize("name", ["video/../../x", "/etc/x", "video/..", "../video/x", "..\\x", "a\\..\\x", "\\x"])
def test_a_zip_that_leaves_its_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="leaves its folder"):
        opened({"video/good.mp4": b"good", name: b"evil"}, ["good.mp4"], tmp_path / "deep" / "target")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x.mp4", "/x.mp4", "a/../../x.mp4", "..", ""])
def test_a_name_that_leaves_its_folder_is_never_unpacked(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="not inside"):
        opened({"x.mp4": b"evil"}, [name], tmp_path / "deep" / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_local_name_that_leaves_the_folder_is_refused(tmp_path: Path):
    folder = made(tmp_path / "private" / "data", {"train.csv": b"video,caption\n../secret.mp4,a dog\n"})
    (folder.parent / "secret.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"'\.\./secret\.mp4' is not inside"):
        load_clips(str(folder), "train")


def test_a_killed_unpacking_goes_on_where_it_stopped(tmp_path: Path):
    members = {f"any/folder/{n}.mp4": b"%d" % n * 10 for n in range(4)}
    made(tmp_path, {"video/0.mp4": b"x" * 10, "video/1.mp4": b"1" * 4})  # whole by its size: kept; cut short: anew
    paths = opened(members, ["0.mp4", "1.mp4", "2", "5"], tmp_path)
    assert paths == {
        "0.mp4": tmp_path / "video" / "0.mp4",
        "1.mp4": tmp_path / "video" / "1.mp4",
        "2": tmp_path / "video" / "2.mp4",
    }
    assert {p.name: p.read_bytes() for p in (tmp_path / "video").iterdir()} == {
        "0.mp4": b"x" * 10,
        "1.mp4": b"1" * 10,
        "2.mp4": b"2" * 10,
    }


def test_a_damaged_zip_gives_no_video(tmp_path: Path):
    whole = zipped({"a.mp4": b"abcdefgh" * 8})
    for bytes_, told in ((whole.replace(b"abcdefgh", b"abcdefgi"), "CRC"), (whole[:-30], "not a zip file"), (b"", "")):
        with pytest.raises(ValueError, match=rf"v\.zip is damaged: .*{told}"):
            unpack(io.BytesIO(bytes_), "v.zip", ["a.mp4"], tmp_path)
    assert not (tmp_path / "video" / "a.mp4").exists()
    with pytest.raises(ValueError, match=r"v\.zip .*b\.mp4"):
        opened({"a.mp4": b""}, ["b.mp4", "c.mp4"], tmp_path)


def test_of_a_local_zip_only_the_named_videos_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_files, "CACHE", tmp_path / "cache")
    members = zipped({f"v/video{n}.mp4": b"%d" % n for n in range(4)})
    write_layout(made(tmp_path / "data", {"v.zip": members}), [row(n, ["a"]) for n in range(3)], [row(3, "b")])

    def unpacked() -> list[str]:
        return sorted(path.name for path in (tmp_path / "cache").rglob("*.*"))

    load_clips(str(tmp_path / "data"), "train_9k", limit=2)
    assert unpacked() == ["video0.mp4", "video1.mp4"]
    load_clips(str(tmp_path / "data"), "test_1k")
    assert unpacked() == ["video0.mp4", "video1.mp4", "video3.mp4"]


# ---- from the Hub: another process, as huggingface_hub reads its environment when it is imported ---------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(server: Hub, home: Path) -> Iterator[Callable[..., Any]]:
    """Calls load_clips in a process whose Hub is the stand-in."""
    own = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "d"),
        "HF_HUB_OFFLINE": "0",
        "SUMA_CACHE": str(home / "suma"),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()
            patch.undo()
            yield lambda *args, **options: pool.submit(load_clips, *args, **options).result(60)


def as_bytes(files: dict[str, Any]) -> dict[str, bytes]:
    return {
        n: f if isinstance(f, bytes) else (f if isinstance(f, str) else json.dumps(f)).encode()
        for n, f in files.items()
    }


def hosted_msrvtt() -> dict[str, bytes]:
    train = [row(n, [f"clip {n}", "moves"]) for n in range(4)]
    files = {
        "README.md": readme({"train_9k": "train.json", "test_1k": "test.json"}),
        "train.json": train,
        "test.json": [row(4, "clip 4")],
        "Videos.zip": zipped({f"video/video{n}.mp4": b"%d" % n * 300_000 for n in range(9)}),
    }
    return as_bytes(files)


def test_a_limit_reads_single_videos_of_the_hubs_zip_and_all_of_them_download_it_once(server, client, home: Path):
    server.commit("datasets/me/msrvtt", hosted_msrvtt())

    def downloaded() -> list[Path]:
        return list((home / "hub").rglob("Videos.zip"))

    few = client("me/msrvtt", "train_9k", limit=2)
    assert [c.path.read_bytes() for c in few] == [b"0" * 300_000, b"1" * 300_000] and not downloaded()
    assert [c.captions for c in few] == [("clip 0", "moves"), ("clip 1", "moves")]
    assert len(list((home / "suma").rglob("*.mp4"))) == 2
    every = client("me/msrvtt", "train_9k")
    assert [c.path.read_bytes()[:1] for c in every] == [b"0", b"1", b"2", b"3"] and len(downloaded()) == 1
    assert every[:2] == few
    server.calls.clear()
    assert client("me/msrvtt", "test_1k")[0].path.read_bytes()[:1] == b"4"
    assert not [call for call in server.calls if call.startswith("GET") and "Videos.zip" in call]


def test_a_new_zip_of_the_same_size_is_another(server, client):
    files = hosted_msrvtt()
    for content in (b"old", b"new"):
        server.commit("datasets/me/new", {**files, "Videos.zip": zipped({"video4.mp4": content})})
        assert client("me/new", "test_1k")[0].path.read_bytes() == content


def test_a_damaged_range_is_no_video(server, client, home: Path):
    server.commit("datasets/me/cut", hosted_msrvtt())
    server.faults["Videos.zip"] = "short"
    try:
        with pytest.raises((ValueError, OSError)):
            client("me/cut", "train_9k", limit=2)
    finally:
        server.faults.clear()
    assert [c.path.read_bytes()[:1] for c in client("me/cut", "train_9k", limit=2)] == [b"0", b"1"]


def test_a_zip_of_another_content_than_the_hubs_is_refused_and_downloaded_again(server, client, home: Path):
    """One wrong bit after the zip's last checksum: only the Hub's sha256 tells."""
    files = hosted_msrvtt()
    server.commit("datasets/me/flipped", {**files, "Videos.zip": files["Videos.zip"] + b"\0"})
    server.faults["Videos.zip"] = "flipped"
    try:
        with pytest.raises(ValueError, match=r"Videos\.zip .*sha256"):
            client("me/flipped", "train_9k")
    finally:
        server.faults.clear()
    assert [c.path.read_bytes()[:1] for c in client("me/flipped", "train_9k")] == [b"0", b"1", b"2", b"3"]


def test_hosted_msvd_and_single_video_files_on_the_hub(server, client):
    server.commit("datasets/me/msvd", as_bytes({**HOSTED_MSVD, "MSVD_Videos.zip": zipped({"V/x_2_9.avi": b"zip"})}))
    server.commit(
        "datasets/me/files",
        as_bytes({**HOSTED_MSVD, "raw/x_2_9.avi": b"file", "t.csv": "video,caption\nx_2_9.avi,y\n"}),
    )
    (clip,) = client("me/msvd", "test")
    assert (clip.path.name, clip.path.read_bytes(), clip.captions) == ("x_2_9.avi", b"zip", ("2", "same"))
    (clip,) = client("me/files", "test")
    assert (clip.path.name, clip.path.read_bytes()) == ("x_2_9.avi", b"file")
    assert client("me/files", "t.csv")[0].captions == ("y",)
    with pytest.raises(ValueError, match=r"val; .*train, validation, test"):
        client("me/msvd", "val")


def test_videos_in_tar_parts_are_to_be_unpacked_by_hand(server, client):
    server.commit("datasets/me/activitynet", as_bytes({**ACTIVITYNET, "ActivityNet_Videos.tar.part-000": b""}))
    with pytest.raises(ValueError, match=r"ActivityNet_Videos\.tar\.part-000"):
        client("me/activitynet", "val1", paragraph=True)


# ---- the options on the command line ---------------------------------------------------------------------------------

GIVEN: dict[str, Any] = {"video_column": "file", "caption_column": "text", "limit": 3, "paragraph": True}
FLAGS = ["--video-column", "file", "--caption-column", "text", "--limit", "3", "--paragraph"]


class Reached(Exception):
    pass


def reached(*_: Any, **options: Any) -> None:
    raise Reached(options)


def test_every_option_of_the_loader_reaches_it_from_both_command_lines(tmp_path: Path, monkeypatch):
    assert set(OPTIONS) == set(GIVEN) == set(list(inspect.signature(load_clips).parameters)[2:])
    monkeypatch.setattr(evaluate, "load_clips", reached)
    monkeypatch.setattr(mixture, "load_clips", reached)
    monkeypatch.setattr(train, "evaluate", reached)
    for module in (train, evaluate):
        monkeypatch.setattr(module, "use_fast_matmul", lambda: True)
    monkeypatch.setattr(train, "use_fast_attention_backward", lambda: None)
    monkeypatch.setattr(SUMA, "from_pretrained", lambda *_: mock.MagicMock())
    command = ["--output", str(tmp_path / "run"), "--mixed-precision", "no", *FLAGS]
    try:
        for step in (
            lambda: evaluate.main(["--model", "m", *FLAGS]),
            lambda: train.main(command),
            lambda: train.finish(parse(command), tmp_path / "run"),
        ):
            with pytest.raises(Reached) as told:
                step()
            assert {n: x for n, x in told.value.args[0].items() if n != "keep"} == GIVEN
    finally:
        AcceleratorState._reset_state(True)
