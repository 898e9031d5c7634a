"""The command line: answers on stdout, one clear line and an exit code for what cannot be done."""

import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
import torch
from clips import gray_picture, write_video
from PIL import Image
from safetensors.torch import save_file

from suma import SUMA, VideoIndex, __version__
from suma.__main__ import main


@pytest.fixture(scope="module")
def place(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cli")
    tiny_model.save_pretrained(place / "model")
    (place / "videos").mkdir()
    for n in range(3):
        write_video(place / "videos" / f"{n}.mp4", frames=8 + n, size=(64, 48))
    (place / "videos" / "broken.mp4").write_bytes(b"\0" * 100)
    (place / "captions.txt").write_text("a dog runs\n\na cat sits\n")
    return place


def suma(place: Path, *args: str) -> int:
    command, *rest = args
    return main([command, "--model", str(place / "model"), *rest])


def test_index_then_search_then_info(place: Path, capsys: pytest.CaptureFixture):
    index, videos = str(place / "index"), str(place / "videos")
    assert suma(place, "index", videos, "-o", index, "--captions", str(place / "captions.txt")) == 0
    out = capsys.readouterr()
    assert "3 added, 0 unchanged, 1 failed" in out.out
    assert "broken.mp4" in out.err
    assert suma(place, "index", videos, "-o", index) == 0
    assert "0 added, 3 unchanged" in capsys.readouterr().out

    assert suma(place, "search", index, "a dog", "--json", "-k", "2") == 0
    matches = json.loads(capsys.readouterr().out)
    assert len(matches) == 2 and matches[0]["score"] >= matches[1]["score"]
    assert Path(matches[0]["path"]).parent == place / "videos"

    assert suma(place, "captions", index, str(place / "videos" / "0.mp4"), "--json") == 0
    assert {caption for caption, _ in json.loads(capsys.readouterr().out)} == {"a dog runs", "a cat sits"}
    assert suma(place, "similar", index, str(place / "videos" / "0.mp4"), "--json") == 0
    assert {Path(m["path"]).name for m in json.loads(capsys.readouterr().out)} == {"1.mp4", "2.mp4"}
    assert suma(place, "info", index, "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["videos"], info["captions"], len(info["failed"])) == (3, 2, 1)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("search", "INDEX", " "), "empty"),
        (("search", "nowhere", "a dog"), "nowhere"),
        (("index", "nothing-here", "-o", "NEW"), "nothing-here"),
        (("similar", "INDEX", "gone.mp4"), "gone.mp4"),
        (("search", "INDEX", "a dog", "--model", "no/such/model"), "no/such/model"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(place: Path, capsys, args: tuple[str, ...], told: str):
    if not (place / "index").exists():
        suma(place, "index", str(place / "videos"), "-o", str(place / "index"))
    capsys.readouterr()
    names = {"INDEX": str(place / "index"), "NEW": str(place / "new")}
    command, *rest = (names.get(a, a) for a in args)
    assert suma(place, command, *rest) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1


def test_captions_may_be_json_by_video(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "captions.json").write_text(json.dumps({"0.mp4": "a dog", "1.mp4": ["a cat", "a bird"]}), "utf-16")
    options = ("-o", str(tmp_path / "index"), "--captions", str(tmp_path / "captions.json"))
    assert suma(place, "index", str(place / "videos"), *options) == 0
    assert suma(place, "info", str(tmp_path / "index"), "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["captions"] == 3
    (tmp_path / "captions.json").write_text("[1]")
    assert suma(place, "index", str(place / "videos"), *options) == 2


def test_an_empty_folder_may_become_an_index_and_a_mistyped_video_leaves_none(place: Path, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    assert suma(place, "index", str(place / "nothing.mp4"), "-o", str(tmp_path / "empty")) == 2
    assert list((tmp_path / "empty").iterdir()) == []
    assert suma(place, "index", str(place / "videos" / "0.mp4"), "-o", str(tmp_path / "empty")) == 0


@pytest.mark.parametrize("damage", ["cut weights", "another model's weights", "a file where a folder should be"])
def test_what_is_broken_outside_is_one_line_too(place: Path, tmp_path: Path, capsys, damage: str):
    shutil.copytree(place / "model", tmp_path / "model")
    weights, output = tmp_path / "model" / "model.safetensors", tmp_path / "out"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "another model's weights":
        save_file({"weight": torch.zeros(3)}, weights)
    else:
        (tmp_path / "file").touch()
        output = tmp_path / "file" / "index"
    assert main(["index", str(place / "videos"), "-o", str(output), "--model", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_pruning_retrying_and_checking(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(place / "videos", tmp_path / "videos")
    index, videos = str(tmp_path / "index"), str(tmp_path / "videos")
    assert suma(place, "index", videos, "-o", index, "--bf16", "--workers", "1") == 0
    (tmp_path / "videos" / "0.mp4").rename(tmp_path / "videos" / "moved.mp4")
    (tmp_path / "videos" / "1.mp4").unlink()
    capsys.readouterr()
    assert suma(place, "index", videos, "-o", index) == 0
    assert "0 added, 1 unchanged, 1 failed, 1 moved, 1 missing; 3 videos" in capsys.readouterr().out
    assert suma(place, "index", videos, "-o", index, "--prune", "--retry", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pruned"] == [str(tmp_path / "videos" / "1.mp4")] and len(report["failed"]) == 1
    assert suma(place, "check", index) == 0
    assert "is sound" in capsys.readouterr().out
    database = sqlite3.connect(tmp_path / "index" / "index-1.sqlite")
    database.execute("UPDATE features SET checksum = checksum + 1 WHERE position = 0")
    database.commit()
    assert suma(place, "check", index) == 2
    assert "checksum" in capsys.readouterr().err


def test_key_frames_are_read_where_they_are_near_unless_exact(place: Path, tmp_path: Path, capsys):
    write_video(tmp_path / "phone.mp4", frames=200, size=(64, 48), gop=10)  # 20 s, a key frame each second
    index = str(tmp_path / "index")
    assert suma(place, "index", str(tmp_path), "-o", index) == 0
    assert "1 parts read by key frames, 0 exactly" in capsys.readouterr().out
    assert suma(place, "index", str(tmp_path), "-o", index + " exact", "--exact") == 0
    assert "key frames" not in capsys.readouterr().out
    near, exact = (VideoIndex.load(folder).rows[0].times for folder in (index, index + " exact"))
    assert near != exact and all(time == round(time) for time in near)  # the times are those of the frames shown


def test_photographs_are_indexed_and_marked_on_request(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copy(place / "videos" / "0.mp4", tmp_path)
    Image.fromarray(gray_picture(3, 64, 48)).save(tmp_path / "photo.jpg")
    index = str(tmp_path / "index")
    assert suma(place, "index", str(tmp_path), "-o", index) == 0
    assert suma(place, "index", str(tmp_path), "-o", index, "--photos") == 0
    capsys.readouterr()
    assert suma(place, "search", index, "a dog") == 0
    told = {Path(line.split()[1]).name: line for line in capsys.readouterr().out.splitlines()}
    assert " photo" in told["photo.jpg"] and " at " in told["0.mp4"] and len(told) == 2
    assert suma(place, "index", str(tmp_path), "-o", index, "--prune") == 0
    capsys.readouterr()
    assert suma(place, "info", index, "--json") == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 2  # what is still there is not pruned


def test_hubness_is_corrected_on_request(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    index = str(tmp_path / "index")
    assert suma(place, "index", str(place / "videos"), "-o", index, "--hubness") == 0
    assert len(list(Path(index).glob("hubness-*.f32"))) == 1
    capsys.readouterr()
    answers = []
    for options in ([], ["--hubness"]):
        assert suma(place, "search", index, "a dog", "--json", *options) == 0
        answers.append({m["path"]: m["score"] for m in json.loads(capsys.readouterr().out)})
    assert len(answers[1]) == 3
    expected = VideoIndex.load(index, SUMA.from_pretrained(place / "model")).search("a dog", hubness=True)
    assert answers[1] == pytest.approx({m.path: m.score for m in expected}, abs=2e-4) != answers[0]


def test_version_and_help(capsys: pytest.CaptureFixture):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert main([]) == 2


# Search and its exit codes


@pytest.fixture(scope="module")
def searched(place: Path) -> str:
    if not (place / "index").exists():
        suma(
            place, "index", str(place / "videos"), "-o", str(place / "index"), "--captions", str(place / "captions.txt")
        )
    return str(place / "index")


def paths(capsys: pytest.CaptureFixture) -> list[str]:
    return [Path(match["path"]).name for match in json.loads(capsys.readouterr().out)]


def test_filters_pages_and_moments(place: Path, searched: str, capsys: pytest.CaptureFixture):
    capsys.readouterr()
    assert suma(place, "search", searched, "a dog", "--json") == 0
    whole = paths(capsys)
    assert suma(place, "search", searched, "a dog", "--json", "-k", "2", "--page", "2") == 0
    assert paths(capsys) == whole[2:]
    assert (
        suma(place, "search", searched, "a dog -cat in:videos", "--longer", "0.85", "--shorter", "0.95", "--json") == 0
    )
    assert paths(capsys) == ["1.mp4"]
    assert suma(place, "similar", searched, str(place / "videos" / "0.mp4"), "--in", "videos", "-k", "1", "--json") == 0
    assert paths(capsys)[0] in ("1.mp4", "2.mp4")
    assert (
        suma(place, "search", searched, "a dog", "--within", str(place / "videos" / "2.mp4"), "--json", "-k", "9") == 0
    )
    moments = json.loads(capsys.readouterr().out)
    assert len({m["moment"] for m in moments}) == 9 and {Path(m["path"]).name for m in moments} == {"2.mp4"}
    assert suma(place, "search", searched, "--json", "--", "-night") == 0
    assert len(paths(capsys)) == 3


def test_duplicates_are_printed_in_groups(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    index, first, copy = str(tmp_path / "index"), tmp_path / "a.mp4", tmp_path / "b.mp4"
    shutil.copy(place / "videos" / "0.mp4", first)
    assert suma(place, "index", str(first), "-o", index) == 0
    capsys.readouterr()
    assert suma(place, "duplicates", index) == 0
    assert capsys.readouterr() == ("", "no two videos show the same\n")
    shutil.copy(first, copy)
    assert suma(place, "index", str(copy), "-o", index) == 0
    capsys.readouterr()
    assert suma(place, "duplicates", index) == 0
    assert capsys.readouterr() == (f"* {first}\n  {copy}\n", "")
    assert suma(place, "duplicates", index, "--json") == 0
    assert [[file["path"] for file in group] for group in json.loads(capsys.readouterr().out)] == [
        [str(first), str(copy)]
    ]


def test_slips_and_negations_are_told(place: Path, searched: str, capsys: pytest.CaptureFixture):
    capsys.readouterr()
    assert suma(place, "search", searched, "a dog without a ktichen", "--json") == 0
    out = capsys.readouterr()
    told = ["'ktichen' read as 'kitchen'", "'without' is not understood: type -kitchen for videos without it"]
    assert len(json.loads(out.out)) == 3 and out.err.splitlines() == told


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("search", "a dog"), 0),
        (("search", "a dog", "--min-score", "2"), 1),
        (("search", "a dog score:2"), 1),
        (("search", "a dog in:elsewhere"), 1),
        (("search", "a dog", "--before", "1999-01-01"), 1),
        (("search", "a dog", "--page", "9"), 1),
        (("search", "a dog", "--page", "0"), 2),
        (("search", "a dog longer:ten"), 2),
        (("search", "a dog", "--after", "someday"), 2),
        (("search", "dog -dog"), 2),
        (("search", "longer:1"), 2),
        (("search", "a dog", "--within", "nowhere.mp4"), 2),
        (("similar", "VIDEO", "--min-score", "2"), 1),
        (("captions", "VIDEO"), 0),
        (("check",), 0),
        (("info",), 0),
    ],
)
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_exit_codes_that_scripts_can_use(place: Path, searched: str, capsys, args: tuple[str, ...], code: int, as_json):
    capsys.readouterr()
    command, *rest = (str(place / "videos" / "0.mp4") if arg == "VIDEO" else arg for arg in args)
    assert suma(place, command, searched, *rest, *["--json"] * as_json) == code
    told = capsys.readouterr()
    assert bool(told.err) == (code == 2)
    if as_json and code < 2:
        assert bool(json.loads(told.out)) == (code == 0)


def test_the_exit_codes_and_the_language_are_in_the_help(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="0"):
        main(["search", "--help"])
    told = capsys.readouterr().out
    assert "0 found (or done), 1 nothing found, or nothing that fits, 2 bad input" in " ".join(told.split())
    assert "+term -term" in told and "longer:10" in told


def test_the_length_of_parts_is_asked_for_once(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_video(tmp_path / "long.mp4", frames=50)
    index = str(tmp_path / "index")
    assert suma(place, "index", str(tmp_path / "long.mp4"), "-o", index, "--segment", "2") == 0
    assert "1 added, 0 unchanged, 0 failed; 1 videos" in capsys.readouterr().out
    assert suma(place, "info", index, "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["videos"], info["parts"], info["segment"], info["seconds"]) == (1, 3, 2.0, 5.0)
    assert suma(place, "search", index, "a dog", "--json") == 0 and len(paths(capsys)) == 1
    assert suma(place, "search", index, "a dog", "--parts", "--json") == 0 and len(paths(capsys)) == 3
    assert suma(place, "index", str(tmp_path / "long.mp4"), "-o", index) == 0  # as it is
    assert suma(place, "index", str(tmp_path / "long.mp4"), "-o", index, "--segment", "3") == 2
    assert "parts of 2 s, not 3 s" in capsys.readouterr().err
    assert suma(place, "index", str(tmp_path / "long.mp4"), "-o", str(tmp_path / "new"), "--segment", "-1") == 2


def test_answers_are_saved_and_listed(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    index, clips, hits = str(tmp_path / "index"), tmp_path / "clips", tmp_path / "hits.csv"
    assert suma(place, "index", str(place / "videos"), "-o", index) == 0
    options = ("-k", "2", "--save", str(clips), "--padding", "0.2", "--list", str(hits))
    capsys.readouterr()
    assert suma(place, "search", index, "a dog", *options) == 0
    told = [line.removeprefix("saved: ") for line in capsys.readouterr().out.splitlines() if "saved: " in line]
    assert {Path(clip) for clip in told} == set(clips.iterdir()) and len(told) == 2
    assert len(hits.read_text().splitlines()) == 3
    assert suma(place, "search", index, "a dog", "-k", "2", "--json", "--save", str(clips)) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2 and len(list(clips.iterdir())) == 4
    assert suma(place, "search", index, "a dog", "-k", "1", "--links") == 0
    link = capsys.readouterr().out.split()[1]
    assert link.startswith((place / "videos").as_uri()) and ".mp4#t=" in link


def test_an_answer_that_is_gone_is_not_saved_but_the_others_are(place: Path, tmp_path: Path, capsys):
    shutil.copytree(place / "videos", tmp_path / "videos")
    index = str(tmp_path / "index")
    assert suma(place, "index", str(tmp_path / "videos"), "-o", index) == 0
    (tmp_path / "videos" / "1.mp4").unlink()
    assert suma(place, "search", index, "a dog", "--save", str(tmp_path / "clips")) == 2
    assert "not saved: " in (error := capsys.readouterr().err) and "1.mp4" in error
    assert len(list((tmp_path / "clips").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--padding", "-1"), "--padding must be at least 0 seconds, got -1"),
        (("--save", "FILE"), "--save FILE: it is no folder"),
        (("--list", "hits.doc"), "--list hits.doc: the name must end in one of .csv"),
        (("--list", "FILE"), "--list FILE: the name"),
        (("--open",), "--open needs one of mpv, vlc, and none is installed"),
    ],
)
def test_what_cannot_be_kept_is_said_before_the_search(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, options: tuple[str, ...], told: str
):
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert suma(place, "search", "no-index", "a dog", *options) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("name", "start"), [("mpv", "--start="), ("vlc", "--start-time=")])
def test_the_best_answer_is_played_at_its_moment(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str, start: str
):
    (tmp_path / name).write_text('#!/bin/sh\necho "$@" > "$0.told.part"\n/bin/mv "$0.told.part" "$0.told"\n')
    (tmp_path / name).chmod(0o755)
    index = str(tmp_path / "index")
    assert suma(place, "index", str(place / "videos"), "-o", index) == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    capsys.readouterr()
    assert suma(place, "search", index, "a dog", "--json", "--open") == 0
    best = json.loads(capsys.readouterr().out)[0]
    told = tmp_path / f"{name}.told"
    for _ in range(600):
        if told.exists():
            break
        time.sleep(0.05)
    words = told.read_text().split()
    assert words[0] == f"{start}{best['moment']:.2f}" and words[-1] == best["path"]
