"""The parts of `SUMA.from_clip`: towers from a CLIP or from a saved SUMA, words, and the clusters that concepts start
from.

Concepts without training lie where a CLIP puts pictures of their words, so that activations classify. A word's
direction is the text tower's mean feature over PROMPTS, less the mean over all words. The pictures and the texts of a
CLIP lie in two narrow cones, so that a cosine between them says mostly how far the cones are apart. Taking the words'
mean away centres the texts. Pictures need no second offset: every concept c is made orthogonal to a mean picture
feature m, and then c . f = c . (f - m) for every frame f. So activations stay plain inner products, which a search
needs. What it is worth on Scenes, by the concepts alone: video to text R@1 61 instead of 33.

Shapes: W words, K concepts, D joint width, E token-embedding width, N pictures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from suma.model.backbone import (
    Backbone,
    can_shorten,
    encode_tokens,
    load_backbone,
    tokenize,
    word_embeddings,
    word_sentences,
)
from suma.model.config import SUMAConfig
from suma.model.tokenizer import load_tokenizer
from suma.model.vocabulary import common_words, count_words, ignored_words, unit
from suma.video.preprocess import resize_frames

STARTS = ("tokens", "sentences", "prompts", "random")
PROMPTS = ("a photo of {}", "a video of {}")
PICTURES = Path(__file__).resolve().parents[2] / "assets" / "gallery" / "posters"
BATCH = 128  # texts encoded at once
_ENDINGS = (("ies", "y"), ("s", ""), ("es", ""), ("ied", "y"), ("ed", "e"), ("ed", ""))
_OTHER_WORDS = {"glasses", "shorts", "pants", "woods", "tired"}  # that are no forms of glass, short, ...
ZERO_SHOT_SHARE = 0.1  # of untrained concepts in the score: on Scenes no R@1 differs up to 0.3; at 0 steering is idle


class Clusters(NamedTuple):
    """The clusters of a model's words, from which its concepts begin."""

    order: np.ndarray  # (W,) int: the words, the best names of each concept first
    assignment: np.ndarray  # (W,) int: the concept of each word, in that order
    centres: np.ndarray  # (K, E) unit: the means of their token embeddings
    concepts: np.ndarray | None  # (K, E) where the concepts begin, if not there


def cluster_words(
    embeddings: np.ndarray, num_concepts: int, seed: int = 0, tries: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster word embeddings (W, E): return unit centres (K, E) and each word's concept (W,), no concept empty.

    Cosine k-means by faiss, the best of `tries`, deterministic for a seed. The paper says "KNN"; a centre stands for
    its words, so k-means is our reading. Raises ValueError when there are fewer words than concepts.
    """
    import faiss

    num_words = len(embeddings)
    if num_concepts < 1:
        raise ValueError(f"num_concepts must be at least 1, got {num_concepts}")
    if num_words < num_concepts:
        raise ValueError(
            f"{num_words} distinct words cannot fill {num_concepts} concepts: "
            f"give more captions or at most num_concepts={num_words}"
        )
    words = np.ascontiguousarray(unit(embeddings), dtype=np.float32)
    if num_concepts == num_words:
        return words.copy(), np.arange(num_words)
    kmeans = faiss.Kmeans(
        words.shape[1],
        num_concepts,
        niter=25,
        nredo=tries,
        seed=seed + 1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=max(256, num_words),
    )
    kmeans.train(words)
    centres = np.array(kmeans.centroids, dtype=np.float32).reshape(num_concepts, -1)
    similarity = words @ centres.T
    assignment = similarity.argmax(1)
    closeness = similarity[np.arange(num_words), assignment]
    sizes = np.bincount(assignment, minlength=num_concepts)
    for empty in np.flatnonzero(sizes == 0):  # give it the word that its own concept describes worst
        candidates = np.flatnonzero(sizes[assignment] > 1)
        word = candidates[closeness[candidates].argmin()]
        sizes[assignment[word]] -= 1
        assignment[word], sizes[empty], closeness[word] = empty, 1, 1.0
        centres[empty] = words[word]
    return centres, assignment


def nearest_centre(embeddings: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the concept (W,) whose unit centre (K, E) is nearest to each word embedding (W, E), by cosine."""
    return (embeddings @ centres.T).argmax(1)


def cluster_by(
    vectors: Mapping[str, np.ndarray], words: Sequence[str], embeddings: np.ndarray, num_concepts: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster words by vectors of another origin: return each cluster's mean token embedding (K, E), and (W,).

    embeddings (W, E): of the words' tokens; words without a vector go to the nearest of these means.
    Raises ValueError where fewer words than concepts have a vector.
    """
    known = np.array([i for i, word in enumerate(words) if word in vectors], np.int64)
    _, found = cluster_words(np.stack([vectors[words[i]] for i in known] or [np.zeros(1)]), num_concepts, seed)
    centres = mean_of_each(unit(embeddings[known]), found, num_concepts)
    assignment = nearest_centre(embeddings, centres)
    assignment[known] = found
    return centres, assignment


def mean_of_each(words: np.ndarray, assignment: np.ndarray, num_concepts: int) -> np.ndarray:
    """Return the unit mean (K, E) of each concept's unit vectors (W, E)."""
    total = np.zeros((num_concepts, words.shape[1]), np.float32)
    np.add.at(total, assignment, words)
    return unit(total)


def naming_order(embeddings: np.ndarray, centres: np.ndarray, assignment: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the order (W,) with the best names of each concept first: words close to the centre, and frequent."""
    central = (unit(embeddings) * centres[assignment]).sum(1)
    return np.argsort(-np.clip(central, 0, None) * np.log1p(counts), kind="stable")


def base_form(word: str, words: Mapping[str, Any]) -> str:
    """Return the word of `words` of which this is a plural or an -s or -ed form, or the word itself.

    >>> words = dict.fromkeys(["box", "fry", "bake", "cap", "cape"])
    >>> [base_form(word, words) for word in ("boxes", "fries", "baked", "capes", "red")]
    ['box', 'fry', 'bake', 'cape', 'red']
    """
    for ending, instead in _ENDINGS:
        base = word.removesuffix(ending) + instead
        if word.endswith(ending) and len(base) > 2 and base in words and word not in _OTHER_WORDS:
            return base
    return word


@torch.no_grad()
def word_features(clip: nn.Module, tokenizer: Any, words: Sequence[str], text_cfg: dict[str, Any]) -> np.ndarray:
    """Return the words' unit directions (W, D): the mean over PROMPTS, less that of all words."""
    context, of_prompts = int(text_cfg.get("context_length", 77)), []
    with tqdm(total=len(words) * len(PROMPTS), desc="concepts", unit="prompt", disable=None) as bar:
        for prompt in PROMPTS:
            features: list[Tensor] = []
            for i in range(0, len(words), BATCH):
                sentences = [prompt.format(word) for word in words[i : i + BATCH]]
                tokens = tokenize(tokenizer, sentences, context, can_shorten(clip))
                features.append(F.normalize(encode_tokens(clip, tokens).float(), dim=-1))
                bar.update(len(sentences))
            of_prompts.append(torch.cat(features))
    total = torch.stack(of_prompts).sum(0)
    return F.normalize(total - total.mean(0), dim=-1).cpu().numpy()


def cluster_by_prompts(
    clip: nn.Module,
    tokenizer: Any,
    text_cfg: dict[str, Any],
    counts: Mapping[str, int],
    embeddings: np.ndarray,
    num_concepts: int,
    seed: int,
) -> Clusters:
    """Cluster the words of `counts` by their directions; inflected forms share that of their base form.

    The names of a concept are base forms first. The centres are the mean token embeddings (W, E) of each cluster, by
    which words that are not among these are placed; the concepts (K, D) are the mean directions. Raises ValueError when
    there are fewer base forms than concepts.
    """
    words = list(counts)
    bases = [base_form(word, counts) for word in words]
    row = {base: i for i, base in enumerate(dict.fromkeys(bases))}
    features = word_features(clip, tokenizer, list(row), text_cfg)
    _, found = cluster_words(features, num_concepts, seed, tries=1)
    concepts = mean_of_each(features, found, num_concepts)
    rows = np.array([row[base] for base in bases])
    assignment = found[rows]
    frequencies = np.array([counts[word] * (base == word) for word, base in zip(words, bases, strict=True)])
    order = naming_order(features[rows], concepts, assignment, frequencies)
    return Clusters(order, assignment[order], mean_of_each(unit(embeddings), assignment, num_concepts), concepts)


@torch.no_grad()
def mean_picture(encode: Callable[[Tensor], Tensor], image: Mapping[str, Any]) -> np.ndarray | None:
    """Return the mean unit feature (D,) of the bundled gallery's posters; None where there are none.

    They come with every copy and are the same everywhere, so a model does not depend on whose videos were indexed
    first. (Blobs of noise did no better than no centring.) `image` is the model's preprocessing.
    """
    files, features = sorted(PICTURES.glob("*.jpg")), []
    for file in files:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))[None]
        resized = resize_frames(pixels, image["size"], image["resize_mode"], image["interpolation"])
        features.append(F.normalize(encode(resized).float(), dim=-1))
    return torch.cat(features).mean(0).cpu().numpy() if files else None


def orthogonal(concepts: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """Return concepts (K, D) without their part along `mean` (D,), if there is one, each of length 1."""
    if mean is None:
        return concepts
    along = mean / np.linalg.norm(mean)
    return unit(concepts - np.outer(concepts @ along, along)).astype(np.float32)


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
    """Cluster the words of `counts`, most frequent first, as `SUMA.from_clip` says; `start` is its concept_start."""
    if start not in STARTS:
        raise ValueError(f"concept_start {start!r}: choose one of {', '.join(STARTS)}")
    clip, text_cfg, words = towers.backbone.clip, towers.backbone.config["text_cfg"], list(counts)
    tokenizer = load_tokenizer(towers.backbone.tokenizer, text_cfg, towers.tokenizer_folder)
    embeddings, concepts, sentences = word_embeddings(clip, tokenizer, words), None, None
    if start == "prompts":
        return cluster_by_prompts(clip, tokenizer, text_cfg, counts, embeddings, num_concepts, seed)
    frequencies = np.array(list(counts.values()))
    clustered = int((frequencies >= min_count).sum())  # the others go to the nearest cluster
    if start == "sentences":
        sentences = word_sentences(clip, tokenizer, words, text_cfg)
        if sentences.shape[1] != embeddings.shape[1]:
            raise ValueError('concept_start="sentences" needs token embeddings as wide as the joint space')
        vectors = dict(zip(words[:clustered], sentences, strict=False))
    if vectors is None:
        centres, assignment = cluster_words(embeddings[:clustered], num_concepts, seed)
        assignment = np.concatenate([assignment, nearest_centre(embeddings[clustered:], centres)])
    else:
        centres, assignment = cluster_by(vectors, words, embeddings, num_concepts, seed)
    if sentences is not None:
        concepts = mean_of_each(sentences, assignment, num_concepts)
    elif start == "random":
        concepts = np.random.default_rng(seed).normal(size=centres.shape).astype(np.float32)
    order = naming_order(embeddings, centres, assignment, frequencies)
    return Clusters(order, assignment[order], centres, concepts)


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
