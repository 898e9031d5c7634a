"""The CLIP that a SUMA starts from: open_clip's towers, their config, preprocessing and tokenizer.

Shapes: T texts, L tokens, N pictures, E token-embedding width, D joint width.
"""

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suma.model.tokenizer import brings_tokenizer

RUN = 64  # texts of like length that a CPU encodes together


class Backbone(NamedTuple):
    """A CLIP, and what is needed to build it again and to feed it."""

    clip: Any  # the open_clip model
    config: dict[str, Any]  # open_clip's: embed_dim, vision_cfg, text_cfg, ...
    image: dict[str, Any]  # preprocessing: size, mean, std, interpolation, resize_mode
    tokenizer: str  # the open_clip name whose tokenizer is used; "": the one that text_cfg asks for


def load_backbone(name: str | Path | dict[str, Any], pretrained: str | Path | None) -> Backbone:
    """Return an open_clip backbone, given its name, a config dict, or a .json file of one; see `SUMA.from_clip`.

    `pretrained` is an open_clip tag, a checkpoint file, or None for random weights (but for an image tower whose config
    has timm_model_pretrained: timm downloads it). Raise ValueError for an unknown name or tag and for a file that
    holds more than weights, RuntimeError for weights of another model.
    """
    import open_clip

    if not isinstance(name, dict) and str(name).endswith(".json"):
        name = json.loads(Path(name).read_text(encoding="utf-8-sig"))
    if isinstance(name, dict):
        cfg, known = dict(name), ""
        preprocess = cfg.pop("preprocess_cfg", {})
    else:
        known = str(name)
        cfg, preprocess = backbone_config(known), family_preprocessing(known)
    if "multimodal_cfg" in cfg:
        raise ValueError("captioning models (CoCa) are not dual encoders: choose a CLIP or SigLIP name")
    if not pretrained:
        from_timm = bool(cfg["vision_cfg"].get("timm_model_pretrained"))
        clip = build_clip(cfg, from_timm)
        if from_timm:
            trained = clip.visual.trunk.pretrained_cfg
            preprocess = {name: trained[name] for name in ("mean", "std", "interpolation")} | preprocess
    elif known and (tagged := open_clip.get_pretrained_cfg(known, str(pretrained))):
        if tagged.get("quick_gelu"):  # these weights were trained with it, whatever the name says
            cfg["quick_gelu"] = True
        clip = open_clip.create_model(
            known, str(pretrained), pretrained_text=False, force_quick_gelu=bool(cfg.get("quick_gelu"))
        )
        preprocess = open_clip.get_model_preprocess_cfg(clip)
    elif Path(pretrained).is_file():
        clip = build_clip(cfg)
        load_weights(clip, Path(pretrained))
        warn_of_guesses(preprocess, pretrained)
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(known)) if known else ""
        raise ValueError(
            f"pretrained={str(pretrained)!r} is no file" + (f" and no tag of {known} (those are {tags})" * bool(tags))
        )
    size = preprocess.get("size", cfg["vision_cfg"].get("image_size", 224))
    image = {
        "size": int(size[0] if isinstance(size, (list, tuple)) else size),
        "mean": list(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
        "interpolation": preprocess.get("interpolation", "bicubic"),
        "resize_mode": preprocess.get("resize_mode", "shortest"),
    }
    return Backbone(clip, cfg, image, known if known and brings_tokenizer(known) else "")


def backbone_config(name: str) -> dict[str, Any]:
    """Return a copy of the config that open_clip has for a name. Raise ValueError for an unknown one."""
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(f"{name!r} is no open_clip model (`open_clip.list_models()`), .json file or SUMA folder")
    return open_clip.get_model_config(name)


def build_clip(cfg: dict[str, Any], from_timm: bool = False) -> Any:
    """Return an open_clip model of random weights; its config is not changed.

    from_timm: download timm's own weights for a timm image tower. Otherwise nothing is downloaded.
    """
    import open_clip

    cfg = {name: value for name, value in cfg.items() if name != "preprocess_cfg"}
    custom = cfg.pop("custom_text", False) or cfg["text_cfg"].get("hf_model_name") is not None
    cfg["vision_cfg"] = {**cfg["vision_cfg"], "timm_model_pretrained": from_timm}
    cfg["text_cfg"] = {**cfg["text_cfg"], "hf_model_pretrained": False}
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**cfg)


def is_convolutional(visual: Any) -> bool:
    """Return True for a timm tower that ends in a feature map, which its head pools; a ViT's ends in tokens."""
    return bool(getattr(getattr(visual, "trunk", None), "default_cfg", {}).get("pool_size"))


def cell_width(clip: Any, dim: int) -> int:
    """Return the number of channels of a projected cell; `dim` is D. Raise ValueError for a tower without cells."""
    visual = clip.visual
    if is_convolutional(visual):
        return dim
    if hasattr(visual, "layer4"):  # CLIP's own ResNets
        return int(visual.layer4[-1].conv3.out_channels)
    width = getattr(getattr(visual, "trunk", None), "num_features", None)  # timm's
    width = width or getattr(getattr(visual, "conv1", None), "out_channels", None)
    if not width or not hasattr(visual, "forward_intermediates"):
        raise ValueError("frame_grid needs an image tower of patches or of a feature map: leave it at 0")
    return int(width)


def encode_trunk(visual: Any, pixels: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Encode pictures (N, 3, H, W) as wholes (N, C), and their grid x grid cells (N, G * G, C'), row by row.

    `project` follows: a head that learns while a pretrained trunk stays frozen. A cell is the mean of its patches. A
    convolutional tower of timm has no patches: its feature map is pooled to the cells instead of to one (so C' is C).
    Other towers have no such head: C is D.
    """
    if not is_convolutional(visual):
        if not grid:
            return visual(pixels), pixels.new_zeros(len(pixels), 0, 0)
        found = visual.forward_intermediates(pixels, indices=1)  # of the last block
        return found["image_features"], _cells(found["image_intermediates"][0], grid)
    trunk, last = visual.trunk, getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC"  # Swin's channels come last
    # depthwise convolutions take half the time on a CPU when the channels lie side by side
    features = trunk.forward_features(pixels.contiguous(memory_format=torch.channels_last))
    whole = trunk.forward_head(features)
    if not grid:
        return whole, whole.new_zeros(len(whole), 0, whole.shape[1])
    cells = _cells(features.permute(0, 3, 1, 2) if last else features, grid).flatten(0, 1)
    each = trunk.forward_head(cells[:, None, None] if last else cells[:, :, None, None])
    return whole, each.unflatten(0, (len(pixels), grid**2))


def project(visual: Any, features: Tensor) -> Tensor:
    """Apply the head of a convolutional timm tower to `encode_trunk`'s features (..., C): return (..., D)."""
    return visual.head(features) if is_convolutional(visual) else features


def _cells(features: Tensor, grid: int) -> Tensor:
    """Return the means of a feature map (N, C, H, W) over its cells (N, G * G, C), row by row."""
    return F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)


def family_preprocessing(name: str) -> dict[str, Any]:
    """Return the preprocessing that most of an open_clip model's pretrained tags share ({} where it has no tags).

    For random weights and for checkpoint files, which do not say theirs. The tags of a model agree (open_clip 3.3) but
    for ViT-L-14 (one LAION tag has mean and std 0.5) and ViT-H-14 (dfn5b is squashed): load those by their tags.
    """
    import open_clip

    found: Counter[str] = Counter()
    for tag in open_clip.list_pretrained_tags_by_model(name):
        cfg = open_clip.get_pretrained_cfg(name, tag)
        found[json.dumps({key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode")})] += 1
    return json.loads(found.most_common(1)[0][0]) if found else {}


def warn_of_guesses(preprocess: dict[str, Any], file: str | Path) -> None:
    """Warn if nothing says how pictures were normalised for a checkpoint file: OpenAI's mean and std are taken."""
    if missing := [name for name in ("mean", "std") if not preprocess.get(name)]:
        warnings.warn(
            f"nothing says the {' and '.join(missing)} of the pixels that {file} was trained on: OpenAI's are taken. "
            'If they are others, give them in the config, "preprocess_cfg": {"mean": [...], "std": [...]}',
            stacklevel=5,  # of who called SUMA.from_clip
        )


def load_weights(clip: nn.Module, file: Path) -> None:
    """Fill an open_clip model from a checkpoint file: safetensors, or a PyTorch file that holds tensors alone.

    open_clip 3.3 reads PyTorch files by `torch.load(weights_only=True)`, which runs no code from them. What that
    refuses (other objects, TorchScript archives such as OpenAI's own ViT-B-32.pt) raises ValueError here.
    """
    import open_clip
    from safetensors import SafetensorError

    advice = "save the model's state_dict with safetensors.torch.save_file and give that file"
    try:
        open_clip.load_checkpoint(clip, str(file), weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{file} holds more than tensors and could run code, so it is not read: {advice}") from error
    except (SafetensorError, EOFError, AttributeError) as error:
        raise ValueError(f"{file} is damaged or no checkpoint ({error}): {advice}") from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise ValueError(f"{file} is a TorchScript archive, which is code, so it is not read: {advice}") from error
        raise RuntimeError(f"{file} is damaged or does not fit this backbone: {error}") from error


def text_tower(clip: nn.Module) -> Any:
    """Return the module that holds the text tower: `clip.text` in open_clip's newer models, else the model itself."""
    return getattr(clip, "text", clip)


def token_table(clip: nn.Module) -> nn.Embedding:
    """Return the text tower's token embedding table (vocabulary, E)."""
    tower = text_tower(clip)
    if hasattr(tower, "token_embedding"):
        return tower.token_embedding
    return tower.transformer.get_input_embeddings()


def can_shorten(clip: nn.Module) -> bool:
    """Return True where padding may be left out: a causal tower read at its end-of-text token never looks at it."""
    tower = text_tower(clip)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    return getattr(tower, "attn_mask", None) is not None and pool in ("argmax", "eos")


def tokenize(tokenizer: Any, sentences: Sequence[str], context_length: int, shorten: bool) -> Tensor:
    """Return token ids (T, L) of sentences; L is the longest one's length where `shorten`, else the context length."""
    tokens = tokenizer(list(sentences), context_length=context_length)
    if shorten and len(tokens):
        used = (tokens != 0).any(0).nonzero()  # token 0 is padding, but also a real token between others
        tokens = tokens[:, : int(used.max()) + 1]
    return tokens


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Return sentence features (T, D), not normalised, of token ids (T, L) of any length up to the context.

    open_clip's own `encode_text` wants the full context; a causal tower gives the same features without the padding.
    So texts of like length are encoded together on a CPU: half of a batch of 512 captions would be padding.
    """
    if not can_shorten(clip):
        return clip.encode_text(tokens)  # type: ignore[operator]
    if len(tokens) <= RUN or tokens.device.type != "cpu":
        return _encode_run(text_tower(clip), tokens)
    lengths = ((tokens != 0) * torch.arange(1, tokens.shape[1] + 1)).amax(1)
    order = lengths.argsort(stable=True)
    runs = [_encode_run(text_tower(clip), tokens[rows, : int(lengths[rows].max())]) for rows in order.split(RUN)]
    return torch.cat(runs)[order.argsort()]


def _encode_run(tower: Any, tokens: Tensor) -> Tensor:
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    eos: Any = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
    ends = tokens.argmax(-1) if pool == "argmax" else torch.eq(tokens, eos).int().argmax(-1)
    x = x[torch.arange(len(x), device=x.device), ends]
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Module) else x @ tower.text_projection


def word_embeddings(clip: nn.Module, tokenizer: Any, words: Sequence[str]) -> np.ndarray:
    """Return the mean of each word's rows in the token embedding table (W, E) (section 3.2 of the paper)."""
    table = token_table(clip).weight.detach()
    if hasattr(tokenizer, "encode"):
        pieces = [tokenizer.encode(word) for word in words]
    else:  # open_clip's wrapper around a tokenizer of the Hub
        inside = [" " + word for word in words]  # as within a sentence: pieces of many tokenizers begin with the space
        pieces = tokenizer.tokenizer(inside, add_special_tokens=False)["input_ids"]
    empty = [word for word, ids in zip(words, pieces, strict=True) if not ids]
    if empty:
        raise ValueError(f"the tokenizer has no token for {empty[:3]}")
    return torch.stack([table[torch.tensor(ids, device=table.device)].mean(0) for ids in pieces]).float().cpu().numpy()


@torch.no_grad()
def word_sentences(clip: nn.Module, tokenizer: Any, words: Sequence[str], text_cfg: dict[str, Any]) -> np.ndarray:
    """Return the unit features (W, D) of words, each encoded as a sentence of its own."""
    context, parts = int(text_cfg.get("context_length", 77)), []
    for i in range(0, len(words), 256):
        tokens = tokenize(tokenizer, words[i : i + 256], context, can_shorten(clip))
        parts.append(F.normalize(encode_tokens(clip, tokens).float(), dim=-1))
    return torch.cat(parts).cpu().numpy()
