"""What only the truth of Scenes can tell of a model: a sense of time, concepts that point and mean what their words
say, free queries, and where it fails.

Shapes: T captions, V videos (caption i belongs to video i), F frames, N frames of all videos, K concepts.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import Clip
from encode import encode_captions
from metrics import average_precision, ranks
from torch import Tensor

from emoji_scenes.captions import choose_words
from emoji_scenes.specs import draw_act
from emoji_scenes.words import ACTORS, MOTIONS, SETTINGS
from suma.index.search import span_of
from suma.index.storage import Row
from suma.model.suma import SUMA
from suma.model.vocabulary import split_words
from suma.similarity import Videos

STRONGEST = 5  # concepts of a frame that are looked at
COMMON = 0.5  # a concept true of more frames than this says nothing
WRONG = ("actor", "setting", "action", "order", "nothing")  # what is looked at, in this order


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


def visitor_queries(clips: Sequence[Clip], scenes: dict[str, dict]) -> tuple[list[dict], np.ndarray]:
    """Return the queries of visitor_queries.json (T) that some clips answer, and which do, (T, V) bool.

    A right video has every named actor, and one of them does what is asked where it is asked.
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

    wishes = json.loads((Path(__file__).parent / "visitor_queries.json").read_text())
    right = np.array([[answers(scenes[clip.video_id], wish) for clip in clips] for wish in wishes])
    return [wish for wish, row in zip(wishes, right, strict=True) if row.any()], right[right.any(1)]


def visitor_ranks(
    model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]
) -> list[dict[str, object]]:
    """Return for each of `visitor_queries` the rank of the first right video.

    All were written without knowledge of captions and model; those marked as seen were known when the short training
    captions were written.
    """
    wishes, right = visitor_queries(clips, scenes)
    if not wishes:
        return []
    scores = model.score(encode_captions(model, [wish["query"] for wish in wishes]), videos).cpu()
    return [
        {"query": w["query"], "seen": w.get("seen", False), "right_videos": int(row.sum()), "rank": float(rank)}
        for w, row, rank in zip(wishes, right, ranks(scores, torch.tensor(right)), strict=True)
    ]


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


def difference(wanted: dict, found: dict) -> str:
    """Return the first of WRONG in which two scenes differ: who, where, what, or the order; else "nothing"."""

    def told(scene: dict) -> list[object]:
        actors = scene["actors"]
        acts = [(start, actor["name"], action) for actor in actors for action, start, _ in actor["actions"]]
        return [
            sorted(actor["name"] for actor in actors),
            sorted((actor["name"], actor["setting"]) for actor in actors),
            sorted((name, action) for _, name, action in acts),
            sorted(acts),
        ]

    pairs = zip(WRONG, told(wanted), told(found), strict=False)
    return next((name for name, a, b in pairs if a != b), WRONG[-1])


def count_errors(
    scores: Tensor, clips: Sequence[Clip], scenes: dict[str, dict]
) -> dict[str, dict[str, tuple[float, int]]]:
    """Return R@1 in percent by kind of clip, and the share of wrong first videos by what is wrong; each with a number.

    scores: (T, V).
    """
    kinds = [scenes[clip.video_id]["kind"] for clip in clips]
    first = ranks(scores, torch.eye(len(clips), dtype=torch.bool)) <= 1
    by_kind = {}
    for kind in dict.fromkeys(sorted(kinds)):
        mine = torch.tensor([k == kind for k in kinds])
        by_kind[kind] = (100 * float(first[mine].double().mean()), int(mine.sum()))
    missed = (~first).nonzero().flatten().tolist()
    best = scores.clone().fill_diagonal_(float("-inf")).argmax(1)  # if a pair ties, the other one
    wrong = [difference(scenes[clips[i].video_id], scenes[clips[int(best[i])].video_id]) for i in missed]
    total = max(1, len(missed))
    return {"by kind": by_kind, "wrong first": {w: (100 * wrong.count(w) / total, wrong.count(w)) for w in WRONG}}


def one_act(
    model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]
) -> dict[str, tuple[float, int]]:
    """Return how often (in percent, and of how many) queries of one act find the only right video first, by its kind.

    A query tells one actor and what it does, in the captions' words.
    """
    answers: dict[tuple[str, str], set[int]] = {}
    for v, clip in enumerate(clips):
        for actor in scenes[clip.video_id]["actors"]:
            for action, *_ in actor["actions"]:
                answers.setdefault((actor["name"], action), set()).add(v)
    rng, queries, right = random.Random(0), [], []
    for (actor, action), found in sorted(answers.items()):
        act = draw_act(rng, actor, action)
        word = choose_words(act, rng)
        if len(found) == 1:
            queries.append(f"{word.noun} {word.motion(act, rng.choice(('gerund', 'finite')))}")
            right.append(found.pop())
    best = model.score(encode_captions(model, queries), videos).argmax(1).tolist()
    first: dict[str, list[bool]] = {}
    for v, b in zip(right, best, strict=True):
        first.setdefault(scenes[clips[v].video_id]["kind"], []).append(v == b)
    return {kind: (100 * sum(hits) / len(hits), len(hits)) for kind, hits in sorted(first.items())}
