"""Sentences -> tokens -> the text tower's features, padded to the longest caption of the batch only.

Shapes: T texts, L tokens, E token-embedding width, D joint width.
"""

import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    there = _open_clip_folder()
    if name and not (there / "model_configs" / f"{name}.json").is_file():
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


def _open_clip_folder() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ImportError("open_clip is missing: pip install open_clip_torch")
    return Path(found.submodule_search_locations[0])


@functools.cache
def _open_clip_tokenizer() -> Any:
    """open_clip's tokenizer.py alone: to import the package takes longer than a search."""
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"].tokenizer
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", _open_clip_folder() / "tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _hub_tokenizer(text_cfg: dict[str, Any], folder: str | Path | None) -> Any:
    """A tokenizer that needs transformers; raises ValueError without that, FileNotFoundError where it is not found."""
    from open_clip.tokenizer import HFTokenizer

    name, options = text_cfg["hf_tokenizer_name"], text_cfg.get("tokenizer_kwargs", {})
    if not set(options) <= {"clean", "strip_sep_token"}:  # others reach transformers, and one of them runs code
        raise ValueError(f"tokenizer_kwargs may hold clean and strip_sep_token, got {', '.join(sorted(options))}")
    try:
        return HFTokenizer(
            str(folder or name), text_cfg.get("context_length", 77), tokenizer_mode=text_cfg.get("tokenizer_mode"),
            trust_remote_code=False, **options,
        )  # fmt: skip
    except ImportError as error:
        raise ValueError(f"the tokenizer {name} needs transformers: pip install transformers ({error})") from error
    except OSError as error:
        where = f"in {folder}" if folder else "at the Hub or in its cache: give the folder that holds it"
        raise FileNotFoundError(f"the tokenizer {name} was not found {where} ({error})") from error


def text_tower(clip: nn.Module) -> Any:
    """The module that holds the text tower: `clip.text` of open_clip's newer models, the model itself of the others."""
    return getattr(clip, "text", clip)


def token_table(clip: nn.Module) -> nn.Embedding:
    """The text tower's token embedding table (vocabulary, E)."""
    tower = text_tower(clip)
    if hasattr(tower, "token_embedding"):
        return tower.token_embedding
    return tower.transformer.get_input_embeddings()


def can_shorten(clip: nn.Module) -> bool:
    """Whether padding may be left out: a causal tower read at its end-of-text token never looks at what follows."""
    tower = text_tower(clip)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    return getattr(tower, "attn_mask", None) is not None and pool in ("argmax", "eos")


def tokenize(tokenizer: Any, sentences: Sequence[str], context_length: int, shorten: bool) -> Tensor:
    """Sentences -> token ids (T, L); L is the longest sentence's length where `shorten`, else the context length."""
    tokens = tokenizer(list(sentences), context_length=context_length)
    if shorten and len(tokens):
        used = (tokens != 0).any(0).nonzero()  # token 0 is padding, but also a real token between others
        tokens = tokens[:, : int(used.max()) + 1]
    return tokens


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Token ids (T, L) of any length up to the context -> sentence features (T, D), not normalised.

    open_clip's own `encode_text` wants the full context; a causal tower gives the same features without the padding.
    """
    if not can_shorten(clip):
        return clip.encode_text(tokens)  # type: ignore[operator]
    tower, length = text_tower(clip), tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    eos: Any = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
    ends = tokens.argmax(-1) if pool == "argmax" else torch.eq(tokens, eos).int().argmax(-1)
    x = x[torch.arange(len(x), device=x.device), ends]
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Module) else x @ tower.text_projection


def word_embeddings(clip: nn.Module, tokenizer: Any, words: Sequence[str]) -> Tensor:
    """Words -> mean of their sub-word tokens' rows of the token embedding table (W, E) (section 3.2 of the paper)."""
    table = token_table(clip).weight.detach()
    if hasattr(tokenizer, "encode"):
        pieces = [tokenizer.encode(word) for word in words]
    else:  # open_clip's wrapper around a tokenizer of the Hub
        inside = [" " + word for word in words]  # as within a sentence: pieces of many tokenizers begin with the space
        pieces = tokenizer.tokenizer(inside, add_special_tokens=False)["input_ids"]
    empty = [word for word, ids in zip(words, pieces, strict=True) if not ids]
    if empty:
        raise ValueError(f"the tokenizer has no token for {empty[:3]}")
    return torch.stack([table[torch.tensor(ids, device=table.device)].mean(0) for ids in pieces]).float()


@torch.no_grad()
def word_sentences(clip: nn.Module, tokenizer: Any, words: Sequence[str], text_cfg: dict[str, Any]) -> np.ndarray:
    """Words -> where the text tower puts each as a sentence of its own: unit features (W, D)."""
    context, parts = int(text_cfg.get("context_length", 77)), []
    for i in range(0, len(words), 256):
        tokens = tokenize(tokenizer, words[i : i + 256], context, can_shorten(clip))
        parts.append(F.normalize(encode_tokens(clip, tokens).float(), dim=-1))
    return torch.cat(parts).cpu().numpy()
