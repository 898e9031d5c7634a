"""What all tests share: a tiny model, decoders that run already, and caches of their own."""

import functools
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

CACHE = Path(tempfile.mkdtemp(prefix="suma-tests-"))
os.environ.update(SUMA_CACHE=str(CACHE / "suma"), HF_DATASETS_CACHE=str(CACHE / "datasets"), HF_HUB_OFFLINE="1")
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # in small work, threads only wait for each other
os.environ.update(GLOO_SOCKET_IFNAME="lo", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")

import pytest  # noqa: E402
import torch  # noqa: E402

from suma.index import ingest  # noqa: E402
from suma.model import from_clip  # noqa: E402
from suma.model.suma import SUMA  # noqa: E402
from suma.model.vocabulary import common_words  # noqa: E402
from suma.video import worker  # noqa: E402

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


class WarmDecoder(worker.Decoder):
    """A decoder that is closed only where it stands in the middle of a file, and else kept for the next test."""

    idle: ClassVar[list["WarmDecoder"]] = []
    busy = False

    def read(self, path: str, num_frames: int, segment: float = 0.0, exact: bool = False) -> Iterator[worker.Part]:
        self.busy = True
        try:
            yield from super().read(path, num_frames, segment, exact)
        except (ValueError, OSError):  # an answer too, or the child is dead, and another is started when needed
            self.busy = False
            raise
        self.busy = False

    def close(self) -> None:
        if self.busy:
            super().close()
        else:
            WarmDecoder.idle.append(self)


def any_decoder(time_limit: float = worker.TIME_LIMIT, *, child: object = worker.CHILD) -> worker.Decoder:
    """Return a decoder that runs already, if the caller asks for nothing special."""
    if time_limit != worker.TIME_LIMIT or worker.CHILD is not child:
        return worker.Decoder(time_limit)
    try:
        return WarmDecoder.idle.pop()
    except IndexError:
        return WarmDecoder()


@pytest.fixture(scope="session", autouse=True)
def warm_decoders() -> Iterator[None]:
    """Spare most tests the half second in which a decoder's process starts; test_decoder.py starts its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "Decoder", any_decoder)
        yield
    for decoder in WarmDecoder.idle:
        worker.Decoder.close(decoder)


class LazyDatabase(sqlite3.Connection):
    """A database that leaves it to the system when the disk is written."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous = FULL", "synchronous = OFF"), *values)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Spare the tests some ten waits per commit: none of them pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=LazyDatabase))
        yield


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


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let models without captions be made of some common words and pictures: all would take seconds each time."""
    words, captions = common_words()
    few = dict(itertools.islice(words.items(), 600)) | {word: words[word] for word in ("dog", "guitar", "snow")}
    folder = tmp_path_factory.mktemp("posters")
    for poster in itertools.islice(from_clip.PICTURES.glob("*.jpg"), 8):
        shutil.copy(poster, folder)
    monkeypatch.setattr(from_clip, "PICTURES", folder)
    monkeypatch.setattr("suma.model.from_clip.common_words", lambda: (dict(few), captions))


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
