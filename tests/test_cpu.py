"""The CPU switches never cost exactness."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from suma.model.cpu import BatchNorm, fast_image_tower, has_bf16, use_fast_attention_backward, use_fast_matmul


def test_fast_products_stay_float32():
    before = torch.get_float32_matmul_precision()
    try:
        on = use_fast_matmul()
        assert torch.get_float32_matmul_precision() == ("medium" if on else before)
        a, b = torch.randn(100, 300), torch.randn(300, 50)
        exact = a.double() @ b.double()
        assert float((a @ b - exact).abs().max() / exact.abs().max()) < 1e-5
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_impossible_tolerance_leaves_the_setting_as_it_was():
    before = torch.get_float32_matmul_precision()
    assert use_fast_matmul(tolerance=-1) is False
    assert torch.get_float32_matmul_precision() == before


def test_attention_has_the_same_gradients_without_the_fused_kernel():
    gradients = []
    for switch in (False, True):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 3, 37, 16, requires_grad=True) for _ in range(3))
        before = torch.backends.cuda.flash_sdp_enabled()
        try:
            if switch:
                use_fast_attention_backward()
                assert not torch.backends.cuda.flash_sdp_enabled()
            F.scaled_dot_product_attention(q, k, v).square().sum().backward()
        finally:
            torch.backends.cuda.enable_flash_sdp(before)
        gradients.append(torch.stack([q.grad, k.grad, v.grad]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_the_half_image_tower_is_near_and_leaves_no_trace(tiny_model):
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    with torch.no_grad():
        exact = tiny_model.encode_frames(pixels)
        with fast_image_tower(tiny_model.clip, half=True):
            half = tiny_model.encode_frames(pixels)
        again = tiny_model.encode_frames(pixels)
    assert half.dtype == torch.bfloat16 and torch.equal(exact, again)
    assert float(torch.cosine_similarity(exact, half.float()).min()) > 0.999
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "there"), [("fpu avx512_bf16 vnni", True), ("fpu amx_bf16", True), ("fpu avx2", False)]
)
def test_bfloat16_is_known_where_torch_does_not_tell(monkeypatch: pytest.MonkeyPatch, flags: str, there: bool):
    if hasattr(torch.cpu, "get_capabilities"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there, "avx2": True})
        assert has_bf16() is there
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: f"flags : {flags}\n")
    assert has_bf16() is there


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_batch_norms_become_part_of_their_convolutions(name: str):
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    for norm in norms:  # as after a training
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2)
    clip, pixels = SimpleNamespace(visual=network), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = network(pixels)
        with fast_image_tower(clip):
            left = [module for module in clip.visual.modules() if isinstance(module, BatchNorm)]
            assert len(norms) > 5 and len(left) <= 1  # that of the ResNet's stem, whose convolution is in a Sequential
            torch.testing.assert_close(clip.visual(pixels), exact, rtol=1e-4, atol=1e-4)
        assert clip.visual is network and torch.equal(network(pixels), exact)


def test_a_tower_whose_norms_are_elsewhere_stays_as_it_is():
    class Crossed(nn.Module):
        """The norm that stands behind the convolution comes before it."""

        image_size = 8

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(0.7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(x))

    clip = SimpleNamespace(visual=Crossed().eval())
    pixels = torch.randn(1, 3, 8, 8)
    exact = clip.visual(pixels)
    with fast_image_tower(clip):
        assert torch.equal(clip.visual(pixels), exact)
