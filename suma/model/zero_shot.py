"""Concepts without training: they lie where a CLIP puts pictures of their words, so that activations classify.

A word's direction is the text tower's mean feature over PROMPTS, less the mean over all words. The pictures and the
texts of a CLIP lie in two narrow cones, so that a cosine between them says mostly how far the cones are apart. Taking
the words' mean away centres the texts. Pictures need no second offset: every concept c is made orthogonal to a mean
picture feature m, and then c . f = c . (f - m) for every frame f. So activations stay plain inner products, which a
search needs. What it is worth on Scenes, by the concepts alone: video to text R@1 61 instead of 33.

Shapes: W words, K concepts, D joint width, E token-embedding width, N pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from suma.model import text_tower
from suma.model.word_clusters import Clusters, cluster_words, mean_of_each, naming_order, unit
from suma.video.preprocess import resize_frames

PROMPTS = ("a photo of {}", "a video of {}")
PICTURES = Path(__file__).resolve().parents[2] / "assets" / "gallery" / "posters"
BATCH = 128  # texts encoded at once
_ENDINGS = (("ies", "y"), ("s", ""), ("es", ""), ("ied", "y"), ("ed", "e"), ("ed", ""))
_OTHER_WORDS = {"glasses", "shorts", "pants", "woods", "tired"}  # that are no forms of glass, short, ...


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
                tokens = text_tower.tokenize(tokenizer, sentences, context, text_tower.can_shorten(clip))
                features.append(F.normalize(text_tower.encode_tokens(clip, tokens).float(), dim=-1))
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
