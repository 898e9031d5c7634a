"""Report results: an evaluation's as Markdown; the ablation's runs as a table, pictures, and the raw numbers.

Shapes: Q test queries.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from metrics import Retrieval

REFERENCE = "SUMA"  # the row that all others are compared with
PAIRS = ("order", "appear/vanish", "grow/shrink", "up/down", "left/right")
WAYS = {"t2v": "text -> video", "v2t": "video -> text"}
HEAD = ["| score | direction | R@1 (95 % interval) | R@5 | R@10 | MdR | MnR |", "|---|---|---|---|---|---|---|"]
Row = dict[str, Any]  # question, name, options, runs
COLUMNS = (
    "question | row | seeds | held-out t->v | held-out v->t | test t->v R@1 | test v->t R@1 | "
    f"against SUMA, t->v (95 %) | aligned t->v | aligned v->t | {' | '.join(PAIRS)} | "
    "pointing | top-5 | concept AP | names | free queries"
)


def hits(row: Row, way: str) -> np.ndarray:
    """Return for each query (Q,) the share of the row's seeds that find its own item first."""
    return np.mean([np.array(run["ranks"][way]) <= 1 for run in row["runs"]], axis=0)


def paired(row: Row, reference: Row, way: str, resamples: int = 2000) -> tuple[float, float, float]:
    """Return R@1 of a row minus the reference's, in points, on the seeds that both have, with its 95 % interval.

    Each resample draws the same test queries for both.
    """
    seeds = {run["seed"] for run in row["runs"]} & {run["seed"] for run in reference["runs"]}
    one, other = (hits({"runs": [run for run in r["runs"] if run["seed"] in seeds]}, way) for r in (row, reference))
    difference = 100 * (one - other)
    picks = np.random.default_rng(0).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.percentile(difference[picks].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation over the seeds if there are several, as text."""
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def value(run: dict[str, Any], *path: str) -> float:
    """Return a figure of a run; of a pair, the first number."""
    found: Any = run
    for name in path:
        found = found[name]
    return float(found[0] if isinstance(found, list | tuple) else found)


def cells(row: Row, reference: Row | None) -> list[str]:
    """Return the cells of a row of the table."""
    runs = row["runs"]
    out = [row["question"], row["name"], str(len(runs))]
    out += [spread([value(run, "held_out", way) for run in runs]) for way in WAYS]
    out += [spread([value(run, "retrieval", "SUMA", way, "r1") for run in runs]) for way in WAYS]
    if reference is None or row is reference:
        out.append("")
    else:
        mean, low, high = paired(row, reference, "t2v")
        out.append(f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
    out += [spread([value(run, "retrieval", "aligned", way, "r1") for run in runs]) for way in WAYS]
    out += [f"{np.mean([value(run, 'time', pair) for run in runs]):.0f}" for pair in PAIRS]
    out += [f"{np.mean([value(run, 'pointing', name) for run in runs]):.0f}" for name in ("pointing", "top-5")]
    out += [f"{np.mean([value(run, 'purity', name) for run in runs]):.0f}" for name in ("average precision", "names")]
    return [*out, f"{np.mean([free_queries(run) for run in runs]):.0f}"]


def free_queries(run: dict[str, Any]) -> float:
    """Return the percentage of the unseen free queries that find a right video first; NaN if there are none."""
    first = [row["rank"] == 1 for row in run["visitors"] if not row["seen"]]
    return 100 * sum(first) / len(first) if first else math.nan


def table(rows: Sequence[Row]) -> str:
    """Return all rows as Markdown."""
    reference = next((row for row in rows if row["name"] == REFERENCE), None)
    lines = [f"| {COLUMNS} |", "|" + "---|" * len(COLUMNS.split(" | "))]
    return "\n".join(lines + ["| " + " | ".join(cells(row, reference)) + " |" for row in rows])


def pictures(rows: Sequence[Row], folder: Path) -> None:
    """Draw recall.png, R@1 of every row with its interval, and time.png, the minimal pairs of the baselines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(rows))[::-1]
    for shift, way, colour in ((0.16, "t2v", "#31688e"), (-0.16, "v2t", "#b5651d")):
        mean = [100 * hits(row, way).mean() for row in rows]
        picks = np.random.default_rng(0).integers(len(hits(rows[0], way)), size=(1000, len(hits(rows[0], way))))
        low, high = np.transpose([np.percentile(100 * hits(row, way)[picks].mean(1), [2.5, 97.5]) for row in rows])
        bars = [np.array(mean) - low, high - np.array(mean)]
        axes.errorbar(
            mean,
            at + shift,
            xerr=bars,
            fmt="o",
            ms=3,
            color=colour,
            label={"t2v": "text to video", "v2t": "video to text"}[way],
        )
    axes.set_yticks(at, [f"{row['question']}: {row['name']}" for row in rows], fontsize=7)
    axes.set_xlabel("R@1 on the Scenes test split, % (95 % interval over the queries)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(folder / "recall.png", dpi=120)

    shown = [row for row in rows if row["question"] == "baselines"] or list(rows)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(shown):
        values = [np.mean([value(run, "time", pair) for run in row["runs"]]) for pair in PAIRS]
        axes.bar(np.arange(len(PAIRS)) + (i - len(shown) / 2 + 0.5) * 0.16, values, 0.15, label=row["name"])
    axes.axhline(50, color="black", lw=0.8, ls="--")
    axes.set_xticks(range(len(PAIRS)), PAIRS)
    axes.set_ylabel("right twin, % (chance 50)")
    axes.set_ylim(30, 100)
    figure.legend(fontsize=7, loc="outside upper center", ncols=3)
    figure.savefig(folder / "time.png", dpi=120)


def write(rows: Sequence[Row], folder: Path, command: str, machine: str, protocol: str) -> str:
    """Write the report into a folder: table.md, ablation.json, recall.png, time.png. Return the table."""
    if not rows:
        return "no run has its results yet"
    folder.mkdir(parents=True, exist_ok=True)
    runs = [run for row in rows for run in row["runs"]]
    hours = sum(run.get("cpu_seconds", 0) for run in runs) / 3600
    text = [
        "# Ablation on Scenes",
        "",
        f"`{command}`; {len(runs)} runs, {hours:.1f} CPU hours in all; {machine}.",
        "",
        f"All rows: {protocol}, the same steps, one option changed against SUMA. ± is the standard "
        "deviation over seeds; intervals are a bootstrap over the 1,000 test queries, for the difference to SUMA "
        "paired by query (on the seeds that both have). Choices are made by the held-out *training* videos. In the "
        "minimal pairs chance is 50. The held-out videos differ "
        "from seed to seed.",
        "",
        table(rows),
        "",
        "![R@1 of every row](recall.png)",
        "",
        "![Minimal pairs in time](time.png)",
        "",
    ]
    (folder / "table.md").write_text("\n".join(text), encoding="utf-8")
    packed = json.loads(json.dumps(rows))
    for row in packed:
        for run in row["runs"]:
            run["first"] = {way: "".join("1" if r <= 1 else "0" for r in run["ranks"][way]) for way in WAYS}
            for name in ("ranks", "visitors", "data"):
                run.pop(name, None)
    (folder / "ablation.json").write_text(json.dumps(packed, separators=(",", ":")) + "\n", encoding="utf-8")
    pictures(rows, folder)
    return table(rows)


def rerank_table(done: dict[str, Any]) -> list[str]:
    """Return a re-ranking as lines of Markdown, with a heading that says what it knew of the test queries."""
    names = {way: f"SUMA, {done['method']} | {arrow}" for way, arrow in WAYS.items()}
    if done["method"] == "search":
        knew = f"inductive, as a search does: the bank is {done['bank_captions']} captions of `{done['bank_config']}`"
        knew += f", or {done['bank_words']} bundles of words; it changes no ranking of texts"
        names = {bank: f"SUMA, search, bank of {bank} | {WAYS['t2v']}" for bank in ("captions", "words")}
    elif done["transductive"]:
        knew = "**transductive**: the test queries correct each other, so this is no result of a search"
    else:
        bank = f"{done['bank_captions']} captions and {done['bank_videos']} videos of `{done['bank_config']}`"
        knew = f"inductive: the bank is {bank}"
    lines = [f"Re-ranked, {knew}; inverse temperature {done['inverse_temperature']:g}", "", *HEAD]
    return [*lines, *(f"| {names[way]} | {Retrieval(**m).row()} |" for way, m in done["retrieval"].items())]


def small_table(head: str, rows: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return rows of two numbers, a share and what it is compared with or how many it is of, as lines of Markdown."""
    cells = (f"{name} | {value:.1f} | {x if isinstance(x, int) else f'{x:.1f}'}" for name, (value, x) in rows.items())
    return ["", f"| {head} |", "|---|---|---|", *(f"| {row} |" for row in cells)]


def results_table(results: dict[str, Any]) -> str:
    """Return the results as Markdown, in the tables of docs/results.md."""
    lines = [f"{results['videos']} videos, {results['captions']} captions of `{results['config']}`", ""]
    lines += HEAD
    for space, both in results["retrieval"].items():
        lines += [f"| {space} | {WAYS[way]} | {Retrieval(**m).row()} |" for way, m in both.items()]
    if "rerank" in results:
        lines += ["", *rerank_table(results["rerank"])]
    if results.get("concepts", {}).get("concepts"):
        found = results["concepts"]
        row = {f"{found['concepts']}, of whole videos": (found["map"], found["chance"])}
        lines += small_table("concepts that captions name | mean average precision | chance", row)
    heads = {
        "time": "minimal pair in time (chance 50) | % | of",
        "pointing": "concept heat against the scenes' truth | % | of",
        "spans": "moments of one of two successive events | % | of",
        "purity": "concepts against the scenes' truth | % | chance",
    }
    for key, head in heads.items():
        lines += small_table(head, results[key]) if key in results else []
    for title, found in results.get("errors", {}).items():
        lines += small_table(f"{'R@1 ' if title == 'by kind' else 'what is '}{title} | % | of", found)
    if "one act" in results:
        lines += small_table("who does what: the only right video first, by its kind | % | of", results["one act"])
    if "visitors" in results:
        first: dict[str, list[bool]] = {}
        for row in results["visitors"]:
            name = "known when the training captions were written" if row["seen"] else "unknown then"
            first.setdefault(name, []).append(row["rank"] == 1)
        shares = {name: (100 * sum(hits) / len(hits), len(hits)) for name, hits in sorted(first.items())}
        lines += small_table("free queries with a right video first | % | of", shares)
    return "\n".join(lines)
