"""How well and how fast doubles are found. `python tests/bench/duplicates.py FOLDER [--real FOLDER_OF_VIDEOS]`

FOLDER keeps the clips that are made, and their index: a run that was stopped continues. Of real videos and of clips of
the gallery there are doubles as people make them, and takes, which are none: a take of a Scenes clip has the same
actors, doings and places, placed anew, or happens in another order; those of a real video are its halves. A clip is
written with only the 12 frames that an index reads. The threshold is chosen on half of the sources.
"""

import argparse
import itertools
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "train")]

from clips import write_video
from emoji_scenes.render import FPS, Clip, render
from emoji_scenes.specs import draw_act, draw_clip, face_ahead, keep_apart, twin

from suma import SUMA, VideoIndex
from suma.index.duplicates import SAME, compare, groups
from suma.index.storage import NewClip, Row
from suma.index.store import Store

GALLERY = ROOT / "assets" / "gallery"
FRAMES, DIM = 12, 512


def read(path: Path) -> tuple[np.ndarray, float]:
    """Frames (F, h, w, 3) of a whole video and its length in seconds."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames), len(frames) / float(container.streams.video[0].average_rate)


def between(frames: np.ndarray, start: float, stop: float) -> np.ndarray:
    """The frames that an index reads of this part (shares of the time)."""
    at = start + (np.arange(FRAMES) + 0.5) / FRAMES * (stop - start)
    return frames[np.unique((at * len(frames)).astype(int))]


def resized(frames: np.ndarray, scale: float) -> np.ndarray:
    h, w = (round(scale * n) for n in frames.shape[1:3])
    pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(w, h) for frame in frames]
    return np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])


def cropped(frames: np.ndarray, share: float, rng: random.Random) -> np.ndarray:
    """A window of 1 - share of either side, anywhere."""
    h, w = (round(n * (1 - share)) for n in frames.shape[1:3])
    y, x = rng.randint(0, frames.shape[1] - h), rng.randint(0, frames.shape[2] - w)
    return frames[:, y : y + h, x : x + w]


def with_logo(frames: np.ndarray) -> np.ndarray:
    """A white sign with a blue ring in the corner, a fifth of the width."""
    side = frames.shape[2] // 5
    y, x = np.mgrid[:side, :side] / side - 0.5
    ring = np.abs(np.hypot(x, y) - 0.3) < 0.1
    out = frames.copy()
    out[:, 4 : 4 + side, -4 - side : -4] = np.where(ring[..., None], (20, 40, 160), (250, 250, 250))
    return out


def doubles(frames: np.ndarray, seconds: float, rng: random.Random) -> Iterator[tuple[str, np.ndarray, float, int]]:
    """Kind, frames, seconds and quality (crf) of each double."""
    whole = between(frames, 0, 1)
    yield "encoded", whole, seconds, 34
    yield "resized", resized(whole, 0.6), seconds, 24
    yield "cropped", cropped(whole, 0.1, rng), seconds, 24
    yield "logo", with_logo(whole), seconds, 24
    first = rng.uniform(0, 0.25)
    yield "trimmed", between(frames, first, first + 0.75), 0.75 * seconds, 24
    yield "speed", whole, seconds * rng.choice((0.67, 1.5)), 28


def write(path: Path, frames: np.ndarray, seconds: float, crf: int = 24) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        rate = round(10 * len(frames) / seconds)  # ten times as fast: a whole number that is near enough
        options, new = {"crf": str(crf), "preset": "veryfast"}, path.with_suffix(".part.mp4")
        shown, size = np.ascontiguousarray(frames), (frames.shape[2], frames.shape[1])
        write_video(new, len(frames), size, rate, options=options, picture=lambda n, *_: shown[n])
        new.rename(path)
    return path


def take(clip: Clip, kind: str, rng: random.Random) -> Clip:
    """The same actors, doings and places, placed anew."""
    acts = tuple(
        replace(draw_act(rng, act.actor, act.motion), start=act.start, stop=act.stop, carries_on=act.carries_on)
        for act in clip.acts
    )
    acts = keep_apart(rng, acts) if kind == "duo" else acts
    return replace(clip, acts=tuple(map(face_ahead, acts)), seed=rng.randrange(2**31))


def make(folder: Path, videos: list[Path], scenes: int) -> Iterator[list[Path]]:
    """Write the clips that are not there yet, folder/SOURCE/KIND.mp4; yield those of one source."""
    numbers = list(range(scenes))
    sources: list[Path | int] = [*videos, *numbers]
    random.Random(0).shuffle(sources)
    for source in sources:
        if isinstance(source, int):
            rng, kind, out = random.Random(source), ("solo", "duo", "twoact", "cut")[source % 4], folder / f"s{source}"
            clip = draw_clip(rng, kind)
            drawn = {"take0": clip, "take1": take(clip, kind, rng), "take2": twin(clip, kind)}
            shown = {name: np.stack([np.asarray(f) for f in render(c)[0]]) for name, c in drawn.items() if c}
            yield [write(out / f"{name}.mp4", between(f, 0, 1), len(f) / FPS) for name, f in shown.items()]
            continue
        rng, (frames, seconds), out = random.Random(source.stem), read(source), folder / source.stem
        made = [write(out / f"{kind}.mp4", *double) for kind, *double in doubles(frames, seconds, rng)]
        if source.parent.parent != GALLERY:  # whose originals are in the index
            for name, part in (("original", (0, 1)), ("take1", (0, 0.5)), ("take2", (0.5, 1))):
                made.append(write(out / f"{name}.mp4", between(frames, *part), (part[1] - part[0]) * seconds))
        yield made


def label(row: Row) -> tuple[str, str]:
    """The source of a clip, and what was made of it."""
    path = Path(row.path)
    return (path.stem, "original") if path.parent.name == "videos" else (path.parent.name, path.stem)


def pairs_of(index: VideoIndex) -> Iterator[tuple[str, str, bool, float]]:
    """Source, what the pair is, whether it is one of doubles, and its likeness (-1: no candidates), of all pairs."""
    snapshot = index.store.snapshot
    labels = [label(row) for row in snapshot.rows(snapshot.live)]
    pairs, values = compare(snapshot)
    likeness = dict(zip(map(tuple, np.searchsorted(snapshot.live, pairs).tolist()), values.tolist(), strict=True))
    for i, j in itertools.combinations(range(len(labels)), 2):
        (one, first), (other, second) = labels[i], labels[j]
        takes, value = [kind.startswith("take") for kind in (first, second)], likeness.get((i, j), -1.0)
        if one != other:
            yield one, "different videos", False, value
        elif all(takes):
            yield one, "takes of a Scenes clip" if is_scene(one) else "halves of a real video", False, value
        elif not any(takes):  # a real video and its half are neither
            kinds = {first, second} - {"original"}
            yield one, f"original and {kinds.pop()}" if len(kinds) == 1 else "two doubles", True, value


def is_scene(source: str) -> bool:
    return re.fullmatch(r"s\d+|video9\d+", source) is not None


def measure(index: VideoIndex) -> None:
    """Choose the threshold on half of the sources, by F1; print what it comes to on the others, and the one in use."""
    found = list(pairs_of(index))
    sources = sorted({source for source, *_ in found})
    random.Random(1).shuffle(sources)
    chosen_on = set(sources[::2])

    def rates(some: list[tuple[str, str, bool, float]], least: float) -> tuple[float, float]:
        hits = sum(true and value >= least for _, _, true, value in some)
        taken, true = sum(value >= least for *_, value in some), sum(true for _, _, true, _ in some)
        return hits / max(1, taken), hits / max(1, true)

    def f1(least: float) -> float:
        precision, recall = rates([pair for pair in found if pair[0] in chosen_on], least)
        return 2 * precision * recall / max(1e-9, precision + recall)

    best = max(np.arange(0.3, 0.9, 0.01).tolist(), key=f1)
    others = [pair for pair in found if pair[0] not in chosen_on]
    for least in (best, SAME):
        for name, some in (
            ("all", others),
            ("real", [pair for pair in others if not is_scene(pair[0])]),
            ("Scenes", [pair for pair in others if is_scene(pair[0])]),
        ):
            print(f"from {least:.2f}, {name} of the other half: precision and recall", *np.round(rates(some, least), 3))
    for kind in sorted({kind for _, kind, _, _ in found}):
        values = [value for _, k, _, value in found if k == kind]
        print(f"{kind}: {sum(value >= SAME for value in values)} of {len(values)} pairs are taken for doubles")


def made_up(count: int, folder: Path) -> None:
    """Print how long the groups of so many made-up videos take, one in twenty of them a double."""
    rng, store = np.random.default_rng(0), Store.create(folder, "model", DIM)
    common, topics = rng.normal(size=DIM), rng.normal(size=(count // 50, DIM))
    frames, times, folded = common, [float(n) for n in range(FRAMES)], np.zeros(2 * DIM, np.float16)
    for start in range(0, count, 1000):
        files, clips = [], []
        for n in range(start, start + 1000):
            noise, topic = rng.normal(size=(FRAMES, DIM)), topics[rng.integers(len(topics))]
            new = common + 0.9 * topic + 0.6 * rng.normal(size=DIM) + 0.6 * noise
            frames = frames + 0.2 * noise if n % 20 == 19 else new
            features = np.concatenate([frames.mean(0, keepdims=True), frames]).astype(np.float16)
            files.append(Row(f"/videos/{n}.mp4", n + 1, 1.0, f"{n:064x}", 12.0))
            clips.append(NewClip(files[-1].digest, 0.0, 12.0, times, features, folded, np.ones(1 + FRAMES)))
        store.commit(files, clips)
    began, cpu = time.perf_counter(), time.process_time()
    found = len(groups(store.snapshot))
    spent = time.perf_counter() - began, time.process_time() - cpu
    print(f"{count} videos of {DIM} dimensions: {found} groups in {spent[0]:.1f} s, {spent[1]:.1f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "realclips" / "videos")
    parser.add_argument("--gallery", type=int, default=16, help="clips of the gallery of which doubles are made")
    parser.add_argument("--scenes", type=int, default=20, help="Scenes of which takes are made")
    parser.add_argument("--count", type=int, default=10_000, help="made-up videos of which the groups are timed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    index = VideoIndex.load(GALLERY / "index", SUMA.from_pretrained(ROOT / "assets" / "model"))
    index.save(args.folder / "index")
    videos = [*sorted(args.real.glob("*.mp4")), *sorted((GALLERY / "videos").glob("*.mp4"))[: args.gallery]]
    for paths in make(args.folder / "clips", videos, args.scenes):
        index.add(paths, workers=1)
    measure(index)
    with tempfile.TemporaryDirectory() as folder:
        made_up(args.count, Path(folder) / "index")


if __name__ == "__main__":
    main()
