"""The benchmark scripts run, small, and print what they promise (their figures are for a person to read)."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def printed(script: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "tests" / "bench" / script), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_training_steps_and_cached_frames():
    found = printed("train_step.py", "--batch-size", "8", "--rounds", "1", "--clips", "2", "--seconds", "2")
    jpeg, raw = (float(re.search(rf"cache as {form} .* ([\d.]+)x ", found)[1]) for form in ("jpeg", "raw"))
    assert 1 < jpeg < raw
    assert len(re.findall(r"pure computation [\d.]+ s: [\d.]+$", found, re.MULTILINE)) == 2


@pytest.mark.slow
def test_a_phones_films_are_read_by_decord_exactly_and_as_an_index_does():
    found = printed("index_build.py", "--phone", "--shrink", "4")
    cosines = re.findall(r"decord .* x; as an index reads it .* x, median cosine ([\d.]+)$", found, re.MULTILINE)
    assert len(cosines) == 3 and all(float(cosine) > 0.9 for cosine in cosines)


@pytest.mark.slow
def test_large_batches_take_the_memory_of_small_ones_and_have_the_same_gradients():
    found = printed("train_memory.py", "--pairs", "64", "--chunk", "16", "--frames", "1", "--rounds", "1")
    (chunked,) = re.findall(r"64 pairs in chunks of 16.*\((.*?) x\)", found)
    (plain,) = re.findall(r"64 pairs plain.*\((.*?) x\)", found)
    assert float(chunked) < 2 < float(plain)
    assert float(re.search(r"relative difference (\S+)", found)[1]) < 1e-5
    assert float(re.search(r"\(([\d.]+)x less\)", found)[1]) > 10


def test_the_loops_of_other_programs_give_our_scores(capsys):
    file = Path(__file__).parent / "bench" / "evaluation.py"
    spec = importlib.util.spec_from_file_location("bench_evaluation", file)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = bench.main(["--quick", "--rounds", "1"])
    assert len(result) == 3 and result["difference"] < 1e-6
    assert capsys.readouterr().out.count("times ours") == 2
