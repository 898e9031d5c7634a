"""The files of a saved model, in a folder or at the Hub."""

import json
from pathlib import Path
from typing import Any

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENIZER, TOKENIZER_FILES = "tokenizer", ("tokenizer.json", "tokenizer_config.json")  # only where open_clip has none


def download(model_id: str, name: str, **options: Any) -> Path:
    """A file of a model on the Hub, from the cache where that is enough; the Hub's errors name the model or its URL."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model_id, name, **options))
    except LocalEntryNotFoundError as error:  # names neither
        raise FileNotFoundError(
            f"{name} of {model_id} is neither to be had from the Hub nor cached: {error}"
        ) from error


def saved_tokenizer(folder: Path) -> Path | None:
    """The folder of the tokenizer saved with a model, None where open_clip brings it."""
    return folder / TOKENIZER if (folder / TOKENIZER).is_dir() else None


def check_config(file: Path) -> None:
    """Raises ValueError naming a config that is damaged or another kind of model's (the mixin's own errors do not)."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or not {"clip", "image", "format_version"} <= set(config):
        raise ValueError(f"{file} is not the config of a SUMA: it has no clip, image and format_version")
    if not isinstance(config["clip"], dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config["clip"]):
        raise ValueError(f"{file} is damaged: its clip has no embed_dim, vision_cfg and text_cfg")
