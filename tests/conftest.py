"""What all tests share: a tiny model, and caches of their own, so that nothing outside the tests is read or written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE = Path(tempfile.mkdtemp(prefix="suma-tests-"))
os.environ.update(SUMA_CACHE=str(CACHE / "suma"), HF_DATASETS_CACHE=str(CACHE / "datasets"), HF_HUB_OFFLINE="1")
os.environ.update(GLOO_SOCKET_IFNAME="lo", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")

import pytest  # noqa: E402
import torch  # noqa: E402

from suma.model.suma import SUMA  # noqa: E402

collect_ignore = ["bench", "pictures.py"]  # scripts, run by hand
TOWER: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 40, "vocab_size": 1024, "width": 64, "heads": 2, "layers": 2},
}
CAPTIONS = [
    "a dog runs on the grass",
    "a dog catches a red ball",
    "the brown dog sleeps",
    "a cat sits on the mat",
    "a cat plays with a ball",
    "a small bird sings in a tree",
    "a bird flies over the water",
    "a man drives a red car",
    "a woman cooks rice in the kitchen",
    "a child jumps into the water",
    "two people dance on a stage",
    "a horse walks through the snow",
]


def pytest_sessionfinish() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_arithmetic() -> Iterator[None]:
    """No test leaves the faster kernels on for the next."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def tower() -> dict[str, Any]:
    """An open_clip model config of 64 dimensions and 2 layers on either side."""
    return TOWER


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Twelve training captions."""
    return CAPTIONS


def stir(model: SUMA) -> SUMA:
    """Give the temporal encoder's last projection, zero at the start, something to say."""
    assert model.temporal is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.temporal.out.weight.copy_(0.1 * torch.randn(model.temporal.out.weight.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def tiny_model() -> SUMA:
    """A model of random weights with 12 concepts. Shared by all tests: copy it before changing it."""
    return stir(SUMA.from_clip(TOWER, CAPTIONS, num_concepts=12, temporal_layers=1))
