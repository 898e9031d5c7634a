"""Several data sets in one training: their shares of a batch, what is held out of each, and what is no negative."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import Clip
from config import TrainConfig
from data import Batches, Part, pairs_of_each
from frame_cache import FrameCache
from mixture import load_mixture, merge_sets, parse_mix
from PIL import Image
from test_train import benchmark, clean_slate, flags  # noqa: F401  (fixtures)

import train
from suma import SUMA

# ruff: noqa: F811  (fixtures)


def clip(name: str, source: str = "", caption: str = "") -> Clip:
    return Clip(name, Path(f"{name}.mp4"), (caption or f"about {name}",), 0, source or name, "")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty photographs with a caption each, as rows of a jsonl file."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(30):
        Image.fromarray(np.full((32, 48, 3), 8 * n, np.uint8)).save(folder / f"photo{n}.png")
    rows = [{"video": f"photo{n}.png", "caption": f"a grey picture number {n}"} for n in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("mix", ["photos", "photos:train", "photos=0.4", "a:b=x", "a:b=0", "a:b=1", "a:b=0.5,c:d=0.5"])
def test_a_mix_that_is_not_written_as_it_should_be_is_refused(mix: str):
    with pytest.raises(ValueError, match="--mix"):
        parse_mix(mix)


def test_shares_become_pairs_of_a_batch_and_the_benchmark_takes_the_rest():
    parts = [Part("a", 0.5, list(range(90)), []), Part("b", 0.3, list(range(9)), []), Part("c", 0.2, [1, 2], [])]
    assert pairs_of_each(parts, 10) == [5, 3, 2]
    assert pairs_of_each(parts[:1], 7) == [7]
    with pytest.raises(ValueError, match=r"c: 2 .* 3"):
        pairs_of_each(parts, 15)
    with pytest.raises(ValueError, match=r"c gets no pair"):
        pairs_of_each(parts, 2)


def test_a_source_held_out_of_one_set_is_trained_on_in_none_and_a_file_of_two_sets_is_one_clip():
    first = [clip("a", "film 1"), clip("b", "film 2"), clip("c", "film 3")]
    second = [clip("d", "film 1"), clip("b", "film 2", "said otherwise"), clip("e", "film 5")]
    third = [clip("f", "film 5"), clip("g")]
    named = [("one", ["train"], 0.5), ("two", ["train"], 0.25), ("three", ["train"], 0.25)]
    clips, parts = merge_sets(named, [first, second, third], [[first[0]], [second[2]], []])
    names = [clip.video_id for clip in clips]
    assert [[names[i] for i in part.train] for part in parts] == [["b", "c"], [], ["g"]]
    assert [[names[i] for i in part.held] for part in parts] == [["a"], ["e"], []]
    assert clips[names.index("b")].captions == ("about b", "said otherwise")
    assert sorted(i for part in parts for i in part.train + part.held) == list(range(len(clips)))


@pytest.fixture(scope="module")
def mixed(tiny_model: SUMA, benchmark: Path, photos: Path) -> Batches:
    c = TrainConfig(
        dataset=str(benchmark),
        mix=f"{photos}:train=0.5",
        held_out=3,
        batch_size=8,
        train_frames=3,
        num_frames=3,
        cache_frames=4,
    )
    clips, parts = load_mixture(c)
    assert [len(part.held) for part in parts] == [4, 3]  # two clips of a source stay together; a tenth of the photos
    cache = FrameCache(clips, 4, tiny_model.config.image)
    cache.build()
    return Batches(tiny_model, clips, cache, parts, c)


def test_each_batch_holds_each_sets_share_and_each_set_has_epochs_of_its_own(mixed: Batches):
    seen: dict[str, list[int]] = {"video": [], "photo": []}
    steps = list(mixed(0, 12, 0, 1))
    for batch in steps:
        kinds = [mixed.clips[i].video_id[:5] for i in batch["video"].tolist()]
        assert kinds == ["video"] * 4 + ["photo"] * 4
        for i, kind in zip(batch["video"].tolist(), kinds, strict=True):
            seen[kind].append(i)
    assert len(set(seen["video"][:16])) == 16 and len(set(seen["photo"][:24])) == 24  # 4 and 6 batches an epoch
    assert len(set(seen["photo"])) > 24  # another epoch leaves out others


def test_a_photograph_is_a_video_of_one_frame(mixed: Batches):
    (batch,) = mixed(3, 4, 0, 1)
    assert batch["mask"].sum(1).tolist() == [3] * 4 + [1] * 4


def test_captions_of_two_sets_that_differ_in_writing_are_no_negatives_of_each_other(mixed: Batches):
    clips = [clip("a", caption="A dog runs."), clip("b", caption="a dog runs"), clip("c", caption="a cat runs")]
    cache = type("Frames", (), {"counts": np.ones(3, int), "shape": (1,), "dtype": np.dtype(np.uint8)})()
    cache.get = lambda i, picks, out: out
    c = TrainConfig(batch_size=3, train_frames=1, num_frames=1, cache_frames=1)
    parts = [Part("one", 0.34, [0], []), Part("two", 0.66, [1, 2], [])]
    (batch,) = Batches(mixed.model, clips, cache, parts, c)(0, 1, 0, 1)
    captions = dict(zip(batch["video"].tolist(), batch["caption"].tolist(), strict=True))
    assert captions[0] == captions[1] != captions[2]


def test_a_run_on_two_sets_selects_by_the_held_out_videos_of_both(benchmark: Path, tower, photos: Path, tmp_path: Path):
    train.main(flags(benchmark, tower, tmp_path / "run", mix=f"{photos}:train=0.5"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    found = [line for line in lines if "held_out" in line]
    assert len(found) == 2
    for line in found:
        assert set(line["held_out"]) == {"t2v", "v2t"}
        assert set(line["held_out_further"]) == {f"{photos}:train"}
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"{photos.name}:train" in card and str(photos.parent) not in card
