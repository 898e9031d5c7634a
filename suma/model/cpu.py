"""Faster kernels on CPUs, where they stay exact."""

import contextlib
import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BatchNorm = nn.modules.batchnorm._BatchNorm


def use_fast_matmul(tolerance: float = 1e-5) -> bool:
    """Let torch take its faster float32 kernels on the CPU, if one product shows that they really compute in float32.

    For runs on the CPU only: the setting is torch's own and would let a GPU compute in TF32. On AMD processors it
    nearly doubles the speed at a difference of 3e-6; on others "medium" may round to bfloat16, and is then switched
    off again. Returns whether it is on.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    exact = a @ b
    torch.set_float32_matmul_precision("medium")
    if float(((a @ b) - exact).abs().max() / exact.abs().max()) <= tolerance:
        return True
    torch.set_float32_matmul_precision(before)
    return False


def use_fast_attention_backward() -> None:
    """Let attention over short sequences train faster on the CPU: torch's fused kernel has a slow backward there.

    On 37 tokens per frame a whole training step is 1.7 times as fast without it; the mathematics is the same.
    """
    torch.backends.cuda.enable_flash_sdp(False)  # the CPU's kernel hangs on the same switch


@contextlib.contextmanager
def fast_image_tower(clip: Any, half: bool = False) -> Iterator[None]:
    """Encode frames until the `with` block ends by a faster copy of a CLIP's image tower, which itself stays as it is.

    Batch norms become part of their convolutions (1.3 times as fast; the same features to rounding). half: in bfloat16
    too. (On a CPU autocast would be slower than float32.)
    """
    exact = clip.visual
    if half or any(isinstance(module, BatchNorm) for module in exact.modules()):
        clip.visual = _folded(exact).to(torch.bfloat16) if half else _folded(exact)
    try:
        yield
    finally:
        clip.visual = exact


@torch.no_grad()
def _folded(tower: nn.Module) -> nn.Module:
    """Return a copy whose batch norms are folded into the convolutions before them, if it gives the same features."""
    folded = copy.deepcopy(tower).eval()
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNorm) and conv.out_channels == norm.num_features:
                fused = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                setattr(parent, name, getattr(norm, "act", nn.Identity()))  # timm's norms bring their activation
    size = getattr(tower, "image_size", 224)
    height, width = size if isinstance(size, tuple) else (size, size)
    weight = next(tower.parameters())
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 3, height, width, generator=generator).to(weight.device, weight.dtype)
    exact = copy.deepcopy(tower).eval()
    return folded if torch.allclose(folded(picture), exact(picture), rtol=1e-3, atol=1e-3) else exact


def has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (elsewhere bf16 autocast is slower than float32)."""
    if hasattr(torch.cpu, "get_capabilities"):
        told: Any = torch.cpu.get_capabilities()
        return any(bool(value) for name, value in told.items() if name.endswith("bf16"))
    cpuinfo = Path("/proc/cpuinfo")  # torch before 2.10 does not tell
    return cpuinfo.is_file() and any(word.endswith("bf16") for word in cpuinfo.read_text().split())
