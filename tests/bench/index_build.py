"""How fast an index is built, against a plain loop. `python tests/bench/index_build.py`

One thread of torch, one decoding process; CPU seconds of this process and its children; the loops interleaved over four
rounds of ten clips; the model is ViT-B/32 with random weights (speed does not depend on them).

plain loop: decord's get_batch, open_clip's PIL transform per frame, encode (a frame at a time, or a video at a time).
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import av
import decord
import numpy as np
import open_clip
import torch
from cloudy import make_clip
from PIL import Image

from suma import SUMA, VideoIndex
from suma.index import ingest
from suma.index.storage import NewClip
from suma.model.checkpoint import BUNDLED
from suma.model.cpu import has_bf16, use_fast_matmul
from suma.video.frames import NEAR, read_frames
from suma.video.preprocess import prepare
from suma.video.worker import Decoder

FRAMES = 12


def cpu() -> float:
    """CPU seconds of this process and of the children that ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def by_decord(path: Path) -> np.ndarray:
    reader = decord.VideoReader(str(path), num_threads=1)
    numbers = ((np.arange(FRAMES) + 0.5) * len(reader) / FRAMES).astype(int)
    return reader.get_batch(numbers).asnumpy()


@torch.no_grad()
def plain(model: SUMA, transform: object, paths: list[Path], batch: int) -> list[torch.Tensor]:
    """The loop that most people write."""
    out = []
    for path in paths:
        pixels = torch.stack([transform(Image.fromarray(frame)) for frame in by_decord(path)])  # type: ignore[operator]
        out.append(torch.cat([model.clip.encode_image(part) for part in pixels.split(batch)]))
    return out


def ours(model: SUMA, paths: list[Path], bf16: bool) -> VideoIndex:
    index = VideoIndex(model)
    report = index.add(paths, workers=1, bf16=bf16)
    assert len(report.added) == len(paths), report
    return index


def cosine_error(index: VideoIndex, paths: list[Path], theirs: list[torch.Tensor]) -> float:
    worst = 0.0
    for path, features in zip(paths, theirs, strict=True):
        frames = torch.from_numpy(index.videos([index.row_of(path)]).frames[0])
        worst = max(worst, float((1 - torch.cosine_similarity(frames, features)).max()))
    return worst


def decoding(clips: list[Path], rounds: int) -> tuple[float, bool]:
    """Ours against decord, CPU seconds and whether the bytes are the same."""
    ratios, same = [], True
    for _ in range(rounds):
        for path in clips:
            began = time.process_time()
            theirs = by_decord(path)
            between = time.process_time()
            frames = read_frames(path, FRAMES).frames
            ratios.append((between - began) / (time.process_time() - between))
            same &= np.array_equal(frames, theirs)
    return float(np.median(ratios)), same


def wall(work: Callable[[], None]) -> float:
    """Seconds that pass."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def pipeline(model: SUMA, paths: list[Path], seconds: float) -> str:
    """Wall seconds with an accelerator that takes `seconds` per video, simulated by sleeping."""
    config = model.config

    def encode(self: ingest.Builder, batch: list) -> None:
        time.sleep(seconds * len(batch))
        dim = model.dim
        for part in batch:
            features = np.random.randn(1 + len(part.pixels), dim).astype(np.float16)
            part.clip = NewClip(
                "", part.start, part.end, part.times, features, np.zeros(2 * dim), np.ones(len(features))
            )
        batch.clear()

    def decode(some: list[Path]) -> None:
        decoder = Decoder()
        for path in some:
            for part in decoder.read(str(path), config.num_frames):
                ingest.prepare(part.frames, config.image)
        decoder.close()

    def decode_all() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, (paths[::2], paths[1::2])))

    def index() -> None:
        VideoIndex(model).add(paths, workers=2)

    real, ingest.Builder._encode = ingest.Builder._encode, encode  # type: ignore[method-assign]
    VideoIndex(model).add(paths[:4], workers=2)  # everything loaded once
    times = [(wall(decode_all), wall(index)) for _ in range(3)]
    ingest.Builder._encode = real  # type: ignore[method-assign]
    encoded = seconds * len(paths)
    decoded, whole = np.median(times, axis=0).tolist()
    ratio = np.median([taken / max(alone, encoded) for alone, taken in times])
    return (
        f"decode alone (2 processes) {decoded:.2f} s, encode alone {encoded:.2f} s, pipeline of 2 processes {whole:.2f}"
        f" s = {ratio:.2f} x the slower, {(decoded + encoded) / whole:.2f} x faster than one after the other"
        " (medians of 3)"
    )


def against_plain(model: SUMA, paths: list[Path], folder: Path, hd_seconds: float) -> None:
    """Print decoding against decord's, and the whole against the plain loops."""
    image = model.config.image
    transform = open_clip.transform.image_transform(
        image["size"],
        is_train=False,
        mean=image["mean"],
        std=image["std"],
        resize_mode=image["resize_mode"],
        interpolation=image["interpolation"],
    )
    ratio, same = decoding(paths, 1)
    print(f"decode, 15 s SD: {ratio:.2f} x decord, the same bytes: {same}", flush=True)
    hd = [make_clip(folder / "hd.mkv", hd_seconds, 1920, 1080, 1, "veryfast")]
    ratio, same = decoding(hd, 3)
    print(f"decode, {hd_seconds:.0f} s 1080p: {ratio:.2f} x decord, the same bytes: {same}", flush=True)
    plain(model, transform, paths[:2], FRAMES), ours(model, paths[:2], False)  # everything loaded once
    kinds = {"ours, float32": False} | ({"ours, bfloat16": True} if has_bf16() else {})
    loops = dict.fromkeys(["plain, frame by frame", "plain, video by video", *kinds], 0.0)
    errors = dict.fromkeys(kinds, 0.0)
    per_round = max(1, len(paths) // 4)
    for i in range(0, len(paths), per_round):
        block = paths[i : i + per_round]
        torch.set_float32_matmul_precision("highest")
        began = cpu()
        plain(model, transform, block, 1)
        loops["plain, frame by frame"] += cpu() - began
        began = cpu()
        theirs = plain(model, transform, block, FRAMES)
        loops["plain, video by video"] += cpu() - began
        use_fast_matmul()
        for name, bf16 in kinds.items():
            began = cpu()
            index = ours(model, block, bf16)
            loops[name] += cpu() - began
            errors[name] = max(errors[name], cosine_error(index, block, theirs))
    base = loops["plain, frame by frame"]
    for name, spent in loops.items():
        note = f", 1 - cosine at most {errors[name]:.1e} (kept in float16)" if name in errors else ""
        video = loops["plain, video by video"]
        print(
            f"{name}: {spent / len(paths):.2f} CPU s per clip, {base / spent:.2f} x frame by frame, "
            f"{video / spent:.2f} x video by video{note}",
            flush=True,
        )


PHONE = {  # codec, size, seconds, seconds between key frames
    "1080p H.264, 60 s, a key frame a second": ("libx264", (1920, 1080), 60, 1),
    "4K HEVC, 20 s, a key frame a second": ("libx265", (3840, 2160), 20, 1),
    "4K HEVC, 20 s, a key frame in eight seconds": ("libx265", (3840, 2160), 20, 8),
}


def make_film(path: Path, codec: str, size: tuple[int, int], seconds: int, spacing: int) -> Path:
    """Write a film as a phone does: 30 pictures a second of a slow pan, with grain, at a phone's 8 bits per pixel and
    second, and key frames `spacing` seconds apart."""
    gop, count, rng = 30 * spacing, 30 * seconds, np.random.default_rng(0)
    coarse = rng.integers(30, 225, (size[1] // 8, size[0] // 4, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((2 * size[0], size[1]), Image.Resampling.BICUBIC))
    grain = rng.integers(0, 25, (8, size[1], size[0], 3), np.uint8)
    options = {"preset": "ultrafast", "g": str(gop), "x265-params": f"log-level=none:keyint={gop}:min-keyint={gop}"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 30, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 8 * size[0] * size[1]
        for n in range(count):
            left = n * size[0] // count
            shown = picture[:, left : left + size[0]] + grain[n % 8]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
        container.mux(stream.encode(None))
    return path


@torch.no_grad()
def phone(folder: Path, rounds: int, shrink: int = 1) -> None:
    """Print the CPU seconds of decord's evenly spaced frames, of ours exactly, and as an index reads them."""
    model = SUMA.from_pretrained(BUNDLED)
    for name, (codec, size, seconds, spacing) in PHONE.items():
        side = (size[0] // shrink, size[1] // shrink)
        path = make_film(folder / "film.mp4", codec, side, max(2, seconds // shrink), spacing)
        ways = {
            "decord": lambda path=path: by_decord(path),
            "exactly": lambda path=path: read_frames(path, FRAMES).frames,
            "index": lambda path=path: read_frames(path, FRAMES, keyframes=NEAR).frames,
        }
        spent: dict[str, list[float]] = {way: [] for way in ways}
        frames: dict[str, np.ndarray] = {}
        for _ in range(rounds):
            for way, read in ways.items():
                began = time.process_time()
                frames[way] = read()
                spent[way].append(time.process_time() - began)
        exact, near = (
            model.encode_videos([prepare(frames[way][:, None], model.config.image)])[0] for way in ("exactly", "index")
        )
        alike = float(np.median((exact[1:] * near[1:]).sum(-1)))
        theirs, ours_exact, ours_near = (float(np.median(took)) for took in spent.values())
        print(
            f"{name}: decord {theirs:.2f} CPU s; exactly {ours_exact:.2f}, {theirs / ours_exact:.1f} x; "
            f"as an index reads it {ours_near:.2f}, {theirs / ours_near:.1f} x, median cosine {alike:.3f}",
            flush=True,
        )


def main() -> None:
    """Make the clips, run the loops, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--hd", type=float, default=20, help="seconds of the 1080p clip")
    parser.add_argument("--phone", action="store_true", help="a phone's films, and nothing else")
    parser.add_argument("--shrink", type=int, default=1, help="--phone: so many times smaller and shorter films")
    parser.add_argument("--only-pipeline", action="store_true", help="with simulated accelerators, and nothing else")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.phone:
        with tempfile.TemporaryDirectory() as folder:
            return phone(Path(folder), 3, args.shrink)
    model = SUMA.from_clip("ViT-B-32", ["a dog runs", "a cat sleeps", "two birds fly"], num_concepts=6)
    with tempfile.TemporaryDirectory() as folder:
        paths = [make_clip(Path(folder, f"{n}.mp4"), 15, 320, 240, n, "medium") for n in range(args.clips)]
        size = sum(path.stat().st_size for path in paths) / len(paths)
        print(f"{len(paths)} clips of 15 s, 320 x 240, {size / 15 * 8 / 1000:.0f} kbit/s", flush=True)
        if not args.only_pipeline:
            against_plain(model, paths, Path(folder), args.hd)
        for seconds in (0.02, 0.07, 0.15):
            print(f"accelerator of {1000 * seconds:.0f} ms per video: {pipeline(model, paths, seconds)}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process, model included: {peak:.0f} MB")


if __name__ == "__main__":
    main()
