"""What each space is worth to a search: `python tests/bench/concept_search.py --dataset SCENES [--model DIR]`.

On the test split, text to video: the original space alone, the concept space alone, and both, at the same number of
bytes per video, under the folded score (exact for `mean`); and sparse concepts as a first stage: of each video only its
strongest concepts are kept, in inverted lists, which a sentence's words look up. For the speed the videos are repeated
with a little noise. One thread. Shapes: T texts, V videos, D joint width, K concepts.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "train")]

import numpy as np
import torch
from encode import clips_of, encode_captions, encode_videos
from evaluate import load_split
from metrics import owners, retrieval
from torch import Tensor

from suma.index.scoring import Scorer
from suma.model.config import Scoring
from suma.model.cpu import use_fast_matmul
from suma.model.encoder import Queries
from suma.model.suma import SUMA

KEPT = (4, 8, 16, 32, 64)  # concepts of each video in the inverted lists
FIRST = 100  # candidates of the first stage


def as_int8(vectors: Tensor) -> Tensor:
    """Rounded to 255 steps of each vector's largest entry, as an index would keep them."""
    step = vectors.abs().amax(1, keepdim=True) / 127
    return (vectors / step).round() * step


def milliseconds(work: Callable[[int], object], texts: int, repeats: int = 60) -> float:
    """Median time of `work` for one text."""
    times = []
    for i in range(repeats):
        began = time.perf_counter()
        work(i % texts)
        times.append(1000 * (time.perf_counter() - began))
    return median(times[10:])


class InvertedLists:
    """For each concept the videos that keep it, with their values (V, k): what a sparse index would hold."""

    def __init__(self, activations: np.ndarray, kept: int):
        top = np.argpartition(-activations, kept - 1, axis=1)[:, :kept]
        order = np.argsort(top.ravel(), kind="stable")
        self.videos = (order // kept).astype(np.int32)
        self.values = np.take_along_axis(activations, top, 1).ravel()[order].astype(np.float32)
        self.starts = np.searchsorted(top.ravel()[order], np.arange(activations.shape[1] + 1))
        self.count = len(activations)

    def search(self, anchor: np.ndarray, number: int) -> np.ndarray:
        """The best `number` videos for an anchor (K,), of which only the concepts above 0 are looked up."""
        scores = np.zeros(self.count, np.float32)
        for k in np.flatnonzero(anchor):
            span = slice(self.starts[k], self.starts[k + 1])
            scores[self.videos[span]] += anchor[k] * self.values[span]
        return np.argpartition(-scores, number - 1)[:number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="a folder that train/scenes.py wrote")
    parser.add_argument("--model", default="assets/model", help="a SUMA folder")
    parser.add_argument("--repeat", type=int, default=100, help="copies of the videos, for the speed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    use_fast_matmul()
    model = SUMA.from_pretrained(args.model)
    clips, cache = load_split(model, str(args.dataset), "test_1k", None)
    videos, (captions, correct) = encode_videos(model, clips, cache), owners(clips)
    texts, dim, how = encode_captions(model, captions), model.dim, model.config.scoring

    def fold(how: Scoring) -> tuple[Tensor, Tensor]:
        scorer = Scorer(model.concepts(), how)
        queries = scorer.fold_texts(Queries(*(x.numpy() for x in texts)))
        return torch.from_numpy(queries), torch.from_numpy(scorer.fold_videos(clips_of(scorer, videos)))

    print(
        f"{len(captions)} captions, {len(clips)} videos; {platform.machine()}, one thread, torch {torch.__version__}\n"
    )

    print("| space | bytes per video | R@1 (95 %) | R@10 |\n|---|---|---|---|")
    for name, share in (("original alone", 0.0), ("concepts alone", 1.0), ("both", how.concept_share)):
        query, folded = fold(how._replace(concept_share=share))
        half = slice(None) if 0 < share < 1 else slice(dim) if share == 0 else slice(dim, None)
        folded, query = folded[:, half], query[:, half]
        for kind, kept, size in (("float16", folded.half().float(), 2), ("8 bits", as_int8(folded), 1)):
            found = retrieval(query @ kept.T, correct)
            r1 = f"{found.r1:.1f} ({found.low:.1f} to {found.high:.1f})"
            print(f"| {name}, {kind} | {size * folded.shape[1]} | {r1} | {found.r10:.1f} |")

    scores = model.score(texts, videos)
    best = scores.topk(10).indices
    query, folded = fold(how)
    coarse = (query @ folded.T).topk(FIRST).indices
    many = folded.repeat(args.repeat, 1)
    many += 0.01 * torch.randn(many.shape, generator=torch.Generator().manual_seed(0))
    scanned = milliseconds(lambda i: (many @ query[i]).topk(FIRST), len(query))
    print(
        f"\n| first stage, {FIRST} candidates | bytes per video | recall of the exact 10 | ms for {len(many)} videos |"
    )
    print(f"|---|---|---|---|\n| folded, all | {4 * dim} | {recall(coarse, best):.3f} | {scanned:.2f} |")
    activations = torch.maximum(videos.concepts, videos.frame_concepts.amax(1))
    standard = ((activations - activations.mean(0)) / activations.std(0)).numpy()
    anchors = texts.anchors.numpy()
    for kept in KEPT:
        lists = InvertedLists(standard, kept)
        candidates = torch.from_numpy(np.stack([lists.search(a, FIRST) for a in anchors]).astype(np.int64))
        larger = InvertedLists(np.tile(standard, (args.repeat, 1)), kept)
        taken = milliseconds(lambda i, larger=larger: larger.search(anchors[i], FIRST), len(anchors))
        print(f"| {kept} strongest concepts | {6 * kept} | {recall(candidates, best):.3f} | {taken:.2f} |")


def recall(candidates: Tensor, best: Tensor) -> float:
    """How many of the best (T, 10) are among the candidates (T, n)."""
    return float((best[:, :, None] == candidates[:, None]).any(-1).double().mean())


if __name__ == "__main__":
    main()
