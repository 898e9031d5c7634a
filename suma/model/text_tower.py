"""Tokens -> the text tower's features, padded to the longest caption of the batch only.

Shapes: T texts, L tokens, E token-embedding width, D joint width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RUN = 64  # texts of like length that a CPU encodes together


def text_tower(clip: nn.Module) -> Any:
    """Return the module that holds the text tower: `clip.text` in open_clip's newer models, else the model itself."""
    return getattr(clip, "text", clip)


def token_table(clip: nn.Module) -> nn.Embedding:
    """Return the text tower's token embedding table (vocabulary, E)."""
    tower = text_tower(clip)
    if hasattr(tower, "token_embedding"):
        return tower.token_embedding
    return tower.transformer.get_input_embeddings()


def can_shorten(clip: nn.Module) -> bool:
    """Return True where padding may be left out: a causal tower read at its end-of-text token never looks at it."""
    tower = text_tower(clip)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    return getattr(tower, "attn_mask", None) is not None and pool in ("argmax", "eos")


def tokenize(tokenizer: Any, sentences: Sequence[str], context_length: int, shorten: bool) -> Tensor:
    """Return token ids (T, L) of sentences; L is the longest one's length where `shorten`, else the context length."""
    tokens = tokenizer(list(sentences), context_length=context_length)
    if shorten and len(tokens):
        used = (tokens != 0).any(0).nonzero()  # token 0 is padding, but also a real token between others
        tokens = tokens[:, : int(used.max()) + 1]
    return tokens


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Return sentence features (T, D), not normalised, of token ids (T, L) of any length up to the context.

    open_clip's own `encode_text` wants the full context; a causal tower gives the same features without the padding.
    So texts of like length are encoded together on a CPU: half of a batch of 512 captions would be padding.
    """
    if not can_shorten(clip):
        return clip.encode_text(tokens)  # type: ignore[operator]
    if len(tokens) <= RUN or tokens.device.type != "cpu":
        return _encode_run(text_tower(clip), tokens)
    lengths = ((tokens != 0) * torch.arange(1, tokens.shape[1] + 1)).amax(1)
    order = lengths.argsort(stable=True)
    runs = [_encode_run(text_tower(clip), tokens[rows, : int(lengths[rows].max())]) for rows in order.split(RUN)]
    return torch.cat(runs)[order.argsort()]


def _encode_run(tower: Any, tokens: Tensor) -> Tensor:
    length = tokens.shape[1]
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


def word_embeddings(clip: nn.Module, tokenizer: Any, words: Sequence[str]) -> np.ndarray:
    """Return the mean of each word's rows in the token embedding table (W, E) (section 3.2 of the paper)."""
    table = token_table(clip).weight.detach()
    if hasattr(tokenizer, "encode"):
        pieces = [tokenizer.encode(word) for word in words]
    else:  # open_clip's wrapper around a tokenizer of the Hub
        inside = [" " + word for word in words]  # as within a sentence: pieces of many tokenizers begin with the space
        pieces = tokenizer.tokenizer(inside, add_special_tokens=False)["input_ids"]
    empty = [word for word, ids in zip(words, pieces, strict=True) if not ids]
    if empty:
        raise ValueError(f"the tokenizer has no token for {empty[:3]}")
    return torch.stack([table[torch.tensor(ids, device=table.device)].mean(0) for ids in pieces]).float().cpu().numpy()


@torch.no_grad()
def word_sentences(clip: nn.Module, tokenizer: Any, words: Sequence[str], text_cfg: dict[str, Any]) -> np.ndarray:
    """Return the unit features (W, D) of words, each encoded as a sentence of its own."""
    context, parts = int(text_cfg.get("context_length", 77)), []
    for i in range(0, len(words), 256):
        tokens = tokenize(tokenizer, words[i : i + 256], context, can_shorten(clip))
        parts.append(F.normalize(encode_tokens(clip, tokens).float(), dim=-1))
    return torch.cat(parts).cpu().numpy()
