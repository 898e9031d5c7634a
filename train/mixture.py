"""The data sets of a training run: the benchmark it is about, and others that take a share of each batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import OPTIONS, Clip, load_clips
from config import TrainConfig
from data import Part, hold_out, join


def parse_mix(mix: str) -> list[tuple[str, list[str], float]]:
    """Return data set, configs and share of each entry of `--mix`. Raise ValueError for any other form.

    >>> parse_mix("photos:train=0.4,me/clips:train+short=0.1")
    [('photos', ['train'], 0.4), ('me/clips', ['train', 'short'], 0.1)]
    """
    entries = []
    for entry in filter(None, mix.split(",")):
        source, _, share = entry.rpartition("=")
        data, _, configs = source.rpartition(":")
        try:
            part = float(share)
        except ValueError:
            part = 0.0
        if not (data and configs and 0 < part < 1):
            raise ValueError(f"--mix {entry!r}: expected DATASET:CONFIG=SHARE with a share between 0 and 1")
        entries.append((data, configs.split("+"), part))
    if sum(part for _, _, part in entries) >= 1:
        raise ValueError(f"--mix {mix!r}: the shares must leave some of each batch to --dataset")
    return entries


def load_mixture(c: TrainConfig) -> tuple[list[Clip], list[Part]]:
    """Return the clips of all data sets of a run, and the parts they make, the benchmark's first.

    Each set has whole source videos held out: c.held_out clips of the benchmark, at most a tenth of each other set.
    Clips that share a source video with a held-out clip are in no set's training. A file in two sets becomes one clip
    of the first set, with the captions of both. Raise ValueError or OSError as `load_clips` does.
    """
    options: dict[str, Any] = {name: getattr(c, name) for name in OPTIONS}
    further = parse_mix(c.mix)
    first = [c.train_config, *filter(None, c.extra_train_configs.split(","))]
    named = [(c.dataset, first, 1 - sum(part for _, _, part in further)), *further]
    sets: list[list[Clip]] = []
    held: list[list[Clip]] = []
    for data, configs, _ in named:
        loaded = [load_clips(data, config, **options) for config in configs]
        number = c.held_out if not sets else min(c.held_out, len(loaded[0]) // 10)
        chosen = hold_out(loaded[0], number, c.seed)[1]
        clips = loaded[0]
        for more in loaded[1:]:
            clips = join(clips, more, chosen)
        sets.append(clips)
        held.append([clips[i] for i in chosen])
    return merge_sets(named, sets, held)


def merge_sets(
    named: Sequence[tuple[str, list[str], float]], sets: Sequence[Sequence[Clip]], held: Sequence[Sequence[Clip]]
) -> tuple[list[Clip], list[Part]]:
    """Return one list of the sets' clips, and the parts as indices of it; see `load_mixture`."""
    clips: list[Clip] = []
    index: dict[str, int] = {}  # of a file
    sources = {clip.source for chosen in held for clip in chosen}
    parts = []
    for (data, configs, share), own, chosen in zip(named, sets, held, strict=True):
        kept = {str(clip.path) for clip in chosen}
        part = Part(f"{data}:{configs[0]}", share, [], [])
        for clip in own:
            path, is_held = str(clip.path), str(clip.path) in kept
            if not is_held and clip.source in sources:
                continue
            if (known := index.get(path)) is not None:
                clips[known] = replace(clips[known], captions=clips[known].captions + clip.captions)
                continue
            index[path] = len(clips)
            (part.held if is_held else part.train).append(len(clips))
            clips.append(clip)
        parts.append(part)
    return clips, parts
