"""Our evaluation against the loops of CLIP4Clip and X-CLIP: `python tests/bench/evaluation.py`.

Both of them score batch of texts by batch of videos, and run the temporal encoder anew for each such pair. The loops
are written here from what those programs do, with our temporal encoder, and must give our numbers. They are long: a few
batches of texts are timed, each of which costs the same, and multiplied. Ours does more: all four similarities.
CPU time of one thread, sides in turn. Shapes: N texts and N videos, F frames, D joint width, K concepts.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "train")]

import torch
import torch.nn.functional as F
from encode import similarities
from torch import Tensor

from suma.model.cpu import use_fast_matmul
from suma.model.suma import SUMA, SUMAConfig
from suma.similarity import Similarities, Texts

BATCH = 16  # of texts and of videos: their scripts' choice
TEMPERATURE = 0.01  # of X-CLIP's softmax over frames


def tiny_backbone(dim: int, concepts: int, layers: int) -> SUMA:
    """A SUMA whose backbone is hardly there: only what comes after it is measured."""
    clip = {
        "embed_dim": dim,
        "vision_cfg": {"image_size": 16, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 8, "vocab_size": 1024, "width": 64, "heads": 1, "layers": 1},
    }
    image = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    words = [f"word{n}" for n in range(concepts)]
    model = SUMA(
        SUMAConfig(
            clip=clip,
            image=image,
            words=words,
            word_counts=[1] * concepts,
            num_captions=concepts,
            num_concepts=concepts,
            temporal_layers=layers,
            aggregation_temperature=TEMPERATURE,
        )
    )
    generator = torch.Generator().manual_seed(0)
    for p in [model.space.centres, *([model.temporal.out.weight] if model.temporal else [])]:
        p.data.copy_(torch.randn(p.shape, generator=generator) * dim**-0.5)  # both are zeros at the start
    return model.eval()


def clip4clip(model: SUMA, texts: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Scores (T, N) of CLIP4Clip's seqTransf: cosines of sentences and videos, videos pooled anew for each batch."""
    rows = []
    for t in range(0, len(texts), BATCH):
        cells = []
        for v in range(0, len(frames), BATCH):
            videos, _ = model.encode_temporal(frames[v : v + BATCH], mask[v : v + BATCH])
            cells.append(texts[t : t + BATCH] @ videos.T)
        rows.append(torch.cat(cells, dim=1))
    return torch.cat(rows)


def xclip(model: SUMA, texts: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Scores (T, N) of X-CLIP's video-sentence and frame-sentence terms (softmax over frames), in equal parts."""
    rows = []
    for t in range(0, len(texts), BATCH):
        cells = []
        for v in range(0, len(frames), BATCH):
            some, valid = frames[v : v + BATCH], mask[v : v + BATCH]
            videos, pictures = model.encode_temporal(some, valid)
            coarse = texts[t : t + BATCH] @ videos.T
            each = torch.einsum("td,vfd->tvf", texts[t : t + BATCH], pictures)
            weights = torch.softmax(each.masked_fill(~valid, float("-inf")) / TEMPERATURE, dim=-1)
            cells.append((coarse + (each * weights).sum(-1)) / 2)
        rows.append(torch.cat(cells, dim=1))
    return torch.cat(rows)


def ours(model: SUMA, texts: Texts, frames: Tensor, mask: Tensor) -> Similarities:
    """What `train/evaluate.py` does with frame features: each video once, then all four similarities."""
    parts = []
    for v in range(0, len(frames), 32):  # the batch of `encode_videos`
        some, valid = frames[v : v + 32], mask[v : v + 32]
        parts.append(model.make_videos(*model.encode_temporal(some, valid), valid))
    return similarities(model, texts, type(parts[0])(*(torch.cat(x) for x in zip(*parts, strict=True))))


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def processor() -> str:
    info = Path("/proc/cpuinfo")
    named = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return named[0].partition(":")[2].strip() if named else platform.processor()


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Print the comparison; the ratios by loop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, to see that it works; its ratio means nothing")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is timed")
    args = parser.parse_args(argv)
    number, num_frames, dim, concepts, layers = (48, 4, 64, 32, 1) if args.quick else (1000, 12, 512, 1024, 4)
    torch.set_num_threads(1)
    model = tiny_backbone(dim, concepts, layers)
    generator = torch.Generator().manual_seed(1)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    texts, frames = Texts(unit(number, dim), unit(number, concepts).abs()), 10 * unit(number, num_frames, dim)
    mask = torch.arange(num_frames) < torch.randint(1, num_frames + 1, (number, 1), generator=generator)
    mask[: number // 2] = True
    print(f"{processor()}, 1 thread, torch {torch.__version__}, float32")
    print(
        f"{number} x {number}, {num_frames} frames, D={dim}, K={concepts}, {layers} temporal layers; loops in {BATCH}s"
    )

    timed = texts.features[:BATCH]  # one of the loops' rows of batches: the others are the same work
    times = number / len(timed)
    loops = {"CLIP4Clip seqTransf": clip4clip, "X-CLIP, video-sentence + frame-sentence": xclip}
    sims = ours(model, texts, frames, mask)
    expected = {"CLIP4Clip seqTransf": sims.coarse, "X-CLIP, video-sentence + frame-sentence": sims.original()}
    differences = {
        name: float((loop(model, timed, frames, mask) - expected[name][: len(timed)]).abs().max())
        for name, loop in loops.items()
    }
    ratios: dict[str, list[float]] = {name: [] for name in loops}
    spent: dict[str, list[float]] = {name: [] for name in ["ours", *loops]}
    for _ in range(args.rounds):
        own = seconds(lambda: ours(model, texts, frames, mask))
        spent["ours"].append(own)
        for name, loop in loops.items():
            cost = times * seconds(lambda loop=loop: loop(model, timed, frames, mask))  # type: ignore[misc]
            spent[name].append(cost)
            ratios[name].append(cost / own)
    print(f"ours, each video once, all four similarities: {median(spent['ours']):.2f} s CPU")
    for name in loops:
        print(
            f"{name}: {median(spent[name]):.1f} s CPU ({len(timed)} of {number} texts timed, x {times:g}), "
            f"{median(ratios[name]):.0f} times ours; largest difference of a score {differences[name]:.1e}"
        )
    if not args.quick and use_fast_matmul():
        own = median(seconds(lambda: ours(model, texts, frames, mask)) for _ in range(args.rounds))
        print(f"ours with the faster products that `train/evaluate.py` turns on here: {own:.2f} s CPU")
    return {**{name: median(values) for name, values in ratios.items()}, "difference": max(differences.values())}


if __name__ == "__main__":
    main()
