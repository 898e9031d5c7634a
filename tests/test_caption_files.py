"""Captions are read from the files that people have, or one error names the file and the line."""

import json
import warnings
from pathlib import Path

import pytest

from suma.app import media
from suma.index.captions import read_captions

SHARED = Path(__file__).resolve().parents[2] / "shared" / "cases" / "captions_files"
BY_VIDEO = {"a.mp4": ["a dog runs", "a cat"], "b.mp4": ["ein Bär"]}
ROWS = [{"video": name, "caption": caption} for name, captions in BY_VIDEO.items() for caption in captions]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("c.txt", "a dog runs\r\n\r\n a cat \r\nein Bär", {"": ["a dog runs", "a cat", "ein Bär"]}),
        ("c", "a dog runs\n", {"": ["a dog runs"]}),
        ("c.json", json.dumps(BY_VIDEO, ensure_ascii=False), BY_VIDEO),
        ("c.JSON", json.dumps(BY_VIDEO), BY_VIDEO),
        ("c.json", json.dumps(ROWS, indent=1), BY_VIDEO),
        ("c.json", LINES, BY_VIDEO),
        ("c.json", '["a dog runs", null, "a cat"]', {"": ["a dog runs", "a cat"]}),
        ("c.jsonl", LINES, BY_VIDEO),
        ("c.JSONL", json.dumps({"video": "a.mp4", "captions": ["a", "b"]}), {"a.mp4": ["a", "b"]}),
        ("c.jsonl", '{"a.mp4": "x"}\n\n"y\u2028z"\n', {"a.mp4": ["x"], "": ["y\u2028z"]}),
        ("c.csv", 'video,caption\r\na.mp4,"a dog, red\n and wet"\r\n', {"a.mp4": ["a dog, red\n and wet"]}),
        ("c.CSV", "Video;Caption\na.mp4;a dog\na.mp4;\n", {"a.mp4": ["a dog"]}),
        ("c.tsv", "caption\tvideo\na dog\ta.mp4\n", {"a.mp4": ["a dog"]}),
        ("c.csv", "text\na dog\na cat\n", {"": ["a dog", "a cat"]}),
    ],
)
def test_what_is_meant_is_read_in_every_encoding(tmp_path: Path, name: str, text: str, found: dict, encoding: str):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_captions(tmp_path / name) == found


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("null", []),
        ('["", null, " "]', []),
        (r'"a man \ud83d"', ["a man"]),
        (r'"\ude00 a \ud83d\ude00"', ["a \U0001f600"]),
    ],
)
def test_null_and_half_an_emoji_are_left_out(tmp_path: Path, written: str, kept: list[str]):
    (tmp_path / "c.json").write_text(f'{{"a.mp4": {written}, "b.mp4": "a dog"}}')
    assert read_captions(tmp_path / "c.json") == ({"a.mp4": kept} if kept else {}) | {"b.mp4": ["a dog"]}
    "".join(kept).encode()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.txt", "a dog\ncafé\n".encode("latin-1"), "c.txt, line 2: no UTF-8 text"),
        ("c.json", '{"a": "x",\n"b": "é"}'.encode("latin-1"), "c.json, line 2: no UTF-8"),
        ("c.txt", "a dog\na cat".encode("utf-16")[:-1], "c.txt, line 2: no UTF-16"),
        ("c.json", b'{"a": "x",\n"b": }', "c.json, line 2: Expecting value"),
        ("c.json", b'{"a.mp4": ["x", 5]}', "c.json, a.mp4: 5 is no caption"),
        ("c.json", b'["x", 5]', "c.json, entry 2: 5 is no caption"),
        ("c.json", b"", "c.json, line 1"),
        ("c.jsonl", b'"x"\n\n{"video": "a"', "c.jsonl, line 3"),
        ("c.jsonl", b'"x"\n{"video": "a", "caption": {}}\n', "c.jsonl, line 2, a: {} is no caption"),
        ("c.jsonl", b'{"video": ["a"], "caption": "x"}\n', "['a'] is no name of a video"),
        ("c.csv", b"video,what\na.mp4,x\n", "c.csv, line 1: expected a head with a column caption"),
        ("c.csv", b"video,caption\na.mp4,a dog, red\n", "c.csv, line 2: more cells"),
        ("c.csv", b'video,caption\na.mp4,"x\n', "c.csv, line 2"),
    ],
)
def test_what_is_none_of_this_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, told: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_captions(tmp_path / name)
    assert told in str(raised.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the cases are not here")
def test_the_cases():
    two = {"": ["a dog runs", "a cat sits"]}
    assert read_captions(SHARED / "u16.txt") == read_captions(SHARED / "bom.txt") == two
    assert read_captions(SHARED / "bom.json") == {"video9000.mp4": ["a dog runs"]}
    assert read_captions(SHARED / "caps.JSON") == {"video9000.mp4": ["a dog runs", "a cat"]}
    assert read_captions(SHARED / "caps.jsonl") == {"video9000.mp4": ["a dog runs"], "video9001.mp4": ["a cat"]}
    with pytest.raises(ValueError, match=r"latin1\.txt, line 1"):
        read_captions(SHARED / "latin1.txt")


def test_the_captions_beside_videos_are_read_alike_and_never_passed_over_silently(tmp_path: Path):
    (tmp_path / "captions.json").write_text(json.dumps({"cafe\u0301.mp4": "a dog", "b.mp4": None}), "utf-8-sig")
    composed, other = str(tmp_path / "videos" / "caf\u00e9.mp4"), str(tmp_path / "videos" / "b.mp4")
    assert media.captions_beside([composed, other]) == {composed: ["a dog"]}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "captions.json").write_text('{"a.mp4":\n}')
    with pytest.warns(UserWarning, match=r"captions\.json, line 2"):
        assert media.captions_beside([str(tmp_path / "broken" / "videos" / "a.mp4")]) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert media.captions_beside([str(tmp_path / "nothing" / "videos" / "a.mp4")]) == {}
