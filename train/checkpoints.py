"""The checkpoints of a run, in its output folder: written whole, the two newest kept, and of one set of options."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from config import TrainConfig

FREE = ("output", "push_to_hub", "test_config", "log_every", "save_every", "tracker")  # what leaves the weights alone
RESULTS = "results.json"
NAME = re.compile(r"checkpoint-(\d+)")


def check_same_run(c: TrainConfig, output: Path) -> None:
    """Note the run's options in its folder. Raises ValueError where a run of other options stands there."""
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
    write_whole(file, json.dumps(now, indent=2) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def by_step(output: Path) -> list[Path]:
    """The run's own checkpoint folders, oldest first (not a copy that somebody put beside them)."""
    found = [(int(name[1]), path) for path in output.iterdir() if (name := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint: `progress.json` is written last."""
    whole = [path for path in by_step(output) if (path / "progress.json").exists()]
    return whole[-1] if whole else None


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, best: float) -> None:
    """Weights, optimiser and random states; the two newest are kept."""
    folder = output / f"checkpoint-{step}"
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        write_whole(folder / "progress.json", json.dumps({"step": step, "best": best}))
        for old in by_step(output)[:-2]:
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
