"""The text side of a saved SUMA in numpy: all that a search from the command line needs of a model, since importing
torch alone takes several times as long as all that is done here.

Shapes: T texts, L tokens, E the text tower's width, D joint width, K concepts, W words, V videos, F frames.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from suma.arrays import unit
from suma.model.checkpoint import WEIGHTS, find, read_config, source_of
from suma.model.config import SUMAConfig, fingerprint, first_values, stored_fingerprint
from suma.model.open_clip_models import is_named, prepared_folder
from suma.model.tokenizer import load_tokenizer
from suma.model.vocabulary import Vocabulary, nfc
from suma.similarity import Texts, Videos, score

if TYPE_CHECKING:
    from suma.model.suma import SUMA

AnyModel: TypeAlias = "SUMA | TextEncoder"
TOWER = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}  # open_clip's defaults


def load_for_search(model: str | Path) -> AnyModel:
    """Return a model (see `SUMA.from_pretrained`) as a TextEncoder, or as the whole SUMA where its text tower is not
    OpenAI's, or where NAME:TAG is used for the first time. Raise as `SUMA.from_pretrained` does, but for faults of
    weights that no sentence needs."""
    from safetensors import SafetensorError

    if not is_named(str(model)) or prepared_folder(str(model)).is_dir():
        folder = find(model)
        config = read_config(folder)
        try:
            found = _read_weights(folder / WEIGHTS, config) if supports(config.clip) else None
        except SafetensorError as error:
            raise RuntimeError(f"{folder / WEIGHTS} is not a whole safetensors file: {error}") from error
        if found:
            return TextEncoder(config, *found, folder, source_of(model))
    from suma.model.suma import SUMA

    return SUMA.from_pretrained(model)


def _read_weights(file: Path, config: SUMAConfig) -> tuple[dict[str, np.ndarray], str] | None:
    """Return the weights that a TextEncoder needs and the model's fingerprint; None for bfloat16, which numpy has not.

    Raise RuntimeError where they do not fit the config.
    """
    from safetensors import safe_open

    needed = _shapes(config)
    with safe_open(file, framework="np") as content:
        slices = {name: content.get_slice(name) for name in sorted(content.keys())}
        if any(x.get_dtype() == "BF16" for x in slices.values()):
            return None
        shapes = {name: tuple(x.get_shape()) for name, x in slices.items()}
        if wrong := sorted(name for name in needed if shapes.get(name) != needed[name]):
            raise RuntimeError(f"{file} is not of this config: {', '.join(wrong[:3])} missing or misshapen")
        firsts = ((name, first_values(x, shapes[name])) for name, x in slices.items())
        name_of_all = stored_fingerprint(content.metadata(), config, firsts)
        name_of_all = name_of_all or fingerprint(config, ((name, content.get_tensor(name)) for name in slices))
        return {name: content.get_tensor(name) for name in needed}, name_of_all


def supports(cfg: dict[str, Any]) -> bool:
    """Return whether a TextEncoder can compute an open_clip config's text tower: OpenAI's, without later variants."""
    named = {name for name, value in cfg.items() if value} - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    return not named - {"init_logit_bias", "init_logit_scale", "preprocess_cfg"} and set(cfg["text_cfg"]) <= set(TOWER)


def _shapes(config: SUMAConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that a TextEncoder needs, by their names in a SUMA."""
    text, dim = TOWER | config.clip["text_cfg"], int(config.clip["embed_dim"])
    e, k = text["width"], config.num_concepts
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (text["vocab_size"], e),
        "positional_embedding": (text["context_length"], e),
        "ln_final.weight": (e,),
        "ln_final.bias": (e,),
        "text_projection": (e, dim),
    }
    for n in range(text["layers"]):
        block = {
            "ln_1.weight": (e,),
            "ln_1.bias": (e,),
            "attn.in_proj_weight": (3 * e, e),
            "attn.in_proj_bias": (3 * e,),
            "attn.out_proj.weight": (e, e),
            "attn.out_proj.bias": (e,),
            "ln_2.weight": (e,),
            "ln_2.bias": (e,),
            "mlp.c_fc.weight": (4 * e, e),
            "mlp.c_fc.bias": (4 * e,),
            "mlp.c_proj.weight": (e, 4 * e),
            "mlp.c_proj.bias": (e,),
        }
        shapes |= {f"transformer.resblocks.{n}.{name}": shape for name, shape in block.items()}
    space = {"centres": (k, e), "initial_centres": (k, e), "word_to_concept": (len(config.words),)}
    space |= {"map.weight": (dim, e)} if e != dim else {}
    return {f"clip.{name}": shape for name, shape in shapes.items()} | {f"space.{n}": s for n, s in space.items()}


class TextConceptSpace(Vocabulary):
    """The aligned concept space in numpy, with plain cosines (see suma.model.concept_space.ConceptSpace)."""

    def __init__(self, config: SUMAConfig, weights: Mapping[str, np.ndarray]):
        super().__init__(config.words, config.word_counts, config.num_captions, config.anchor, config.ignored_words)
        self.word_to_concept, self.initial_centres = weights["space.word_to_concept"], weights["space.initial_centres"]
        concepts = weights["space.centres"]
        if "space.map.weight" in weights:
            concepts = concepts @ weights["space.map.weight"].T
        self._concepts = unit(concepts)

    def concepts(self) -> np.ndarray:
        """Return the learned concepts, each of length 1: (K, D)."""
        return self._concepts

    def activations(self, features: np.ndarray) -> np.ndarray:
        """Return the cosines (..., K) of features (..., D) with every concept."""
        return unit(features) @ self._concepts.T


class TextEncoder:
    """What a search asks of a model (see the methods' namesakes in suma.model.suma.SUMA), from `load_for_search`."""

    def __init__(
        self, config: SUMAConfig, weights: Mapping[str, np.ndarray], name: str, folder: Path, source: str = ""
    ):
        """Keep the weights of `_shapes`, the whole model's fingerprint (name), the folder that it was read from, and
        the string that an index remembers it by (source)."""
        loaded = {n: x.astype(np.float32) if x.dtype.kind == "f" else x for n, x in weights.items()}
        self._weights = {n.removeprefix("clip."): x for n, x in loaded.items()}
        self.config, self.space, self._name, self._folder = config, TextConceptSpace(config, loaded), name, folder
        self.source = source
        self.tokenizer = load_tokenizer(config.tokenizer, config.clip["text_cfg"])
        self._whole: SUMA | None = None

    @property
    def dim(self) -> int:
        """D, the joint width."""
        return int(self.config.clip["embed_dim"])

    def eval(self) -> "TextEncoder":
        """Return itself."""
        return self

    def fingerprint(self) -> str:
        """Return 16 hex digits that name the whole model."""
        return self._name

    def whole(self) -> "SUMA":
        """Return the model that also encodes videos. Raise RuntimeError if its files have changed meanwhile."""
        if self._whole is None:
            from suma.model.suma import SUMA

            self._whole = SUMA.from_pretrained(self._folder)
            if self._whole.fingerprint() != self._name:
                raise RuntimeError(f"the model in {self._folder} has changed: start again")
        return self._whole

    def array(self, values: np.ndarray) -> np.ndarray:
        """Return an array as the model takes it: as it is."""
        return values

    # ---- texts -----------------------------------------------------------------------------------------------------

    def encode_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Return the unit features (T, D) of sentences."""
        if isinstance(sentences, str):
            raise ValueError("encode_text takes a list of sentences: wrap the one in [ ]")
        if not len(sentences):
            return np.zeros((0, self.dim), np.float32)
        context = self._weights["positional_embedding"].shape[0]
        return unit(self._encode(self.tokenizer.ids(list(map(nfc, sentences)), context)))

    def embed_words(self, words: Sequence[str]) -> np.ndarray:
        """Return the token embeddings (W, E) of words: the mean over their sub-word tokens."""
        table = self._weights["token_embedding.weight"]
        return np.stack([table[self.tokenizer.encode(word)].mean(0) for word in words])

    def anchors(self, sentences: Sequence[str]) -> np.ndarray:
        """Return the unit anchors (T, K) of sentences: the concepts that their words name."""
        return self.space.anchors(sentences, self.embed_words)

    def make_texts(self, sentences: Sequence[str]) -> Texts:
        """Return sentences as `score` takes them."""
        features, anchors = self.encode_text(sentences), self.anchors(sentences)
        return Texts(features, unit(self.space.activations(features)) if self.config.anchor == "self" else anchors)

    def make_videos(self, features: np.ndarray, frames: np.ndarray, mask: np.ndarray) -> Videos:
        """Return unit video (V, D) and frame (V, F, D) features as `score` takes them, with their concepts."""
        concepts = [unit(self.space.activations(x)) for x in (features, frames)]
        return Videos(features, frames, mask, *concepts)

    def score(self, texts: Texts, videos: Videos) -> np.ndarray:
        """Return the score (T, V) by which videos are ranked for texts."""
        return score(texts, videos, self.config.scoring)

    def _encode(self, ids: np.ndarray) -> np.ndarray:
        """Return sentence features (T, D), not normalised, of token ids (T, L): CLIP's text tower."""
        w, length = self._weights, ids.shape[1]
        layers, heads = (int((TOWER | self.config.clip["text_cfg"])[name]) for name in ("layers", "heads"))
        x = w["token_embedding.weight"][ids] + w["positional_embedding"][:length]  # (T, L, E)
        later = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        for n in range(layers):
            at = f"transformer.resblocks.{n}."
            inside = self._linear(self._norm(x, at + "ln_1"), at + "attn.in_proj_", "weight", "bias")
            q, k, v = (part.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for part in np.split(inside, 3, -1))
            attention = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + later  # (T, heads, L, L)
            attention = np.exp(attention - attention.max(-1, keepdims=True))
            attention /= attention.sum(-1, keepdims=True)
            x = x + self._linear((attention @ v).swapaxes(1, 2).reshape(x.shape), at + "attn.out_proj")
            hidden = self._linear(self._norm(x, at + "ln_2"), at + "mlp.c_fc")
            x = x + self._linear(self._activation(hidden), at + "mlp.c_proj")
        ends = self._norm(x[np.arange(len(x)), ids.argmax(-1)], "ln_final")  # the end's id is the largest
        return ends @ w["text_projection"]

    def _linear(self, x: np.ndarray, name: str, weight: str = ".weight", bias: str = ".bias") -> np.ndarray:
        return x @ self._weights[name + weight].T + self._weights[name + bias]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * self._weights[name + ".weight"] + self._weights[name + ".bias"]

    def _activation(self, x: np.ndarray) -> np.ndarray:
        if self.config.clip.get("quick_gelu"):
            return x / (1 + np.exp(-1.702 * x))
        return x * (0.5 + 0.5 * erf(x * 0.5**0.5))


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function, to 2e-7: formula 7.1.26 of Abramowitz and Stegun's handbook (numpy has none)."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-np.square(x)))
