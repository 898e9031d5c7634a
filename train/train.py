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
from typing import Any, NamedTuple

import confidence
import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from benchmarks import OPTIONS, Clip
from card import model_card, push
from config import TrainConfig, parse
from data import Batches, Part, corrupt_captions, read_vectors
from encode import encode_captions, encode_videos, similarities
from evaluate import evaluate, load_split
from frame_cache import FrameCache, FrameFeatures
from gradcache import cached_step
from losses import Losses, suma_loss
from metrics import choose_share, diagonal
from mixture import load_mixture
from monitor import RESULTS, Monitor, check_same_run, load_checkpoint, save_checkpoint
from optimizer import freeze, learning_rate, parameter_groups, set_train_mode
from report import results_table
from torch import Tensor, nn

from suma import atomic_io
from suma.model.cpu import use_fast_attention_backward, use_fast_matmul
from suma.model.suma import SUMA
from suma.model.vocabulary import ignored_words
from suma.similarity import Similarities, combine


class Run(NamedTuple):
    """A model to be trained, and all that its training needs."""

    c: TrainConfig
    accelerator: Accelerator
    model: SUMA
    clips: list[Clip]  # of all data sets
    cache: FrameCache | FrameFeatures
    parts: list[Part]  # the data sets: the benchmark's own clips first
    loader: Batches
    pairs: int  # training captions


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate and push as the command line says, or do what an earlier call has left of that."""
    c = parse(argv)
    output = Path(c.output)
    try:
        accelerator = start_accelerator(c)
        output.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            check_same_run(c, output)
        if (output / RESULTS).exists():  # all is done but perhaps the push
            if accelerator.is_main_process:
                finish(c, output)
            return
        run = prepare(c, accelerator)
    except (ValueError, OSError) as error:  # the user's mistakes; errors of the training keep their traceback
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error
    if not train(run):
        return
    if accelerator.is_main_process:
        best = SUMA.from_pretrained(output / "best").to(accelerator.device)
        confidence.write(output / "best", confidence.fit(best, run.clips, run.cache, run.parts))
        finish(c, output)
    accelerator.end_training()


def start_accelerator(c: TrainConfig) -> Accelerator:
    """Return the accelerator of this process. Raise ValueError for an unusable tracker or batch size."""
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process unpacks and decodes
    accelerator = Accelerator(
        mixed_precision=c.mixed_precision,
        kwargs_handlers=[patience],
        log_with=c.tracker or None,
        project_dir=c.output,
    )
    if accelerator.device.type == "cpu":
        use_fast_matmul()
        use_fast_attention_backward()
    if c.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size={c.batch_size} cannot be shared evenly by {accelerator.num_processes} processes: "
            "choose a multiple of their number"
        )
    if c.tracker and not accelerator.log_with:
        raise ValueError(f"the tracker {c.tracker} is not installed: pip install {c.tracker}")
    return accelerator


def prepare(c: TrainConfig, accelerator: Accelerator) -> Run:
    """Return the run: its clips, the model to start from, and the cached frames.

    The test split is loaded and decoded here too, so that mistakes in it show before the training; it is used only
    after it. Raise ValueError or OSError for mistakes in the options or the data.
    """
    with accelerator.main_process_first():
        clips, parts = load_mixture(c)
    chosen = [i for part in parts for i in part.train]
    chosen = corrupt_captions(clips, chosen, c.shuffle_captions, c.drop_words, c.train_clips, c.seed)
    captions = [caption for i in chosen for caption in clips[i].captions]
    model = build_model(c, captions)
    with accelerator.main_process_first():
        cache = FrameCache(clips, c.cache_frames, model.config.image, form=c.cache_format)
        failures = cache.build(c.skip_unreadable)
        frames = FrameFeatures(cache, model.to(accelerator.device)) if c.freeze_image else cache
    for reason in failures:
        accelerator.print(f"left out: {reason}")
    if c.test_config:
        load_split(model, c.dataset, c.test_config, accelerator, **{name: getattr(c, name) for name in OPTIONS})
    readable, kept = set(np.flatnonzero(cache.counts).tolist()), set(chosen)
    parts = [
        part._replace(
            train=[i for i in part.train if i in readable & kept], held=[i for i in part.held if i in readable]
        )
        for part in parts
    ]
    return Run(c, accelerator, model, clips, frames, parts, Batches(model, clips, frames, parts, c), len(captions))


def build_model(c: TrainConfig, captions: list[str]) -> SUMA:
    """Return the model to start from, with the concepts of these captions, and freeze what `c` freezes."""
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
    return model


def train(run: Run) -> bool:
    """Train from the newest checkpoint to the last step. Return False if SIGTERM stopped it before, at a checkpoint."""
    c, accelerator, model, output = run.c, run.accelerator, run.model, Path(run.c.output)
    steps = c.steps or max(1, c.epochs * run.pairs // c.batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(model, c), betas=(0.9, 0.98))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    first, best = load_checkpoint(accelerator, output)
    if c.tracker:
        accelerator.init_trackers("suma", asdict(c))
    monitor = Monitor(accelerator, c, steps, first, run.pairs)

    stop = threading.Event()
    default = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    set_train_mode(model)
    batches = run.loader(first, steps, accelerator.process_index, accelerator.num_processes)
    for done, cpu_batch in enumerate(batches, start=first + 1):
        batch = {name: x.to(accelerator.device) for name, x in cpu_batch.items()}
        factor = learning_rate(done - 1, steps, c.warmup)
        losses = compute_gradients(run, wrapped, batch)
        update_weights(run, optimizer, factor, losses, done - 1, batch["video"])
        monitor.step(done, losses, c.clip_lr * factor, c.new_lr * factor)
        if done % c.eval_every == 0 or done == steps:
            best = select(run, done, best, monitor)
            accelerator.wait_for_everyone()
        stopping = bool(accelerator.reduce(torch.tensor(float(stop.is_set()), device=accelerator.device)))
        if done % c.save_every == 0 or done == steps or stopping:
            save_checkpoint(accelerator, output, done, best)
        if stopping:
            monitor.close()
            accelerator.end_training()
            accelerator.print(f"stopped after step {done}: the same command goes on from here")
            return False
    monitor.close()
    signal.signal(signal.SIGTERM, default)
    return True


def compute_gradients(run: Run, wrapped: nn.Module, batch: dict[str, Tensor]) -> Losses:
    """Return the losses of a batch, and leave their gradients in the parameters. wrapped: the model, distributed."""
    c = run.c
    loss = partial(
        suma_loss,
        video=batch["video"],
        caption=batch["caption"],
        how=run.model.config.scoring,
        alpha=c.alpha,
        beta=c.beta,
        weight=c.sim_weight,
    )
    inputs = tuple(batch[name] for name in ("tokens", "anchors", "pixels", "mask"))
    if c.grad_cache_chunk:
        return cached_step(wrapped, inputs, c.grad_cache_chunk, loss, run.accelerator.backward)
    losses = loss(wrapped(*inputs))
    run.accelerator.backward(losses.total)
    return losses


def update_weights(run: Run, optimizer: Any, factor: float, losses: Losses, step: int, videos: Tensor) -> None:
    """Take one step of the optimiser at `factor` of the peak learning rates.

    Raise RuntimeError, with what would help to find the cause, if the loss or the gradient's norm is not finite.
    """
    c, rates = run.c, {"clip_lr": run.c.clip_lr * factor, "new_lr": run.c.new_lr * factor}
    if not bool(losses.total.isfinite()):
        names = [run.clips[i].video_id for i in videos.tolist()]
        raise RuntimeError(f"loss is {losses.total.item()} at step {step} with {rates}, videos {names}")
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), c.grad_norm)
    if c.mixed_precision != "fp16" and not bool(torch.as_tensor(norm).isfinite()):  # fp16's scaler skips such steps
        raise RuntimeError(f"the gradient's norm is {float(norm)} at step {step} with {rates}")
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    run.model.limit_scales()


def select(run: Run, step: int, best: float, monitor: Monitor) -> float:
    """Save the model, with the best share of the concept space, if it is the best so far; return the best R@1.

    R@1 is the mean of both ways, on the held-out training videos of each data set, and of these sets. Every process
    encodes its part; the main one decides.
    """
    model, folder = run.model, Path(run.c.output) / "best"
    parts = [part for part in run.parts if part.held]
    if not parts:
        if run.accelerator.is_main_process:
            model.save_pretrained(folder)
        return best
    sims = [held_out_similarities(run, part, n) for n, part in enumerate(parts)]
    set_train_mode(model)
    if not run.accelerator.is_main_process:
        return best
    how = model.config.scoring
    untrained = run.c.alpha == run.c.beta == 0  # an aligned space that no loss has seen would help by chance alone
    share = 0.0 if untrained else choose_share(sims, how)
    results = [diagonal(combine(x, how._replace(concept_share=share))) for x in sims]
    monitor.held_out(step, dict(zip([part.name for part in parts], results, strict=True)), share)
    mean = float(np.mean([way.r1 for found in results for way in found.values()]))
    if mean > best:
        model.config.concept_share = share
        model.save_pretrained(folder)
    return max(best, mean)


def held_out_similarities(run: Run, part: Part, number: int) -> Similarities:
    """Return the similarities (N, N) of a part's N held-out clips, each with one of its captions, drawn by the seed."""
    clips = [run.clips[i] for i in part.held]
    rng = np.random.default_rng((run.c.seed, 3, number) if number else (run.c.seed, 3))
    queries = [clip.captions[rng.integers(len(clip.captions))] for clip in clips]
    videos = encode_videos(run.model, clips, run.cache, part.held, accelerator=run.accelerator)
    return similarities(run.model, encode_captions(run.model, queries, accelerator=run.accelerator), videos)


def finish(c: TrainConfig, output: Path) -> None:
    """Save the selected model, evaluate it once on the test split, write its card, and push it.

    If there is a results.json, only the card and the push are left to do. Raise SystemExit if the evaluation or the
    push fails: the trained model is kept, and the same command tries again.
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
        print(results_table(results))
        atomic_io.replace(file, (json.dumps(results, indent=2) + "\n").encode())
    (folder / "README.md").write_text(model_card(saved, asdict(c), results), encoding="utf-8")
    if c.push_to_hub:
        try:
            push(folder, c.push_to_hub)
        except Exception as error:  # any error: say that the trained model is safe
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            safe = f"The trained model is in {folder}; the same command tries again"
            raise SystemExit(f"not pushed to {c.push_to_hub} ({told}). {safe}") from error


if __name__ == "__main__":
    main()
