"""The ablation's figures by hand: paired differences, spreads, and the files that are written."""

import argparse
import json
from pathlib import Path

import ablate
import pytest
import report
import scenes
from config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]


def run(seed: int, t2v: list[int]) -> dict:
    retrieval = {way: {"r1": 100 * sum(r == 1 for r in t2v) / len(t2v)} for way in ("t2v", "v2t")}
    return {
        "seed": seed,
        "held_out": {"t2v": 50.0, "v2t": 40.0},
        "ranks": {"t2v": t2v, "v2t": t2v},
        "cpu_seconds": 36,
        "retrieval": {"SUMA": retrieval, "aligned": retrieval},
        "time": {pair: [60.0, 9] for pair in report.PAIRS},
        "pointing": {"pointing": [90.0, 5], "top-5": [80.0, 5]},
        "purity": {"average precision": [30.0, 2.0], "names": [40.0, 1.0]},
        "visitors": [{"rank": 1.0, "seen": False}, {"rank": 2.0, "seen": False}, {"rank": 1.0, "seen": True}],
    }


ROWS = [
    {"question": "baselines", "name": "SUMA", "options": {}, "runs": [run(0, [1, 1, 1, 2]), run(1, [1, 1, 2, 2])]},
    {"question": "losses", "name": "none", "options": {}, "runs": [run(0, [1, 2, 2, 2])]},
]


def test_a_difference_is_taken_on_the_seeds_that_both_have():
    mean, low, high = report.paired(ROWS[1], ROWS[0], "t2v")
    assert mean == pytest.approx(-50)  # 25 % against seed 0's 75 %, not against both seeds' 62.5 %
    assert -100 <= low < -50 < high <= 0
    assert report.paired(ROWS[0], ROWS[0], "t2v") == (0, 0, 0)


def test_the_report_has_a_line_for_each_row_its_pictures_and_the_first_places(tmp_path: Path):
    told = report.write(ROWS, tmp_path / "report", "python train/ablate.py", "a machine", "the same tower")
    lines = told.splitlines()
    assert len(lines) == 4 and "62.5 ± 17.7" in lines[2] and "-50.0 (" in lines[3]
    assert all(line.endswith("| 30 | 40 | 50 |") for line in lines[2:])
    written = (tmp_path / "report" / "table.md").read_text()
    assert told in written and "3 runs, 0.0 CPU hours" in written and "a machine" in written
    raw = json.loads((tmp_path / "report" / "ablation.json").read_text())
    assert raw[0]["runs"][0]["first"]["t2v"] == "1110" and "ranks" not in raw[0]["runs"][0]
    for name in ("recall.png", "time.png"):
        assert (tmp_path / "report" / name).stat().st_size > 5000
    assert report.write([], tmp_path, "", "", "") == "no run has its results yet"


def test_every_row_is_a_training_of_its_own_by_options_that_exist():
    slugs = [row.slug for row in ablate.ROWS]
    assert len(set(slugs)) == len(slugs)
    for row in ablate.ROWS:
        assert set(row.options) <= set(TrainConfig.__dataclass_fields__), row.name
        differs = {name: value for name, value in row.options.items() if ablate.BASE.get(name) != value}
        assert bool(differs) == (row.name != "SUMA"), row.name
    assert [row.name for row in ablate.QUICK] == [ablate.ROWS[0].name, ablate.ROWS[2].name, "SUMA"]


def test_a_row_that_fails_is_told_and_after_a_stop_none_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = argparse.Namespace(runs=tmp_path, jobs=2)
    monkeypatch.setattr(ablate, "__file__", str(tmp_path / "ablate.py"))  # beside which train.py lies
    (tmp_path / "train.py").write_text("import sys; sys.exit(f'no training with {sys.argv[1:]}')")
    monkeypatch.setattr(ablate, "flags_of", lambda row, seed, args: ["--batch-size", "0"])
    runner, rows = ablate.Runner(args), [(row, 0) for row in ablate.ROWS[:2]]
    told = runner.run_all(rows)
    assert len(told) == 2 and all("it failed, see" in line for line in told)
    files = list(tmp_path.glob("*/output.txt"))
    assert len(files) == 2 and all("'--batch-size', '0'" in file.read_text() for file in files)
    runner.stop()
    assert [line.rpartition(": ")[2] for line in runner.run_all(rows)] == ["not trained", "not trained"]


@pytest.mark.slow
def test_the_quick_ablation_runs_resumes_and_leaves_the_report_of_the_project_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    scenes.write_dataset(tmp_path / "scenes", videos=60, seed=1)
    monkeypatch.setenv("SUMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ablate.BASE, "batch_size", 16)
    monkeypatch.setitem(ablate.BASE, "num_concepts", 32)
    before = (ROOT / "assets" / "report" / "table.md").read_bytes()
    arguments = ["--data", str(tmp_path / "scenes"), "--backbone", str(ROOT / "assets" / "model")]
    arguments += ["--runs", str(tmp_path / "runs"), "--steps", "2", "--held-out", "10"]
    assert ablate.main([*arguments, "--quick"]) == 0
    told = capsys.readouterr().out
    assert told.count("\n== baselines: ") + told.startswith("== baselines: ") == 3
    table = (tmp_path / "runs" / "quick" / "report" / "table.md").read_text()
    assert "--quick" in table and table.count("| baselines |") == 3
    assert ablate.main([*arguments, "--quick"]) == 0  # nothing is trained again
    assert "== baselines" not in capsys.readouterr().out
    assert (ROOT / "assets" / "report" / "table.md").read_bytes() == before
