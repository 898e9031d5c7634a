"""Sentences -> tokens, with open_clip's tokenizers.

Shapes: T texts, L tokens.
"""

import builtins
import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLIP_VOCABULARY = 49408


def load_tokenizer(name: str, text_cfg: dict[str, Any], folder: str | Path | None = None) -> Any:
    """The tokenizer of an open_clip model name, or ("" = a model of our own) CLIP's, cut to `text_cfg["vocab_size"]`.

    CLIP's byte-pair merges stand in order of frequency, so the first n of them are a lossless tokenizer for any text:
    a small vocabulary only makes captions a little longer. Where `text_cfg` names a tokenizer of the Hub (SigLIP's),
    that one is read from `folder`, as saved with a model, or else from the Hub.
    """
    if text_cfg.get("hf_tokenizer_name"):
        return _hub_tokenizer(text_cfg, folder)
    if name and text_cfg.get("tokenizer_kwargs"):
        import open_clip

        return open_clip.get_tokenizer(name)
    if name and not brings_tokenizer(name):
        raise ValueError(f"tokenizer {name!r} is no open_clip model")
    context, size = text_cfg.get("context_length", 77), text_cfg.get("vocab_size", CLIP_VOCABULARY)
    tokenizer = _open_clip_tokenizer().SimpleTokenizer(context_length=context)
    if name or size == CLIP_VOCABULARY:
        return tokenizer
    if not 514 <= size < CLIP_VOCABULARY:
        raise ValueError(f"text_cfg vocab_size must be 514 to {CLIP_VOCABULARY}, got {size}")
    pieces = list(tokenizer.encoder)[: size - 2]  # 512 bytes, then the merges in order
    specials = list(tokenizer.encoder)[-2:]
    tokenizer.encoder = {piece: i for i, piece in enumerate(pieces + specials)}
    tokenizer.decoder = {i: piece for piece, i in tokenizer.encoder.items()}
    tokenizer.bpe_ranks = {pair: i for pair, i in tokenizer.bpe_ranks.items() if i < size - 514}
    tokenizer.vocab_size = size
    tokenizer.all_special_ids = [size - 2, size - 1]
    tokenizer.sot_token_id, tokenizer.eot_token_id = size - 2, size - 1
    return tokenizer


def brings_tokenizer(name: str) -> bool:
    """Return whether a name is one of open_clip's own models, and not one that was added to its list."""
    return (_open_clip_folder() / "model_configs" / f"{name}.json").is_file()


def _open_clip_folder() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ImportError("open_clip is missing: pip install open_clip_torch")
    return Path(found.submodule_search_locations[0])


@functools.cache
def _open_clip_tokenizer() -> Any:
    """open_clip's tokenizer.py alone, and torch only once a tensor is asked for: to import them takes longer than a
    search."""
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"].tokenizer
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", _open_clip_folder() / "tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    def import_(name: str, *args: Any) -> Any:
        return _LaterTorch() if name == "torch" else builtins.__import__(name, *args)

    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": import_}
    spec.loader.exec_module(module)
    return module


class _LaterTorch:
    """Stands for torch in a file that names these two in annotations, and computes with it only when it is called."""

    LongTensor = Tensor = Any

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)


def token_ids(tokenizer: Any, sentences: Sequence[str], context_length: int) -> np.ndarray:
    """Sentences -> ids (T, L) of one of open_clip's own tokenizers, as it gives them but in numpy, and only as wide as
    the longest; those of more than the context are cut, and keep their end."""
    rows = []
    for sentence in sentences:
        ids = [tokenizer.sot_token_id, *tokenizer.encode(sentence), tokenizer.eot_token_id]
        rows.append(ids if len(ids) <= context_length else [*ids[: context_length - 1], tokenizer.eot_token_id])
    out = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return out


def _hub_tokenizer(text_cfg: dict[str, Any], folder: str | Path | None) -> Any:
    """A tokenizer that needs transformers; raises ValueError without that, FileNotFoundError where it is not found."""
    from open_clip.tokenizer import HFTokenizer

    name, options = text_cfg["hf_tokenizer_name"], text_cfg.get("tokenizer_kwargs", {})
    if not set(options) <= {"clean", "strip_sep_token"}:  # others reach transformers, and one of them runs code
        raise ValueError(f"tokenizer_kwargs may hold clean and strip_sep_token, got {', '.join(sorted(options))}")
    try:
        return HFTokenizer(
            str(folder or name),
            text_cfg.get("context_length", 77),
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            trust_remote_code=False,
            **options,
        )
    except ImportError as error:
        raise ValueError(f"the tokenizer {name} needs transformers: pip install transformers ({error})") from error
    except OSError as error:
        where = f"in {folder}" if folder else "at the Hub or in its cache: give the folder that holds it"
        raise FileNotFoundError(f"the tokenizer {name} was not found {where} ({error})") from error
