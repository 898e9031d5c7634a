"""Retrieval metrics of a saved model on a benchmark: `python train/evaluate.py --model DIR --data DIR`.

Shapes: Q queries, N items, T texts, V videos, F frames.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from benchmarks import MSRVTT, OPTIONS, Clip, load_clips
from data import pad_frames, pick_frames
from frame_cache import FrameCache
from torch import Tensor
from tqdm import tqdm

from suma.concepts import split_words
from suma.cpu import use_fast_matmul
from suma.model import SUMA
from suma.similarity import Similarities, Texts, Videos, combine, four_similarities

SHARES = tuple(i / 20 for i in range(0, 21))  # candidates for the aligned space's share of the score


@dataclass(frozen=True)
class Retrieval:
    """R@K in percent, median and mean rank, of one direction; `low` and `high` bound R@1 with 95 % confidence."""

    r1: float
    r5: float
    r10: float
    mdr: float
    mnr: float
    low: float
    high: float

    def row(self) -> str:
        first = f"{self.r1:.1f} ({self.low:.1f} to {self.high:.1f})"
        return " | ".join([first, *(f"{x:.1f}" for x in (self.r5, self.r10, self.mdr, self.mnr))])


def ranks(scores: Tensor, correct: Tensor) -> Tensor:
    """Rank (Q,) of each query's best correct item in scores (Q, N): 1 + wrong items above it + half of those level.

    correct: (Q, N) bool, at least one per row. Raises ValueError for NaN, which has no rank.

    >>> ranks(torch.tensor([[3.0, 2.0, 2.0]]), torch.tensor([[False, True, False]]))
    tensor([2.5000])
    """
    if bool(scores.isnan().any()):
        raise ValueError("a score is NaN: it cannot be ranked")
    if not bool(correct.any(1).all()):
        raise ValueError("a query has no correct item")
    wrong = ~correct.to(scores.device)
    best = scores.masked_fill(wrong, float("-inf")).amax(1, keepdim=True)
    above, level = ((scores > best) & wrong).sum(1), ((scores == best) & wrong).sum(1)
    return 1 + above + level / 2


def retrieval(scores: Tensor, correct: Tensor) -> Retrieval:
    """Metrics of scores (Q, N) given which items are correct (Q, N)."""
    r = ranks(scores, correct)
    at = [100 * float((r <= k).double().mean()) for k in (1, 5, 10)]
    low, high = bootstrap((r <= 1).double().numpy())
    return Retrieval(*at, float(r.quantile(0.5)), float(r.double().mean()), 100 * low, 100 * high)


def bootstrap(values: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the mean of values (Q,), by resampling the queries (percentiles, fixed seed)."""
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def both_ways(scores: Tensor, correct: Tensor) -> dict[str, Retrieval]:
    """Scores (T, V) -> metrics text-to-video and video-to-text (a video's best-ranked own sentence)."""
    return {"t2v": retrieval(scores, correct), "v2t": retrieval(scores.T, correct.T)}


@torch.no_grad()
def encode_videos(
    model: SUMA, clips: Sequence[Clip], cache: FrameCache, picks: Sequence[int] | None = None, batch_size: int = 32
) -> Videos:
    """Every clip (or those of `picks`, indices of the cache) once, from the middle frames of its segments."""
    model.eval()
    picks = range(len(clips)) if picks is None else picks
    num_frames, parts = model.config.num_frames, []
    for i in tqdm(range(0, len(picks), batch_size), desc="encode videos", disable=None, leave=False):
        chosen = picks[i : i + batch_size]
        frames = [cache.get(j, pick_frames(int(cache.counts[j]), num_frames)) for j in chosen]
        pixels, mask = (torch.from_numpy(x).to(model.device) for x in pad_frames(frames, num_frames))
        parts.append(model.videos(*model.encode_video(pixels, mask), mask))
    return Videos(*(torch.cat(x) for x in zip(*parts, strict=True)))


@torch.no_grad()
def encode_captions(model: SUMA, captions: Sequence[str], batch_size: int = 256) -> Texts:
    """Every caption once, batched by length so that little is padded."""
    model.eval()
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    parts = [model.texts([captions[i] for i in order[j : j + batch_size]]) for j in range(0, len(captions), batch_size)]
    texts = Texts(*(torch.cat(x) for x in zip(*parts, strict=True)))
    back = torch.tensor(np.argsort(order), device=model.device)
    return Texts(texts.features[back], texts.anchors[back])


def similarities(model: SUMA, texts: Texts, videos: Videos, chunk: int = 64) -> Similarities:
    """All four similarities (T, V) on the CPU, `chunk` videos at a time."""
    c = model.config
    parts = [
        four_similarities(texts, Videos(*(x[i : i + chunk] for x in videos)), c.aggregation, c.aggregation_temperature)
        for i in range(0, len(videos.features), chunk)
    ]
    return Similarities(*(torch.cat(x, dim=1).cpu() for x in zip(*parts, strict=True)))


def owners(clips: Sequence[Clip]) -> tuple[list[str], Tensor]:
    """All captions of the clips, and which video each belongs to: (T, V) bool."""
    captions = [caption for clip in clips for caption in clip.captions]
    owner = torch.tensor([v for v, clip in enumerate(clips) for _ in clip.captions])
    return captions, owner[:, None] == torch.arange(len(clips))[None]


def choose_share(sims: Similarities, correct: Tensor) -> float:
    """The aligned space's share that gives the best mean R@1 of both ways: to be called on held-out training videos."""
    results = [both_ways(combine(sims, share), correct) for share in SHARES]
    return SHARES[int(np.argmax([r["t2v"].r1 + r["v2t"].r1 for r in results]))]


def time_probe(model: SUMA, clips: Sequence[Clip], videos: Videos) -> dict[str, tuple[float, int]]:
    """Minimal pairs, alike but for time: how often a caption scores its own clip above its twin, in percent, and pairs.

    Chance is 50; a tie counts half. By kind of pair (the rows' source column); twins share the row's url.
    """
    pairs: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        pairs.setdefault(clip.source, []).append(i)
    broken = [source for source, pair in pairs.items() if len(pair) != 2]
    if broken:
        raise ValueError(f"{broken[0]} is not a pair of clips")
    scores = model.score(encode_captions(model, [clip.captions[0] for clip in clips]), videos)
    won: dict[str, list[float]] = {}
    for a, b in pairs.values():
        for own, twin in ((a, b), (b, a)):
            margin = float(scores[own, own] - scores[own, twin])
            won.setdefault(clips[own].label, []).append(0.5 if abs(margin) < 1e-6 else float(margin > 0))
    return {kind: (100 * float(np.mean(w)), len(w) // 2) for kind, w in sorted(won.items())}


def read_truth(file: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    """Scenes' truth by video id: kind, fps, and each actor's name, setting, actions and boxes."""
    with file.open() as lines:
        return {scene["video_id"]: scene for scene in map(json.loads, lines)}


def pointing(
    model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]
) -> dict[str, tuple[float, int]]:  # type: ignore[type-arg]
    """Does an actor's concept point to the frames it is in? By Scenes' truth, in clips with A first and B then.

    `pointing`: how often (in percent, and of how many) an actor's concept is hotter on the frames that show it than on
    the frames that show the other. `top-5`: how often it is among the five strongest (standardised) of one of them.
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


def visitors(model: SUMA, clips: Sequence[Clip], videos: Videos, scenes: dict[str, dict]) -> list[dict[str, object]]:  # type: ignore[type-arg]
    """Free queries (visitor_queries.json, written before the model was seen): is the first video found a right one?

    Right is a video with every named actor, one of whom does what is asked where it is asked. Queries that no video
    answers are left out.
    """

    def answers(scene: dict, wanted: dict) -> bool:  # type: ignore[type-arg]
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
            rows.append({"query": wish["query"], "right_videos": int(right.sum()), "rank": rank})
    return rows


def evaluate(model: SUMA, data: str, config: str = "test_1k", **options: Any) -> dict[str, object]:
    """Retrieval both ways; where the folder has them (Scenes), also the time probes and the pointing.

    options: those of `load_clips`.
    """
    clips = load_clips(data, config, **options)
    cache = FrameCache(clips, model.config.num_frames, model.config.image)
    cache.build()
    videos = encode_videos(model, clips, cache)
    captions, correct = owners(clips)
    sims = similarities(model, encode_captions(model, captions), videos)
    spaces = {"original": sims.original, "aligned": sims.aligned, "SUMA": combine(sims, model.config.concept_share)}
    results: dict[str, object] = {
        "data": data, "config": config, "videos": len(clips), "captions": len(captions),
        "concept_share": model.config.concept_share,
        "retrieval": {n: {way: asdict(r) for way, r in both_ways(s, correct).items()} for n, s in spaces.items()},
    }  # fmt: skip
    if (Path(data) / "truth.jsonl").exists():
        scenes = read_truth(Path(data) / "truth.jsonl")
        results["pointing"] = pointing(model, clips, videos, scenes)
        results["visitors"] = visitors(model, clips, videos, scenes)
        probe = load_clips(data, "probe")
        cache = FrameCache(probe, model.config.num_frames, model.config.image)
        cache.build()
        results["time"] = time_probe(model, probe, encode_videos(model, probe, cache))
    return results


def table(results: dict) -> str:  # type: ignore[type-arg]
    """The results as the README's Markdown tables."""
    lines = [f"{results['videos']} videos, {results['captions']} captions of `{results['config']}`", ""]
    lines += ["| score | direction | R@1 (95 % interval) | R@5 | R@10 | MdR | MnR |", "|---|---|---|---|---|---|---|"]
    ways = {"t2v": "text -> video", "v2t": "video -> text"}
    for space, both in results["retrieval"].items():
        lines += [f"| {space} | {ways[way]} | {Retrieval(**m).row()} |" for way, m in both.items()]
    for title, key in (
        ("minimal pair in time (chance 50)", "time"),
        ("concept heat against the scenes' truth", "pointing"),
    ):
        if key in results:
            lines += ["", f"| {title} | % | of |", "|---|---|---|"]
            lines += [f"| {name} | {value:.1f} | {number} |" for name, (value, number) in results[key].items()]
    if "visitors" in results:
        first = [row["rank"] == 1 for row in results["visitors"]]
        lines += ["", f"Free queries with a right video first: {sum(first)} of {len(first)}"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="a SUMA folder or Hub id")
    parser.add_argument("--data", default=MSRVTT, help="a benchmark on the Hub, or a local folder in its layout")
    parser.add_argument("--config", default="test_1k", help="the benchmark's split to evaluate")
    parser.add_argument("--video-column", default="video", help="the column of the videos' file names")
    parser.add_argument("--caption-column", default="caption", help="the column of the captions")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many videos; 0: all")
    parser.add_argument("--paragraph", action="store_true", help="join each video's captions (ActivityNet)")
    parser.add_argument("--output", type=Path, help="also write the results as JSON to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    args = parser.parse_args(argv)
    if args.device == "cpu":
        use_fast_matmul()
    options = {name: getattr(args, name) for name in OPTIONS}
    results = evaluate(SUMA.from_pretrained(args.model).to(args.device), args.data, args.config, **options)
    print(table(results))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
