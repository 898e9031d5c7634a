"""Cached frames, the frames of a step, splits and batches, on a small replica of the Hub's layout."""

import collections
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import Clip
from clips import write_video
from data import batches, hold_out, join, pad_frames, pick_frames, read_vectors, shared_words

IMAGE = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def readme(configs: dict[str, str]) -> str:
    """A dataset card whose head names each config's file."""
    lines = ["---", "configs:"]
    for name, file in configs.items():
        split = "test" if name.startswith("test") else "train"
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {file}"]
    return "\n".join([*lines, "---", "# A benchmark"])


def row(n: int, caption: str | list[str], **values: Any) -> dict[str, Any]:
    return {
        "video_id": f"video{n}",
        "video": f"video{n}.mp4",
        "caption": caption,
        "source": "MSR-VTT",
        "category": n % 3,
        "url": f"https://example.org/{n // 2}",
        "start time": 1.5 * n,
        "end time": 1.5 * n + 1,
        "id": n,
        **values,
    }


def write_layout(folder: Path, train: list[dict], test: list[dict]) -> None:
    (folder / "train.json").write_text(json.dumps(train, indent=4))
    (folder / "test.json").write_text(json.dumps(test))
    (folder / "README.md").write_text(readme({"train_9k": "train.json", "test_1k": "test.json"}))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training videos of two captions and two test videos of one, in a zip; video n has 3 + 2 n frames."""
    folder = tmp_path_factory.mktemp("benchmark")
    train = [row(n, [f"clip {n} moves", f"number {n}"]) for n in range(4)]
    write_layout(folder, train, [row(n, f"clip {n}") for n in (4, 5)])
    with zipfile.ZipFile(folder / "Videos.zip", "w") as archive:
        archive.mkdir("video")
        for n in range(6):
            archive.write(write_video(folder / "one.mp4", frames=3 + 2 * n, size=(32, 32)), f"video/video{n}.mp4")
    (folder / "one.mp4").unlink()
    return folder


def clip(n: int, source: str = "", category: int = 0, path: Path = Path("none.mp4")) -> Clip:
    return Clip(f"video{n}", path, (f"caption {n}",), category, source or str(n), "made up")


# ---- frames --------------------------------------------------------------------------------------------------------


def test_evaluation_picks_the_middle_of_each_segment():
    assert pick_frames(12, 4).tolist() == [1, 4, 7, 10]
    assert pick_frames(10, 3).tolist() == [1, 5, 8]  # segments of 3 1/3 around 1.67, 5 and 8.33
    assert pick_frames(24, 12).tolist() == list(range(1, 24, 2))
    assert pick_frames(7, 1).tolist() == [3]


def test_training_picks_a_random_frame_of_each_segment():
    rng = np.random.default_rng(0)
    picks = np.stack([pick_frames(12, 4, rng) for _ in range(200)])
    for segment in range(4):
        assert set(picks[:, segment]) == {3 * segment, 3 * segment + 1, 3 * segment + 2}


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_short_videos_give_all_their_frames(count: int):
    for rng in (None, np.random.default_rng(0)):
        assert pick_frames(count, 4, rng).tolist() == list(range(count))


def test_padding_is_zeros_under_a_false_mask():
    videos = [np.full((2, 3, 4, 4), 7, np.uint8), np.full((3, 3, 4, 4), 9, np.uint8)]
    pixels, mask = pad_frames(videos, 3)
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert pixels[:, :, 0, 0, 0].tolist() == [[7, 7, 0], [9, 9, 9]]


# ---- splits and batches --------------------------------------------------------------------------------------------


def test_held_out_clips_have_no_sibling_in_training():
    clips = [clip(i, source=f"film {i // 3}") for i in range(30)]
    train, held = hold_out(clips, 7, seed=0)
    assert sorted(train + held) == list(range(30)) and len(held) == 9  # whole films of three
    assert not {clips[i].source for i in train} & {clips[i].source for i in held}
    assert hold_out(clips, 7, seed=0) == (train, held) != hold_out(clips, 7, seed=1)
    assert hold_out(clips, 0, seed=0) == (list(range(30)), [])


@pytest.mark.parametrize("number", [-1, 3, 4])
def test_training_always_keeps_a_clip(number: int):
    with pytest.raises(ValueError, match=f"{number} of 3"):
        hold_out([clip(i) for i in range(3)], number, seed=0)


def test_one_source_video_cannot_be_shared():
    with pytest.raises(ValueError, match="held_out=1"):
        hold_out([clip(i, source="film") for i in range(3)], 1, seed=0)


def test_further_captions_join_their_clips_but_never_those_held_out():
    clips = [clip(n, source=f"film {n}", path=Path(f"{n}.mp4")) for n in range(3)]
    more = [replace(clip(n, source=f"film {n}", path=Path(f"{n}.mp4")), captions=("short",)) for n in (0, 2, 9)]
    more.append(clip(7, source="film 2", path=Path("other part.mp4")))
    joined = join(clips, more, held=[2])
    assert [c.captions for c in joined] == [("caption 0", "short"), ("caption 1",), ("caption 2",), ("short",)]


def test_word_vectors_are_read_or_refused(tmp_path: Path):
    file = tmp_path / "vectors.txt"
    file.write_text("dog 1 0.5\ncat -1 2\n")
    assert {word: v.tolist() for word, v in read_vectors(str(file)).items()} == {"dog": [1, 0.5], "cat": [-1, 2]}
    assert read_vectors("") is None
    for text, told in (("dog 1 2\ncat x 2\n", "line 2"), ("dog 1\ncat 1 2\n", "one length")):
        file.write_text(text)
        with pytest.raises(ValueError, match=told):
            read_vectors(str(file))


def grouped(number: int = 60) -> list[Clip]:
    """Pairs of clips cut from one source video; source videos of three categories in turn."""
    return [clip(i, source=f"film {i // 2}", category=i // 2 % 3) for i in range(number)]


@pytest.mark.parametrize("group_size", [0, 4])
@pytest.mark.parametrize("number", [60, 61, 15])
def test_an_epoch_is_full_batches_of_each_clip_at_most_once(number: int, group_size: int):
    got = list(batches(grouped(number), 8, group_size, np.random.default_rng(0)))
    assert len(got) == number // 8 and all(len(batch) == 8 for batch in got)
    members = [i for batch in got for i in batch]
    assert len(set(members)) == len(members) and set(members) <= set(range(number))


def test_batches_are_shuffled_by_the_generator_alone():
    def epoch(seed: int, group_size: int) -> list[list[int]]:
        return list(batches(grouped(), 8, group_size, np.random.default_rng(seed)))

    for group_size in (0, 4):
        assert epoch(0, group_size) == epoch(0, group_size) != epoch(1, group_size)
    assert [i for batch in epoch(0, 0) for i in batch] != sorted(i for batch in epoch(0, 0) for i in batch)


def test_hard_batches_are_runs_of_one_category_with_siblings_side_by_side():
    clips = grouped(72)  # 24 clips of each category: six runs of four
    got = list(batches(clips, 8, 4, np.random.default_rng(0)))
    assert len(got) == 9
    for batch in got:
        for run in (batch[:4], batch[4:]):
            assert len({clips[i].category for i in run}) == 1
            assert [clips[run[j]].source == clips[run[j + 1]].source for j in (0, 2)] == [True, True]
    first = collections.Counter(clips[batch[0]].category for batch in got)
    assert len(first) == 3  # the runs are shuffled, not sorted by category


def test_half_of_the_runs_share_a_rare_word_instead():
    nouns = ("dog", "cat", "owl")
    clips = [
        replace(c, captions=(f"a {nouns[i // 6 % 3]} walks", f"the {nouns[i // 6 % 3]} in place {i}"))
        for i, c in enumerate(grouped(360))
    ]
    words = shared_words(clips, 8)
    assert words[0] == ["dog", "dog"] and words[6] == ["cat", "cat"]  # not "a", and not "0", which one clip has
    assert shared_words(clips, 1)[0] == ["dog", "0"]
    of_word = of_category = 0
    for batch in list(batches(clips, 8, 4, np.random.default_rng(0), words))[:-6]:
        for run in (batch[:4], batch[4:]):
            assert [clips[run[j]].source == clips[run[j + 1]].source for j in (0, 2)] == [True, True]
            same_word, same_category = len({words[i][0] for i in run}) == 1, len({clips[i].category for i in run}) == 1
            assert same_word or same_category
            of_word, of_category = of_word + (not same_category), of_category + (not same_word)
    assert min(of_word, of_category) > 10
