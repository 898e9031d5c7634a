"""Fit a model's confidence (suma/index/confidence.py) to held-out training videos, or measure what it is worth.

    python train/confidence.py --model assets/model --dataset MSRVTT --mix PHOTOS:train=0.14,SCENES:train_9k=0.72
    python train/confidence.py --model assets/model --dataset MSRVTT --measure SCENES

Fitting, which `train.py` does at its end, takes the options of the training, which say what was held out. Captions and
runs of their words are asked of galleries of 5 to all of a data set's held-out videos, with the right videos and
without; further ones are of another data set, or have their letters shuffled.

Shapes: T queries, V videos, M trials.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from benchmarks import Clip
from config import parse
from data import Part
from encode import clips_of, encode_captions, encode_videos
from evaluate import load_split
from frame_cache import FrameCache, FrameFeatures
from mixture import load_mixture

from suma import atomic_io
from suma.index.confidence import FEATURES, SAMPLE, Calibration, evidence, features
from suma.index.query import Query
from suma.index.scoring import Scorer
from suma.model.checkpoint import CONFIG
from suma.model.cpu import use_fast_matmul
from suma.model.encoder import Queries
from suma.model.suma import SUMA
from suma.model.vocabulary import NEGATIONS, ignored_words, split_words
from suma.similarity import Videos

RANKS = 3  # matches of each query
SMALLEST = 5  # videos of a gallery
ENOUGH = 50  # held-out videos
SILENCED = 0.04  # of answerable queries, in the data set where most are


class Trials(NamedTuple):
    """The best matches of queries in galleries, best first."""

    x: np.ndarray  # (M, RANKS, 5): their features
    right: np.ndarray  # (M, RANKS) bool
    answerable: np.ndarray  # (M,) bool: whether a right video is in the gallery


def try_queries(
    model: SUMA, texts: Sequence[str], right: np.ndarray, videos: Videos, rng: np.random.Generator | None = None
) -> Trials:
    """Return the matches of queries in the gallery with the right videos, (T, V) bool, and in the one without; those
    beyond the rows of `right` have none. rng: draw each gallery (None: all videos)."""
    scorer, found = Scorer(model.concepts(), model.config.scoring), []
    folded = scorer.fold_texts(Queries(*(x.cpu().numpy() for x in encode_captions(model, texts))))
    clips, right = clips_of(scorer, videos), np.pad(right, ((0, len(texts) - len(right)), (0, 0)))
    folded_clips = scorer.fold_videos(clips)
    for text, row, answers in zip(texts, folded, right, strict=True):
        exact, quick, known = scorer.score(row[None], clips)[0], folded_clips @ row, Query(text).known(model.space)
        for with_answers in (True, False) if answers.any() else (False,):
            gallery = np.flatnonzero(~answers | with_answers)
            if rng is not None:
                gallery = rng.permutation(gallery)[: int(np.exp(rng.uniform(*np.log([SMALLEST, len(answers)]))))]
                if with_answers:
                    gallery[0] = rng.choice(np.flatnonzero(answers))
                gallery = np.unique(gallery)
            best = gallery[np.argsort(-exact[gallery], kind="stable")[:RANKS]]
            if len(best) == RANKS:
                others = quick[gallery[:: -(-len(gallery) // SAMPLE)]]
                found.append((features(exact[best], others, len(gallery), known), answers[best], with_answers))
    return Trials(*(np.array(column) for column in zip(*found, strict=True)))


def draw_queries(clips: Sequence[Clip], rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Return two captions of each clip, two runs of 2 to 5 of their words, and which clips are right for each, (T, V)
    bool: those whose captions have all of its words that name something."""
    names_nothing = {*ignored_words(), *NEGATIONS}
    told = [{word for caption in clip.captions for word in split_words(caption)} for clip in clips]
    texts, right = [], []
    for clip in clips:
        for caption in rng.choice(clip.captions, 2).tolist():
            words = split_words(caption)
            start = rng.integers(max(1, len(words) - 1))
            for text in (caption, " ".join(words[start : start + rng.integers(2, 6)])):
                if asked := {*split_words(text)} - names_nothing:
                    texts.append(text)
                    right.append([asked <= words_of_one for words_of_one in told])
    return texts, np.array(right)


def fit(
    model: SUMA, clips: Sequence[Clip], cache: FrameCache | FrameFeatures, parts: Sequence[Part]
) -> dict[str, float]:
    """Return the weights of a model by the held-out clips of these parts; {} where they are too few, or searches cannot
    use the model."""
    rng, parts, found = np.random.default_rng(0), [part for part in parts if len(part.held) >= ENOUGH], []
    if model.config.activation != "cosine" or not parts:
        return {}
    asked = [draw_queries([clips[i] for i in part.held], rng) for part in parts]
    for n, (part, (texts, right)) in enumerate(zip(parts, asked, strict=True)):
        others = [text for some, _ in asked[:n] + asked[n + 1 :] for text in some[:: len(parts) * 2]]
        others += [" ".join("".join(rng.permutation([*word])) for word in text.split()) for text in texts[::4]]
        found.append(try_queries(model, texts + others, right, encode_videos(model, clips, cache, part.held), rng))
    x, y = (np.concatenate([np.concatenate(trials[i]) for trials in found]) for i in range(2))
    weights, ridge = np.zeros(len(FEATURES)), 1e-2 * np.eye(len(FEATURES))
    for _ in range(30):  # logistic regression by Newton's method
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge, x.T @ (y - p) - ridge @ weights)
    least = min(np.quantile(evidence(t.x[t.answerable, 0], weights), SILENCED) for t in found)
    return {name: round(float(x), 4) for name, x in zip((*FEATURES, "least"), (*weights, least), strict=True)}


def write(folder: Path, values: dict[str, float]) -> None:
    """Keep weights in a model's config.json; its fingerprint stays."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | {"confidence": values}
    atomic_io.replace(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Return how often a positive one is above another; level ones count half."""
    differences = values[positive][:, None] - values[~positive]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def line(calibration: Calibration, name: str, best: np.ndarray, right: np.ndarray, others: np.ndarray) -> str:
    """Return a line of the table: the features (M, 5) of answerable queries' best matches, whether these are right, and
    the features of others' best matches."""
    x, right = np.concatenate([best, others]), np.pad(right, (0, len(others)))
    answerable, (sure, fits) = np.arange(len(x)) < len(best), calibration(x)
    error = np.abs(np.bincount(np.minimum((10 * sure).astype(int), 9), sure - right)).sum() / len(x)  # of ten bins
    silent = [f"{100 * (1 - some.mean()):.1f} %" for some in (fits[answerable], fits[~answerable])]
    told = f"{auroc(sure, answerable):.3f} ({auroc(x[:, 1], answerable):.3f}) | {auroc(sure, right):.3f} | {error:.3f}"
    first = f"{100 * right[answerable].mean():.1f}"
    return f"| {name} | {len(best)} + {len(others)} | {first} | {told} | {', '.join(silent)} |"


def measure(model: SUMA, scenes: str, dataset: str) -> str:
    """Return the table. `silenced`: of the answerable queries, and of the others, told that nothing fits."""
    from emoji_scenes.probes import read_truth, visitor_queries

    head = "| queries | of | right one first | AUROC, answerable (score alone) | AUROC, right | ECE | silenced |\n|"
    lines, calibration = [head + 7 * "---|"], Calibration(model.config)
    nowhere = json.loads((Path(__file__).parent / "emoji_scenes/unanswerable_queries.json").read_text())
    for name, data in (("visitors' queries of Scenes", scenes), ("captions of real clips", dataset)):
        clips, cache = load_split(model, data, "test_1k", None, keep=True)
        texts, right = [clip.captions[0] for clip in clips], np.eye(len(clips), dtype=bool)
        if data == scenes:
            wishes, right = visitor_queries(clips, read_truth(Path(scenes, "truth.jsonl")))
            texts = [wish["query"] for wish in wishes]
        trials = try_queries(model, texts + nowhere, right, encode_videos(model, clips, cache))
        inside, outside = trials.x[trials.answerable, 0], trials.x[~trials.answerable, 0]
        own, further = outside[: -len(nowhere)], outside[-len(nowhere) :]
        for where, others in ((f"{name}, the videos there or not", own), ("... and unanswerable queries", further)):
            lines.append(line(calibration, where, inside, trials.right[trials.answerable, 0], others))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the weights of a model and keep them with it, or print what they are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="a SUMA folder")
    parser.add_argument("--measure", metavar="SCENES", help="measure, with this folder of Scenes")
    args, more = parser.parse_known_args(argv)
    c = parse(more)
    use_fast_matmul()
    try:
        model = SUMA.from_pretrained(args.model)
        if args.measure:
            print(measure(model, args.measure, c.dataset))
            return
        clips, parts = load_mixture(c)
        cache = FrameCache(clips, c.cache_frames, model.config.image, form=c.cache_format)
        cache.build(c.skip_unreadable)
        if not (values := fit(model, clips, FrameFeatures(cache, model) if c.freeze_image else cache, parts)):
            raise ValueError(f"no data set has {ENOUGH} held-out videos: set --held-out to more")
        write(args.model, values)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error
    print(json.dumps(values))


if __name__ == "__main__":
    main()
