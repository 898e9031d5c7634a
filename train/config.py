"""The options of a training run: one dataclass, whose fields become the command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from benchmarks import MSRVTT
from frame_cache import FORMATS

from suma.model.cpu import has_bf16


def option(default: Any, text: str) -> Any:
    """Return a field with this default and this help on the command line."""
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """A training run; every field is a flag of the command line."""

    dataset: str = option(MSRVTT, "a benchmark on the Hub, or a local folder in its layout")
    train_config: str = option("train_9k", "its training split")
    extra_train_configs: str = option(
        "", "further splits to train on, comma-separated: captions of the same videos, or other videos"
    )
    mix: str = option("", "train on other data sets too, comma-separated: DATASET:CONFIG[+CONFIG]=SHARE of each batch")
    test_config: str = option("test_1k", "the split of the final evaluation; empty: none")
    video_column: str = option("video", "the column of the videos' file names, in rows of your own")
    caption_column: str = option("caption", "the column of the captions, in rows of your own")
    limit: int = option(0, "only the first so many videos of each split, fetched one by one; 0: all")
    paragraph: bool = option(False, "join each video's captions into one (ActivityNet)")
    output: str = option("runs/suma", "folder for checkpoints, log and the trained model; run again to resume")
    backbone: str = option("ViT-B-32-quickgelu", "open_clip model name, a .json of one, or a saved SUMA's folder")
    pretrained: str = option("openai", "open_clip tag or checkpoint file of the backbone; empty: random weights")
    num_concepts: int = option(1024, "K, clusters of caption words")
    min_count: int = option(1, "words in fewer captions make no clusters of their own")
    ignore_words: bool = option(
        False, "words without a picture of their own (suma/model/ignored_words.txt) name no concept"
    )
    anchor: str = option("idf", "weights of the concepts a sentence names: binary, count or idf; self: no words")
    activation: str = option("cosine", "of concepts: cosine (searches need it), mlp, relu, top or sparsemax")
    concept_start: str = option("tokens", "where concepts begin: tokens (embeddings), sentences (encoder) or random")
    word_vectors: str = option("", "cluster the words by vectors of a text file: a word and its numbers on each line")
    frame_grid: int = option(0, "G: frame features also read G x G regions of the picture (left and right); 0: none")
    temporal_layers: int = option(4, "layers of the temporal encoder; 0: the mean of the frames")
    temporal_frames: bool = option(False, "compare frames as the temporal encoder leaves them, not as it finds them")
    aggregation: str = option("softmax", "over frames: softmax, mean or max")
    temperature: float = option(0.05, "of that softmax: towards 0 the best frame alone, towards infinity the mean")
    coarse_share: float = option(0.5, "the whole video's share of the score, the rest is its frames'")
    num_frames: int = option(12, "frames per video in evaluation")
    train_frames: int = option(12, "frames per video in training, one random one of each segment")
    cache_frames: int = option(24, "frames kept per training video, of which a step draws train_frames")
    cache_format: str = option("raw", "how they are kept: raw (24 of 224 px: 3.6 MB) or jpeg (a tenth, lossy, slower)")
    epochs: int = option(5, "passes over the training pairs; a step takes one caption of each of its videos")
    steps: int = option(0, "optimiser steps instead of epochs")
    batch_size: int = option(128, "pairs per step, over all processes")
    grad_cache_chunk: int = option(
        0, "pairs whose activations are in memory at once (gradient caching); 0: the whole batch"
    )
    checkpoint_activations: bool = option(False, "a twelfth of the activations for a quarter more time")
    compile: bool = option(False, "torch.compile the image tower: minutes at the start, see tests/bench/train_step.py")
    freeze_image: bool = option(False, "leave the image tower as it is; each frame is then encoded only once")
    freeze_text: bool = option(False, "leave the text tower as it is")
    freeze_layers: int = option(0, "leave the embeddings and the first so many blocks of both towers as they are")
    group_size: int = option(0, "hard batches: runs of this many clips of one category; 0: random batches")
    group_words: bool = option(False, "half of these runs share a rare word of a caption instead")
    clip_lr: float = option(1e-6, "learning rate of the backbone")
    new_lr: float = option(1e-4, "learning rate of the temporal encoder, the concepts and their temperature")
    warmup: float = option(0.1, "share of the steps with rising learning rate; then cosine to 0")
    weight_decay: float = option(0.2, "of matrices; none on biases, norms and temperatures")
    sim_weight: float = option(1.0, "weight of the similarity loss of the original space")
    alpha: float = option(0.1, "weight of the alignment loss")
    beta: float = option(1.0, "weight of the aligned similarity loss")
    grad_norm: float = option(1.0, "largest norm of the gradient")
    shuffle_captions: float = option(0.0, "share of the training clips that get another's captions, to see the effect")
    drop_words: float = option(0.0, "share of the training captions' words that are left out, to see the effect")
    train_clips: int = option(0, "train on so many of the training clips, drawn by the seed; 0: all")
    held_out: int = option(500, "training videos kept for selection; the test split is never used for it")
    eval_every: int = option(500, "steps between evaluations on the held-out videos")
    save_every: int = option(500, "steps between checkpoints")
    log_every: int = option(20, "steps between lines of metrics")
    mixed_precision: str = option("auto", "bf16, fp16 (GPU only) or no; auto: bf16 where the hardware has it")
    tracker: str = option("", "also log to a tracker of accelerate that is installed: tensorboard, trackio, ...")
    save_half: bool = option(False, "save the final weights in float16")
    skip_unreadable: bool = option(False, "leave unreadable videos out and report them, instead of stopping")
    push_to_hub: str = option("", "Hub id to push the trained model to")
    seed: int = option(0, "of everything random")

    def __post_init__(self) -> None:
        if self.mixed_precision == "auto":
            self.mixed_precision = best_precision()
        if self.mixed_precision not in ("bf16", "fp16", "no"):
            raise ValueError(f"mixed_precision={self.mixed_precision!r}: choose auto, bf16, fp16 or no")
        if self.mixed_precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("mixed_precision=fp16 needs a GPU: choose bf16 or no")
        if min(self.batch_size, self.train_frames, self.log_every, self.eval_every, self.save_every) < 1:
            raise ValueError("batch_size, train_frames, log_every, eval_every and save_every must be at least 1")
        if self.cache_format not in FORMATS:
            raise ValueError(f"cache_format={self.cache_format!r}: choose one of {', '.join(FORMATS)}")
        if self.freeze_layers < 0 or self.grad_cache_chunk < 0:
            raise ValueError("freeze_layers and grad_cache_chunk must be 0 or more")
        if self.steps < 0 or (self.steps == 0 and self.epochs < 1):
            raise ValueError("give at least one epoch, or a positive number of steps")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps, 0 to 1, got {self.warmup}")
        if self.cache_frames < max(self.train_frames, self.num_frames):
            raise ValueError(f"cache_frames={self.cache_frames} must be at least train_frames and num_frames")


def best_precision() -> str:
    """Return bf16 if the GPU, or without one the CPU, computes in it; otherwise fp16 on a GPU and "no" on a CPU."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if has_bf16() else "no"


def parse(argv: Sequence[str] | None) -> TrainConfig:
    """Return the options of the command line."""
    about = "Train SUMA: `accelerate launch train/train.py --dataset DIR-or-Hub-id --output runs/suma`."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for f in fields(TrainConfig):
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type}
        parser.add_argument("--" + f.name.replace("_", "-"), default=f.default, help=f.metadata["help"], **kind)
    try:
        return TrainConfig(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))
