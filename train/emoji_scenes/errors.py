"""Where a model fails on Scenes: by kind of clip, by what is wrong with the first video, and by queries of one act.

Shapes: T captions, V videos; caption i belongs to video i.
"""

import random
from collections.abc import Sequence

import torch
from benchmarks import Clip
from encode import encode_captions
from metrics import ranks
from torch import Tensor

from emoji_scenes.captions import choose_words
from emoji_scenes.specs import draw_act
from suma import SUMA
from suma.similarity import Videos

WRONG = ("actor", "setting", "action", "order", "nothing")  # what is looked at, in this order


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
