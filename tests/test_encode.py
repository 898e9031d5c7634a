"""Features of a benchmark: each video and caption encoded once and kept in order, by one process or by two."""

import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from benchmarks import load_clips
from clips import noise_picture, write_video
from encode import encode_captions, encode_videos, similarities
from frame_cache import FrameCache
from processes import OTHERS, with_environment
from test_data import row, write_layout

from suma import SUMA
from suma.similarity import Texts, combine


class Stub:
    """Stands for a model whose feature of a caption is its number."""

    device = torch.device("cpu")

    def __init__(self, captions: list[str]):
        self.captions, self.batches = captions, []

    def eval(self) -> None:
        pass

    def make_texts(self, sentences: list[str]) -> Texts:
        self.batches.append(sentences)
        at = torch.tensor([[self.captions.index(s)] for s in sentences])
        return Texts(at, at)


def test_captions_are_encoded_short_ones_first_and_come_back_in_order():
    captions = ["dddd", "a", "ccc", "bb", "eeeee"]
    model = Stub(captions)
    got = encode_captions(model, captions, batch_size=2)
    assert model.batches == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    assert got.features[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_captions_encoded_in_batches_are_those_encoded_alone(tiny_model: SUMA):
    captions = ["a dog runs on the grass", "cat", "", "a bird sings in a tall tree"]
    got = encode_captions(tiny_model, captions, batch_size=3)
    for i, caption in enumerate(captions):
        alone = tiny_model.make_texts([caption])
        assert torch.allclose(got.features[i], alone.features[0], atol=1e-5)
        assert torch.allclose(got.anchors[i], alone.anchors[0], atol=1e-6)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of 2 to 6 frames of noise, with one caption each."""
    folder = tmp_path_factory.mktemp("encode")
    (folder / "video").mkdir()
    for n in range(5):
        path = folder / "video" / f"video{n}.mp4"
        write_video(path, 2 + n, (32, 32), picture=lambda i, w, h, n=n: noise_picture(9 * n + i, w, h))
    rows = [row(n, f"a {animal} runs") for n, animal in enumerate(("dog", "cat", "bird", "horse", "man"))]
    write_layout(folder, rows, rows)
    return folder


def test_videos_encoded_in_batches_are_those_encoded_alone(tiny_model: SUMA, benchmark: Path, tmp_path: Path):
    clips = load_clips(str(benchmark), "test_1k")
    cache = FrameCache(clips, 4, tiny_model.config.image, tmp_path)
    cache.build()
    together = encode_videos(tiny_model, clips, cache, batch_size=2)
    assert together.mask.sum(1).tolist() == [2, 3, 4, 4, 4]
    for i in range(5):
        frames = torch.from_numpy(cache.get(i, np.arange(cache.counts[i])))[None]
        with torch.no_grad():
            video, _ = tiny_model.encode_video(frames)
        assert torch.allclose(together.features[i], video[0], atol=1e-5)
    some = encode_videos(tiny_model, [clips[4], clips[1]], cache, [4, 1])
    assert torch.allclose(some.features, together.features[[4, 1]], atol=1e-5)
    texts = encode_captions(tiny_model, ["a dog", "a cat"])
    scores = combine(similarities(tiny_model, texts, together, chunk=2), tiny_model.config.scoring)
    assert torch.allclose(scores, tiny_model.score(texts, together), atol=1e-6)


def test_frames_out_of_order_and_the_middle_one_alone(tiny_model: SUMA, benchmark: Path, tmp_path: Path):
    clips = load_clips(str(benchmark), "test_1k")
    cache = FrameCache(clips, 4, tiny_model.config.image, tmp_path)
    cache.build()
    middle = encode_videos(tiny_model, clips, cache, order="middle")
    with torch.no_grad():
        alone, _ = tiny_model.encode_video(torch.from_numpy(cache.get(4, np.array([2])))[None])
    assert middle.mask.sum(1).tolist() == [1] * 5 and torch.allclose(middle.features[4], alone[0], atol=1e-5)
    whole, shuffled = (encode_videos(tiny_model, clips, cache, order=order) for order in ("all", "shuffled"))
    rows = [video.frames[4][video.mask[4]].sum(-1).sort().values for video in (whole, shuffled)]
    assert torch.allclose(rows[0], rows[1], atol=1e-4) and not torch.equal(whole.frames[4], shuffled.frames[4])


# ---- several processes ---------------------------------------------------------------------------------------------


def encode_some(folder: Path, accelerator: Accelerator | None) -> list[torch.Tensor]:
    """Five videos and seven captions in batches that two processes cannot share evenly, then one of each."""
    model = SUMA.from_pretrained(folder / "model")
    clips = load_clips(str(folder / "data"), "test_1k")
    cache = FrameCache(clips, 4, model.config.image, folder / "frames")
    captions = [" ".join(["a dog runs on the grass"] * (7 - n)) for n in range(7)]
    got: list[torch.Tensor] = []
    for size in (1, 3):
        got += encode_videos(model, clips, cache, batch_size=size, accelerator=accelerator)
        got += encode_captions(model, captions, batch_size=size, accelerator=accelerator)
    got += encode_videos(model, clips, cache, [3], accelerator=accelerator)
    return got + [*encode_captions(model, captions[:1], accelerator=accelerator)]


def one_of_two(folder: str, rank: int) -> None:
    """One of two gloo processes, as `accelerate launch` starts them; writes what it has in the end."""
    torch.set_num_threads(1)
    try:
        accelerator = Accelerator()
        assert accelerator.num_processes == 2 and accelerator.process_index == rank
        calls = Counter()
        encode_temporal = SUMA.encode_temporal

        def counted(self: SUMA, frames: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            calls["videos"] += len(frames)
            return encode_temporal(self, frames, mask)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SUMA, "encode_temporal", counted)
            got = encode_some(Path(folder), accelerator)
        torch.save({"features": got, "videos": calls["videos"]}, f"{folder}/{rank}.pt")
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_two_processes_share_the_encoding_and_both_get_what_one_alone_makes(tiny_model, benchmark, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    os.symlink(benchmark, tmp_path / "data")
    clips = load_clips(str(tmp_path / "data"), "test_1k")
    FrameCache(clips, 4, tiny_model.config.image, tmp_path / "frames").build()
    expected = encode_some(tmp_path, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    second = {**environment, "RANK": "1", "LOCAL_RANK": "1"}
    other = OTHERS.Process(target=with_environment, args=(second, one_of_two, str(tmp_path), 1))
    other.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**environment, "RANK": "0", "LOCAL_RANK": "0"}.items():
                patch.setenv(name, value)
            one_of_two(str(tmp_path), 0)
        other.join(60)
        assert other.exitcode == 0
    finally:
        other.kill()
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt")
        assert len(saved["features"]) == len(expected) == 3 * 5 + 3 * 2
        for got, one in zip(saved["features"], expected, strict=True):
            assert got.shape == one.shape and torch.allclose(got.float(), one.float(), atol=1e-5)
    # of five, 3 and 2, in both rounds; of one, fewer than there are processes, each for itself
    assert [torch.load(tmp_path / f"{rank}.pt")["videos"] for rank in range(2)] == [2 * 3 + 1, 2 * 2 + 1]
