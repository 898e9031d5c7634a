"""Steering: the query's concepts made stronger, banned, or joined by others, while the score stays the same function.

A sentence is a unit feature s (D) and a unit anchor a (K), which says how much it names each concept. Steering sets
some of the anchor's weights to values in [-1, 1] and brings the anchor to length 1 again; s stays as it is. So 0 takes
a concept out of the concept space's half of the score, and a negative weight (-1: banned) takes score from videos that
show it. A query without a sentence has s = 0: its score is the concept space's half alone. (The paper does not steer.)

Shapes: T texts, D joint width, K concepts.
"""

import re
from collections.abc import Mapping

import numpy as np

from suma.model.encoder import Encoder, Queries
from suma.model.vocabulary import fold, split_words
from suma.model.word_clusters import unit

MAX_STEERED = 32  # concepts of one query
_BRACKET = re.compile(r"\[\s*([^\[\]\s]+)\s+([-+]?\d*\.?\d+)\s*\]")


def parse(text: str) -> tuple[str, dict[str, float]]:
    """A steered query as text -> the sentence, and word -> weight, cut to [-1, 1].

    >>> parse("a dog runs [ball 0.8] [snow -1]")
    ('a dog runs', {'ball': 0.8, 'snow': -1.0})
    """
    weights = {fold(word): max(-1.0, min(1.0, float(value))) for word, value in _BRACKET.findall(text)}
    return " ".join(_BRACKET.sub(" ", text).split()), weights


def unparse(sentence: str, weights: Mapping[str, float]) -> str:
    """The text that `parse` reads.

    >>> unparse("a dog runs", {"ball": 0.8, "snow": -1.0})
    'a dog runs [ball 0.8] [snow -1]'
    """
    return " ".join([sentence, *(f"[{word} {round(value, 2):g}]" for word, value in weights.items())]).strip()


def concepts_of(model: Encoder, weights: Mapping[str, float]) -> dict[int, float]:
    """word -> weight into concept -> weight; of two words of one concept the later counts.

    Raises ValueError for what is no single word, a weight outside [-1, 1], or more than MAX_STEERED words.
    """
    if len(weights) > MAX_STEERED:
        raise ValueError(f"at most {MAX_STEERED} concepts can be steered, got {len(weights)}")
    for word, value in weights.items():
        if split_words(word) != [fold(word)]:
            raise ValueError(f"a concept is steered by one of its words, and {word!r} is not one word")
        if not -1 <= float(value) <= 1:
            raise ValueError(f"the weight of {word!r} must lie in [-1, 1], got {value}")
    found = model.space.concept_of([fold(word) for word in weights], model.embed_words)
    return dict(zip(found, (float(value) for value in weights.values()), strict=True))


def steer(model: Encoder, texts: Queries | None, weights: Mapping[str, float]) -> Queries:
    """One text (T = 1; None: no sentence) with some of its anchor's weights set."""
    if texts is None:
        texts = Queries(*(np.zeros((1, n), np.float32) for n in (model.dim, model.space.num_concepts)))
    anchors = texts.anchors.copy()
    for concept, value in concepts_of(model, weights).items():
        anchors[0, concept] = value
    return Queries(texts.features, unit(anchors))
