"""Run MTEB's video retrieval tasks: `pip install mteb; python train/mteb_model.py --model DIR-or-Hub-id`.

MTEB (https://github.com/embeddings-benchmark/mteb) has the tasks, the metrics and a public leaderboard; this file wraps
a SUMA as a model that MTEB can search with, by SUMA's own score. Shapes: T texts, V videos, F frames.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve a shared core
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from encode import encode_all, encode_captions, encode_frames

from suma.model.cpu import use_fast_matmul
from suma.model.suma import SUMA
from suma.similarity import Texts, Videos
from suma.video.frames import read_frames
from suma.video.preprocess import prepare

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.models import ModelMeta

TASKS = ("MSRVTTT2V", "MSRVTTV2T")


class MTEBModel:
    """A SUMA as MTEB's `SearchProtocol`: index a corpus of texts or videos, search it by queries of the other kind.

    SUMA's own reader decodes the videos, so MTEB's torchcodec is not needed.
    """

    def __init__(self, model: SUMA, name: str = "suma/local", revision: str | None = None):
        self.model, self.name, self.revision = model, name, revision or model.fingerprint()

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """Return what MTEB writes beside the results."""
        from mteb.models import ModelMeta

        context = self.model.config.clip["text_cfg"].get("context_length", 77)
        facts = {
            "name": self.name,
            "revision": self.revision,
            "modalities": ["text", "video"],
            "framework": ["PyTorch"],
            "n_parameters": sum(p.numel() for p in self.model.parameters()),
            "max_tokens": context,
        }
        return ModelMeta.create_empty(overwrites=facts)

    def index(self, corpus: "Dataset", **_: Any) -> None:
        """Encode and keep the corpus."""
        self.ids, self.corpus = list(corpus["id"]), self.encode(corpus)

    def search(
        self, queries: "Dataset", *, top_k: int, top_ranked: Any = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return for each query id the scores of its top_k items of the corpus, by their ids."""
        if top_ranked is not None:
            raise ValueError("SUMA searches the whole corpus: choose no reranking task of MTEB")
        wanted = self.encode(queries)
        if isinstance(wanted, Texts) and isinstance(self.corpus, Videos):
            scores = self.model.score(wanted, self.corpus)
        elif isinstance(wanted, Videos) and isinstance(self.corpus, Texts):
            scores = self.model.score(self.corpus, wanted).T
        else:
            raise ValueError("SUMA compares texts with videos, and this task items of one kind: choose another")
        best = scores.float().topk(min(top_k, scores.shape[1]))
        return {
            query: {self.ids[i]: score for i, score in zip(items, values, strict=True)}
            for query, items, values in zip(queries["id"], best.indices.tolist(), best.values.tolist(), strict=True)
        }

    @torch.no_grad()
    def encode(self, rows: "Dataset", batch_size: int = 32) -> Texts | Videos:
        """Return the features of rows with a column `video` (file or bytes) or `text`."""
        if "video" not in rows.column_names:
            return encode_captions(self.model, rows["text"])
        from datasets import Video

        files = rows.cast_column("video", Video(decode=False))["video"]

        def encode(chosen: Sequence[int]) -> Videos:
            return encode_frames(self.model, [self.frames(files[i]) for i in chosen])

        return encode_all(range(len(rows)), encode, batch_size, None, "encode videos")

    def frames(self, file: dict[str, Any]) -> Any:
        """Return the frames (F, 3, S, S) uint8 of a video as datasets keeps it: bytes, or the path of a local file."""
        with tempfile.TemporaryDirectory() as folder:
            path = file["path"]
            if file["bytes"] is not None:
                path = Path(folder) / ("video" + (Path(path or "").suffix or ".mp4"))
                path.write_bytes(file["bytes"])
            frames = read_frames(path, self.model.config.num_frames).frames
        return prepare([frames], self.model.config.image)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tasks and print their main metrics."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a SUMA folder or Hub id")
    parser.add_argument("--name", help="the model's name in MTEB's results, owner/name (default: that of --model)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="MTEB's video retrieval tasks to run")
    args = parser.parse_args(argv)
    import mteb

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        use_fast_matmul()
    model = SUMA.from_pretrained(args.model).to(device)
    name = args.name or (f"local/{Path(args.model).resolve().name}" if Path(args.model).is_dir() else args.model)
    done = mteb.evaluate(MTEBModel(model, name), mteb.get_tasks(tasks=list(args.tasks)))
    for result in done.task_results:
        scores = next(iter(result.scores.values()))[0]
        recalls = ", ".join(f"R@{k} {100 * scores[f'recall_at_{k}']:.1f}" for k in (1, 5, 10))
        print(f"{result.task_name}: {recalls}, {scores['main_score']:.4f} by MTEB's main score")


if __name__ == "__main__":
    main()
