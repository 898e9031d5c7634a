"""What a training step waits for: `python tests/bench/train_step.py`. All sides are timed in turns, in one run.

1. A step with cached frames against the same computation on a batch that is already in memory (wall time).
2. Reading a video's frames from the cache, as JPEG and as raw bytes, against decoding them with decord (CPU time).
3. A step with torch.compile against one without (`--compile`; wall time, and the seconds that compiling took).
"""

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(ROOT / "tests")]

import decord
import numpy as np
import torch
from benchmarks import Clip
from clips import write_video
from config import TrainConfig, best_precision
from data import Batches, Part
from frame_cache import FrameCache
from losses import suma_loss
from optimizer import parameter_groups
from PIL import Image

from suma.model.cpu import use_fast_attention_backward, use_fast_matmul
from suma.model.suma import SUMA
from suma.similarity import Scoring
from suma.video.preprocess import resize_frames

FRAMES = 12


def timed(clock: Callable[[], float], work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def make_clips(folder: Path, number: int, seconds: float, size: tuple[int, int]) -> list[Clip]:
    """h264 clips like MSR-VTT's: 30 frames a second, a key frame every 250, soft shapes that drift, and some grain."""
    clips = []
    for n in range(number):
        path, rng = folder / f"{n}.mp4", np.random.default_rng(n)
        width, height = size
        scene = np.zeros((height, 2 * width, 3), np.float32)
        for cells in (4, 9, 24):
            some = Image.fromarray(rng.integers(0, 256, (cells, 2 * cells, 3), np.uint8))
            scene += np.asarray(some.resize((2 * width, height), Image.Resampling.BICUBIC), np.float32) / 3

        def picture(i: int, w: int, h: int, scene: np.ndarray = scene, rng: np.random.Generator = rng) -> np.ndarray:
            drift = i * w // (30 * 20) if i % 60 < 45 else (i * 3 * w) // (30 * 20) % w
            return (scene[:, drift : drift + w] + rng.normal(0, 6.3, (h, w, 1))).clip(0, 255).astype(np.uint8)

        write_video(path, int(30 * seconds), size, fps=30, gop=250, picture=picture, options={"crf": "23"})
        clips.append(Clip(str(n), path, (f"clip number {n} moves",), 0, str(n), "made up"))
    return clips


def compare_loading(folder: Path, number: int, seconds: float) -> None:
    image = {"size": 224, "interpolation": "bicubic", "resize_mode": "shortest", "mean": [0.5] * 3, "std": [0.5] * 3}
    clips = make_clips(folder, number, seconds, (320, 240))
    caches = {form: FrameCache(clips, 2 * FRAMES, image, folder, form) for form in ("jpeg", "raw")}
    for cache in caches.values():
        cache.build()

    def decode(i: int) -> None:
        reader = decord.VideoReader(str(clips[i].path), num_threads=1)
        at = ((np.arange(FRAMES) + 0.5) * len(reader) / FRAMES).astype(int)
        resize_frames(reader.get_batch(at).asnumpy(), 224)

    picks = np.arange(0, 2 * FRAMES, 2)
    size = sum(clip.path.stat().st_size for clip in clips) / number
    out = np.empty((FRAMES, 3, 224, 224), np.uint8)  # as the loader does: into memory that is there
    repeats = {"decord": 1, "jpeg": 20, "raw": 200}
    spent: dict[str, list[float]] = {name: [] for name in repeats}
    for i in range(number):
        spent["decord"].append(timed(time.process_time, lambda i=i: decode(i)))
        for form, cache in caches.items():
            some = timed(
                time.process_time, lambda c=cache, i=i, n=repeats[form]: [c.get(i, picks, out) for _ in range(n)]
            )
            spent[form].append(some / repeats[form])
    per_video = {name: 1000 * float(np.median(times)) for name, times in spent.items()}
    rate = size / 125 / seconds
    print(f"\n{FRAMES} frames of 224 px of {number} clips ({seconds:.0f} s of 320x240 h264, {rate:.0f} kb/s)")
    print("CPU time per video, median")
    print(f"  decord, resized     {per_video['decord']:8.2f} ms")
    for form in caches:
        disk = sum(file.stat().st_size for file in caches[form].folder.iterdir()) / number / 2 / 1e6
        ratio = float(np.median(np.array(spent["decord"]) / np.array(spent[form])))
        print(f"  cache as {form:10} {per_video[form]:8.2f} ms   {ratio:6.0f}x   {disk:.2f} MB for {FRAMES} frames")


class Steps:
    """Training steps of one model on the batches of one cache."""

    def __init__(self, model: SUMA, loader: Batches, c: TrainConfig):
        self.model, self.loader, self.c = model.train(), loader, c
        self.optimizer = torch.optim.AdamW(parameter_groups(model, c), betas=(0.9, 0.98))

    def compute(self, batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.c.mixed_precision == "bf16"):
            out = self.model(*(batch[name] for name in ("tokens", "anchors", "pixels", "mask")))
        suma_loss(out, batch["video"], batch["caption"], Scoring(0.25), 0.1, 1.0).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def pure_and_cached(self, ready: dict[str, torch.Tensor], first: int, number: int) -> tuple[float, float]:
        """Seconds per step on one batch, and on the loader's batches."""
        pure = timed(time.perf_counter, lambda: [self.compute(ready) for _ in range(number)])
        batches = self.loader(first, first + number, 0, 1)
        return pure / number, timed(time.perf_counter, lambda: [self.compute(batch) for batch in batches]) / number


def compare_steps(folder: Path, model: SUMA, rounds: int, batch_size: int, compiled: bool) -> None:
    captions = ["a dog runs over the meadow", "two cats play with a ball in the room", "a man drives a red car"]
    seed = make_clips(folder, 8, 2, (160, 160))
    names = itertools.count()
    clips = [
        Clip(str(n), seed[n % 8].path, tuple(captions), 0, str(n), "made up")
        for n in itertools.islice(names, 2 * batch_size)
    ]
    c = TrainConfig(batch_size=batch_size, train_frames=4, num_frames=12, cache_frames=12)
    block = 4  # steps between two looks at the clock
    print(
        f"\na step of {batch_size} pairs x 4 frames of {model.config.image['size']} px, {c.mixed_precision}, wall time"
    )
    for form in ("raw", "jpeg"):
        cache = FrameCache(clips, 12, model.config.image, folder, form)
        cache.build()
        steps = Steps(model, Batches(model, clips, cache, [Part("all", 1.0, list(range(len(clips))), [])], c), c)
        ready = next(iter(steps.loader(0, 1, 0, 1)))
        steps.compute(ready)
        pairs = [steps.pure_and_cached(ready, block * n, block) for n in range(rounds)]
        pure, whole, ratio = (np.median(x) for x in (*zip(*pairs, strict=True), [b / a for a, b in pairs]))
        print(f"  cached ({form:4}) {whole:.3f} s, pure computation {pure:.3f} s: {ratio:.2f}")
    if compiled:
        plain = [timed(time.perf_counter, lambda: steps.compute(ready)) for _ in range(2)]
        model.clip.visual.compile()
        warm = timed(time.perf_counter, lambda: steps.compute(ready))
        fast = []
        for _ in range(rounds):
            fast.append(timed(time.perf_counter, lambda: steps.compute(ready)))
            model.clip.visual._compiled_call_impl, kept = None, model.clip.visual._compiled_call_impl
            plain.append(timed(time.perf_counter, lambda: steps.compute(ready)))
            model.clip.visual._compiled_call_impl = kept
        ratio = float(np.median(np.array(plain[2:]) / np.array(fast)))
        print(f"  torch.compile {np.median(fast):.3f} s, {ratio:.2f} times as fast, after {warm:.0f} s of compiling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "assets" / "model"), help="whose towers the steps compute with")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is timed")
    parser.add_argument("--clips", type=int, default=12, help="videos of the loading comparison")
    parser.add_argument("--seconds", type=float, default=15, help="their length")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    use_fast_matmul()
    use_fast_attention_backward()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {best_precision()}")
    with tempfile.TemporaryDirectory() as folder:
        compare_loading(Path(folder), args.clips, args.seconds)
        model = SUMA.from_pretrained(args.model)
        compare_steps(Path(folder), model, args.rounds, args.batch_size, args.compile)


if __name__ == "__main__":
    main()
