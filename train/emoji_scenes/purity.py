"""Measure whether the concepts of a model mean what their words say, by the truth of every frame of Scenes.

Shapes: N frames (of all videos), K concepts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from benchmarks import Clip
from concept_precision import average_precision

from emoji_scenes.words import ACTORS, MOTIONS, SETTINGS
from suma.model.suma import SUMA
from suma.model.vocabulary import split_words
from suma.similarity import Videos

STRONGEST = 5  # concepts of a frame that are looked at
COMMON = 0.5  # a concept true of more frames than this says nothing


def naming_words() -> dict[str, set[str]]:
    """Return the words that name one actor or one setting and nothing else: "actor dog": {"dog", "puppy", "hound"}."""
    things = {f"actor {a.name}": [a.name, *a.synonyms] for a in ACTORS.values()}
    things |= {f"setting {s.name}": list(s.phrases) for s in SETTINGS.values()}
    found = {thing: {w for phrase in phrases for w in split_words(phrase)} for thing, phrases in things.items()}
    spoken = {w for phrases in MOTIONS.values() for phrase in phrases for w in split_words(phrase)}
    count: dict[str, int] = {}
    for words in found.values():
        for word in words:
            count[word] = count.get(word, 0) + 1
    return {thing: {w for w in words if count[w] == 1 and w not in spoken} for thing, words in found.items()}


def truth_of_frames(clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]) -> list[set[str]]:
    """Return what can be seen in each of the N valid frames: {"actor dog", "setting snow"}."""
    seen = []
    for v, clip in enumerate(clips):
        actors, count = scenes[clip.video_id]["actors"], int(videos.mask[v].sum())
        frames = len(actors[0]["boxes"])
        for i in range(count):
            at = int((i + 0.5) / count * frames)
            now = (at + 0.5) / scenes[clip.video_id]["fps"]
            visible = {f"actor {a['name']}" for a in actors if a["boxes"][at] is not None}
            places = {a["setting"] for a in actors if any(start <= now < stop for _, start, stop in a["actions"])}
            seen.append(visible | {f"setting {place}" for place in places})
    return seen


def purity(
    model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]
) -> dict[str, tuple[float, float]]:
    """Return these measures, each in percent, with its value by chance.

    `average precision`: of the frames ranked by a concept's activation; a frame is right if it shows what a word of the
    concept names; the mean over concepts. `precision`, `recall`: of a frame's five strongest concepts (standardised).
    `names`: how often two naming words of one concept name the same thing (chance: any two of them).
    """
    things = naming_words()
    thing_of = {word: thing for thing, words in things.items() for word in words}
    members = [{thing_of[w] for w in model.space.members(k) if w in thing_of} for k in range(model.space.num_concepts)]
    seen = truth_of_frames(clips, videos, scenes)
    index = {thing: i for i, thing in enumerate(things)}
    shown = np.zeros((len(seen), len(index)), np.float32)
    for row, what in zip(shown, seen, strict=True):
        row[[index[thing] for thing in what]] = 1
    named = np.zeros((len(index), len(members)), np.float32)
    for k, own in enumerate(members):
        named[[index[thing] for thing in own], k] = 1
    true = shown @ named > 0  # (N, K)
    telling = np.flatnonzero((true.mean(0) > 0) & (true.mean(0) <= COMMON))
    heat = videos.frame_concepts[videos.mask].cpu().numpy()[:, telling]
    true = true[:, telling]
    standard = (heat - heat.mean(0)) / np.maximum(heat.std(0), 1e-9)
    number = min(STRONGEST, len(telling))
    top = np.argpartition(-standard, number - 1, axis=1)[:, :number]
    hits = np.take_along_axis(true, top, 1).sum(1)
    counted = true.sum(1)
    found = {
        "average precision": (
            np.mean([average_precision(heat[:, k], true[:, k]) for k in range(len(telling))]),
            true.mean(),
        ),
        "precision": (np.mean(hits / number), true.mean()),
        "recall": (np.mean(hits[counted > 0] / counted[counted > 0]), number / len(telling)),
        "names": _same_thing(model, thing_of),
    }
    return {name: (100 * float(value), 100 * float(chance)) for name, (value, chance) in found.items()}


def _same_thing(model: SUMA, thing_of: dict[str, str]) -> tuple[float, float]:
    known: list[Any] = [
        (k, thing_of[w]) for k in range(model.space.num_concepts) for w in model.space.members(k) if w in thing_of
    ]
    together = alike = same = pairs = 0
    for i, (k, thing) in enumerate(known):
        for other, another in known[:i]:
            pairs += 1
            alike += thing == another
            together += k == other
            same += k == other and thing == another
    return same / max(1, together), alike / max(1, pairs)
