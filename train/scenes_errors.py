"""Where a model fails on Scenes: by kind of clip, and by what the wrong video has wrong.

Shapes: T captions, V videos; caption i belongs to video i.
"""

from collections.abc import Sequence

import torch
from benchmarks import Clip
from metrics import ranks
from torch import Tensor

WRONG = ("actor", "setting", "action", "order", "nothing")  # what is looked at, in this order


def difference(wanted: dict, found: dict) -> str:  # type: ignore[type-arg]
    """What two scenes' truths differ in first: who, where, what, or in which order. "nothing": a scene alike."""

    def told(scene: dict) -> list[object]:  # type: ignore[type-arg]
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


def errors(scores: Tensor, clips: Sequence[Clip], scenes: dict[str, dict]) -> dict[str, dict[str, tuple[float, int]]]:  # type: ignore[type-arg]
    """R@1 in percent by kind of clip (and how many), and the wrong first videos (T, V) by what is wrong with them."""
    kinds = [scenes[clip.video_id]["kind"] for clip in clips]
    first = ranks(scores, torch.eye(len(clips), dtype=torch.bool)) <= 1
    by_kind = {}
    for kind in dict.fromkeys(sorted(kinds)):
        mine = torch.tensor([k == kind for k in kinds])
        by_kind[kind] = (100 * float(first[mine].double().mean()), int(mine.sum()))
    missed = (~first).nonzero().flatten().tolist()
    best = scores.clone().fill_diagonal_(float("-inf")).argmax(1)  # also of a pair that ties
    wrong = [difference(scenes[clips[i].video_id], scenes[clips[int(best[i])].video_id]) for i in missed]
    total = max(1, len(missed))
    return {"by kind": by_kind, "wrong first": {w: (100 * wrong.count(w) / total, wrong.count(w)) for w in WRONG}}
