"""What SUMA learns over a CLIP's frame features: where things are in a frame, and how frames follow each other.

Shapes: N images, C channels, G regions per side, V videos, F frames, D joint width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TemporalEncoder(nn.Module):
    """Pre-norm Transformer over a video's frames (V, F, D): `x + TE(x)`, for any frame count.

    Frames are placed by their relative time, on learned positions that are interpolated (our reading). The frames are
    layer-normed first and the positions start at their scale: positions at CLIP's 0.02 leave the encoder blind to
    order. The last projection starts at zero, so an untrained encoder is exactly the mean of the frames.
    """

    def __init__(self, dim: int, layers: int, positions: int):
        super().__init__()
        heads = max(1, dim // 64)
        self.norm = nn.LayerNorm(dim)
        self.positions = nn.Parameter(torch.randn(positions, dim))
        block = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def positions_at(self, mask: Tensor) -> Tensor:
        """Return position embeddings (V, F, D) at the valid frames' relative times (i + 1/2) / n."""
        count = mask.sum(1, keepdim=True).clamp_min(1)
        order = (mask.cumsum(1) - 1).clamp_min(0)
        at = ((order + 0.5) / count * len(self.positions) - 0.5).clamp(0, len(self.positions) - 1)
        low = at.floor().long().clamp_max(max(0, len(self.positions) - 2))
        high = (low + 1).clamp_max(len(self.positions) - 1)
        return torch.lerp(self.positions[low], self.positions[high], (at - low).unsqueeze(-1).to(self.positions.dtype))

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Return frames (V, F, D) of mask (V, F) plus what the encoder makes of them (V, F, D)."""
        x = self.norm(frames)
        x = self.blocks(x + self.positions_at(mask).to(x.dtype), src_key_padding_mask=~mask)
        return frames + self.out(x)


class FrameGrid(nn.Module):
    """Add what G x G regions of the picture show to the frame features (our reading, not the paper's).

    A CLIP's pooled feature hardly tells where in the picture something is; without that, left and right cannot be told
    apart. Starts at zero, so an untrained one changes nothing.
    """

    def __init__(self, grid: int, width: int, dim: int, region: int = 48):
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, region)
        self.out = nn.Linear(grid * grid * region, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """Return what regions (N, G * G * C) add to the frame features (N, D)."""
        width = self.norm.normalized_shape[0]
        x = regions.to(self.norm.weight.dtype).unflatten(1, (self.grid**2, width))
        return self.out(F.gelu(self.reduce(self.norm(x))).flatten(1))
