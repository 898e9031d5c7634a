"""Show and keep the progress of a run: a bar, log.jsonl, curve.png, a tracker of your choice, and the checkpoints:
complete ones, the two newest, all of one set of options."""

import json
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from config import TrainConfig
from losses import Losses
from metrics import Retrieval
from tqdm import tqdm

from suma import atomic_io

LOG, CURVE = "log.jsonl", "curve.png"
FREE = (
    "output",
    "push_to_hub",
    "test_config",
    "log_every",
    "save_every",
    "tracker",
)  # options that do not change the weights
RESULTS = "results.json"
NAME = re.compile(r"checkpoint-(\d+)")


def keep_log_until(file: Path, step: int) -> None:
    """Drop the lines after `step`: a run that resumes there writes them again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # a line cut off by a kill
            continue
    atomic_io.replace(file, "".join(kept).encode())


class Monitor:
    """Follow one run, on the main process only. Print lines if there is no terminal for a progress bar."""

    def __init__(self, accelerator: Accelerator, c: TrainConfig, steps: int, first: int, pairs_per_epoch: int):
        self.accelerator, self.c, self.pairs_per_epoch = accelerator, c, pairs_per_epoch
        self.folder, self.is_main = Path(c.output), accelerator.is_main_process
        self.first, self.began, self.best_r1 = first, time.monotonic(), ""
        if self.is_main:
            keep_log_until(self.folder / LOG, first)
        self.bar = tqdm(total=steps, initial=first, desc="train", unit="step", disable=not self.is_main or None)

    def step(self, done: int, losses: Losses, clip_lr: float, new_lr: float) -> None:
        """Count a step; show and keep every `log_every`-th."""
        self.bar.update()
        if not self.is_main or done % self.c.log_every:
            return
        values = {name: round(x.item(), 4) for name, x in losses._asdict().items()}
        speed = (done - self.first) * self.c.batch_size / (time.monotonic() - self.began)
        epoch = round(done * self.c.batch_size / self.pairs_per_epoch, 4)
        rates = {"clip_lr": clip_lr, "new_lr": new_lr}
        self._keep(done, {"epoch": epoch, **values, **rates, "pairs_per_second": round(speed, 1)})
        shown = {"loss": f"{values['total']:.3f}", "lr": f"{clip_lr:.1e}/{new_lr:.1e}", "pairs/s": f"{speed:.0f}"}
        if self.best_r1:
            shown["R@1"] = self.best_r1
        self.bar.set_postfix(shown)
        if self.bar.disable:
            left = (self.bar.total - done) * self.c.batch_size / speed
            parts = " ".join(f"{name} {value:.3f}" for name, value in values.items())
            end = f"{speed:.0f} pairs/s, {tqdm.format_interval(left)} left"
            print(f"step {done}/{self.bar.total} {parts} {end}", flush=True)

    def held_out(self, done: int, sets: dict[str, dict[str, Retrieval]], share: float) -> None:
        """Show and keep an evaluation on the held-out training videos of each data set, the benchmark's first."""
        found = [{way: asdict(result) for way, result in ways.items()} for ways in sets.values()]
        further = {"held_out_further": dict(zip(list(sets)[1:], found[1:], strict=True))} if len(sets) > 1 else {}
        self._keep(done, {"held_out": found[0], **further, "concept_share": share})
        self.best_r1 = " ".join("/".join(f"{result.r1:.1f}" for result in ways.values()) for ways in sets.values())
        for name, ways in sets.items():
            rows = " ".join(f"{way} {result.row()}" for way, result in ways.items())
            tqdm.write(f"step {done} held-out {name} {rows} share {share}")

    def _keep(self, done: int, values: dict[str, Any]) -> None:
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"step": done, **values}) + "\n")
        self.accelerator.log(dict(flat(values)), step=done)

    def close(self) -> None:
        """End the progress bar, and draw the curve."""
        self.bar.close()
        if self.is_main:
            draw_curve(self.folder / LOG, self.folder / CURVE)


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return nested numbers as pairs of a path and a number, as trackers take them.

    >>> flat({"a": 1, "b": {"c": 2}})
    [('a', 1), ('b/c', 2)]
    """
    pairs: list[tuple[str, float]] = []
    for name, value in values.items():
        pairs += flat(value, f"{prefix}{name}/") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def draw_curve(log: Path, picture: Path) -> None:
    """Draw the losses and the held-out R@1 (percent) of a log as a PNG."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    trained = [line for line in lines if "total" in line]
    tested = [line for line in lines if "held_out" in line]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("total", "sim", "asim", "align"):
        left.plot([line["step"] for line in trained], [line[name] for line in trained], label=name, linewidth=1)
    left.set(xlabel="step", ylabel="loss")
    if trained:
        left.legend()
    for way, label in (("t2v", "text to video"), ("v2t", "video to text")):
        found = [line["held_out"][way] for line in tested]
        steps = [line["step"] for line in tested]
        right.plot(steps, [x["r1"] for x in found], marker="o", label=label)
        right.fill_between(steps, [x["low"] for x in found], [x["high"] for x in found], alpha=0.15)
    right.set(xlabel="step", ylabel="R@1 on held-out training videos (%)")
    if tested:
        right.legend()
    figure.savefig(picture, dpi=120)


def check_same_run(c: TrainConfig, output: Path) -> None:
    """Write the run's options to its folder. Raise ValueError if it holds a run with other options."""
    file = output / "train_config.json"
    now = asdict(c)
    if file.exists() and (newest_checkpoint(output) or (output / RESULTS).exists()):
        try:
            before = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}): choose another --output") from error
        changed = [name for name in now if name not in FREE and before.get(name) != now[name]]
        if changed:
            told = ", ".join(f"{name} {before.get(name)!r} -> {now[name]!r}" for name in changed)
            raise ValueError(f"{output} holds a run with other options ({told}): choose another --output")
    atomic_io.replace(file, (json.dumps(now, indent=2) + "\n").encode())


def by_step(output: Path) -> list[Path]:
    """Return the run's own checkpoint folders, oldest first, without copies under other names."""
    found = [(int(name[1]), path) for path in output.iterdir() if (name := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(output: Path) -> Path | None:
    """Return the newest complete checkpoint: its `progress.json` is written last."""
    whole = [path for path in by_step(output) if (path / "progress.json").exists()]
    return whole[-1] if whole else None


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, best: float) -> None:
    """Save weights, optimiser and random states, and keep the two newest checkpoints."""
    folder = output / f"checkpoint-{step}"
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        atomic_io.replace(folder / "progress.json", json.dumps({"step": step, "best": best}).encode())
        for old in by_step(output)[:-2]:
            shutil.rmtree(old)


def load_checkpoint(accelerator: Accelerator, output: Path) -> tuple[int, float]:
    """Restore the newest complete checkpoint, if any; return the steps done and the best held-out R@1 (-1: none)."""
    checkpoint = newest_checkpoint(output)
    if checkpoint is None:
        return 0, -1.0
    accelerator.load_state(str(checkpoint))
    progress = json.loads((checkpoint / "progress.json").read_text())
    accelerator.print(f"resumed from {checkpoint}")
    return progress["step"], progress["best"]
