"""Resize and normalise decoded frames as the image tower was trained.

Shapes: F frames, h and w pixels of a picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def resize_frames(
    frames: np.ndarray, size: int, resize_mode: str = "shortest", interpolation: str = "bicubic"
) -> Tensor:
    """Resize uint8 (F, h, w, 3) to uint8 (F, 3, size, size), as open_clip's evaluation transform does.

    resize_mode: "shortest" (that side becomes `size`, the centre is kept), "squash" (both sides become `size`) or
    "longest" (that side becomes `size`, black fills the rest). interpolation: "bicubic" or "bilinear".
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    if resize_mode not in ("shortest", "squash", "longest"):
        raise ValueError(f'resize_mode must be "shortest", "squash" or "longest", not {resize_mode!r}')
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f'interpolation must be "bicubic" or "bilinear", not {interpolation!r}')
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 (F, h, w, 3), not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    to = [size]
    if resize_mode == "squash":
        to = [size, size]
    elif resize_mode == "longest":
        to = [max(1, round(side * size / max(height, width))) for side in (height, width)]
    # A channels-last view: making it contiguous first would cost more than the resize itself.
    pixels = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)
    pixels = functional.resize(pixels, to, InterpolationMode(interpolation), antialias=True)
    return functional.center_crop(pixels, [size, size]).contiguous()


def prepare(frames: Iterable[np.ndarray], image: Mapping[str, Any]) -> np.ndarray:
    """Return blocks of frames, uint8 (f, h, w, 3), as one array uint8 (F, 3, size, size); `image`: a model's config."""
    size = (image["size"], image["resize_mode"], image["interpolation"])
    return torch.cat([resize_frames(block, *size) for block in frames]).numpy()


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x / 255 - mean) / std per channel, float32, for uint8 pixels (..., 3, H, W)."""
    center, spread = (torch.tensor(values, dtype=torch.float32, device=pixels.device) for values in (mean, std))
    return pixels.float().div_(255).sub_(center[:, None, None]).div_(spread[:, None, None])
