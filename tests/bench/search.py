"""How fast and how exact a search is. `python tests/bench/search.py [--sizes 1000 10000 100000 1000000]`

Synthetic videos of 12 frames, 512 dimensions, a concept space of 1,024: a power-law spectrum (j^-0.45), a common mean,
N / 50 topics, frames = centre + noise (cosine of two frames of a video 0.9), queries = a noisy centre with another
mean; their noise is such that R@1 is about a half at N = 1,000, as on MSR-VTT. A million videos have one frame each, so
that they fit on a disk; their first stage is the same. No text is encoded: what is timed begins with the features.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[2]))

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from peers import PEERS

from suma import SUMA, VideoIndex
from suma.index import first_stage
from suma.index.first_stage import Candidates, keep_cache
from suma.index.scoring import Clips, Scorer
from suma.index.storage import NewClip, Row
from suma.index.store import Store
from suma.model.config import Scoring
from suma.model.cpu import use_fast_matmul
from suma.model.encoder import Queries
from suma.model.vocabulary import unit
from suma.similarity import Texts

DIM, CONCEPTS, FRAMES, QUERIES, BLOCK = 512, 1024, 12, 100, 2000
PEERS_SIZE = 10_000  # videos on which other engines are tried as well
TOWER = {
    "embed_dim": DIM,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 1024, "width": DIM, "heads": 8, "layers": 1},
}


class World:
    """Where the synthetic videos and queries come from."""

    def __init__(self, count: int):
        self.random = torch.Generator().manual_seed(count)
        self.spectrum = torch.arange(1, DIM + 1) ** -0.45
        self.mean, self.gap = self.draw(), 0.7 * self.draw()
        self.topics = self.draw(max(1, count // 50))

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, DIM, generator=self.random) * self.spectrum

    def videos(self, count: int, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Centres (n, D), unit videos (n, D) and unit frames (n, F, D)."""
        topic = self.topics[torch.randint(len(self.topics), (count,), generator=self.random)]
        centre = self.mean + 0.8 * topic + 0.5 * self.draw(count)
        pictures = centre[:, None] + 0.5 * self.draw(count, frames)
        return centre, F.normalize(pictures.mean(1) + 0.15 * self.draw(count), dim=-1), F.normalize(pictures, dim=-1)

    def texts(self, centres: torch.Tensor, concepts: torch.Tensor) -> Texts:
        features = F.normalize(centres + self.gap + QUERY_NOISE * self.draw(len(centres)), dim=-1)
        strongest = (features @ concepts.T).topk(6, dim=-1)
        anchors = torch.zeros(len(features), CONCEPTS).scatter_(1, strongest.indices, strongest.values.clamp_min(0.01))
        return Texts(features, F.normalize(anchors, dim=-1))


QUERY_NOISE = 1.6  # R@1 about a half at N = 1,000


def fill(index: VideoIndex, folder: Path, count: int, frames: int) -> torch.Tensor:
    """A store of synthetic videos; the centres of the first QUERIES."""
    model, world = index.model, World(count)
    scorer = Scorer(model.concepts(), Scoring(model.config.concept_share))
    store, centres = Store.create(folder, model.fingerprint(), DIM), []
    for start in range(0, count, BLOCK):
        centre, video, pictures = world.videos(min(BLOCK, count - start), frames)
        centres.append(centre[: max(0, QUERIES - start)])
        rows = torch.cat([video[:, None], pictures], 1).numpy()
        clips = Clips(rows, scorer.inverse_norms(rows), np.ones(pictures.shape[:2], bool))
        features, vectors = rows.astype(np.float16), scorer.fold_videos(clips).astype(np.float16)
        scales, times = scorer.inverse_norms(unit(features.astype(np.float32))), [float(f) for f in range(frames)]
        files, clips = [], []
        for i in range(len(video)):
            n = start + i
            files.append(Row(f"/videos/{n // 1000}/{n}.mp4", n, 1.0, f"{n:064x}", 12.0))
            clips.append(NewClip(files[-1].digest, 0.0, 12.0, times, features[i], vectors[i], scales[i]))
        store._write(files, clips)
    keep_cache(store)
    index._world = world  # type: ignore[attr-defined]
    return torch.cat(centres)


def timed(answer: Callable[[int], object], rounds: int = QUERIES) -> str:
    answer(0)
    spent = []
    for i in range(rounds):
        began = time.perf_counter()
        answer(i)
        spent.append(1000 * (time.perf_counter() - began))
    timed.last = float(np.median(spent))  # type: ignore[attr-defined]
    return f"{np.median(spent):.2f} / {np.percentile(spent, 95):.2f} ms"


def recall(found: list[list[int]], true: list[list[int]]) -> float:
    return float(np.mean([len(set(f[:10]) & set(t[:10])) / 10 for f, t in zip(found, true, strict=True)]))


@torch.no_grad()
def measure(model: SUMA, count: int, threads: int, place: Path) -> None:
    """One size: print latencies, bytes and recall."""
    frames = FRAMES if count < 1_000_000 else 1
    concepts, c = model.space.concepts(), model.config
    index, folder = VideoIndex(model), place / f"{count}"
    world_centres = fill(index, folder, count, frames)
    texts = index._world.texts(world_centres, concepts)  # type: ignore[attr-defined]
    queries = index.scorer.fold_texts(Queries(*(x.numpy() for x in texts)))
    began = time.perf_counter()
    index._store = Store.open(folder, model.fingerprint(), DIM)
    first = Candidates()
    first.search(index.store, index.store.snapshot, queries[0], 10)
    opening = time.perf_counter() - began
    snapshot, store = index.store.snapshot, index.store
    disk = sum(file.stat().st_size for file in folder.iterdir())
    hot = snapshot.folded.nbytes if first._coarse is None else first._coarse.bytes_each * count
    print(f"\n{count:,} videos x {frames} frames: opened and searched once in {opening:.2f} s;", end=" ")
    print(f"hot {hot / count:.0f} B per video, on disk {disk / count:.0f} B; four-way {4 * 13 * (DIM + CONCEPTS)} B")

    exact: Any = faiss.IndexFlatIP(2 * DIM)

    def one(i: int) -> Texts:
        return Texts(texts.features[i : i + 1], texts.anchors[i : i + 1])

    def stage(i: int) -> list[int]:
        return first.search(store, snapshot, queries[i], 100)

    def score(start: int, end: int, found: Sequence[int]) -> np.ndarray:
        return Scorer(index.scorer.concepts, c.scoring).score(
            queries[start:end], index._searcher.clips(snapshot, found)
        )

    def whole(i: int) -> list[int]:
        found = stage(i)
        scores = score(i, i + 1, found)[0]
        return [found[k] for k in np.argsort(-scores)[:10].tolist()]

    def flat(i: int) -> Any:
        return exact.search(queries[i : i + 1], 10)

    for cores in range(1, threads + 1):
        torch.set_num_threads(cores), faiss.omp_set_num_threads(cores)
        print(f"  {cores} core: folded stage {timed(stage)}", end="")
        spent = timed.last  # type: ignore[attr-defined]
        print(
            f" ({2 * 2 * DIM * count / spent / 1e6:.1f} GB/s if all is read), with 100 rescored {timed(whole)}", end=""
        )
        print(f" = {timed.last / spent:.2f} x (p50 / p95)", flush=True)  # type: ignore[attr-defined]
    torch.set_num_threads(1), faiss.omp_set_num_threads(1)
    for i in range(0, count, 50_000):
        exact.add(np.ascontiguousarray(snapshot.folded[i : i + 50_000], np.float32))
    print(f"  1 core: faiss Flat, float32 {timed(flat, 20)}", flush=True)
    truth = [ids[:10].tolist() for ids in exact.search(queries, 10)[1]]
    print(
        f"  recall@10 of the stage against all inner products {recall([stage(i) for i in range(QUERIES)], truth):.4f}"
    )
    exact.reset()
    if count == PEERS_SIZE:
        beside(np.asarray(snapshot.folded, np.float32), queries, truth, folder, stage)
    if count <= 100_000:
        compare(model, index, texts, score, count, stage, whole)
    if count <= 10_000:
        kept = index.videos(range(count))
        rows = model.make_videos(*map(torch.from_numpy, (kept.features, kept.frames, kept.mask)))
        frames_of, placed_of = rows.frames.flatten(0, 1).contiguous(), rows.frame_concepts.flatten(0, 1).contiguous()

        def four_way(i: int) -> torch.Tensor:
            t = one(i)
            fine = (frames_of @ t.features[0]).view(count, -1).mean(1)
            concept_fine = (placed_of @ t.anchors[0]).view(count, -1).mean(1)
            original = rows.features @ t.features[0] + fine
            aligned = rows.concepts @ t.anchors[0] + concept_fine
            return ((1 - c.concept_share) / 2 * original + c.concept_share / 2 * aligned).topk(10).indices

        spent = timed(four_way, 20)
        four = timed.last  # type: ignore[attr-defined]
        timed(stage)
        print(f"  1 core: four-way brute force, float32 {spent} = {four / timed.last:.0f} x the folded stage", end="")  # type: ignore[attr-defined]
        c.aggregation = "mean"
        full = model.score(one(0), rows)[0].numpy()
        short = score(0, 1, list(range(count)))[0]
        print(f"; largest difference of the two scores {float(np.abs(full - short).max()):.1e}", flush=True)


def beside(
    vectors: np.ndarray, queries: np.ndarray, truth: list[list[int]], folder: Path, stage: Callable[[int], list[int]]
) -> None:
    """Latency and recall of embedded engines on the same vectors, which stay in float32 for them."""
    timed(stage)
    ours = timed.last  # type: ignore[attr-defined]
    for name, make in PEERS.items():
        try:
            search = make(vectors, folder.parent)
        except ImportError as error:
            print(f"  {name} is left out ({error})")
            continue
        spent = timed(lambda i, search=search: search(queries[i]), 20)  # type: ignore[misc]
        found = [search(query) for query in queries[:30]]
        slower = timed.last / ours  # type: ignore[attr-defined]
        print(
            f"  {name} {spent} = {slower:.1f} x the folded stage, recall@10 {recall(found, truth[:30]):.4f}", flush=True
        )


def compare(
    model: SUMA,
    index: VideoIndex,
    texts: Texts,
    score: Callable[[int, int, Sequence[int]], np.ndarray],
    count: int,
    stage: Callable[[int], list[int]],
    whole: Callable[[int], list[int]],
) -> None:
    """Recall@10 against the exact score of all videos, for each way of aggregating frames."""
    snapshot, number = index.store.snapshot, 30
    vectors = np.concatenate(
        [unit(snapshot.vectors(range(i, min(i + 5000, count))).astype(np.float32)) for i in range(0, count, 5000)]
    )
    alone = np.argsort(-(texts.features[:number].numpy() @ vectors.T), axis=1)[:, :100]
    for how in ("mean", "max", "softmax"):
        model.config.aggregation = how
        scores = np.concatenate([score(0, number, range(i, min(i + 1000, count))) for i in range(0, count, 1000)], 1)
        true = np.argsort(-scores, 1)[:, :10].tolist()
        hits = sum(int(t[0] == i) for i, t in enumerate(true))
        ours = recall([whole(i) for i in range(number)], true)
        theirs = []
        for i in range(number):
            kept = alone[i].tolist()
            theirs.append([kept[k] for k in np.argsort(-scores[i, kept])[:10].tolist()])
        print(
            f"  {how}: recall@10 {ours:.4f} with 100 rescored; {recall(theirs, true):.4f} by the video "
            f"vector alone; R@1 {100 * hits / number:.0f} %",
            flush=True,
        )


def main() -> None:
    """Print a block of lines for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the synthetic indexes are kept meanwhile (5 GB for a million)")
    args = parser.parse_args()
    use_fast_matmul()
    torch.set_num_threads(1)
    words = [f"w{n}" for n in range(CONCEPTS)]
    model = SUMA.from_clip(TOWER, words, num_concepts=CONCEPTS)
    block = torch.zeros(64 << 20)
    spent = min(_seconds(lambda: block.sum()) for _ in range(5))
    print(f"one core reads {block.nbytes / spent / 1e9:.1f} GB/s; in codes beyond {first_stage.EXACT_LIMIT:,} videos")
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        for count in args.sizes:
            measure(model, count, args.threads, Path(place))


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
