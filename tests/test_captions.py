"""The caption list: encoded once, kept beside the index, searched in two stages, whole whatever happens."""

import json
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import noise_picture, write_video
from tensors import videos_of

from suma import SUMA, VideoIndex
from suma.index import captions, first_stage
from suma.index.captions import CaptionList
from suma.index.first_stage import Codes

MSRVTT = Path(__file__).resolve().parents[2] / "shared" / "msrvtt" / "friedrichor"
WORDS = [
    "a",
    "dog",
    "cat",
    "bird",
    "man",
    "woman",
    "runs",
    "sits",
    "sings",
    "plays",
    "cooks",
    "drives",
    "red",
    "brown",
    "small",
    "ball",
    "car",
    "tree",
    "water",
    "snow",
]


def lines(count: int) -> list[str]:
    """Different captions of known words."""
    rng = np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(rng.choice(WORDS, rng.integers(3, 9)))] = None
    return list(found)


@pytest.fixture
def index(tiny_model: SUMA, tmp_path: Path) -> VideoIndex:
    (tmp_path / "videos").mkdir()
    for n in range(3):
        write_video(tmp_path / "videos" / f"{n}.mp4", picture=lambda i, w, h, n=n: noise_picture(1000 * n + i, w, h))
    index = VideoIndex(tiny_model)
    index.add(tmp_path / "videos")
    return index


@pytest.fixture
def encoded(tiny_model: SUMA, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sentences that are encoded from now on."""
    said: list[str] = []
    texts = tiny_model.make_texts
    monkeypatch.setattr(tiny_model, "make_texts", lambda sentences: said.extend(sentences) or texts(sentences))
    return said


def naive(index: VideoIndex, path: str, top_k: int) -> list[tuple[str, float]]:
    """By the score of every pair."""
    model = index.model
    with torch.no_grad():
        scores = model.score(model.make_texts(index.caption_list), videos_of(model, index.read(path)[1]))[:, 0]
    best = scores.topk(top_k)
    return [(index.caption_list[i], s) for i, s in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def test_a_list_that_is_saved_is_never_encoded_again(index: VideoIndex, tmp_path: Path, encoded: list[str]):
    path, captions = index.rows[0].path, lines(600)
    index.set_captions(captions)
    index.save(tmp_path / "index")
    assert sorted(encoded) == sorted(captions)
    encoded.clear()
    again = VideoIndex.load(tmp_path / "index", index.model)
    found = again.captions(path, 10)
    assert encoded == [] and again.caption_list == captions
    assert found == index.captions(path, 10) and encoded == []
    wanted = naive(again, path, 10)
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=2e-4)
    assert len({c for c, _ in found} & {c for c, _ in wanted}) >= 9


def test_only_new_lines_are_encoded(index: VideoIndex, tmp_path: Path, encoded: list[str]):
    index.set_captions(["a dog runs", "a cat sits", "a bird"])
    index.save(tmp_path / "index")
    encoded.clear()
    index.set_captions(["a bird", "a horse", "a dog runs"])
    index.save(tmp_path / "index")
    assert encoded == ["a horse"]
    index.set_captions(["a bird", "a horse", "a dog runs"])
    index.save(tmp_path / "index")
    assert encoded == ["a horse"]
    again = VideoIndex.load(tmp_path / "index", index.model)
    assert again.caption_list == ["a bird", "a horse", "a dog runs"]
    path = index.rows[1].path
    expected = dict(naive(again, path, 3))
    assert dict(again.captions(path, 3)) == {c: pytest.approx(s, abs=2e-4) for c, s in expected.items()}
    again.save(tmp_path / "copy")
    assert dict(VideoIndex.load(tmp_path / "copy", index.model).captions(path, 3)) == dict(again.captions(path, 3))


def test_a_list_that_dies_half_written_leaves_the_one_before(index: VideoIndex, tmp_path: Path, monkeypatch):
    index.set_captions(["a dog runs", "a cat sits"])
    index.save(tmp_path / "index")
    monkeypatch.setattr(captions, "BLOCK", 10)
    texts, calls = index.model.make_texts, []

    def die(sentences: list[str]) -> object:
        calls.append(sentences)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return texts(sentences)

    with monkeypatch.context() as patch:
        patch.setattr(index.model, "make_texts", die)
        index.set_captions(lines(40))
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path / "index")
    again = VideoIndex.load(tmp_path / "index", index.model)
    again.store.verify()
    assert again.caption_list == ["a dog runs", "a cat sits"] and len(again.captions(again.rows[0].path)) == 2
    again.set_captions(lines(40))
    again.save(tmp_path / "index")
    assert VideoIndex.load(tmp_path / "index", index.model).caption_list == lines(40)


def test_damaged_captions_are_told(index: VideoIndex, tmp_path: Path):
    index.set_captions(["a dog runs", "a cat sits"])
    index.save(tmp_path / "index")
    database = sqlite3.connect(tmp_path / "index" / "index-1.sqlite")
    database.execute("UPDATE caption_vectors SET folded = zeroblob(length(folded))")
    database.commit()
    with pytest.raises(ValueError, match=r"index-1\.sqlite .*checksum of its captions"):
        VideoIndex.load(tmp_path / "index", index.model)


def test_videos_that_come_and_go_leave_the_captions(index: VideoIndex, tmp_path: Path, encoded: list[str]):
    index.set_captions(["a dog runs", "a cat sits"])
    index.save(tmp_path / "index")
    encoded.clear()
    found = index.captions(index.rows[0].path)
    reader = VideoIndex.load(tmp_path / "index", index.model)
    assert reader.caption_list == ["a dog runs", "a cat sits"]
    index.store.copy_to(index.store.folder)  # a new generation, without what was removed
    fresh = VideoIndex.load(tmp_path / "index", index.model)
    assert fresh.store.generation == 2
    assert fresh.captions(fresh.rows[0].path) == reader.captions(reader.rows[0].path) == found and encoded == []


def test_composed_and_decomposed_lines_are_one(index: VideoIndex, tmp_path: Path, tiny_model: SUMA):
    index.set_captions(["cafe\u0301", "caf\u00e9 ", "a dog"])
    index.save(tmp_path / "index")
    assert VideoIndex.load(tmp_path / "index", tiny_model).caption_list == ["caf\u00e9", "a dog"]
    old = CaptionList(["cafe\u0301", "caf\u00e9"], np.zeros((2, 128), np.float16))  # of an index made before
    assert len(old.lines) == len(old.folded) == 2


def test_another_process_replaces_the_list_of_an_opened_index(index: VideoIndex, tmp_path: Path):
    index.set_captions(["a dog runs", "a cat sits"])
    index.save(tmp_path / "index")
    reader, late = (VideoIndex.load(tmp_path / "index", index.model) for _ in range(2))
    assert len(reader.caption_list) == 2
    index.set_captions(["a bird", "a horse", "a tree"])
    index.save(tmp_path / "index")
    assert {c for c, _ in reader.captions(reader.rows[0].path)} == {"a dog runs", "a cat sits"}  # as it was read
    assert {c for c, _ in late.captions(late.rows[0].path)} == {"a bird", "a horse", "a tree"}  # asked later: whole


def test_long_lists_go_through_the_quantiser_whose_cache_is_kept(index: VideoIndex, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(first_stage, "EXACT_LIMIT", 500)
    path = index.rows[0].path
    index.set_captions(lines(800))
    index.save(tmp_path / "index")
    (cache,) = tmp_path.glob("index/lines*.faiss")
    monkeypatch.setattr(Codes, "of", None)  # not made again
    again = VideoIndex.load(tmp_path / "index", index.model)
    found, wanted = again.captions(path, 10), naive(again, path, 10)
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=2e-4)
    monkeypatch.undo()
    monkeypatch.setattr(first_stage, "EXACT_LIMIT", 500)
    index.set_captions(lines(900)[100:])  # as many others: another cache
    index.save(tmp_path / "index")
    assert list(tmp_path.glob("index/lines*.faiss")) != [cache] and len(list(tmp_path.glob("index/lines*"))) == 1
    again = VideoIndex.load(tmp_path / "index", index.model)
    assert {c for c, _ in again.captions(path, 10)} <= set(lines(900)[100:])


def test_a_list_that_is_not_saved_stays_in_memory(index: VideoIndex, tmp_path: Path):
    index.save(tmp_path / "index")
    index.set_captions(["a dog runs", " a dog runs ", "", "a cat sits"])
    assert index.caption_list == ["a dog runs", "a cat sits"] and len(index.captions(index.rows[0].path)) == 2
    assert VideoIndex.load(tmp_path / "index", index.model).caption_list == []
    with pytest.raises(ValueError, match="no captions"):
        VideoIndex.load(tmp_path / "index", index.model).captions(index.rows[0].path)
    assert CaptionList.load(index.store).lines == []


@pytest.mark.slow
def test_captions_of_msrvtt(index: VideoIndex, tmp_path: Path):
    """Real lines, every eighth of them, with a tiny model; tests/bench/captions.py takes 200,000."""
    if not MSRVTT.is_dir():
        pytest.skip("no MSR-VTT captions beside the repository")
    captions: dict[str, None] = {}
    for name in ("train_9k", "test_1k"):
        for row in json.loads((MSRVTT / f"msrvtt_{name}.json").read_text()):
            captions.update(dict.fromkeys([row["caption"]] if isinstance(row["caption"], str) else row["caption"]))
    began = time.perf_counter()
    index.set_captions(list(captions)[::8])
    index.save(tmp_path / "index")
    made = time.perf_counter() - began
    assert len(index.caption_list) > 15_000
    path = index.rows[0].path
    began = time.perf_counter()
    again = VideoIndex.load(tmp_path / "index", index.model)
    first = again.captions(path, 10)
    opened = time.perf_counter() - began
    assert again.captions(path, 10) == first
    assert opened < made / 3  # nothing is encoded again
    wanted = naive(again, path, 10)
    assert [score for _, score in first] == pytest.approx([score for _, score in wanted], abs=3e-4)
