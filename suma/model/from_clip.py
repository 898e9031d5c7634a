"""The parts of `SUMA.from_clip`: towers from a CLIP or from a saved SUMA, words, and the clusters that concepts start
from.

Shapes: W words, K concepts, D joint width.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from suma.model import text_tower
from suma.model.backbone import Backbone, load_backbone
from suma.model.config import SUMAConfig
from suma.model.tokenizer import load_tokenizer
from suma.model.vocabulary import common_words, count_words, ignored_words
from suma.model.word_clusters import STARTS, Clusters, cluster
from suma.model.zero_shot import cluster_by_prompts, mean_picture, orthogonal

ZERO_SHOT_SHARE = 0.1  # of untrained concepts in the score: on Scenes no R@1 differs up to 0.3; at 0 steering is idle


class Towers(NamedTuple):
    """What a new model takes over."""

    backbone: Backbone
    tokenizer_folder: str | Path | None
    trained: dict[str, Tensor]  # a saved SUMA's temporal encoder and frame grid


def load_towers(
    name: str | Path | dict[str, Any],
    pretrained: str | None,
    tokenizer_folder: str | Path | None,
    load: Callable[[Any], Any],
) -> Towers:
    """Return the towers of an open_clip model, or of a SUMA folder, which `load` reads."""
    if isinstance(name, dict) or not Path(name).is_dir():
        return Towers(load_backbone(name, pretrained), tokenizer_folder, {})
    if pretrained:
        raise ValueError(f"{name} holds trained towers: leave `pretrained` out")
    saved = load(name)
    backbone = Backbone(saved.clip, saved.config.clip, saved.config.image, saved.config.tokenizer)
    trained = {name: x for name, x in saved.state_dict().items() if name.startswith(("temporal.", "grid."))}
    return Towers(backbone, tokenizer_folder or saved.tokenizer_folder, trained)


def model_options(options: dict[str, Any], untrained: bool) -> dict[str, Any]:
    """Return the options of SUMAConfig, completed for a zero-shot model. Raise ValueError for one that it has not."""
    if unknown := set(options) - {f.name for f in fields(SUMAConfig)}:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such option of SUMAConfig")
    options = {"num_concepts": SUMAConfig.num_concepts, **options}
    if untrained:
        return {"concept_share": ZERO_SHOT_SHARE, "untrained": True, "ignored_words": ignored_words()} | options
    return options


def words_of(captions: Iterable[str] | None, ignored: Iterable[str]) -> tuple[dict[str, int], int]:
    """Return word -> captions that hold it, but for ignored words, and the number of captions; without captions, those
    of the bundled list."""
    if captions is None:
        counts, number = common_words()
    else:
        captions = list(captions)
        counts, number = count_words(captions), len(captions)
        if not counts:
            raise ValueError("`captions` hold no words to make concepts of: leave them out to start from common words")
    for word in ignored:
        counts.pop(word, None)
    return counts, number


def make_clusters(
    towers: Towers,
    counts: Mapping[str, int],
    num_concepts: int,
    min_count: int,
    seed: int,
    start: str,
    vectors: Mapping[str, np.ndarray] | None,
) -> Clusters:
    """Cluster the words of `counts` as `SUMA.from_clip` says; `start` is its concept_start."""
    if start not in STARTS:
        raise ValueError(f"concept_start {start!r}: choose one of {', '.join(STARTS)}")
    clip, text_cfg, words = towers.backbone.clip, towers.backbone.config["text_cfg"], list(counts)
    tokenizer = load_tokenizer(towers.backbone.tokenizer, text_cfg, towers.tokenizer_folder)
    embeddings = text_tower.word_embeddings(clip, tokenizer, words)
    if start == "prompts":
        return cluster_by_prompts(clip, tokenizer, text_cfg, counts, embeddings, num_concepts, seed)
    sentences = None
    if start == "sentences":
        sentences = text_tower.word_sentences(clip, tokenizer, words, text_cfg)
        if sentences.shape[1] != embeddings.shape[1]:
            raise ValueError('concept_start="sentences" needs token embeddings as wide as the joint space')
    return cluster(counts, embeddings, num_concepts, min_count, seed, sentences, vectors, start == "random")


def make_config(
    backbone: Backbone, counts: Mapping[str, int], num_captions: int, clusters: Clusters, options: dict[str, Any]
) -> SUMAConfig:
    """Return the config of a model of this backbone, with the words in the clusters' order."""
    words = [list(counts)[i] for i in clusters.order]
    return SUMAConfig(
        clip=backbone.config,
        image=backbone.image,
        tokenizer=backbone.tokenizer,
        num_captions=num_captions,
        words=words,
        word_counts=[counts[word] for word in words],
        **options,
    )


def fill(model: Any, towers: Towers) -> None:
    """Copy the towers into a new SUMA, and the trained temporal encoder and frame grid where their shapes agree."""
    clip = {
        name: x for name, x in towers.backbone.clip.state_dict().items() if name != "logit_bias"
    }  # SigLIP's: unused
    model.clip.load_state_dict(clip)
    for part in ("temporal.", "grid."):
        new = {name: x for name, x in model.state_dict().items() if name.startswith(part)}
        old = {name: x for name, x in towers.trained.items() if name.startswith(part)}
        if old and {n: x.shape for n, x in new.items()} == {n: x.shape for n, x in old.items()}:
            model.load_state_dict(old, strict=False)


def start_concepts(model: Any, clusters: Clusters, start: str) -> None:
    """Put the concepts of a new SUMA where its clusters say; those of prompts are centred on pictures too."""
    if start == "prompts" and clusters.concepts is not None:
        mean = mean_picture(model.encode_frames, model.config.image)
        model.space.start_at(clusters.centres, clusters.assignment, orthogonal(clusters.concepts, mean))
    else:
        model.space.start(clusters.centres, clusters.assignment, clusters.concepts)
