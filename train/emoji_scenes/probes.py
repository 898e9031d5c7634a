"""What only the truth of Scenes can tell of a model: a sense of time, concepts that point, free queries.

Shapes: V videos, F frames, K concepts.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from benchmarks import Clip
from encode import encode_captions
from metrics import ranks

from emoji_scenes.captions import choose_words
from emoji_scenes.specs import draw_act
from suma.index.catalog import Row
from suma.index.search import span_of
from suma.model.suma import SUMA
from suma.model.vocabulary import split_words
from suma.similarity import Videos


def time_probe(model: SUMA, clips: Sequence[Clip], videos: Videos) -> dict[str, tuple[float, int]]:
    """Return how often, in percent, a caption scores its clip above the twin, and of how many pairs, by kind of pair.

    Chance is 50; a tie counts half. The kind is the row's source column; twins share the row's url. If only some of a
    kind's captions have the same words in another order ("from left to right"), these are also counted separately.
    """
    pairs: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        pairs.setdefault(clip.source, []).append(i)
    broken = [source for source, pair in pairs.items() if len(pair) != 2]
    if broken:
        raise ValueError(f"{broken[0]} is not a pair of clips: twins share their url")
    scores = model.score(encode_captions(model, [clip.captions[0] for clip in clips]), videos)
    won: dict[str, list[float]] = {}
    same_words: dict[str, list[float]] = {}
    for a, b in pairs.values():
        words = [sorted(split_words(clips[i].captions[0])) for i in (a, b)]
        for own, twin in ((a, b), (b, a)):
            margin = float(scores[own, own] - scores[own, twin])
            right = 0.5 if abs(margin) < 1e-6 else float(margin > 0)
            won.setdefault(clips[own].label, []).append(right)
            if words[0] == words[1]:
                same_words.setdefault(clips[own].label, []).append(right)
    for kind, some in same_words.items():
        if len(some) < len(won[kind]):
            won[f"{kind}, the same words in another order"] = some
    return {kind: (100 * float(np.mean(w)), len(w) // 2) for kind, w in sorted(won.items())}


def read_truth(file: Path) -> dict[str, dict]:
    """Return the truth of Scenes by video id: kind, fps, and each actor's name, setting, actions and boxes."""
    with file.open() as lines:
        return {scene["video_id"]: scene for scene in map(json.loads, lines)}


def pointing(
    model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]
) -> dict[str, tuple[float, int]]:
    """Return how often an actor's concept points to the frames that show it, in clips of one actor after another.

    `pointing`: how often (in percent, and of how many) the concept is hotter on these frames than on those of the other
    actor. `top-5`: how often it is among the five strongest concepts (standardised) of one of its frames.
    """
    mask, concepts = videos.mask.cpu(), videos.frame_concepts.cpu().double()
    valid = concepts[mask]
    standard = (concepts - valid.mean(0)) / valid.std(0)
    hotter, top = [], []
    for v, clip in enumerate(clips):
        scene = scenes[clip.video_id]
        if scene["kind"] not in ("twoact", "cut"):
            continue
        count = int(mask[v].sum())
        shown = [
            np.array([actor["boxes"][int((i + 0.5) / count * len(actor["boxes"]))] is not None for i in range(count)])
            for actor in scene["actors"]
        ]
        for actor, own, other in zip(scene["actors"], shown, reversed(shown), strict=True):
            own, other = own & ~other, other & ~own
            words = [w for w in split_words(actor["name"]) if w in model.space._index]
            if not words or not own.any() or not other.any():
                continue
            rarest = min(words, key=lambda w: model.config.word_counts[model.space._index[w]])
            k = model.space.concept_of([rarest], model.embed_words)[0]
            heat = concepts[v, :count, k].numpy()
            hotter.append(float(heat[own].mean() > heat[other].mean()))
            place = (standard[v, :count] > standard[v, :count, k : k + 1]).sum(1).numpy()
            top.append(float((place[own] < 5).any()))
    return {"pointing": (100 * float(np.mean(hotter)), len(hotter)), "top-5": (100 * float(np.mean(top)), len(top))}


def moment_spans(
    model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]
) -> dict[str, tuple[float, int]]:
    """Return how often, in percent, and of how many queries, the span found for one of two successive events has an
    intersection over union with it of 0.5 and of 0.7; beside it, half of the video around the best frame."""
    rng, queries, events = random.Random(0), [], []
    for v, clip in enumerate(clips):
        scene = scenes[clip.video_id]
        for actor in scene["actors"] if scene["kind"] in ("seq", "twoact", "cut") else ():
            for action, *event in actor["actions"]:
                act = draw_act(rng, actor["name"], action)
                word = choose_words(act, rng)
                queries.append(f"{word.noun} {word.motion(act, 'finite')}")
                events.append((v, event, len(actor["boxes"]) / scene["fps"]))
    texts, share = encode_captions(model, queries), model.config.concept_share
    found: dict[str, list[float]] = {"span": [], "half of the video": []}
    for n, (v, (start, stop), seconds) in enumerate(events):
        original = videos.frames[v, videos.mask[v]] @ texts.features[n]  # (F,)
        aligned = videos.frame_concepts[v, videos.mask[v]] @ texts.anchors[n]
        scores = ((1 - share) * original + share * aligned).cpu().numpy()
        times = [(i + 0.5) / len(scores) * seconds for i in range(len(scores))]
        best = int(scores.argmax())
        half = (max(0.0, times[best] - seconds / 4), min(seconds, times[best] + seconds / 4))
        span = span_of(scores, Row("", 0, 0.0, "", duration=seconds, times=times), best)
        for name, (first, last) in (("span", span), ("half of the video", half)):
            shared = max(0.0, min(last, stop) - max(first, start))
            found[name].append(shared / (max(last, stop) - min(first, start)))
    return {
        f"{name}, IoU {least}": (100 * float(np.mean([overlap >= least for overlap in overlaps])), len(overlaps))
        for name, overlaps in found.items()
        for least in (0.5, 0.7)
    }


def visitor_ranks(
    model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]
) -> list[dict[str, object]]:
    """Return for each query of visitor_queries.json the rank of the first right video.

    A right video has every named actor, and one of them does what is asked where it is asked. Queries without a right
    video are left out. All were written without knowledge of captions and model; those marked as seen were known when
    the short training captions were written.
    """

    def answers(scene: dict, wanted: dict) -> bool:
        if not set(wanted["actors"]) <= {actor["name"] for actor in scene["actors"]}:
            return False
        return any(
            actor["name"] in wanted["actors"]
            and wanted.get("setting", actor["setting"]) == actor["setting"]
            and set(wanted.get("actions", ())) <= {action for action, _, _ in actor["actions"]}
            for actor in scene["actors"]
        )

    rows: list[dict[str, object]] = []
    wishes = json.loads((Path(__file__).parent / "visitor_queries.json").read_text())
    scores = model.score(encode_captions(model, [wish["query"] for wish in wishes]), videos)
    for wish, row in zip(wishes, scores, strict=True):
        right = torch.tensor([answers(scenes[clip.video_id], wish) for clip in clips])
        if bool(right.any()):
            rank = float(ranks(row[None].cpu(), right[None])[0])
            of = {"query": wish["query"], "seen": wish.get("seen", False), "right_videos": int(right.sum())}
            rows.append({**of, "rank": rank})
    return rows
