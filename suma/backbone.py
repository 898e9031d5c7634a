"""The CLIP that a SUMA starts from: open_clip's towers, their config, preprocessing and tokenizer."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Backbone(NamedTuple):
    """A CLIP and what is needed to build and feed it again."""

    clip: Any  # the open_clip model
    config: dict[str, Any]  # open_clip's: embed_dim, vision_cfg, text_cfg, ...
    image: dict[str, Any]  # preprocessing: size, mean, std, interpolation, resize_mode
    tokenizer: str  # the open_clip name whose tokenizer is used; "": CLIP's, cut to the vocabulary


def load_backbone(name: str | Path | dict[str, Any], pretrained: str | None) -> Backbone:
    """An open_clip backbone by name, by a config of its own, or by a .json file of one; see `SUMA.from_clip`.

    `pretrained` is an open_clip tag, a checkpoint file, or None for random weights. Raises ValueError for an unknown
    name.
    """
    import open_clip

    if not isinstance(name, dict) and str(name).endswith(".json"):
        name = json.loads(Path(name).read_text())
    if isinstance(name, dict):
        cfg = dict(name)
        preprocess = cfg.pop("preprocess_cfg", {})
        custom = cfg.get("custom_text", False)
        clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(
            **{k: v for k, v in cfg.items() if k != "custom_text"}
        )
        if pretrained:
            open_clip.load_checkpoint(clip, pretrained)
        tokenizer = ""
    else:
        tokenizer = str(name)
        loaded = open_clip.get_model_config(tokenizer)
        if loaded is None:
            raise ValueError(
                f"{tokenizer!r} is no open_clip model (`open_clip.list_models()`), .json file or SUMA folder"
            )
        cfg = loaded
        clip = open_clip.create_model(tokenizer, pretrained=pretrained, pretrained_text=False)
        preprocess = open_clip.get_model_preprocess_cfg(clip)
    size = preprocess.get("size", cfg["vision_cfg"].get("image_size", 224))
    image = {
        "size": int(size[0] if isinstance(size, (list, tuple)) else size),
        "mean": list(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
        "interpolation": preprocess.get("interpolation", "bicubic"),
        "resize_mode": preprocess.get("resize_mode", "shortest"),
    }
    return Backbone(clip, cfg, image, tokenizer)
