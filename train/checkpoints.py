"""The checkpoints of a run, in its output folder: written whole, the two newest kept, and of one set of options."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from config import TrainConfig

FREE = ("output", "push_to_hub", "log_every", "save_every", "tracker")  # options that do not touch the weights


def check_same_run(c: TrainConfig, output: Path) -> None:
    """Note the run's options in its folder. Raises ValueError where a checkpoint of other options stands there."""
    file = output / "train_config.json"
    now = asdict(c)
    if file.exists() and newest_checkpoint(output):
        before = json.loads(file.read_text())
        changed = [name for name in now if name not in FREE and before.get(name) != now[name]]
        if changed:
            told = ", ".join(f"{name} {before.get(name)!r} -> {now[name]!r}" for name in changed)
            raise ValueError(f"{output} holds a run with other options ({told}): choose another --output")
    file.write_text(json.dumps(now, indent=2) + "\n")


def newest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint: `progress.json` is written last."""
    found = [p for p in output.glob("checkpoint-*") if (p / "progress.json").exists()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, best: float) -> None:
    """Weights, optimiser and random states; the two newest are kept."""
    folder = output / f"checkpoint-{step}"
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        (folder / "progress.json").write_text(json.dumps({"step": step, "best": best}))
        for old in sorted(output.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[:-2]:
            shutil.rmtree(old)


def load_checkpoint(accelerator: Accelerator, output: Path) -> tuple[int, float]:
    """Restore the newest whole checkpoint, if there is one: steps done, and the best held-out R@1 (-1: none yet)."""
    checkpoint = newest_checkpoint(output)
    if checkpoint is None:
        return 0, -1.0
    accelerator.load_state(str(checkpoint))
    progress = json.loads((checkpoint / "progress.json").read_text())
    accelerator.print(f"resumed from {checkpoint}")
    return progress["step"], progress["best"]
