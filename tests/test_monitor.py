"""The log of a run: whole after a kill, and what a tracker is told."""

import json
from pathlib import Path

import pytest
from config import TrainConfig
from losses import Losses
from monitor import Monitor, draw_curve, keep_log_until
from test_train import benchmark, clean_slate, flags  # noqa: F401  (fixtures)
from torch import tensor

import train


def test_lines_that_a_resumed_run_writes_again_are_dropped(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": n, "total": 1.0}) + "\n" for n in (1, 2, 3, 4)) + '{"step": 5, "tot')
    keep_log_until(log, 3)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]
    keep_log_until(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


class Silent:
    """An accelerator that notes what its trackers would be told."""

    is_main_process = True

    def __init__(self):
        self.told = []

    def log(self, values: dict, step: int) -> None:
        self.told.append((step, values))


def test_speed_and_time_left_count_this_part_of_the_run_only(tmp_path: Path, capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("monitor.time.monotonic", lambda: clock[0])
    accelerator = Silent()
    c = TrainConfig(output=str(tmp_path), batch_size=10, log_every=2, mixed_precision="no")
    monitor = Monitor(accelerator, c, steps=20, first=10, pairs_per_epoch=40)
    for done in (11, 12):
        clock[0] += 1
        monitor.step(done, Losses(*tensor([3.0, 1.0, 2.0, 0.5])), clip_lr=1e-6, new_lr=1e-4)
    printed = capsys.readouterr().out
    assert printed == "step 12/20 total 3.000 sim 1.000 asim 2.000 align 0.500 10 pairs/s, 00:08 left\n"
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert (line["step"], line["epoch"], line["pairs_per_second"], line["new_lr"]) == (12, 3.0, 10.0, 1e-4)
    assert accelerator.told == [(12, {name: value for name, value in line.items() if name != "step"})]


def test_a_run_without_evaluation_has_a_curve_too(tmp_path: Path):
    draw_curve(tmp_path / "none.jsonl", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_is_told_losses_and_held_out_recall(benchmark: Path, tower: dict, tmp_path: Path):  # noqa: F811
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train.main(flags(benchmark, tower, tmp_path / "run", steps=2, test_config="", tracker="tensorboard"))
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "suma")).Reload()
    assert {"total", "clip_lr", "held_out/t2v/r1"} <= set(found.Tags()["scalars"])
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    totals = [line["total"] for line in log if "total" in line]
    assert [event.value for event in found.Scalars("total")] == pytest.approx(totals)
