"""Answer the paper's questions, each by trainings that differ in one option.

    python train/ablate.py --dataset SCENES
    python train/ablate.py --dataset SCENES --full --jobs 7    # on a GPU

Every row is a run of train.py from the same towers, with the same steps and seeds; temporal encoder, regions and
concepts start anew. The image tower is frozen (each frame is encoded once), or with --full trained too. Each run is
evaluated once on the test split. A row that has its results is not trained again.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
import torch

MAIN = "baselines"
BASE: dict[str, Any] = {  # two temporal layers: the bundled model has three, so none starts with its
    "extra_train_configs": "short,sides",
    "pretrained": "",
    "num_concepts": 256,
    "min_count": 5,
    "frame_grid": 3,
    "temporal_layers": 2,
    "train_frames": 4,
    "num_frames": 12,
    "cache_frames": 12,
    "group_size": 16,
    "batch_size": 64,
    "clip_lr": 5e-4,
    "new_lr": 1e-3,
    "weight_decay": 0.1,
    "freeze_image": True,
    "log_every": 100,
}

FULL: dict[str, Any] = {  # with --full, instead
    "freeze_image": False,
    "batch_size": 128,
    "group_size": 32,
    "train_frames": 8,
}


@dataclass(frozen=True)
class Row:
    """One row of the table: the question it belongs to, its name, and the options in which it differs from SUMA."""

    question: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Return its folder's name."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.question} {self.name}".lower())


ORIGINAL = {"alpha": 0.0, "beta": 0.0}  # no loss on the aligned space, so none of its share is chosen
ROWS = [
    Row(MAIN, "mean pooling (CLIP4Clip meanP)", {**ORIGINAL, "temporal_layers": 0, "coarse_share": 1.0}),
    Row(MAIN, "temporal encoder (CLIP4Clip seqTransf)", {**ORIGINAL, "coarse_share": 1.0}),
    Row(MAIN, "video and frames (X-CLIP's coarse and fine half)", ORIGINAL),
    Row(MAIN, "SUMA, space not supervised", {"anchor": "self", "alpha": 0.0}),
    Row(MAIN, "SUMA"),
    Row("grain", "video only", {"coarse_share": 1.0}),
    Row("grain", "frames only", {"coarse_share": 0.0}),
    Row("losses", "no L_align", {"alpha": 0.0}),
    Row("losses", "no L_asim", {"beta": 0.0, "alpha": 0.5}),
    Row("concepts", "K 64", {"num_concepts": 64}),
    Row("concepts", "every word a concept", {"num_concepts": "all", "min_count": 1}),
    Row("anchor", "binary", {"anchor": "binary"}),
    Row("anchor", "count", {"anchor": "count"}),
    Row("aggregation", "mean", {"aggregation": "mean"}),
    Row("aggregation", "softmax at 0.4", {"temperature": 0.4}),
    Row("aggregation", "max", {"aggregation": "max"}),
    Row("activation", "MLP instead of the cosine", {"activation": "mlp"}),
    Row("activation", "16 strongest", {"activation": "top"}),
    Row("start", "encoder output", {"concept_start": "sentences"}),
    Row("start", "random", {"concept_start": "random"}),
    Row("start", "clusters of word vectors (wordllama)", {"word_vectors": "wordllama"}),
    Row("noise", "30 % of captions shuffled", {"shuffle_captions": 0.3}),
    Row("noise", "30 % of captions shuffled, no aligned space", {**ORIGINAL, "shuffle_captions": 0.3}),
    Row("noise", "30 % of words dropped", {"drop_words": 0.3}),
    Row("data", "1,000 training clips", {"train_clips": 1000}),
    Row("losses", "alpha 1", {"alpha": 1.0}),
    Row("losses", "beta 0.3", {"beta": 0.3}),
    Row("losses", "beta 3", {"beta": 3.0}),
    Row("losses", "no L_sim", {"sim_weight": 0.0}),
    Row("batches", "half of the runs by words", {"group_words": True}),
    Row("batches", "random instead of one setting", {"group_size": 0}),
    Row("concepts", "K 128", {"num_concepts": 128}),
    Row("concepts", "K 384", {"num_concepts": 384}),
    Row("activation", "ReLU", {"activation": "relu"}),
    Row("activation", "sparsemax", {"activation": "sparsemax"}),
    Row("noise", "10 % of captions shuffled", {"shuffle_captions": 0.1}),
    Row("noise", "50 % of captions shuffled", {"shuffle_captions": 0.5}),
    Row("data", "4,000 training clips", {"train_clips": 4000}),
    Row("grain", "frames after the temporal encoder", {"temporal_frames": True}),
    Row("grain", "no temporal encoder", {"temporal_layers": 0}),
    Row("grain", "frames without their regions", {"frame_grid": 0}),
]
QUICK_CLIPS = 4000  # of training, with --quick
QUICK = [row for row in ROWS if row.question == MAIN][::2]  # mean pooling, both grains, SUMA


def word_count(data: Path, config: str, held_out: int, seed: int, limit: int) -> int:
    """Return the number of words of the training captions, without those that train.py holds out for selection."""
    from benchmarks import load_clips
    from data import hold_out

    from suma.model.vocabulary import count_words

    clips = load_clips(str(data), config, limit=limit)
    kept, _ = hold_out(clips, held_out, seed)
    return len(count_words(caption for i in kept for caption in clips[i].captions))


def wordllama_vectors(data: Path, config: str, file: Path) -> Path | None:
    """Return a text file of the training words' static vectors; None if wordllama is not installed."""
    if not file.exists():
        from benchmarks import load_clips
        from towers import static_vectors

        from suma.model.vocabulary import count_words

        try:
            vector = static_vectors()
        except ValueError:
            return None
        words = count_words(caption for clip in load_clips(str(data), config) for caption in clip.captions)
        lines = (f"{word} {' '.join(f'{x:.5f}' for x in vector(word).tolist())}\n" for word in words)
        file.write_text("".join(lines), encoding="utf-8")
    return file


def flags_of(row: Row, seed: int, args: argparse.Namespace) -> list[str] | None:
    """Return the command line of train.py for a row, or None if it needs a package that is not installed."""
    options = {**BASE, **(FULL if args.full else {}), **row.options, "seed": seed, "steps": args.steps}
    options |= {
        "held_out": args.held_out,
        "eval_every": max(1, args.steps // 2),
        "limit": QUICK_CLIPS if args.quick else 0,
        "save_every": 10 * args.steps,
        "dataset": args.dataset,
        "backbone": args.backbone,
        "output": args.runs / f"{row.slug}-{seed}",
    }
    if options["num_concepts"] == "all":
        options["num_concepts"] = word_count(args.dataset, "train_9k", args.held_out, seed, options["limit"])
    if options.get("word_vectors") == "wordllama":
        options["word_vectors"] = wordllama_vectors(args.dataset, "train_9k", args.runs / "wordllama.txt")
        if options["word_vectors"] is None:
            return None
    flags = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else ["--no-" + flag[2:]] if value is False else [flag, str(value)]
    return flags


class Runner:
    """Trains rows, several at once, each in a process of its own."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def stop(self, *_: object) -> None:
        """Ask all trainings to save a checkpoint and stop, and start no more."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()

    def run(self, row: Row, seed: int) -> str:
        """Train and evaluate one row with one seed, unless it has its results. Return what went wrong, or ""."""
        folder, name = self.args.runs / f"{row.slug}-{seed}", f"{row.question}: {row.name}, seed {seed}"
        if (folder / "results.json").exists():
            return ""
        flags = flags_of(row, seed, self.args)
        if flags is None:
            print(f"{name}: left out, it needs pip install wordllama")
            return ""
        if self.stopped:
            return f"{name}: not trained"
        print(f"== {name}\n", end="", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.time()
        command = [sys.executable, str(Path(__file__).with_name("train.py")), *flags]
        with (folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        self.running.add(process)
        if self.stopped:  # while it started
            process.terminate()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.running.discard(process)
        if not (folder / "results.json").exists():
            if process.returncode and not self.stopped:
                return f"{name}: it failed, see {folder / 'output.txt'}"
            return f"{name}: stopped, the same command goes on from here"
        cost = {"seconds": round(time.time() - began), "cpu_seconds": round(used.ru_utime + used.ru_stime)}
        (folder / "cost.json").write_text(json.dumps(cost))
        for heavy in (*folder.glob("checkpoint-*"), folder / "best"):
            shutil.rmtree(heavy, ignore_errors=True)
        return ""

    def run_all(self, todo: Sequence[tuple[Row, int]]) -> list[str]:
        """Train all of these. Return what went wrong."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(self.args.jobs) as pool:
                return [told for told in pool.map(lambda pair: self.run(*pair), todo) if told]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def held_out(folder: Path) -> dict[str, float]:
    """Return R@1 of the selected model on the held-out training videos: the best of the run's evaluations."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [{way: m["r1"] for way, m in line["held_out"].items()} for line in lines if "held_out" in line]
    return max(found, key=lambda r1: sum(r1.values()))


def collect(rows: Sequence[Row], seeds: Sequence[int], runs: Path) -> list[dict[str, Any]]:
    """Return the results of the finished runs of these rows, by row."""
    found = []
    for row in rows:
        of_row = []
        for seed in seeds:
            folder = runs / f"{row.slug}-{seed}"
            if (folder / "results.json").exists():
                results = json.loads((folder / "results.json").read_text())
                cost = json.loads((folder / "cost.json").read_text()) if (folder / "cost.json").exists() else {}
                of_row.append({"seed": seed, "held_out": held_out(folder), **results, **cost})
        if of_row:
            found.append({"question": row.question, "name": row.name, "options": row.options, "runs": of_row})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train the rows, the baselines with more seeds than the others, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", "--data", type=Path, required=True, help="a folder that train/scenes.py wrote")
    parser.add_argument("--backbone", default="assets/model", help="the towers to start from: a saved SUMA's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs are kept")
    parser.add_argument("--report", type=Path, help="where the report is written (assets/report, or beside quick runs)")
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--held-out", type=int, default=500, help="training videos kept for selection")
    parser.add_argument("--seeds", type=int, default=3, help="of the baselines' rows")
    parser.add_argument("--more-seeds", type=int, default=1, help="of the other rows")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are trained at once")
    parser.add_argument("--full", action="store_true", help="train the image tower too, in larger batches")
    parser.add_argument("--quick", action="store_true", help="three rows, one seed, 4,000 clips: to see that it works")
    parser.add_argument("--only", default="", help="only the rows whose question or name holds this")
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the report of what is there")
    args = parser.parse_args(argv)
    rows = QUICK if args.quick else [row for row in ROWS if args.only in f"{row.question} {row.name}"]
    if not (args.dataset / "truth.jsonl").is_file():
        parser.error(f"{args.dataset} is no Scenes folder: python train/scenes.py {args.dataset} makes one")
    if args.jobs < 1:
        parser.error("jobs must be at least 1")
    if not rows:
        parser.error(f"no row holds {args.only!r}")
    if args.quick:
        args.runs = args.runs / "quick"
    args.report = args.report or (args.runs / "report" if args.quick else Path("assets/report"))
    args.runs.mkdir(parents=True, exist_ok=True)
    seeds = 1 if args.quick else args.seeds
    todo = [(row, seed) for row in rows for seed in range(seeds if row.question == MAIN else args.more_seeds)]
    order = sorted(todo, key=lambda pair: (pair[0].question != MAIN, pair[1]))
    failures = [] if args.report_only else Runner(args).run_all(order)
    for told in failures:
        print(told, file=sys.stderr)
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    machine = f"{processor}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    command = (
        f"python train/ablate.py --dataset SCENES --backbone {args.backbone} --steps {args.steps} --seeds {args.seeds}"
    )
    command += f" --only {args.only}" * bool(args.only) + " --quick" * args.quick + " --full" * args.full
    command += f" --more-seeds {args.more_seeds}" * (args.more_seeds > 1)
    protocol = "the image tower trained too" if args.full else "the same frozen image tower"
    found = collect(rows, range(max(seeds, args.more_seeds)), args.runs)
    print(report.write(found, args.report, command, machine, protocol))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
