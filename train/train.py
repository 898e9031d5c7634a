"""Train SUMA: `accelerate launch train/train.py --data DIR-or-Hub-id --output runs/suma`. See `--help`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from benchmarks import OPTIONS, Clip, load_clips
from card import model_card, push
from config import TrainConfig, parse
from data import FrameCache, batches, hold_out, pad_frames, pick_frames
from evaluate import both_ways, choose_share, encode_captions, encode_videos, evaluate, similarities, table
from gradcache import cached_step
from losses import suma_loss
from torch import Tensor
from tqdm import tqdm

from suma.cpu import use_fast_attention_backward, use_fast_matmul
from suma.model import SUMA
from suma.similarity import combine


def parameter_groups(model: SUMA, c: TrainConfig) -> list[dict[str, Any]]:
    """Backbone and new modules, each with and without weight decay (none on vectors and scalars)."""
    groups = []
    for of_clip, lr in ((True, c.clip_lr), (False, c.new_lr)):
        named = [(n, p) for n, p in model.named_parameters() if n.startswith("clip.") == of_clip and p.requires_grad]
        for decay, matrices in ((c.weight_decay, True), (0.0, False)):
            params = [p for _, p in named if (p.ndim >= 2) == matrices]
            groups.append({"params": params, "peak": lr, "lr": lr, "weight_decay": decay})
    return groups


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak rate: linear warm-up, then cosine to 0."""
    rising = max(1, int(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising))


class Batches:
    """Step -> this process's part of the global batch, the same however often a run is resumed: all randomness hangs
    on (seed, step)."""

    def __init__(self, model: SUMA, clips: list[Clip], cache: FrameCache, picks: list[int], c: TrainConfig):
        self.model, self.cache, self.picks, self.c = model, cache, picks, c
        self.clips = [clips[i] for i in picks]
        self.per_epoch = len(self._epoch(0))
        if not self.per_epoch:
            raise ValueError(f"{len(self.clips)} training clips do not fill one batch of {c.batch_size}")

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.c.seed, 1, epoch))
        return list(batches(self.clips, self.c.batch_size, self.c.group_size, rng))

    def load(self, step: int, members: list[int], rank: int, world: int) -> dict[str, Tensor]:
        """Tokens, anchors, pixels, mask, and the ids by which pairs that are no negatives are told."""
        rng = np.random.default_rng((self.c.seed, 2, step))
        captions = [self.clips[i].captions[rng.integers(len(self.clips[i].captions))] for i in members]
        distinct = {caption: n for n, caption in enumerate(captions)}
        rows = [self.picks[i] for i in members]
        frames = [pick_frames(int(self.cache.counts[row]), self.c.train_frames, rng) for row in rows]
        mine = slice(rank * len(members) // world, (rank + 1) * len(members) // world)
        videos = [self.cache.get(row, at) for row, at in zip(rows[mine], frames[mine], strict=True)]
        pixels, mask = pad_frames(videos, self.c.train_frames)
        return {
            "tokens": self.model.tokenize(captions[mine]), "anchors": self.model.anchors(captions[mine]).cpu(),
            "pixels": torch.from_numpy(pixels), "mask": torch.from_numpy(mask),
            "video": torch.tensor(members[mine]), "caption": torch.tensor([distinct[x] for x in captions[mine]]),
        }  # fmt: skip

    def __call__(self, first: int, last: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        """The batches of steps [first, last), each loaded while the one before is computed on."""

        def members() -> Iterator[tuple[int, list[int]]]:
            for epoch in range(first // self.per_epoch, -(-last // self.per_epoch)):
                for i, batch in enumerate(self._epoch(epoch), start=epoch * self.per_epoch):
                    if first <= i < last:
                        yield i, batch

        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for step, batch in members():
                following = pool.submit(self.load, step, batch, rank, world)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()


def check_same_run(c: TrainConfig, output: Path) -> None:
    """Note the run's options in its folder. Raises ValueError where a checkpoint of other options stands there."""
    file = output / "train_config.json"
    now = asdict(c)
    if file.exists() and newest_checkpoint(output):
        before = json.loads(file.read_text())
        free = ("output", "push_to_hub", "log_every", "save_every")  # what does not touch the weights
        changed = [name for name in now if name not in free and before.get(name) != now[name]]
        if changed:
            told = ", ".join(f"{name} {before.get(name)!r} -> {now[name]!r}" for name in changed)
            raise ValueError(f"{output} holds a run with other options ({told}): choose another --output")
    file.write_text(json.dumps(now, indent=2) + "\n")


def newest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint: `progress.json` is written last."""
    found = [p for p in output.glob("checkpoint-*") if (p / "progress.json").exists()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, best: float) -> None:
    """Weights, optimiser and random states; the two newest are kept."""
    folder = output / f"checkpoint-{step}"
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        (folder / "progress.json").write_text(json.dumps({"step": step, "best": best}))
        for old in sorted(output.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[:-2]:
            shutil.rmtree(old)


def main(argv: Sequence[str] | None = None) -> None:
    c = parse(argv)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process unpacks and decodes
    accelerator = Accelerator(mixed_precision=c.mixed_precision, kwargs_handlers=[patience])
    rank, world, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    if accelerator.device.type == "cpu":
        use_fast_matmul()
        use_fast_attention_backward()
    if c.batch_size % world:
        raise ValueError(f"batch_size={c.batch_size} cannot be shared evenly by {world} processes")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    output = Path(c.output)
    output.mkdir(parents=True, exist_ok=True)
    if is_main:
        check_same_run(c, output)

    # data: clips, held-out training clips for selection, cached frames
    with accelerator.main_process_first():
        clips = load_clips(c.data, c.train_config, **{name: getattr(c, name) for name in OPTIONS})
    train, held = hold_out(clips, c.held_out, c.seed)
    captions = [caption for i in train for caption in clips[i].captions]
    model = SUMA.from_clip(
        c.clip, captions, c.pretrained or None, c.seed, c.min_count, num_concepts=c.num_concepts, anchor=c.anchor,
        temporal_layers=c.temporal_layers, aggregation=c.aggregation, num_frames=c.num_frames,
    )  # fmt: skip
    with accelerator.main_process_first():
        cache = FrameCache(clips, c.cache_frames, model.config.image)
        failures = cache.build(c.skip_unreadable)
    for reason in failures:
        accelerator.print(f"left out: {reason}")
    train = [i for i in train if cache.counts[i]]
    held = [i for i in held if cache.counts[i]]

    model.clip.set_grad_checkpointing(c.checkpoint_activations)

    # optimiser
    loader = Batches(model, clips, cache, train, c)
    steps = c.steps or max(1, c.epochs * len(captions) // c.batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(model, c), betas=(0.9, 0.98))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    first, best = 0, -1.0
    if checkpoint := newest_checkpoint(output):
        accelerator.load_state(str(checkpoint))
        progress = json.loads((checkpoint / "progress.json").read_text())
        first, best = progress["step"], progress["best"]
        accelerator.print(f"resumed from {checkpoint}")

    def log(**values: Any) -> None:
        if is_main:
            with (output / "log.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")

    def select(step: int) -> float:
        """Evaluate on the held-out training videos; the best model so far is saved with its best share."""
        if not held:
            model.save_pretrained(output / "best")
            return best
        held_clips = [clips[i] for i in held]
        rng = np.random.default_rng((c.seed, 3))
        queries = [clip.captions[rng.integers(len(clip.captions))] for clip in held_clips]
        sims = similarities(model, encode_captions(model, queries), encode_videos(model, held_clips, cache, held))
        correct = torch.eye(len(held), dtype=torch.bool)
        share = choose_share(sims, correct)
        result = both_ways(combine(sims, share), correct)
        mean = (result["t2v"].r1 + result["v2t"].r1) / 2
        log(step=step, held_out={way: asdict(r) for way, r in result.items()}, concept_share=share)
        tqdm.write(f"step {step} held-out t2v {result['t2v'].row()} v2t {result['v2t'].row()} share {share}")
        if mean > best:
            model.config.concept_share = share
            model.save_pretrained(output / "best")
        model.train()
        return max(best, mean)

    # the loop
    model.train()
    began, seen = time.time(), 0
    bar = tqdm(total=steps, initial=first, desc="train", unit="step", disable=not is_main or None)
    for step, batch in enumerate(loader(first, steps, rank, world), start=first):
        factor = learning_rate(step, steps, c.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        batch = {name: x.to(accelerator.device) for name, x in batch.items()}
        how, temperature = model.config.aggregation, model.config.aggregation_temperature
        loss = partial(
            suma_loss, video=batch["video"], caption=batch["caption"], how=how, temperature=temperature, alpha=c.alpha,
            beta=c.beta,
        )  # fmt: skip
        inputs = tuple(batch[name] for name in ("tokens", "anchors", "pixels", "mask"))
        if c.chunk:
            losses = cached_step(wrapped, inputs, c.chunk, loss, accelerator.backward)
        else:
            losses = loss(wrapped(*inputs))
            accelerator.backward(losses.total)
        if not bool(losses.total.isfinite()):
            names = [clips[train[i]].video_id for i in batch["video"].tolist()]
            rates = {"clip_lr": c.clip_lr * factor, "new_lr": c.new_lr * factor}
            raise RuntimeError(f"loss is {losses.total.item()} at step {step} with {rates}, videos {names}")
        accelerator.clip_grad_norm_(model.parameters(), c.grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.limit_scales()

        seen += c.batch_size
        bar.update()
        done = step + 1
        if done % c.log_every == 0:
            values = {name: round(x.item(), 4) for name, x in losses._asdict().items()}
            speed = seen / (time.time() - began)
            rates = {"clip_lr": c.clip_lr * factor, "new_lr": c.new_lr * factor}
            log(
                step=done,
                epoch=round(done * c.batch_size / len(captions), 4),
                **values,
                **rates,
                pairs_per_second=round(speed, 1),
            )
            if is_main:
                metrics = " ".join(f"{name} {value:.3f}" for name, value in values.items())
                tqdm.write(f"step {done}/{steps} {metrics} {speed:.0f} pairs/s")
        if done % c.eval_every == 0 or done == steps:
            if is_main:
                best = select(done)
            accelerator.wait_for_everyone()
        stopping = bool(accelerator.reduce(torch.tensor(float(stop.is_set()), device=accelerator.device)))
        if done % c.save_every == 0 or done == steps or stopping:
            save_checkpoint(accelerator, output, done, best)
        if stopping:
            accelerator.print(f"stopped after step {done}: the same command goes on from here")
            return
    bar.close()

    if is_main:
        finish(c, output)
    accelerator.end_training()


def finish(c: TrainConfig, output: Path) -> None:
    """Save the selected model, evaluate it once on the test split, write its card, and push it.

    results.json is written last: where it stands, all is done but the push. A failed push is the end of the process,
    not of the model: SystemExit says what went wrong, and the same command tries again.
    """
    folder, file = output / "model", output / "results.json"
    if not file.exists():
        chosen = SUMA.from_pretrained(output / "best")
        (chosen.half() if c.half else chosen).save_pretrained(folder)
        saved = SUMA.from_pretrained(folder)
        saved.to("cuda" if torch.cuda.is_available() else "cpu")
        options = {name: getattr(c, name) for name in OPTIONS}
        results = evaluate(saved, c.data, c.test_config, **options) if c.test_config else {}
        (folder / "README.md").write_text(model_card(saved, asdict(c), results), encoding="utf-8")
        if results:
            print(table(results))
            partial_file = file.with_suffix(".partial")
            partial_file.write_text(json.dumps(results, indent=2) + "\n")
            partial_file.rename(file)
    if c.push_to_hub:
        try:
            push(folder, c.push_to_hub)
        except Exception as error:  # whatever it is, the trained model is safe and the user must know
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            safe = f"The trained model is in {folder}; the same command tries again"
            raise SystemExit(f"not pushed to {c.push_to_hub} ({told}). {safe}") from error


if __name__ == "__main__":
    main()
