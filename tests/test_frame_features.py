"""A frozen tower's features stand for its pixels: the same numbers, encoded once."""

from pathlib import Path

import frame_cache
import numpy as np
import pytest
import torch
from benchmarks import load_clips
from encode import encode_videos
from frame_cache import FrameCache, FrameFeatures
from test_data import benchmark  # noqa: F401  (a fixture)

from suma import SUMA

# ruff: noqa: F811  (fixtures)


@pytest.fixture(autouse=True, params=[False, True])
def bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """On processors with and without bfloat16: how far features may then be off."""
    monkeypatch.setattr(frame_cache, "has_bf16", lambda: request.param)
    return 0.05 if request.param else 2e-3


def test_features_stand_for_pixels_and_are_encoded_once(
    benchmark: Path, tiny_model: SUMA, tmp_path: Path, monkeypatch, bf16: float
):
    clips = load_clips(str(benchmark), "train_9k")  # of 3, 4, 4 and 4 frames
    cache = FrameCache(clips, 4, tiny_model.config.image, tmp_path)
    cache.build()
    kept = FrameFeatures(cache, tiny_model)
    pixels = torch.from_numpy(cache.get(2, np.array([0, 3])))
    with torch.no_grad():
        expected = tiny_model.encode_frames(pixels).numpy()
    assert np.abs(kept.get(2, np.array([0, 3])) - expected).max() < bf16
    by_features, by_pixels = (encode_videos(tiny_model, clips, frames) for frames in (kept, cache))
    assert torch.allclose(by_features.features, by_pixels.features, atol=bf16)
    valid = by_pixels.mask
    assert torch.equal(by_features.mask, valid) and valid.sum(1).tolist() == [3, 4, 4, 4]
    assert torch.allclose(by_features.frames[valid], by_pixels.frames[valid], atol=bf16)
    monkeypatch.setattr(SUMA, "encode_images", lambda *_: pytest.fail("encoded again"))
    assert np.array_equal(FrameFeatures(cache, tiny_model).get(1, np.arange(4)), kept.get(1, np.arange(4)))


def test_another_tower_has_features_of_its_own_and_a_grid_its_regions(
    benchmark: Path, tiny_model: SUMA, tower, captions, tmp_path: Path, bf16: float
):
    clips = load_clips(str(benchmark), "train_9k")
    cache = FrameCache(clips, 4, tiny_model.config.image, tmp_path)
    cache.build()
    other = SUMA.from_clip(tower, captions, num_concepts=12, seed=5)
    assert FrameFeatures(cache, tiny_model).file != FrameFeatures(cache, other).file
    grid = SUMA.from_clip(tower, captions, num_concepts=12, frame_grid=2)
    with torch.no_grad():
        grid.grid.out.weight.normal_()
    kept = FrameFeatures(cache, grid)
    assert kept.shape == (64 + 4 * 64,)
    by_features, by_pixels = (encode_videos(grid, clips, frames).features for frames in (kept, cache))
    assert torch.allclose(by_features, by_pixels, atol=bf16)
