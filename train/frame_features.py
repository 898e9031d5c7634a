"""What a frozen image tower makes of cached frames: encoded once, kept beside them, read like them.

Shapes: N clips, F frames, D joint width.
"""

import hashlib

import numpy as np
import torch
from frame_cache import FrameCache
from tqdm import tqdm

from suma.model import SUMA

BATCH = 64  # clips encoded at once


class FrameFeatures:
    """Features (N, F, D) float32, not normalised, of the frames that a cache holds: `get` gives them instead of pixels.

    Their file carries the checksum of the image tower. Raises ValueError for a model whose frame features are more than
    its image tower's (a frame grid learns, though the tower is frozen).
    """

    def __init__(self, cache: FrameCache, model: SUMA):
        if model.grid is not None:
            raise ValueError("a frame grid learns: its frames cannot be encoded once and for all")
        self.clips, self.counts, self.image, self.num_frames = cache.clips, cache.counts, cache.image, cache.num_frames
        self.shape, self.dtype = (model.dim,), np.dtype(np.float32)
        digest = hashlib.sha256(repr(model.config.image).encode())
        for name, tensor in sorted(model.clip.visual.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.file = cache.folder / f"features-{digest.hexdigest()[:16]}.npy"
        if not self.file.exists():
            self._encode(cache, model)
        self._features = np.load(self.file, mmap_mode="r")

    @torch.no_grad()
    def _encode(self, cache: FrameCache, model: SUMA) -> None:
        features = np.zeros((len(self.clips), self.num_frames, model.dim), np.float32)
        order = np.arange(self.num_frames)
        for i in tqdm(range(0, len(features), BATCH), desc="encode frames", unit="batch", disable=None):
            rows = range(i, min(i + BATCH, len(features)))
            pixels = [torch.from_numpy(cache.get(j, order[: self.counts[j]])) for j in rows]
            done = model.encode_frames(torch.cat(pixels).to(model.device)).float().cpu().numpy()
            at = 0
            for j in rows:
                features[j, : self.counts[j]] = done[at : at + self.counts[j]]
                at += self.counts[j]
        partial = self.file.with_suffix(".partial.npy")
        np.save(partial, features)
        partial.rename(self.file)

    def get(self, i: int, picks: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Features (len(picks), D) of frames `picks` of clip i; in `out` where given."""
        found = self._features[i, picks]
        if out is None:
            return found
        out[:] = found
        return out
