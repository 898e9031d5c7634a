"""Queries that a person might type, and where the first right video stands among the answers.

    python train/free_queries.py --model assets/model --dataset MSRVTT:test_1k --dataset CLIPS:captions

The videos of all data sets make one gallery. real_queries.json was written from the captions of our part of MSR-VTT's
test split (473 clips) and of 37 open clips, before any model ranked them.

Shapes: T queries, V videos.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks import load_clips
from encode import encode_captions, encode_videos
from frame_cache import FrameCache
from metrics import ranks
from torch import Tensor

from suma.model.cpu import use_fast_matmul
from suma.model.suma import SUMA

QUERIES = Path(__file__).with_name("real_queries.json")


def right_ranks(model: SUMA, datasets: Sequence[str], wishes: Sequence[dict]) -> Tensor:
    """Return the rank (T,) of the first right video of each query. Raise ValueError where one has none here."""
    scores, files = [], []
    texts = encode_captions(model, [wish["query"] for wish in wishes])
    for source in datasets:
        data, _, config = source.rpartition(":")
        clips = load_clips(data, config)
        cache = FrameCache(clips, model.config.num_frames, model.config.image)
        cache.build()
        scores.append(model.score(texts, encode_videos(model, clips, cache)))
        files += [clip.path.name for clip in clips]
    right = torch.tensor([[file in wish["videos"] for file in files] for wish in wishes])
    for wish, found in zip(wishes, right, strict=True):
        if not bool(found.any()):
            raise ValueError(f"no right video of {wish['query']!r} is in the data sets: {', '.join(wish['videos'])}")
    return ranks(torch.cat(scores, 1).cpu(), right)


def main(argv: Sequence[str] | None = None) -> int:
    """Print each query's rank, and the shares of those with a right video among the first 1, 3 and 10."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a SUMA folder or Hub id")
    parser.add_argument("--dataset", action="append", required=True, help="FOLDER:CONFIG, may be given again")
    parser.add_argument("--queries", type=Path, default=QUERIES, help="JSON: [{query, videos}]")
    args = parser.parse_args(argv)
    use_fast_matmul()
    try:
        wishes = json.loads(args.queries.read_text(encoding="utf-8"))
        found = right_ranks(SUMA.from_pretrained(args.model), args.dataset, wishes)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for wish, rank in zip(wishes, found.tolist(), strict=True):
        print(f"{rank:5.0f}  {wish['query']}")
    for first in (1, 3, 10):
        print(f"among the first {first}: {100 * float((found <= first).float().mean()):.1f} % of {len(wishes)} queries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
