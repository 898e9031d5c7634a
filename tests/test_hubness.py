"""Popularity is taken from scores exactly as its formula says, and keeps up with the index."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import noise_picture, write_video
from tensors import videos_of

from suma import SUMA, VideoIndex
from suma.index import first_stage, hubness
from suma.similarity import combine, four_similarities


@pytest.fixture(scope="module")
def model(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> SUMA:
    """A model whose frames count equally, for which the folded score is exact."""
    tiny_model.save_pretrained(folder := tmp_path_factory.mktemp("model"))
    model = SUMA.from_pretrained(folder)
    model.config.aggregation = "mean"
    return model


@pytest.fixture
def index(model: SUMA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VideoIndex:
    """Six videos, whose popularity is by few words: loops over many take seconds."""
    monkeypatch.setattr(hubness, "BANK", 40)
    for n in range(6):
        video(tmp_path, n)
    index = VideoIndex(model)
    index.add(tmp_path / "videos", workers=1)
    index.save(tmp_path / "index")
    return index


def video(place: Path, n: int) -> None:
    (place / "videos").mkdir(exist_ok=True)
    picture = lambda i, w, h: noise_picture(50 * n + i, w, h)  # noqa: E731
    write_video(place / "videos" / f"{n}.mp4", frames=8, size=(64, 48), picture=picture)


@torch.no_grad()
def naive(index: VideoIndex, query: str, bank: list[str]) -> dict[str, float]:
    """Each video's score, less (1/b) log mean exp(b score) over the bank, by loops and without folding."""
    model, b = index.model, 10.0
    videos = videos_of(model, index.videos(range(len(index))))

    def scores(text: str) -> list[float]:
        return combine(four_similarities(model.make_texts([text]), videos, "mean"), model.config.scoring)[0].tolist()

    own, others = scores(query), [scores(text) for text in bank]
    popular = [math.log(sum(math.exp(b * s[v]) for s in others) / len(bank)) / b for v in range(len(index))]
    return {Path(r.path).name: s - p for r, s, p in zip(index.rows, own, popular, strict=True)}


def found(index: VideoIndex, query: str = "a dog runs") -> dict[str, float]:
    return {Path(m.path).name: m.score for m in index.search(query, 20, hubness=True)}


def test_a_corrected_search_is_the_naive_formula(index: VideoIndex, captions: list[str]):
    plain = {Path(m.path).name: m.score for m in index.search("a dog runs", 20)}
    words = naive(index, "a dog runs", hubness.word_bundles(index.model))
    assert found(index) == pytest.approx(words, abs=2e-4)
    assert list(found(index)) == sorted(words, key=lambda name: -words[name])
    index.set_captions(captions)
    by_captions = naive(index, "a dog runs", captions)
    assert found(index) == pytest.approx(by_captions, abs=2e-4)
    assert by_captions != pytest.approx(words, abs=1e-3)  # the bank does count
    assert {Path(m.path).name: m.score for m in index.search("a dog runs", 20)} == plain


def test_an_added_video_is_corrected_too_here_and_in_the_next_process(index: VideoIndex, tmp_path: Path, monkeypatch):
    index.keep_hubness()
    assert len(found(index)) == 6
    video(tmp_path, 6)
    index.add(tmp_path / "videos", workers=1)
    expected = naive(index, "a dog runs", hubness.word_bundles(index.model))
    assert len(expected) == 7 and found(index) == pytest.approx(expected, abs=2e-4)
    (kept,) = (tmp_path / "index").glob("hubness-*.f32")
    assert len(kept.read_bytes()) == 7 * 4

    encoded: list[int] = []
    fold = VideoIndex._fold
    monkeypatch.setattr(VideoIndex, "_fold", lambda self, texts: encoded.append(len(texts)) or fold(self, texts))
    assert found(VideoIndex.load(tmp_path / "index", index.model)) == pytest.approx(expected, abs=2e-4)
    assert encoded == []  # what is kept is enough
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\0")
    assert found(VideoIndex.load(tmp_path / "index", index.model)) == pytest.approx(expected, abs=2e-4)
    assert len(encoded) == 1  # a damaged file is not believed


def test_what_is_kept_follows_the_captions_and_what_is_removed(index: VideoIndex, captions: list[str], tmp_path: Path):
    index.keep_hubness()
    (before,) = (tmp_path / "index").glob("hubness-*.f32")
    index.set_captions(captions)
    index.save(tmp_path / "index")
    (after,) = (tmp_path / "index").glob("hubness-*.f32")
    assert after.name != before.name
    index.remove([tmp_path / "videos" / "0.mp4"])
    expected = naive(index, "a dog runs", captions)
    assert len(expected) == 5
    assert found(VideoIndex.load(tmp_path / "index", index.model)) == pytest.approx(expected, abs=2e-4)
    index.store.copy_to(index.store.folder)  # written anew: what was kept is of other positions
    index.store.refresh()
    assert found(index) == pytest.approx(expected, abs=2e-4)


def test_without_being_asked_nothing_is_kept(index: VideoIndex, tmp_path: Path):
    found(index)
    video(tmp_path, 7)
    index.add(tmp_path / "videos", workers=1)
    assert not list((tmp_path / "index").glob("hubness-*"))
    assert len(found(index)) == 7


@pytest.mark.parametrize("limit", [100_000, 500])
def test_the_first_stage_finds_the_best_by_what_is_left(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from test_candidates import made, queries

    monkeypatch.setattr(first_stage, "EXACT_LIMIT", limit)
    store = made(tmp_path / "index", 1000)
    less = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    first, hits = first_stage.Candidates(), []
    for query in queries():
        scores = store.snapshot.folded.astype(np.float32) @ query - less
        got = first.search(store, store.snapshot, query, 10, less=less)
        hits.append(len(set(got) & set(np.argsort(-scores)[:10].tolist())) / 10)
    assert np.mean(hits) >= 0.99 and hits[0] == 1
