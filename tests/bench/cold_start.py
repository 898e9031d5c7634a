"""What a search from the command line costs from a cold start. `python tests/bench/cold_start.py [--rounds 5]`

`python -m suma search` on the bundled gallery, against a process that imports every package that this one uses, and
against one that imports torch alone, which is the floor for any search that computes in torch; with --rclip, against
rclip's. Processor seconds (user and system) and the clock's, medians, in turns; one round before them fills the file
cache.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
EVERYTHING = "torch, open_clip, torchvision, faiss, decord, av, datasets, gradio, accelerate, matplotlib.pyplot"
PROGRAMS = {
    "search": ["-m", "suma", "search", "assets/gallery/index", "an elephant falls down", "-k", "3"],
    "everything imported": ["-c", f"import {EVERYTHING}"],
    "torch imported": ["-c", "import torch"],
}


def spent(program: list[str], folder: Path) -> tuple[float, float]:
    """Processor seconds and seconds of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(program, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - began


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rclip", type=Path, help="a folder of pictures that rclip, on the path, has indexed")
    args = parser.parse_args()
    programs = {name: ([sys.executable, *program], ROOT) for name, program in PROGRAMS.items()}
    if args.rclip:
        programs["rclip"] = (["rclip", "--no-indexing", "-t", "3", "an elephant falls down"], args.rclip)
    times = np.array(
        [[spent(*program) for program in programs.values()] for _ in range(1 + args.rounds)][1:]
    )  # (R, n, 2)
    middle, ratio = np.median(times, axis=0), np.median(times / times[:, :1], axis=0)
    for name, (cpu, wall), (by_cpu, by_wall) in zip(programs, middle, ratio, strict=True):
        print(f"{name}: {cpu:.2f} CPU s, {wall:.2f} s = {by_cpu:.2f} x / {by_wall:.2f} x the search")


if __name__ == "__main__":
    main()
