"""Train SUMA: `accelerate launch train/train.py --dataset DIR-or-Hub-id --output runs/suma`. See `--help`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from benchmarks import OPTIONS, Clip
from card import model_card, push
from checkpoints import RESULTS, check_same_run, load_checkpoint, save_checkpoint, write_whole
from config import TrainConfig, parse
from data import Batches, Part, read_vectors
from encode import encode_captions, encode_videos, similarities
from evaluate import evaluate, load, table
from frame_cache import FrameCache
from frame_features import FrameFeatures
from gradcache import cached_step
from losses import suma_loss
from metrics import choose_share, diagonal
from mixture import load_mixture
from monitor import Monitor
from noise import spoil
from optimizer import freeze, learn, learning_rate, parameter_groups

from suma.model.cpu import use_fast_attention_backward, use_fast_matmul
from suma.model.suma import SUMA
from suma.model.vocabulary import ignored_words
from suma.similarity import Similarities, combine


class Run(NamedTuple):
    """What is trained on what."""

    model: SUMA
    clips: list[Clip]  # of all data sets
    cache: FrameCache | FrameFeatures
    parts: list[Part]  # the data sets: the benchmark's own clips first
    loader: Batches
    pairs: int  # training captions


def prepare(c: TrainConfig, accelerator: Accelerator) -> Run:
    """Clips, held-out training clips for selection, the model to start from, and cached frames.

    The test split is looked for and decoded, and left alone until the end: what is wrong with it is told now.
    Raises ValueError or OSError for what is wrong with the options or the data.
    """
    with accelerator.main_process_first():
        clips, parts = load_mixture(c)
    train = [i for part in parts for i in part.train]
    train = spoil(clips, train, c.shuffle_captions, c.drop_words, c.train_clips, c.seed)
    captions = [caption for i in train for caption in clips[i].captions]
    model = SUMA.from_clip(
        c.backbone,
        captions,
        c.pretrained or None,
        c.seed,
        c.min_count,
        concept_start=c.concept_start,
        word_vectors=read_vectors(c.word_vectors),
        ignored_words=ignored_words() if c.ignore_words else [],
        num_concepts=c.num_concepts,
        anchor=c.anchor,
        activation=c.activation,
        frame_grid=c.frame_grid,
        temporal_layers=c.temporal_layers,
        temporal_frames=c.temporal_frames,
        aggregation=c.aggregation,
        aggregation_temperature=c.temperature,
        coarse_share=c.coarse_share,
        num_frames=c.num_frames,
    )
    freeze(model, c)
    model.clip.set_grad_checkpointing(c.checkpoint_activations)
    if c.compile:
        model.clip.visual.compile()
    with accelerator.main_process_first():
        cache = FrameCache(clips, c.cache_frames, model.config.image, form=c.cache_format)
        failures = cache.build(c.skip_unreadable)
        frames = FrameFeatures(cache, model.to(accelerator.device)) if c.freeze_image else cache
    for reason in failures:
        accelerator.print(f"left out: {reason}")
    if c.test_config:
        load(model, c.dataset, c.test_config, accelerator, **{name: getattr(c, name) for name in OPTIONS})
    usable, kept = set(np.flatnonzero(cache.counts).tolist()), set(train)
    parts = [
        part._replace(train=[i for i in part.train if i in usable & kept], held=[i for i in part.held if i in usable])
        for part in parts
    ]
    return Run(model, clips, frames, parts, Batches(model, clips, frames, parts, c), len(captions))


def select(run: Run, c: TrainConfig, step: int, best: float, monitor: Monitor, accelerator: Accelerator) -> float:
    """Save the model with the best share of the concept space if it is the best so far; return the best R@1.

    R@1 is the mean of both ways, on the held-out training videos of each data set, and of these sets. Every process
    encodes its part; the main one decides.
    """
    model, folder = run.model, Path(c.output) / "best"
    parts = [part for part in run.parts if part.held]
    if not parts:
        if accelerator.is_main_process:
            model.save_pretrained(folder)
        return best
    sims = [held_out_similarities(run, part, n, c.seed, accelerator) for n, part in enumerate(parts)]
    learn(model)
    if not accelerator.is_main_process:
        return best
    how = model.config.scoring
    untrained = c.alpha == c.beta == 0  # an aligned space that no loss has seen would help by chance alone
    share = 0.0 if untrained else choose_share(sims, how)
    results = [diagonal(combine(x, how._replace(concept_share=share))) for x in sims]
    monitor.held_out(step, dict(zip([part.name for part in parts], results, strict=True)), share)
    mean = float(np.mean([way.r1 for found in results for way in found.values()]))
    if mean > best:
        model.config.concept_share = share
        model.save_pretrained(folder)
    return max(best, mean)


def held_out_similarities(run: Run, part: Part, number: int, seed: int, accelerator: Accelerator) -> Similarities:
    """Return the similarities (N, N) of a part's N held-out clips, each with one of its captions, drawn by the seed."""
    clips = [run.clips[i] for i in part.held]
    rng = np.random.default_rng((seed, 3, number) if number else (seed, 3))
    queries = [clip.captions[rng.integers(len(clip.captions))] for clip in clips]
    videos = encode_videos(run.model, clips, run.cache, part.held, accelerator=accelerator)
    return similarities(run.model, encode_captions(run.model, queries, accelerator=accelerator), videos)


def main(argv: Sequence[str] | None = None) -> None:
    c = parse(argv)
    output = Path(c.output)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process unpacks and decodes
    try:
        accelerator = Accelerator(
            mixed_precision=c.mixed_precision,
            kwargs_handlers=[patience],
            log_with=c.tracker or None,
            project_dir=output,
        )
    except ValueError as error:  # an unknown tracker
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error
    rank, world, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    if accelerator.device.type == "cpu":
        use_fast_matmul()
        use_fast_attention_backward()
    try:
        if c.batch_size % world:
            raise ValueError(f"batch_size={c.batch_size} cannot be shared evenly by {world} processes")
        if c.tracker and not accelerator.log_with:
            raise ValueError(f"the tracker {c.tracker} is not installed: pip install {c.tracker}")
        output.mkdir(parents=True, exist_ok=True)
        if is_main:
            check_same_run(c, output)
        if (output / RESULTS).exists():  # all is done but perhaps the push
            if is_main:
                finish(c, output)
            return
        run = prepare(c, accelerator)
    except (ValueError, OSError) as error:  # what the user gave; the loop's own errors keep their traceback
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error

    model, loader = run.model, run.loader
    steps = c.steps or max(1, c.epochs * run.pairs // c.batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(model, c), betas=(0.9, 0.98))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    first, best = load_checkpoint(accelerator, output)
    if c.tracker:
        accelerator.init_trackers("suma", asdict(c))
    monitor = Monitor(accelerator, c, steps, first, run.pairs)

    stop = threading.Event()
    default = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    learn(model)
    for step, batch in enumerate(loader(first, steps, rank, world), start=first):
        factor = learning_rate(step, steps, c.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        rates = {"clip_lr": c.clip_lr * factor, "new_lr": c.new_lr * factor}
        batch = {name: x.to(accelerator.device) for name, x in batch.items()}
        how = model.config.scoring
        loss = partial(
            suma_loss,
            video=batch["video"],
            caption=batch["caption"],
            how=how,
            alpha=c.alpha,
            beta=c.beta,
            weight=c.sim_weight,
        )
        inputs = tuple(batch[name] for name in ("tokens", "anchors", "pixels", "mask"))
        if c.grad_cache_chunk:
            losses = cached_step(wrapped, inputs, c.grad_cache_chunk, loss, accelerator.backward)
        else:
            losses = loss(wrapped(*inputs))
            accelerator.backward(losses.total)
        if not bool(losses.total.isfinite()):
            names = [loader.clips[i].video_id for i in batch["video"].tolist()]
            raise RuntimeError(f"loss is {losses.total.item()} at step {step} with {rates}, videos {names}")
        norm = accelerator.clip_grad_norm_(model.parameters(), c.grad_norm)
        if c.mixed_precision != "fp16" and not bool(torch.as_tensor(norm).isfinite()):  # fp16's scaler skips such steps
            raise RuntimeError(f"the gradient's norm is {float(norm)} at step {step} with {rates}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.limit_scales()

        done = step + 1
        monitor.step(done, losses, **rates)
        if done % c.eval_every == 0 or done == steps:
            best = select(run, c, done, best, monitor, accelerator)
            accelerator.wait_for_everyone()
        stopping = bool(accelerator.reduce(torch.tensor(float(stop.is_set()), device=accelerator.device)))
        if done % c.save_every == 0 or done == steps or stopping:
            save_checkpoint(accelerator, output, done, best)
        if stopping:
            monitor.close()
            accelerator.end_training()
            accelerator.print(f"stopped after step {done}: the same command goes on from here")
            return
    monitor.close()
    signal.signal(signal.SIGTERM, default)
    if is_main:
        finish(c, output)
    accelerator.end_training()


def finish(c: TrainConfig, output: Path) -> None:
    """Save the selected model, evaluate it once on the test split, write its card, and push it.

    Where results.json stands, all is done but the card and the push. A failed push is the end of the process, not of
    the model: SystemExit says what went wrong, and the same command tries again.
    """
    folder, file = output / "model", output / RESULTS
    options = {name: getattr(c, name) for name in OPTIONS}
    if not file.exists():
        chosen = SUMA.from_pretrained(output / "best")
        (chosen.half() if c.save_half else chosen).save_pretrained(folder)
    saved = SUMA.from_pretrained(folder)
    results = json.loads(file.read_text()) if file.exists() else {}
    if c.test_config and results.get("config") != c.test_config:
        saved.to("cuda" if torch.cuda.is_available() else "cpu")
        try:
            results = evaluate(saved, c.dataset, c.test_config, keep=c.freeze_image, **options)
        except (ValueError, OSError) as error:
            told = " ".join(str(error).split())
            raise SystemExit(f"not evaluated: {told}. The trained model is in {folder}") from error
        print(table(results))
        write_whole(file, json.dumps(results, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(saved, asdict(c), results), encoding="utf-8")
    if c.push_to_hub:
        try:
            push(folder, c.push_to_hub)
        except Exception as error:  # whatever it is, the trained model is safe and the user must know
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            safe = f"The trained model is in {folder}; the same command tries again"
            raise SystemExit(f"not pushed to {c.push_to_hub} ({told}). {safe}") from error


if __name__ == "__main__":
    main()
