"""Faster kernels on CPUs, where they stay exact."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


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
def half_image_tower(clip: Any) -> Iterator[None]:
    """Encode frames in bfloat16 meanwhile, with a copy of a CLIP's image tower: its other parts, and the weights that
    come back, stay as they are. (On a CPU autocast would be slower than float32.)"""
    exact = clip.visual
    clip.visual = copy.deepcopy(exact).to(torch.bfloat16)
    try:
        yield
    finally:
        clip.visual = exact


def has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (elsewhere bf16 autocast is slower than float32)."""
    if hasattr(torch.cpu, "get_capabilities"):
        told: Any = torch.cpu.get_capabilities()
        return any(bool(value) for name, value in told.items() if name.endswith("bf16"))
    cpuinfo = Path("/proc/cpuinfo")  # torch before 2.10 does not tell
    return cpuinfo.is_file() and any(word.endswith("bf16") for word in cpuinfo.read_text().split())
