"""The text side of a saved SUMA in numpy: all that a search from the command line needs of a model, since importing
torch alone takes several times as long as all that is done here. (docs/indexing.md has what else was measured.)

Shapes: T texts, L tokens, E the text tower's width, D joint width, K concepts, W words.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from suma.model.checkpoint import WEIGHTS, find, is_named, prepared_folder, read_config, source_of
from suma.model.config import SUMAConfig, fingerprint, first_values, stored_fingerprint
from suma.model.encoder import Encoder, Queries
from suma.model.tokenizer import load_tokenizer
from suma.model.vocabulary import Vocabulary, nfc, unit

if TYPE_CHECKING:
    from suma.model.suma import SUMA

TOWER = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}  # open_clip's defaults


def load_for_search(model: str | Path) -> Encoder:
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
    layer = {
        "ln_1.": (e,),
        "attn.in_proj_": (3 * e, e),
        "attn.out_proj.": (e, e),
        "ln_2.": (e,),
        "mlp.c_fc.": (4 * e, e),
        "mlp.c_proj.": (e, 4 * e),
    }
    biased = {f"transformer.resblocks.{n}.{name}": x for n in range(text["layers"]) for name, x in layer.items()}
    biased |= {"ln_final.": (e,)}
    return {
        "clip.token_embedding.weight": (text["vocab_size"], e),
        "clip.positional_embedding": (text["context_length"], e),
        **{f"clip.{name}weight": shape for name, shape in biased.items()},
        **{f"clip.{name}bias": shape[:1] for name, shape in biased.items()},
        "clip.text_projection": (e, dim),
        "space.centres": (k, e),
        "space.initial_centres": (k, e),
        "space.word_to_concept": (len(config.words),),
        **({"space.map.weight": (dim, e)} if e != dim else {}),
    }


class _Space(Vocabulary):
    """The words of a saved concept space."""

    def __init__(self, config: SUMAConfig, weights: Mapping[str, np.ndarray]):
        super().__init__(config.words, config.word_counts, config.num_captions, config.anchor, config.ignored_words)
        self._assignment = weights["space.word_to_concept"], weights["space.initial_centres"]

    def assignment(self) -> tuple[np.ndarray, np.ndarray]:
        """Return them as they were saved."""
        return self._assignment


class TextEncoder:
    """An `Encoder` (suma/model/encoder.py) that needs torch for videos only, from `load_for_search`."""

    def __init__(
        self, config: SUMAConfig, weights: Mapping[str, np.ndarray], name: str, folder: Path, source: str = ""
    ):
        """Keep the weights of `_shapes`, the whole model's fingerprint (name), the folder that it was read from, and
        the string that an index remembers it by (source)."""
        loaded = {n: x.astype(np.float32, copy=False) if x.dtype.kind == "f" else x for n, x in weights.items()}
        self._weights = {n.removeprefix("clip."): x for n, x in loaded.items()}
        self.config, self.space, self._name, self._folder = config, _Space(config, loaded), name, folder
        self.source = source
        self.tokenizer = load_tokenizer(config.tokenizer, config.clip["text_cfg"])
        self._suma: SUMA | None = None

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

    def concepts(self) -> np.ndarray:
        """Return the concepts (K, D), each of length 1."""
        centres, linear = self._weights["space.centres"], self._weights.get("space.map.weight")
        return unit(centres if linear is None else centres @ linear.T)

    # ---- videos ----------------------------------------------------------------------------------------------------

    def encode_videos(self, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return what `SUMA.encode_videos` does. Raise RuntimeError if the model's files have changed meanwhile."""
        return self._load().encode_videos(videos)

    def encoding(self, bf16: bool = False) -> AbstractContextManager[int]:
        """Encode videos faster until the `with` block ends; see `SUMA.encoding`."""
        return self._load().encoding(bf16)

    def _load(self) -> "SUMA":
        if self._suma is None:
            from suma.model.suma import SUMA

            loaded = SUMA.from_pretrained(self._folder)
            if loaded.fingerprint() != self._name:
                raise RuntimeError(f"the model in {self._folder} has changed: start again")
            self._suma = loaded
        return self._suma

    # ---- texts -----------------------------------------------------------------------------------------------------

    def embed_words(self, words: Sequence[str]) -> np.ndarray:
        """Return the token embeddings (W, E) of words: the mean over their sub-word tokens."""
        table = self._weights["token_embedding.weight"]
        return np.stack([table[self.tokenizer.encode(word)].mean(0) for word in words])

    def encode_queries(self, sentences: Sequence[str]) -> Queries:
        """Return the features and anchors of sentences."""
        if isinstance(sentences, str):
            raise ValueError("encode_queries takes a list of sentences: wrap the one in [ ]")
        features = np.zeros((0, self.dim), np.float32)
        if len(sentences):
            ids = self.tokenizer.ids(list(map(nfc, sentences)), len(self._weights["positional_embedding"]))
            features = unit(self._encode(ids))
        if self.config.anchor == "self":
            return Queries(features, unit(features @ self.concepts().T))
        return Queries(features, self.space.anchors(sentences, self.embed_words))

    def _encode(self, ids: np.ndarray) -> np.ndarray:
        """Return sentence features (T, D), not normalised, of token ids (T, L): CLIP's text tower."""
        w, length = self._weights, ids.shape[1]
        layers, heads = (int((TOWER | self.config.clip["text_cfg"])[name]) for name in ("layers", "heads"))
        x = w["token_embedding.weight"][ids] + w["positional_embedding"][:length]  # (T, L, E)
        later = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        for n in range(layers):
            at = f"transformer.resblocks.{n}."
            inside = self._linear(self._norm(x, at + "ln_1."), at + "attn.in_proj_")
            q, k, v = (part.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for part in np.split(inside, 3, -1))
            attention = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + later  # (T, heads, L, L)
            attention = np.exp(attention - attention.max(-1, keepdims=True))
            attention /= attention.sum(-1, keepdims=True)
            x = x + self._linear((attention @ v).swapaxes(1, 2).reshape(x.shape), at + "attn.out_proj.")
            hidden = self._linear(self._norm(x, at + "ln_2."), at + "mlp.c_fc.")
            x = x + self._linear(self._activation(hidden), at + "mlp.c_proj.")
        ends = self._norm(x[np.arange(len(x)), ids.argmax(-1)], "ln_final.")  # the end's id is the largest
        return ends @ w["text_projection"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[name + "weight"].T + self._weights[name + "bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * self._weights[name + "weight"] + self._weights[name + "bias"]

    def _activation(self, x: np.ndarray) -> np.ndarray:
        if self.config.clip.get("quick_gelu"):
            return x / (1 + np.exp(-1.702 * x))
        return x * (0.5 + 0.5 * erf(x * 0.5**0.5))


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function, to 2e-7: formula 7.1.26 of Abramowitz and Stegun's handbook (numpy has none)."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-np.square(x)))
