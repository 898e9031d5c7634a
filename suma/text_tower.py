"""CLIP's text tower alone, for searching by text: the weights' names and the features are those of open_clip's model,
whose import (with torchvision, timm and torch's compiler) would take longer than the search.

Shapes: T texts, L tokens, E the tower's width, D joint width.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = {"context_length", "vocab_size", "width", "heads", "layers"}  # options of text_cfg that it knows


def fits(cfg: dict[str, Any]) -> bool:
    """Whether an open_clip config's text tower is one of these: OpenAI's, without later variants."""
    named = {name for name, value in cfg.items() if value} - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    return not named - {"init_logit_bias", "init_logit_scale", "preprocess_cfg"} and set(cfg["text_cfg"]) <= PLAIN


class QuickGELU(nn.Module):
    """The GELU of OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        """x * sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Attention and a two-layer network over (T, L, E), each on what was layer-normed and added to it."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module]):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": activation(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(T, L, E), additive mask (L, L) -> (T, L, E)."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask.to(y.dtype))[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, width: int, heads: int, layers: int, activation: type[nn.Module]):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def get_cast_dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        """(T, L, E), additive mask (L, L) -> (T, L, E)."""
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class TextTower(nn.Module):
    """What `suma.text` needs of a CLIP whose config `fits`; it has no image tower."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12} | cfg["text_cfg"]
        width, length = text["width"], text["context_length"]
        activation = QuickGELU if cfg.get("quick_gelu") else nn.GELU
        self.token_embedding = nn.Embedding(text["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.transformer = Transformer(width, text["heads"], text["layers"], activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, cfg["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.zeros([]))
        self.text_pool_type = "argmax"
        self.register_buffer("attn_mask", torch.full((length, length), float("-inf")).triu(1), persistent=False)
