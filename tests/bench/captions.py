"""What a long caption list costs. `python tests/bench/captions.py [--lines 200000]`

The lines are those of MSR-VTT and MSVD, from the JSON files of the folders that `--text` names (rows with a `caption`,
or captions by video). They are encoded and kept once; then a fresh process opens the index and asks with its videos:
times, memory, and how much of the ten best by the full score of all lines the two stages find.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from suma import SUMA, VideoIndex
from suma.model.cpu import use_fast_matmul
from suma.model.vocabulary import unit

SHARED = ROOT.parent / "shared"


def megabytes() -> float:
    """Memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def read_lines(folders: list[Path]) -> Iterator[str]:
    """Captions, one after the other."""
    for file in (file for folder in folders for file in sorted(folder.rglob("*.json"))):
        content = json.loads(file.read_text())
        for found in content.values() if isinstance(content, dict) else (row["caption"] for row in content):
            yield from [found] if isinstance(found, str) else found


@torch.no_grad()
def ask(folder: Path, model: SUMA) -> None:
    """In a fresh process: open the index, ask, print."""
    before, began = megabytes(), time.perf_counter()
    index = VideoIndex.load(folder, model)
    opened, began = time.perf_counter() - began, time.perf_counter()
    count = len(index.caption_list)
    listed, began = time.perf_counter() - began, time.perf_counter()
    paths = [row.path for row in index.rows[:40]]
    index.captions(paths[0], 10)
    first = time.perf_counter() - began
    print(f"opened in {opened:.2f} s, its lines read in {listed:.2f} s, first answer in {first:.2f} s;", end=" ")
    print(f"memory from {before:.0f} to {megabytes():.0f} MB (vectors {index._listed.folded.nbytes / 1e6:.0f} MB)")
    spent, found = [], []
    for path in paths:
        began = time.perf_counter()
        found.append({caption for caption, _ in index.captions(path, 10)})
        spent.append(1000 * (time.perf_counter() - began))
    print(f"a search: {np.median(spent):.1f} / {np.percentile(spent, 95):.1f} ms (p50 / p95)", flush=True)
    vectors, dim, hits = index._listed.folded, model.dim, []
    for path, ours in list(zip(paths, found, strict=True))[::3]:
        video = index.parts(path)[1]
        scores = []
        for i in range(0, count, 5000):
            folded = vectors[i : i + 5000].astype(np.float32)
            folded[:, :dim] = unit(folded[:, :dim])
            scores.append(index.scorer.score(folded, video)[:, 0])
        best = np.argsort(-np.concatenate(scores))[:10].tolist()
        hits.append(len(ours & {index.caption_list[i] for i in best}) / 10)
    told = f"recall@10 of {len(hits)} videos against the full score of all lines ({model.config.aggregation})"
    print(f"{told}: {np.mean(hits):.3f}", flush=True)


def main() -> None:
    """Encode and keep the lines, then ask in another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--model", default=str(ROOT / "assets" / "model"))
    parser.add_argument("--videos", default=str(ROOT / "assets" / "gallery" / "videos"))
    parser.add_argument("--text", type=Path, nargs="+", default=[SHARED / "msrvtt", SHARED / "msvd"])
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    use_fast_matmul()
    torch.set_num_threads(1)
    model = SUMA.from_pretrained(args.model)
    if args.ask:
        return ask(args.ask, model)
    lines = list(dict.fromkeys(line.strip() for line in read_lines(args.text) if line.strip()))[: args.lines]
    if not lines:
        sys.exit(f"no captions in {' or '.join(map(str, args.text))}: name folders with --text")
    with tempfile.TemporaryDirectory() as place:
        index = VideoIndex(model)
        index.add(args.videos)
        index.set_captions(lines)
        began = time.perf_counter()
        index.save(Path(place, "index"))
        spent, kept = time.perf_counter() - began, Path(place, "index", "index-1.sqlite").stat().st_size
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"{len(lines):,} lines, {model.dim} dimensions: encoded and kept in {spent:.0f} s ", end="")
        print(f"({len(lines) / spent:.0f} a second, one thread), {kept / len(lines):.0f} B each; peak {peak:.0f} MB")
        command = [sys.executable, __file__, "--model", args.model, "--ask", str(Path(place, "index"))]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
