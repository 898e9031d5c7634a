"""Memory and time of large training batches: `python tests/bench/train_memory.py`. Each case in a process of its own.

1. Gradient caching: the peak memory of a step of 512 pairs in chunks of 64, against plain steps of 64 and of 512 pairs,
   and how far its gradients are from the plain step's (float32).
2. Activation checkpointing in a ViT-B/32 of random weights: bytes kept for the backward pass, and time, in turns.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train")]

import numpy as np
import torch
from gradcache import cached_step
from losses import suma_loss

from suma.model.cpu import use_fast_attention_backward, use_fast_matmul
from suma.model.suma import SUMA
from suma.similarity import Scoring

CAPTION = "the {} dog number {} runs over the meadow"


def make_batch(model: SUMA, pairs: int, frames: int) -> tuple[torch.Tensor, ...]:
    size = model.config.image["size"]
    generator = torch.Generator().manual_seed(0)
    captions = [CAPTION.format(("red", "old", "small")[n % 3], n) for n in range(pairs)]
    pixels = torch.randint(0, 256, (pairs, frames, 3, size, size), generator=generator, dtype=torch.uint8)
    return model.tokenize(captions), model.anchors(captions), pixels, torch.ones(pairs, frames, dtype=torch.bool)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def step(model: SUMA, pairs: int, frames: int, chunk: int) -> dict[str, float]:
    """One step's gradients: seconds, and the peak of memory above what model and batch take."""
    batch = make_batch(model, pairs, frames)
    ids = torch.arange(pairs)
    loss = partial(suma_loss, video=ids, caption=ids, how=Scoring(0.25), alpha=0.1, beta=1.0)
    before, began = resident(), time.process_time()
    if chunk:
        losses = cached_step(model, batch, chunk, loss, lambda total: total.backward())
    else:
        losses = loss(model(*batch))
        losses.total.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"loss": losses.total.item(), "peak": peak, "seconds": time.process_time() - began}


def compare_gradients(model: SUMA, pairs: int, frames: int, chunk: int) -> dict[str, float]:
    model.eval()  # dropout would drop other values where the batch is cut
    gradients = []
    for size in (0, chunk):
        model.zero_grad()
        step(model, pairs, frames, size)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    a, b = (torch.cat([g[name].flatten() for name in gradients[0]]) for g in gradients)
    return {"difference": float((a - b).norm() / a.norm())}


def kept_bytes(model: SUMA, pixels: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, the weights' not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model.encode_frames(pixels)
    total = sum(kept.values())
    del out
    return total


def compare_checkpointing(frames: int, rounds: int) -> dict[str, float]:
    words = [f"word{i} dog cat" for i in range(32)]
    model = SUMA.from_clip("ViT-B-32", words, num_concepts=16, temporal_layers=0).train()
    pixels = torch.randint(0, 256, (frames, 3, 224, 224), dtype=torch.uint8)
    found: dict[str, float] = {}
    for name, on in (("plain", False), ("checkpointed", True)):
        model.clip.set_grad_checkpointing(on)
        found[f"{name}_bytes"] = kept_bytes(model, pixels)
    ratios = []
    for n in range(rounds + 1):
        times = []
        for on in (False, True):
            model.clip.set_grad_checkpointing(on)
            model.zero_grad()
            began = time.process_time()
            model.encode_frames(pixels).square().sum().backward()
            times.append(time.process_time() - began)
        if n:  # the first round warms up
            ratios.append(times[1] / times[0])
    return {**found, "time_ratio": float(np.median(ratios))}


def run(case: str, threads: int, **options: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--threads", str(threads), "--options", json.dumps(options)]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back: the peak is what is in use
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "assets" / "model"), help="whose towers the steps compute with")
    parser.add_argument("--pairs", type=int, default=512, help="pairs of the large batch")
    parser.add_argument("--chunk", type=int, default=64, help="pairs of the small one")
    parser.add_argument("--frames", type=int, default=2, help="frames per video")
    parser.add_argument("--rounds", type=int, default=4, help="how often checkpointing is timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        torch.set_num_threads(args.threads)
        use_fast_matmul()
        use_fast_attention_backward()
        options = json.loads(args.options)
        if args.case == "checkpointing":
            print(json.dumps(compare_checkpointing(**options)))
        else:
            work = step if args.case == "step" else compare_gradients
            print(json.dumps(work(SUMA.from_pretrained(options.pop("model")).train(), **options)))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, float32")
    common = {"model": args.model, "frames": args.frames}
    cases = {(args.chunk, 0): {}, (args.pairs, args.chunk): {}, (args.pairs, 0): {}}
    for pairs, chunk in cases:
        cases[pairs, chunk] = run("step", args.threads, pairs=pairs, chunk=chunk, **common)
    small = cases[args.chunk, 0]["peak"]
    print(f"\na step of {args.frames} frames per video: peak memory above model and batch, CPU time")
    for (pairs, chunk), found in cases.items():
        how = f"in chunks of {chunk}" if chunk else "plain"
        print(
            f"  {pairs:4} pairs {how:16} {found['peak'] / 1e6:7.0f} MB ({found['peak'] / small:.2f} x)"
            f"  {found['seconds']:6.1f} s  loss {found['loss']:.6f}"
        )
    found = run("gradients", args.threads, pairs=args.pairs, chunk=args.chunk, **common)
    print(f"  gradients of all weights, chunks against plain: relative difference {found['difference']:.1e}")
    found = run("checkpointing", args.threads, frames=12, rounds=args.rounds)
    plain, kept = found["plain_bytes"] / 12e6, found["checkpointed_bytes"] / 12e6
    print("\nViT-B/32, 12 frames: kept for the backward pass")
    print(f"  plain {plain:.1f} MB per frame, with activation checkpointing {kept:.1f} MB ({plain / kept:.1f}x less)")
    print(f"  time with checkpointing: {found['time_ratio']:.2f} x")


if __name__ == "__main__":
    main()
