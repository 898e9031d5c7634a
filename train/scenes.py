"""Make Scenes, a benchmark of short captioned clips of emoji actors doing things in settings, from a seed.

    python train/scenes.py OUT

writes 9,000 training and 1,000 test clips in the layout of MSR-VTT on the Hub, minimal pairs that differ only in time
("probe"), single pictures ("stills", "sides"), short captions of the training clips ("short"), and the truth of every
frame. Test clips have combinations that no training clip has; two in five training clips are twins, which differ only
in time ("twins").

The folder emoji_scenes holds the parts: specs.py draws clips and splits, captions.py words them, render.py paints them.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from emoji_scenes.extra import more, short_captions, sides
from emoji_scenes.render import FPS, Box, Clip, encode, render
from emoji_scenes.specs import KINDS, Spec, all_specs
from emoji_scenes.words import SETTINGS
from PIL import Image, ImageDraw

from suma.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


Boxes = list[list[Box | None]]  # of each act, frame by frame
CONFIGS = {  # split of ours: config, split of the config
    "train": ("train_9k", "train"),
    "test": ("test_1k", "test"),
    "probe": ("probe", "test"),
    "stills": ("stills", "train"),
    "sides": ("sides", "train"),
    "short": ("short", "train"),
    "twins": ("twins", "train"),
    "more": ("more", "train"),
}
CARD = """---
license: mit
configs:
{configs}
---

# Scenes

Short captioned clips of emoji actors doing things in settings, made by `train/scenes.py` (seed {seed}); the layout is
that of MSR-VTT on the Hub. The pictures are Fluent Emoji by Microsoft (MIT License). `short` holds further captions of
the clips of `train_9k`, as visitors type them, `twins` those of its clips that have a twin, `sides` mirrored pictures,
and `more`, where asked for, more clips.

{counts}

`url` is shared by the two clips of a pair that differs only in time. `truth.jsonl` tells for each clip the actors, what
they do and when (seconds), and their boxes [x, y, w, h] in pixels for each frame (null where an actor is not visible).
"""


def make_video(clip: Clip) -> tuple[bytes, Boxes]:
    """Return the mp4 of a clip and the boxes of each act, frame by frame."""
    frames, boxes = render(clip)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode(frames, path)
        return path.read_bytes(), boxes


def row(spec: Spec) -> dict[str, object]:
    """Return a row with MSR-VTT's keys."""
    return {
        "video_id": spec.video_id,
        "video": spec.video_id + ".mp4",
        "caption": spec.captions[0] if spec.split in ("test", "probe") else list(spec.captions),
        "source": spec.probe or "Scenes",
        "category": list(SETTINGS).index(spec.clip.shots[0].setting),
        "url": f"scenes:{spec.source}",
        "start time": 0.0,
        "end time": spec.clip.frames / FPS,
        "id": int(spec.video_id.lstrip("abcdefghijklmnopqrstuvwxyz")),
    }


def truth(spec: Spec, boxes: Boxes) -> dict[str, object]:
    """Return who is where and does what when (seconds), one entry per actor."""
    clip, seconds = spec.clip, spec.clip.frames / FPS
    actors: dict[str, dict[str, Any]] = {}
    for act, own in zip(clip.acts, boxes, strict=True):
        empty: dict[str, Any] = {
            "name": act.actor,
            "setting": clip.setting_of(act),
            "actions": [],
            "boxes": [None] * clip.frames,
        }
        entry = actors.setdefault(act.actor, empty)
        entry["actions"].append([act.motion, act.start * seconds, act.stop * seconds])
        entry["boxes"] = [new or old for new, old in zip(own, entry["boxes"], strict=True)]
    return {
        "video_id": spec.video_id,
        "split": spec.split,
        "kind": spec.kind,
        "fps": FPS,
        "actors": list(actors.values()),
    }


def rendered(specs: list[Spec], workers: int) -> Iterator[tuple[bytes, Boxes]]:
    """Yield the mp4 and boxes of each spec, in order."""
    clips = [spec.clip for spec in specs]
    if workers <= 1:
        yield from map(make_video, clips)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(make_video, clips, chunksize=16)


def write_dataset(out: Path, videos: int = 9000, seed: int = 0, workers: int = 1, further: int = 0) -> list[Spec]:
    """Write the dataset, with `further` training clips, into the folder `out`, which must be new or empty."""
    if further < 0:
        raise ValueError(f"more is {further}: no fewer than 0 can be made")
    if videos < 10:
        raise ValueError(f"videos is {videos}: at least 10 are needed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty: choose another folder, or remove it first")
    unfinished = out.with_name(out.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    specs = all_specs(videos, seed)
    specs += sides(videos, specs[-1].source + 1)
    specs += more(further, seed, specs[-1].source + 1)
    with (
        zipfile.ZipFile(unfinished / "Scenes_Videos.zip", "w", zipfile.ZIP_STORED) as archive,
        (unfinished / "truth.jsonl").open("w", encoding="utf-8") as lines,
    ):
        for spec, (data, boxes) in zip(
            Progress(specs, desc="render", unit="clip", smoothing=0.05), rendered(specs, workers), strict=True
        ):
            archive.writestr(zipfile.ZipInfo(f"video/{spec.video_id}.mp4", (2020, 1, 1, 0, 0, 0)), data)
            lines.write(json.dumps(truth(spec, boxes), separators=(",", ":")) + "\n")
    configs, counts = [], []
    training = [spec for spec in specs if spec.split == "train"]
    clips_of = Counter(spec.source for spec in training)
    shown = [*specs, *(replace(spec, split="short", captions=short_captions(spec)) for spec in training)]
    shown += [replace(spec, split="twins") for spec in training if clips_of[spec.source] == 2]
    for split, (config, name) in CONFIGS.items():
        rows = [row(spec) for spec in shown if spec.split == split]
        if not rows:
            continue
        (unfinished / f"scenes_{config}.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
        configs.append(f"- config_name: {config}\n  data_files:\n  - split: {name}\n    path: scenes_{config}.json")
        counts.append(f"- `{config}`: {len(rows):,} clips")
    card = CARD.format(configs="\n".join(configs), seed=seed, counts="\n".join(counts))
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    contact_sheet(specs).save(unfinished / "contact.png")
    if out.exists():
        out.rmdir()
    unfinished.rename(out)
    return specs


def contact_sheet(specs: list[Spec], each: int = 2, columns: int = 8, side: int = 112) -> Image.Image:
    """Return a picture of `each` clips of each kind: a row of frames for each clip, with its caption."""
    shown: list[Spec] = []
    for group in (*KINDS, "probe", "stills", "sides"):
        shown += [s for s in specs if (s.kind if s.split in ("train", "test") else s.split) == group][:each]
    height = side + 16
    sheet = Image.new("RGB", (columns * side, height * len(shown)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, spec in enumerate(shown):
        frames, _ = render(spec.clip)
        for column in range(columns if len(frames) > 1 else 1):
            frame = frames[int((column + 0.5) * len(frames) / columns)]
            sheet.paste(frame.resize((side, side)), (column * side, index * height))
        pen.text((3, index * height + side + 2), f"{spec.video_id} {spec.kind}: {spec.captions[0]}", fill="black")
    return sheet


def write_gallery(data: Path, out: Path, count: int = 120) -> None:
    """Copy some test clips of a written dataset to `out`: videos/, posters/ and captions.json."""
    rows = {r["video_id"]: r for r in json.loads((data / "scenes_test_1k.json").read_text(encoding="utf-8"))}
    with (data / "truth.jsonl").open(encoding="utf-8") as lines:
        scenes = {scene["video_id"]: scene for scene in map(json.loads, lines) if scene["split"] == "test"}
    for folder in ("videos", "posters"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    captions = {}
    with zipfile.ZipFile(data / "Scenes_Videos.zip") as archive:
        for name in spread(scenes, count):
            video = archive.read(f"video/{name}.mp4")
            (out / "videos" / f"{name}.mp4").write_bytes(video)
            with av.open(io.BytesIO(video), "r") as container:
                frames = [frame.to_image() for frame in container.decode(video=0)]
            best = max(range(len(frames)), key=lambda i: visible(scenes[name], i))
            frames[best].save(out / "posters" / f"{name}.jpg", quality=80)
            captions[name + ".mp4"] = rows[name]["caption"]
    (out / "captions.json").write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")


def visible(scene: dict, frame: int) -> float:
    """Return how much of the frame shows actors; several actors count more than one large one."""
    return sum((box[2] * box[3]) ** 0.5 for actor in scene["actors"] if (box := actor["boxes"][frame]))


def spread(scenes: dict[str, dict], count: int) -> list[str]:
    """Return `count` clips of great variety: each time the one whose traits were chosen least so far."""
    seen: dict[str, int] = {}
    chosen: list[str] = []
    traits = {name: list(scene_traits(scene)) for name, scene in scenes.items()}
    while len(chosen) < min(count, len(scenes)):
        left = (name for name in traits if name not in chosen)
        best = min(left, key=lambda name: (sum(seen.get(t, 0) for t in traits[name]) / len(traits[name]), name))
        chosen.append(best)
        for trait in traits[best]:
            seen[trait] = seen.get(trait, 0) + 1
    return sorted(chosen, key=lambda name: int(name.removeprefix("video")))


def scene_traits(scene: dict) -> Iterable[str]:
    """Yield what a visitor sees of a clip: its kind, actors (counted twice), settings and motions."""
    yield "kind " + scene["kind"]
    for actor in scene["actors"]:
        yield from (actor["name"], actor["name"], "in " + actor["setting"])
        yield from ("does " + action[0] for action in actor["actions"])


def main() -> None:
    """Write the dataset, its gallery, or both, as the command line says."""
    parser = argparse.ArgumentParser(description="Write the Scenes benchmark.")
    parser.add_argument("out", type=Path, help="folder of the dataset")
    parser.add_argument("--videos", type=int, default=9000, help="training clips; the other splits go in proportion")
    parser.add_argument(
        "--more", type=int, default=0, help='further training clips, for train.py\'s "--extra-train-configs more"'
    )
    parser.add_argument("--seed", type=int, default=0, help="everything follows from it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--gallery", type=Path, help="also copy some test clips, with posters and captions, to here")
    parser.add_argument("--gallery-clips", type=int, default=120, help="number of clips in the gallery")
    args = parser.parse_args()
    written = args.gallery is not None and (args.out / "truth.jsonl").exists()
    if not written:
        try:
            specs = write_dataset(args.out, args.videos, args.seed, args.workers, args.more)
        except (ValueError, FileExistsError) as error:
            raise SystemExit(str(error)) from None
        size = sum(path.stat().st_size for path in args.out.iterdir())
        for split, (config, _) in CONFIGS.items():
            count = sum(spec.split == split for spec in specs)
            print(f"{config:10} {count:6} clips" if count else f"{config:10} captions of the training clips")
        print(f"{args.out}: {size / 1e6:.1f} MB\n\n{oracle_table(specs)}")
    if args.gallery is not None:
        write_gallery(args.out, args.gallery, args.gallery_clips)


if __name__ == "__main__":
    main()


def features(spec: Spec) -> dict[str, list[tuple]]:
    """Return what a reader of the spec can match: actors, settings, motions, and who does what where in which order."""
    found: dict[str, list[tuple]] = {"actors": [], "settings": [], "motions": [], "place order": [], "motion order": []}
    for act in spec.clip.acts:
        setting, when = spec.clip.setting_of(act), (act.start, act.stop)
        found["actors"].append((act.actor,))
        found["settings"].append((setting,))
        found["motions"].append((act.motion,))
        found["place order"] += [(act.actor, setting), (act.actor, when)]
        found["motion order"] += [(act.actor, act.motion), (act.actor, act.motion, when)]
    return found


def recall_at_1(specs: list[Spec], weights: dict[str, float]) -> float:
    """Return text to video R@1 in percent of a reader who compares what the captions tell with the specs.

    A caption with n best videos counts 1/n.
    """
    scores = np.zeros((len(specs), len(specs)))
    parsed = [features(spec) for spec in specs]
    for name, weight in weights.items():
        index = {key: i for i, key in enumerate(sorted({key for found in parsed for key in found[name]}, key=str))}
        holds = np.zeros((len(specs), len(index)))
        for line, found in zip(holds, parsed, strict=True):
            line[[index[key] for key in found[name]]] = 1
        place = np.array([[spec.tells[0]] for spec in specs])
        motion = np.array([[spec.tells[1]] for spec in specs])
        told = place if name == "settings" else motion if name.startswith("motion") else np.ones_like(place)
        scores += weight * ((holds * told) @ holds.T - 0.2 * told * holds.sum(1))
    best = scores >= scores.max(1, keepdims=True) - 1e-9
    return 100 * float(np.mean(np.diag(best) / best.sum(1)))


def oracle_table(specs: list[Spec]) -> str:
    """Return a table of R@1 on the test clips, of readers who know more or less."""
    unordered: dict[str, float] = {"actors": 3, "settings": 2}
    readers: dict[str, dict[str, float]] = {
        "actors + settings + motions, in order": {**unordered, "motions": 1, "place order": 1, "motion order": 1},
        "actors + settings, without time": unordered,
        "actors only": {"actors": 1},
        "settings only": {"settings": 1},
        "motions only": {"motions": 1},
    }
    test = [spec for spec in specs if spec.split == "test"]
    lines = [f"{'a reader of the specs knows':40} T2V R@1 ({len(test)} test clips)"]
    return "\n".join(lines + [f"{name:40} {recall_at_1(test, weights):5.1f}" for name, weights in readers.items()])
