"""Evaluate a saved model on a benchmark: `python train/evaluate.py --model DIR --dataset DIR`.

With `accelerate launch train/evaluate.py ...` several processes share the encoding. Every video and every caption is
encoded once.

Shapes: T texts, V videos.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from benchmarks import MSRVTT, OPTIONS, Clip, load_clips
from encode import ORDERS, clips_of, encode_captions, encode_videos, similarities
from frame_cache import FrameCache, FrameFeatures
from metrics import (
    RERANKS,
    Rerank,
    both_ways,
    concept_precision,
    dual_softmax,
    inverted_softmax,
    owners,
    popularity,
    ranks,
    retrieval,
)
from report import results_table
from torch import Tensor

from suma.index.hubness import evenly, word_bundles
from suma.index.scoring import Scorer
from suma.model.cpu import use_fast_matmul
from suma.model.encoder import Queries
from suma.model.suma import SUMA
from suma.similarity import Texts, Videos, combine


def load_split(
    model: SUMA,
    data: str,
    config: str,
    accelerator: Accelerator | None,
    sample: int = 0,
    keep: bool = False,
    **options: Any,
) -> tuple[list[Clip], FrameCache | FrameFeatures]:
    """Return the clips of a config and their frames, which one process decodes.

    sample: only so many clips, drawn by a fixed seed (0: all). keep: return the frames' features instead, and keep them
    on disk for other models of the same image tower.
    """
    with accelerator.main_process_first() if accelerator else nullcontext():
        clips = load_clips(data, config, **options)
        if 0 < sample < len(clips):
            chosen = np.random.default_rng(0).choice(len(clips), sample, replace=False)
            clips = [clips[i] for i in sorted(chosen)]
        cache = FrameCache(clips, model.config.num_frames, model.config.image)
        cache.build()
        return clips, FrameFeatures(cache, model) if keep else cache


def load_bank(
    model: SUMA,
    data: str,
    config: str,
    clips: Sequence[Clip],
    how: Rerank,
    accelerator: Accelerator | None,
    **options: Any,
) -> tuple[Texts, Videos | None]:
    """Return the bank's captions and videos, encoded (None for its videos if the method is `search`).

    Raise ValueError if the bank has videos that are evaluated.
    """
    if how.bank_config == config:
        raise ValueError(
            f"the bank must not be the evaluated split {config}: choose a training split with --bank-config"
        )
    try:
        bank, cache = load_split(model, data, how.bank_config, accelerator, how.bank_size, **options)
    except ValueError as error:
        raise ValueError(f"{how.method} needs a bank of training clips (--bank-config): {error}") from error
    if shared := {clip.video_id for clip in bank} & {clip.video_id for clip in clips}:
        raise ValueError(
            f"the bank {how.bank_config} holds {min(shared)}, which is evaluated: choose another --bank-config"
        )
    captions, _ = owners(bank)
    if how.method == "search":
        return encode_captions(model, evenly(captions), accelerator=accelerator), None
    videos = encode_videos(model, bank, cache, accelerator=accelerator)
    return encode_captions(model, captions, accelerator=accelerator), videos


def evaluate_reranked(
    model: SUMA,
    how: Rerank,
    scores: Tensor,
    correct: Tensor,
    texts: Texts,
    videos: Videos,
    bank: tuple[Texts, Videos | None] | None,
    chunk: int = 256,
) -> dict[str, object]:
    """Return the metrics of SUMA's scores (T, V) after re-ranking, and how it was done (without bank: dual-softmax)."""
    b = how.inverse_temperature
    if bank is None:
        t2v, v2t = dual_softmax(scores, b), dual_softmax(scores.T, b)
        done: dict[str, object] = {"method": how.method, "transductive": True, "inverse_temperature": b}
    elif bank[1] is None:
        return evaluate_search(model, how, scores, correct, videos, bank[0])
    else:  # every item's constant, a chunk of items at a time
        by_captions = [
            popularity(model.score(bank[0], Videos(*(x[i : i + chunk] for x in videos))), b)
            for i in range(0, scores.shape[1], chunk)
        ]
        by_videos = [
            popularity(model.score(Texts(*(x[i : i + chunk] for x in texts)), bank[1]).T, b)
            for i in range(0, scores.shape[0], chunk)
        ]
        t2v = inverted_softmax(scores, torch.cat(by_captions).to(scores.device))
        v2t = inverted_softmax(scores.T, torch.cat(by_videos).to(scores.device))
        sizes = {"bank_captions": len(bank[0].features), "bank_videos": len(bank[1].features)}
        done = {**asdict(how), "transductive": False, **sizes}
    return {**done, "retrieval": {"t2v": asdict(retrieval(t2v, correct)), "v2t": asdict(retrieval(v2t, correct.T))}}


def evaluate_search(
    model: SUMA, how: Rerank, scores: Tensor, correct: Tensor, videos: Videos, bank: Texts
) -> dict[str, object]:
    """Return the metrics of text to video after an index's correction, by captions and by bundles of words."""
    scorer = Scorer(model.concepts(), model.config.scoring)
    folded = scorer.fold_videos(clips_of(scorer, videos))
    banks = {"captions": bank, "words": encode_captions(model, word_bundles(model))}
    found = {}
    for name, texts in banks.items():
        scored = scorer.fold_texts(Queries(*(x.cpu().numpy() for x in texts))) @ folded.T
        popular = popularity(torch.from_numpy(scored), how.inverse_temperature)
        found[name] = asdict(retrieval(inverted_softmax(scores, popular.to(scores.device)), correct))
    sizes = {f"bank_{name}": len(texts.features) for name, texts in banks.items()}
    return {**asdict(how), "transductive": False, **sizes, "retrieval": found}


def evaluate(
    model: SUMA,
    data: str,
    config: str = "test_1k",
    accelerator: Accelerator | None = None,
    how: Rerank | None = None,
    keep: bool = False,
    order: str = "all",
    **options: Any,
) -> dict[str, object]:
    """Return the metrics of retrieval both ways and of the concepts; on Scenes, also what its truth tells.

    accelerator: each of its processes calls this and encodes a part; the main one gets the results, the others {}.
    how: also re-rank, reported separately. keep: as in `load_split`. order: one of ORDERS, of each video's frames.
    options: those of `load_clips`.
    """
    clips, cache = load_split(model, data, config, accelerator, keep=keep, **options)
    captions, correct = owners(clips)
    videos = encode_videos(model, clips, cache, accelerator=accelerator, order=order)
    texts = encode_captions(model, captions, accelerator=accelerator)
    bank = None
    if how is not None and not how.transductive:
        bank = load_bank(model, data, config, clips, how, accelerator, **options)
    truth = Path(data) / "truth.jsonl"
    if truth.exists():
        probe, cache = load_split(model, data, "probe", accelerator, keep=keep)
        probe_videos = encode_videos(model, probe, cache, accelerator=accelerator)
    if accelerator is not None and not accelerator.is_main_process:
        return {}

    sims = similarities(model, texts, videos)
    how_scored = model.config.scoring
    scores, coarse = combine(sims, how_scored), how_scored.coarse_share
    spaces = {"original": sims.original(coarse), "aligned": sims.aligned(coarse), "SUMA": scores}
    results: dict[str, object] = {
        "data": data,
        "config": config,
        "videos": len(clips),
        "captions": len(captions),
        "concept_share": model.config.concept_share,
        "retrieval": {n: {way: asdict(r) for way, r in both_ways(s, correct).items()} for n, s in spaces.items()},
        "ranks": {"t2v": ranks(scores, correct).tolist(), "v2t": ranks(scores.T, correct.T).tolist()},  # of SUMA
    }
    results["concepts"] = concept_precision(model, clips, videos)
    if how is not None:
        results["rerank"] = evaluate_reranked(model, how, scores, correct, texts, videos, bank)
    if truth.exists():
        results |= evaluate_scenes(model, clips, videos, scores, truth, probe, probe_videos)
    return results


def evaluate_scenes(
    model: SUMA,
    clips: Sequence[Clip],
    videos: Videos,
    scores: Tensor,
    truth: Path,
    probe: Sequence[Clip],
    probe_videos: Videos,
) -> dict[str, object]:
    """Return what only the truth of Scenes can tell of a model. Import Scenes here alone: it needs its sprites."""
    from emoji_scenes.probes import (
        count_errors,
        moment_spans,
        one_act,
        pointing,
        purity,
        read_truth,
        time_probe,
        visitor_ranks,
    )

    scenes = read_truth(truth)
    return {
        "errors": count_errors(scores, clips, scenes),
        "one act": one_act(model, clips, videos, scenes),
        "pointing": pointing(model, clips, videos, scenes),
        "spans": moment_spans(model, clips, videos, scenes),
        "purity": purity(model, clips, videos, scenes),
        "visitors": visitor_ranks(model, clips, videos, scenes),
        "time": time_probe(model, probe, probe_videos),
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="a SUMA folder or Hub id")
    parser.add_argument("--dataset", default=MSRVTT, help="a benchmark on the Hub, or a local folder in its layout")
    parser.add_argument("--config", default="test_1k", help="the benchmark's split to evaluate")
    parser.add_argument("--video-column", default="video", help="the column of the videos' file names")
    parser.add_argument("--caption-column", default="caption", help="the column of the captions")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many videos of a split; 0: all")
    parser.add_argument("--paragraph", action="store_true", help="join each video's captions (ActivityNet)")
    parser.add_argument(
        "--rerank", choices=RERANKS, help="also correct hubness, in a table apart; dual-softmax is transductive"
    )
    parser.add_argument("--bank-config", default=Rerank.bank_config, help="inverted-softmax: the split of the bank")
    parser.add_argument("--bank-size", type=int, default=Rerank.bank_size, help="inverted-softmax: clips in the bank")
    parser.add_argument(
        "--inverse-temperature",
        type=float,
        help="of the re-ranking's softmax (default: 20, of `search` 10); choose it on training videos only",
    )
    parser.add_argument(
        "--frames", choices=ORDERS, default="all", help="of each video: as they are, shuffled in time, the middle one"
    )
    parser.add_argument("--output", type=Path, help="also write the results as JSON here, and as Markdown beside it")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU, also where there is a GPU")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Evaluate as the command line says; print the tables and write them."""
    how = None
    if args.rerank:
        how = Rerank(args.rerank, args.bank_config, args.bank_size, args.inverse_temperature)
    if args.output:
        if args.output.suffix == ".md":
            raise ValueError(f"--output {args.output} is for JSON: the Markdown is written beside it")
        args.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process unpacks and decodes
    accelerator = Accelerator(cpu=args.cpu, kwargs_handlers=[patience])
    if accelerator.device.type == "cpu":
        use_fast_matmul()
    model = SUMA.from_pretrained(args.model).to(accelerator.device)
    options = {name: getattr(args, name) for name in OPTIONS}
    results = evaluate(model, args.dataset, args.config, accelerator, how, order=args.frames, **options)
    if accelerator.is_main_process:
        print(results_table(results))
        if args.output:
            args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            args.output.with_suffix(".md").write_text(results_table(results) + "\n", encoding="utf-8")
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 2, after one line on stderr, for mistakes in the user's input."""
    args = parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes would only repeat it
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
