"""Clips for benches."""

from pathlib import Path

import av
import numpy as np
from PIL import Image


def make_clip(path: Path, seconds: float, width: int, height: int, seed: int, preset: str) -> Path:
    """Clouds that drift, with grain: about as hard for a codec as a real clip."""
    rng = np.random.default_rng(seed)
    small = rng.normal(0, 1, (height // 8 + 40, width // 8 + 40, 3)).cumsum(0).cumsum(1)
    small = 255 * (small - small.min()) / np.ptp(small)
    cloud = np.asarray(Image.fromarray(small.astype(np.uint8)).resize((width + 320, height + 320)))
    grain = rng.integers(-6, 7, (height + 16, width + 16, 1), dtype=np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": preset, "crf": "28"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 250
        for n in range(int(seconds * 30)):
            y, x = n * (seed % 3 + 1) // 4 % 300, n * (seed % 5 + 1) // 4 % 300
            gy, gx = rng.integers(0, 16, 2)
            picture = cloud[y : y + height, x : x + width] + grain[gy : gy + height, gx : gx + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    return path
