"""A training process that is killed, or asked to stop, goes on with the same command to bit-equal weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import benchmark, flags  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train" / "train.py"), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    return printed


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / f"checkpoint-{STEPS}" / "model.safetensors")


@pytest.mark.slow
def test_killed_or_stopped_runs_end_with_the_weights_of_an_uninterrupted_one(benchmark, tower, tmp_path):  # noqa: F811
    options = {"steps": STEPS, "save_every": 2, "test_config": "", "held_out": 0, "eval_every": STEPS}
    finish(start(flags(benchmark, tower, tmp_path / "whole", **options)))
    expected = weights(tmp_path / "whole")

    stops = (("killed", signal.SIGKILL, 0.0), ("later", signal.SIGKILL, 0.03), ("asked", signal.SIGTERM, 0.0))
    for name, number, delay in stops:
        arguments = flags(benchmark, tower, tmp_path / name, **options)
        process = start(arguments)
        wait_for(tmp_path / name / "checkpoint-2" / "progress.json", process)
        time.sleep(delay)  # somewhere in a step, or in the middle of the next checkpoint
        process.send_signal(number)
        printed, _ = process.communicate(timeout=100)
        assert (process.returncode == 0 and "goes on from here" in printed) == (number == signal.SIGTERM), printed
        assert not (tmp_path / name / f"checkpoint-{STEPS}").exists(), "it was over before it was stopped"
        assert "resumed from" in finish(start(arguments))
        found = weights(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        assert len(list((tmp_path / name).glob("checkpoint-*"))) == 2  # rotated, also after the resume
