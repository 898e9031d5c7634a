"""What a GPU does: `python tests/bench/gpu.py`. Random weights (speed does not depend on them), 12 frames of 224 px.

1. Frames encoded per second, in float32 and in bfloat16 as `suma index --bf16` does it, from uint8 on the GPU.
2. A training step of 128 pairs in bfloat16: seconds, and the peak of its memory; plain, in chunks (gradient caching),
   and with activation checkpointing.
3. An index of clips of 15 s, 320 x 240 (as index_build.py makes them): the whole, against decoding alone with as many
   processes, and against encoding alone.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(ROOT / "tests" / "bench")]

import numpy as np
import torch
from cloudy import make_clip
from gradcache import cached_step
from losses import suma_loss
from train_memory import CAPTION, make_batch

from suma import SUMA, VideoIndex
from suma.index import ingest
from suma.index.storage import NewClip
from suma.model.cpu import fast_image_tower

FRAMES = 12
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = DEVICE.type == "cuda"  # without a GPU all is float32: most CPUs take forever in bfloat16
PRECISION = "bfloat16" if HALF else "float32"


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median time of one call, after two to warm up."""
    times = []
    for _ in range(rounds + 2):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def make_model(tower: str) -> SUMA:
    captions = [CAPTION.format("red", n) for n in range(64)]
    return SUMA.from_clip(tower, captions, num_concepts=64).to(DEVICE)


@torch.no_grad()
def encoding(tower: str, batch: int, rounds: int) -> str:
    model = make_model(tower).eval()
    size = model.config.image["size"]
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=DEVICE)
    whole = batch / seconds(lambda: model.encode_frames(pixels), rounds)
    with fast_image_tower(model.clip, HALF):
        half = batch / seconds(lambda: model.encode_frames(pixels), rounds)
    return f"{tower}: {whole:,.0f} frames per second in float32, {half:,.0f} in {PRECISION} (batches of {batch})"


def training(tower: str, pairs: int, chunk: int, rounds: int) -> list[str]:
    model = make_model(tower).train()
    batch = tuple(x.to(DEVICE) for x in make_batch(model, pairs, FRAMES))
    ids = torch.arange(pairs, device=DEVICE)
    loss = partial(suma_loss, video=ids, caption=ids, how=model.config.scoring, alpha=0.1, beta=1.0)

    def step(chunk: int) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=HALF):
            if chunk:
                cached_step(model, batch, chunk, loss, lambda total: total.backward())
            else:
                loss(model(*batch)).total.backward()
        model.zero_grad()

    lines = []
    for name, size, checkpoint in (
        ("plain", 0, False),
        (f"chunks of {chunk}", chunk, False),
        ("activation checkpointing", 0, True),
    ):
        model.clip.set_grad_checkpointing(checkpoint)
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken = seconds(partial(step, size), rounds)
        peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else float("nan")
        lines.append(f"{tower}, {name}: {taken:.3f} s per step, {pairs / taken:,.0f} pairs per second, {peak:.1f} GiB")
    return lines


def make(job: tuple[Path, int, float]) -> Path:
    path, seed, length = job
    return make_clip(path, length, 320, 240, seed, "medium")


def indexing(tower: str, clips: int, length: float) -> str:
    model = make_model(tower).eval()

    def no_encoding(self: ingest.Builder, batch: list) -> None:
        for part in batch:
            features = np.zeros((1 + len(part.pixels), model.dim), np.float16)
            scales = np.ones(len(features))
            part.clip = NewClip("", part.start, part.end, part.times, features, np.zeros(2 * model.dim), scales)
        batch.clear()

    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        paths = list(pool.map(make, [(Path(folder) / f"{n}.mp4", n, length) for n in range(clips)]))
        VideoIndex(model).add(paths[:8], bf16=HALF)  # to warm up
        began = time.perf_counter()
        index = VideoIndex(model)
        report = index.add(paths, bf16=HALF)
        whole = time.perf_counter() - began
        assert len(report.added) == clips, report
        real, ingest.Builder._encode = ingest.Builder._encode, no_encoding  # type: ignore[method-assign]
        began = time.perf_counter()
        VideoIndex(model).add(paths, bf16=HALF)
        decode = time.perf_counter() - began
        ingest.Builder._encode = real  # type: ignore[method-assign]
    size = model.config.image["size"]
    pixels = torch.randint(0, 256, (384, 3, size, size), dtype=torch.uint8)
    with torch.no_grad(), fast_image_tower(model.clip, HALF):
        encode = clips * FRAMES / 384 * seconds(lambda: model.encode_frames(pixels.to(DEVICE)).cpu(), 5)
    return (
        f"{clips} clips of {length:g} s, {os.cpu_count()} CPUs, {tower} in {PRECISION}: {whole:.1f} s = "
        f"{clips / whole:.0f} clips per second; decoding alone {decode:.1f} s, encoding alone {encode:.1f} s: "
        f"{whole / max(decode, encode):.2f} x the slower"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", default="ViT-B-32,ViT-L-14", help="of open_clip; the first also trains and indexes")
    parser.add_argument("--batch", type=int, default=384, help="frames encoded at once")
    parser.add_argument("--pairs", type=int, default=128, help="of a training step")
    parser.add_argument("--chunk", type=int, default=32, help="pairs of a chunk")
    parser.add_argument("--rounds", type=int, default=10, help="timed repeats")
    parser.add_argument("--clips", type=int, default=256, help="to index; 0: none")
    parser.add_argument("--seconds", type=float, default=15, help="of each of them")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU here, so the CPU"
    print(f"{name}, torch {torch.__version__}")
    towers = args.towers.split(",")
    for tower in towers:
        print(encoding(tower, args.batch, args.rounds), flush=True)
    if args.pairs:
        print(*training(towers[0], args.pairs, args.chunk, args.rounds), sep="\n", flush=True)
    if args.clips:
        print(indexing(towers[0], args.clips, args.seconds))


if __name__ == "__main__":
    main()
