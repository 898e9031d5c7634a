"""The options of a SUMA, and the name of a model: all but its weights, without torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

FORMAT_VERSION = 1
AGGREGATIONS = ("softmax", "mean", "max")
ANCHORS = ("binary", "count", "idf", "self")
ACTIVATIONS = ("cosine", "mlp", "relu", "top", "sparsemax")
LATER = (  # fields added after format 1: left out of the fingerprint at their defaults
    "frame_grid",
    "coarse_share",
    "activation",
    "temporal_frames",
    "untrained",
    "ignored_words",
)


class Scoring(NamedTuple):
    """How the four similarities (suma.similarity.Similarities) become one score."""

    concept_share: float  # of the aligned space
    aggregation: str = "softmax"  # over frames
    temperature: float = 0.05  # of that softmax
    coarse_share: float = 0.5  # of the whole video in each space; the rest is the frames' (in equal parts: our reading)

    @property
    def shares(self) -> dict[str, float]:
        """Return the weight of each similarity, by its name; they sum to 1."""
        original, aligned = 1 - self.concept_share, self.concept_share
        coarse, fine = self.coarse_share, 1 - self.coarse_share
        return {
            "coarse": original * coarse,
            "fine": original * fine,
            "concept_coarse": aligned * coarse,
            "concept_fine": aligned * fine,
        }


@dataclass
class SUMAConfig:
    """All options of a SUMA; saved beside its weights as config.json."""

    clip: dict[str, Any]  # an open_clip model config: embed_dim, vision_cfg, text_cfg, ...
    image: dict[str, Any]  # preprocessing: size, mean, std, interpolation, resize_mode
    tokenizer: str = ""  # the open_clip model whose tokenizer is used; "": CLIP's, cut to text_cfg's vocab_size
    words: list[str] = field(default_factory=list)  # the training captions' words, best names of a concept first
    word_counts: list[int] = field(default_factory=list)  # captions that hold each word
    num_captions: int = 0  # training captions
    num_concepts: int = 1024  # K; default our reading
    anchor: str = "idf"  # binary, count or idf: weights of the concepts that a sentence names; our reading. self: none
    activation: str = "cosine"  # of concepts: cosine (searches need it), mlp, relu, top or sparsemax
    frame_grid: int = 0  # G: frame features also read G x G regions of the picture, so that they know where things are
    temporal_layers: int = 4  # 0: the video is the mean of its frames
    temporal_frames: bool = False  # frames as the temporal encoder leaves them, or as it finds them (our reading)
    temporal_positions: int = 16  # learned positions along the video, interpolated for any frame count
    aggregation: str = "softmax"  # over frames: softmax, mean or max; our reading
    aggregation_temperature: float = 0.05
    concept_share: float = 0.25  # the aligned space's share of the score
    coarse_share: float = 0.5  # the whole video's share in each space, the rest is its frames'; our reading
    untrained: bool = False  # the concepts were made of words (suma/model/from_clip.py), no video has trained them
    ignored_words: list[str] = field(default_factory=list)  # that name no concept
    num_frames: int = 12  # frames per video in evaluation and search
    confidence: dict[str, float] = field(default_factory=dict)  # weights of suma/index/confidence.py; {}: generic ones
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"config format_version {self.format_version} is not the {FORMAT_VERSION} this SUMA reads")
        for name, known in (("aggregation", AGGREGATIONS), ("anchor", ANCHORS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in ("concept_share", "coarse_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not self.aggregation_temperature > 0:
            raise ValueError(f"aggregation_temperature must be above 0, got {self.aggregation_temperature}")
        if not 0 <= self.frame_grid <= 16:
            raise ValueError(f"frame_grid must be 0 to 16, got {self.frame_grid}")
        if not 1 <= self.num_frames <= 64:
            raise ValueError(f"num_frames must be 1 to 64, got {self.num_frames}")
        if len(self.words) < self.num_concepts:
            raise ValueError(f"{len(self.words)} words cannot fill num_concepts={self.num_concepts} concepts")

    @property
    def scoring(self) -> Scoring:
        """Return the options of the score."""
        return Scoring(self.concept_share, self.aggregation, self.aggregation_temperature, self.coarse_share)


def fingerprint(config: SUMAConfig, weights: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return 16 hex digits that name a model: a hash of its config and of its weights, given in the order of their
    names; floats are hashed as float32, as they are once loaded.

    Untrained concepts follow from the towers and the words, and differ in their last digits from computer to computer,
    so neither they nor the words' order is part of the name: an index can be used where the model was made again.
    Nor is the calibration, which changes no feature.
    """
    plain = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(SUMAConfig)}
    told = {n: x for n, x in asdict(config).items() if n not in LATER or x != plain[n]}
    del told["confidence"]
    if config.untrained:
        told |= {"words": sorted(config.words), "word_counts": sorted(config.word_counts)}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, weight in weights:
        if config.untrained and name.startswith("space."):
            continue
        digest.update(name.encode())
        digest.update(weight.astype(np.float32 if weight.dtype.kind == "f" else weight.dtype).tobytes())
    return digest.hexdigest()[:16]


def first_values(weight: Any, shape: Sequence[int] | None = None) -> Any:
    """Return up to 16 values of a weight, from its start: an array, a tensor, or one of this shape in a safetensors
    file, of which no more is read."""
    shape = weight.shape if shape is None else shape
    return weight[(*(slice(0, 1) for _ in shape[:-1]), slice(0, min(16, shape[-1])))] if shape else weight[...]


def stored_fingerprint(
    metadata: Mapping[str, str] | None, config: SUMAConfig, firsts: Iterable[tuple[str, np.ndarray]]
) -> str:
    """Return the fingerprint that a weights file has in its metadata, so that not all weights need hashing.

    Return "" where it has none, or was made of another config or other weights: `firsts`, the `first_values` of each,
    must be those that were hashed when it was stored. (Training changes them, and so do rounding and replacing.)
    """
    told = metadata or {}
    return told["fingerprint"] if told.get("sample") == fingerprint(config, firsts) and "fingerprint" in told else ""
