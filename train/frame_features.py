"""Keep what a frozen image tower makes of cached frames: encoded once, stored beside them, read like them.

Shapes: N clips, F frames, C channels of the image tower's trunk (and what a frame grid adds).
"""

import hashlib

import numpy as np
import torch
from frame_cache import FrameCache

from suma.model.cpu import fast_image_tower, has_bf16
from suma.model.suma import SUMA
from suma.progress import Progress

BATCH = 4  # clips encoded at once: more pictures than a processor's cache holds take twice as long each


class FrameFeatures:
    """The output of `SUMA.encode_images` for a cache's frames, (N, F, C + ...) float16, in place of their pixels.

    Computed in bfloat16 on a CPU that has it. The file's name holds a checksum of the image tower.
    """

    def __init__(self, cache: FrameCache, model: SUMA):
        self.clips, self.counts, self.image, self.num_frames = cache.clips, cache.counts, cache.image, cache.num_frames
        digest = hashlib.sha256(repr((model.config.image, model.config.frame_grid)).encode())
        trunk = getattr(
            model.clip.visual, "trunk", model.clip.visual
        )  # a head may be trained while its trunk is frozen
        for name, tensor in sorted(trunk.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.file = cache.folder / f"features-{digest.hexdigest()[:16]}.npy"
        if not self.file.exists():
            self._encode(cache, model)
        self._features = np.load(self.file, mmap_mode="r")
        self.shape, self.dtype = self._features.shape[2:], self._features.dtype

    @torch.no_grad()
    def _encode(self, cache: FrameCache, model: SUMA) -> None:
        partial, order = self.file.with_suffix(".partial.npy"), np.arange(self.num_frames)
        features: np.memmap | None = None
        on_cpu = model.device.type == "cpu"
        with fast_image_tower(model.clip, half=on_cpu and has_bf16()):
            for i in Progress(range(0, len(self.clips), BATCH), desc="encode frames", unit="batch"):
                rows = [j for j in range(i, min(i + BATCH, len(self.clips))) if self.counts[j]]
                if not rows:
                    continue
                pixels = [torch.from_numpy(cache.get(j, order[: self.counts[j]])) for j in rows]
                done = model.encode_images(torch.cat(pixels).to(model.device)).to(torch.float16).cpu().numpy()
                if features is None:
                    shape = (len(self.clips), self.num_frames, done.shape[1])
                    features = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                at = 0
                for j in rows:
                    features[j, : self.counts[j]] = done[at : at + self.counts[j]]
                    at += self.counts[j]
        if features is None:
            raise ValueError("there is no readable video to encode: see the reasons above")
        features.flush()
        partial.rename(self.file)

    def get(self, i: int, picks: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the features (len(picks), C + ...) of frames `picks` of clip i. out: an array to fill."""
        found = self._features[i, picks]
        if out is None:
            return found
        out[:] = found
        return out
