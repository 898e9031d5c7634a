"""A saved SUMA that reads sentences only, in numpy: what a search from the command line needs of a model. Importing
torch alone takes several times as long as all that is done here.

Shapes: T texts, L tokens, E the text tower's width, D joint width, K concepts, W words, V videos, F frames.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from suma.arrays import unit
from suma.model.checkpoint import WEIGHTS, find, read_config, source_of
from suma.model.config import SUMAConfig, fingerprint
from suma.model.open_clip_models import is_named, prepared_folder
from suma.model.tokenizer import load_tokenizer, token_ids
from suma.model.vocabulary import Vocabulary, nfc
from suma.similarity import Texts, Videos, score

if TYPE_CHECKING:
    from suma.model.suma import SUMA

AnyModel: TypeAlias = "SUMA | Reader"
TOWER = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}  # open_clip's defaults


def load_reader(model: str | Path) -> AnyModel:
    """A model (see `SUMA.from_pretrained`) for searching: a Reader, or the whole SUMA where its text tower is not
    OpenAI's, or where NAME:TAG is used for the first time. Raises as `SUMA.from_pretrained` does, but for faults of
    weights that no sentence needs."""
    from safetensors import SafetensorError, safe_open

    if is_named(str(model)) and not prepared_folder(str(model)).is_dir():
        from suma.model.suma import SUMA

        return SUMA.from_pretrained(model)
    folder = find(model)
    config = read_config(folder)
    weights: dict[str, np.ndarray] = {}
    if fits(config.clip):
        needed, file = _shapes(config), folder / WEIGHTS
        try:
            with safe_open(file, framework="np") as content:
                names = sorted(content.keys())
                if all(content.get_slice(name).get_dtype() != "BF16" for name in names):  # numpy has no such type
                    shapes = {name: tuple(content.get_slice(name).get_shape()) for name in names if name in needed}
                    if wrong := sorted(name for name in needed if shapes.get(name) != needed[name]):
                        raise RuntimeError(f"{file} is not of this config: {', '.join(wrong[:3])} missing or misshapen")

                    def read() -> Iterator[tuple[str, np.ndarray]]:  # all, once, of which what is needed stays
                        for name in names:
                            tensor = content.get_tensor(name)
                            if name in needed:
                                weights[name] = tensor
                            yield name, tensor

                    name_of_all = fingerprint(config, read())
        except SafetensorError as error:
            raise RuntimeError(f"{file} is not a whole safetensors file: {error}") from error
    if weights:
        return Reader(config, weights, name_of_all, folder, source_of(model))
    from suma.model.suma import SUMA

    return SUMA.from_pretrained(model)


def fits(cfg: dict[str, Any]) -> bool:
    """Whether an open_clip config's text tower is one that a Reader computes: OpenAI's, without later variants."""
    named = {name for name, value in cfg.items() if value} - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    return not named - {"init_logit_bias", "init_logit_scale", "preprocess_cfg"} and set(cfg["text_cfg"]) <= set(TOWER)


def _shapes(config: SUMAConfig) -> dict[str, tuple[int, ...]]:
    """The weights that a Reader needs, by the names that they have in a SUMA."""
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


class ReaderSpace(Vocabulary):
    """The aligned concept space of a Reader, with plain cosines (see suma.model.concept_space.ConceptSpace)."""

    def __init__(self, config: SUMAConfig, weights: Mapping[str, np.ndarray]):
        super().__init__(config.words, config.word_counts, config.num_captions, config.anchor, config.ignored_words)
        self.word_to_concept, self.initial_centres = weights["space.word_to_concept"], weights["space.initial_centres"]
        concepts = weights["space.centres"]
        if "space.map.weight" in weights:
            concepts = concepts @ weights["space.map.weight"].T
        self._concepts = unit(concepts)

    def concepts(self) -> np.ndarray:
        """The learned concepts, each of length 1: (K, D)."""
        return self._concepts

    def activations(self, features: np.ndarray) -> np.ndarray:
        """Cosines of features (..., D) with every concept: (..., K)."""
        return unit(features) @ self._concepts.T


class Reader:
    """What a search asks of a model (see the methods' namesakes in suma.model.suma.SUMA), from `load_reader`."""

    def __init__(
        self, config: SUMAConfig, weights: Mapping[str, np.ndarray], name: str, folder: Path, source: str = ""
    ):
        """weights: those of `_shapes`; name: the whole model's fingerprint; folder: where it was read from; source: the
        string that an index remembers it by."""
        loaded = {n: x.astype(np.float32) if x.dtype.kind == "f" else x for n, x in weights.items()}
        self._weights = {n.removeprefix("clip."): x for n, x in loaded.items()}
        self.config, self.space, self._name, self._folder = config, ReaderSpace(config, loaded), name, folder
        self.source = source
        self.tokenizer = load_tokenizer(config.tokenizer, config.clip["text_cfg"])
        self._whole: SUMA | None = None

    @property
    def dim(self) -> int:
        """D, the joint width."""
        return int(self.config.clip["embed_dim"])

    def eval(self) -> "Reader":
        """Itself."""
        return self

    def fingerprint(self) -> str:
        """16 hex digits that name the whole model."""
        return self._name

    def whole(self) -> "SUMA":
        """The model that also encodes videos. Raises RuntimeError where another one lies in its place by now."""
        if self._whole is None:
            from suma.model.suma import SUMA

            self._whole = SUMA.from_pretrained(self._folder)
            if self._whole.fingerprint() != self._name:
                raise RuntimeError(f"the model in {self._folder} has changed: start again")
        return self._whole

    def array(self, values: np.ndarray) -> np.ndarray:
        """An array as the model takes it."""
        return values

    # ---- texts -----------------------------------------------------------------------------------------------------

    def encode_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Sentences -> unit features (T, D)."""
        if isinstance(sentences, str):
            raise ValueError("encode_text takes a list of sentences: wrap the one in [ ]")
        if not len(sentences):
            return np.zeros((0, self.dim), np.float32)
        context = self._weights["positional_embedding"].shape[0]
        return unit(self._encode(token_ids(self.tokenizer, list(map(nfc, sentences)), context)))

    def embed_words(self, words: Sequence[str]) -> np.ndarray:
        """Words -> token embeddings (W, E): the mean over their sub-word tokens."""
        table = self._weights["token_embedding.weight"]
        return np.stack([table[self.tokenizer.encode(word)].mean(0) for word in words])

    def anchors(self, sentences: Sequence[str]) -> np.ndarray:
        """Sentences -> unit anchors (T, K): the concepts their words name."""
        return self.space.anchors(sentences, self.embed_words)

    def texts(self, sentences: Sequence[str]) -> Texts:
        """Sentences -> features and anchors, ready for a score."""
        features, anchors = self.encode_text(sentences), self.anchors(sentences)
        return Texts(features, unit(self.space.activations(features)) if self.config.anchor == "self" else anchors)

    def videos(self, features: np.ndarray, frames: np.ndarray, mask: np.ndarray) -> Videos:
        """Unit video (V, D) and frame (V, F, D) features -> the same with their places in the concept space."""
        places = [unit(self.space.activations(x)) for x in (features, frames)]
        return Videos(features, frames, mask, *places)

    def score(self, texts: Texts, videos: Videos) -> np.ndarray:
        """The score (T, V) by which videos are ranked for texts."""
        return score(texts, videos, self.config.scoring)

    def _encode(self, ids: np.ndarray) -> np.ndarray:
        """Token ids (T, L) -> sentence features (T, D), not normalised: CLIP's text tower."""
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
    """The error function, to 2e-7: formula 7.1.26 of Abramowitz and Stegun's handbook (numpy has none)."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-np.square(x)))
