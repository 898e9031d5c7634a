"""The files of a model: in a folder, at the Hub, or made of an open_clip model's weights."""

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suma.model.config import SUMAConfig
from suma.model.open_clip_models import advice, is_named, prepared_folder

if TYPE_CHECKING:
    from torch import Tensor

_PACKED = Path(__file__).resolve().parents[1] / "bundled"  # pyproject.toml puts it into the installed package
BUNDLED = _PACKED if _PACKED.is_dir() else _PACKED.parents[1] / "assets" / "model"
STRONGER = (
    "note: the bundled model is a small one: in real videos, an index made with --model PE-Core-B-16:meta (1.8 GB, "
    "downloaded once) finds more"
)
HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENIZER, TOKENIZER_FILES = "tokenizer", ("tokenizer.json", "tokenizer_config.json")  # only where open_clip has none


def find(model: str | Path, **options: Any) -> Path:
    """Return the folder of a model: of a path, itself; of a Hub id, where the Hub's client keeps its files, all of one
    commit; of NAME:TAG, where the cache keeps it (suma/model/open_clip_models.py).

    Options: HUB_OPTIONS, as `huggingface_hub.hf_hub_download` has them. Raise FileNotFoundError for what is none of
    these, a folder without a model's files, and a model that is neither cached nor to be had from the Hub; ValueError
    for an unknown NAME:TAG, and a config that is damaged or another kind of model's; huggingface_hub's errors for what
    the Hub refuses.
    """
    folder = Path(str(model))
    if folder.is_dir():
        for needed in (CONFIG, WEIGHTS):
            if not (folder / needed).is_file():
                raise FileNotFoundError(f"{folder} is not a SUMA model: it has no {needed}")
        read_config(folder)
        return folder
    if is_named(str(model)):
        if options.get("revision"):
            raise ValueError(f"{model} is an open_clip model, which has no revisions: leave `revision` out")
        folder = prepared_folder(str(model))
        if not folder.is_dir():
            raise FileNotFoundError(f"{model} is not in the cache ({folder}): load it by SUMA.from_pretrained")
        return folder
    if folder.exists() or str(folder).startswith((".", "/", "~")) or str(folder).count("/") != 1:
        hint = advice(str(folder)) if "/" not in str(folder) else ""
        raise FileNotFoundError(
            f"no model folder {folder} (a Hub id has the form owner/name{', an open_clip model NAME:TAG' * (not hint)})"
            + f": {hint}" * bool(hint)
        )
    name, folder = str(folder), _download(str(folder), CONFIG, **options).parent
    options["revision"] = folder.name  # the commit: the weights must be of the same one
    config = read_config(folder)
    _download(name, WEIGHTS, **options)
    if config.clip["text_cfg"].get("hf_tokenizer_name"):
        for file in TOKENIZER_FILES:
            _download(name, f"{TOKENIZER}/{file}", **options)
    return folder


def source_of(model: str | Path) -> str:
    """Return the string by which an index remembers its model: a folder's whole path, "" for the bundled model."""
    folder = Path(str(model))
    if not folder.is_dir():
        return str(model)
    return "" if folder.resolve() == BUNDLED else str(folder.absolute())


def _download(model_id: str, name: str, **options: Any) -> Path:
    """Return a file of a model on the Hub, downloaded if need be; the Hub's errors name the model or its URL."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model_id, name, **options))
    except LocalEntryNotFoundError as error:  # names neither
        raise FileNotFoundError(
            f"{name} of {model_id} is neither to be had from the Hub nor cached: {error}"
        ) from error


def saved_tokenizer(folder: Path) -> Path | None:
    """Return the folder of the tokenizer saved with a model, or None where open_clip has it."""
    return folder / TOKENIZER if (folder / TOKENIZER).is_dir() else None


def read_weights(file: Path, device: str = "cpu") -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Return a file's tensors on a device, and its metadata. Raise RuntimeError for one that is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device=device) as content:
            return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise RuntimeError(f"{file} is not a whole safetensors file: {error}") from error


def read_config(folder: Path) -> SUMAConfig:
    """Return a model's config. Raise ValueError, naming the file, for one that is damaged or another kind of model's
    (the mixin's own errors do not name it), and as SUMAConfig does."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or not {"clip", "image", "format_version"} <= set(config):
        raise ValueError(f"{file} is not the config of a SUMA: it has no clip, image and format_version")
    if not isinstance(config["clip"], dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config["clip"]):
        raise ValueError(f"{file} is damaged: its clip has no embed_dim, vision_cfg and text_cfg")
    known = {field.name for field in fields(SUMAConfig)}
    return SUMAConfig(**{name: value for name, value in config.items() if name in known})
