"""The benchmark of the evaluation runs, and its loops give the scores that ours gives."""

import importlib.util
from pathlib import Path


def test_the_loops_of_other_programs_give_our_scores(capsys):
    file = Path(__file__).parent / "bench" / "evaluation.py"
    spec = importlib.util.spec_from_file_location("bench_evaluation", file)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = bench.main(["--quick", "--rounds", "1"])
    assert len(result) == 3 and result["difference"] < 1e-6
    assert capsys.readouterr().out.count("times ours") == 2
