"""The checkpoints of a run, in its output folder: complete ones, the two newest, all of one set of options."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from config import TrainConfig

from suma import atomic_io

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
