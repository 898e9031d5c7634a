"""The files of a model: in a folder, at the Hub, or made of an open_clip model's weights (`NAME:TAG`).

The first use of a NAME:TAG downloads its weights, gives it concepts that need no training, and keeps a SUMA folder in
the cache; later uses need no network.
"""

import difflib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suma.atomic_io import cache_folder
from suma.model.config import SUMAConfig
from suma.model.tokenizer import brings_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

RECIPE = 1  # part of the folder's name: a later version of the concepts is made anew
_NAMED = re.compile(r"[\w.-]+:[\w.-]+", re.ASCII)
_PACKED = Path(__file__).resolve().parents[1] / "bundled"  # pyproject.toml puts it into the installed package
BUNDLED = _PACKED if _PACKED.is_dir() else _PACKED.parents[1] / "assets" / "model"
STRONGER = (
    "note: the bundled model is a small one: in real videos, an index made with --model PE-Core-B-16:meta (1.8 GB, "
    "downloaded once) finds more"
)
HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENIZER, TOKENIZER_FILES = "tokenizer", ("tokenizer.json", "tokenizer_config.json")  # only where open_clip has none


def is_named(model: str) -> bool:
    """Return whether a model string has the form NAME:TAG and is no path that exists."""
    return bool(_NAMED.fullmatch(model)) and not os.path.exists(model)


def prepared_folder(model: str) -> Path:
    """Return where the cache keeps the SUMA that NAME:TAG stands for; it need not be there yet."""
    name, tag = model.split(":")
    return cache_folder() / "models" / f"{name}--{tag}-{RECIPE}"


def prepare(model: str, build: Callable[..., Any]) -> None:
    """Download the backbone NAME:TAG, give it concepts and keep it in the cache, where it appears when it is whole.

    `build` is SUMA.from_clip. Raises ValueError for an unknown name or tag (naming the nearest ones) or a tokenizer
    that needs another package, FileNotFoundError where the weights cannot be downloaded.
    """
    import open_clip

    (name, tag), folder = model.split(":"), prepared_folder(model)
    check_name(name, tag)
    # now, so that a missing package is reported before a long download
    load_tokenizer(name if brings_tokenizer(name) else "", open_clip.get_model_config(name)["text_cfg"])
    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of {model} are not in the cache and could not be downloaded: connect to the internet once, "
            f"or copy {folder} from a computer that has it ({' '.join(str(error).split())})"
        ) from error
    built = build(name, pretrained=tag, temporal_layers=0)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as new:
        built.save_pretrained(Path(new, "model"))
        try:
            os.replace(Path(new, "model"), folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def check_name(name: str, tag: str) -> None:
    """Raise ValueError, naming the nearest, for a name that open_clip does not know or a tag that it has not."""
    import open_clip

    names = open_clip.list_models()
    if name not in names:
        raise ValueError(f"{name!r} is no open_clip model{_nearest(name, names)}")
    if not open_clip.get_pretrained_cfg(name, tag):
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not tags:
            raise ValueError(f"open_clip has no pretrained weights of {name}: choose another model")
        raise ValueError(f"{tag!r} is no tag of {name}{_nearest(tag, tags, show_all=True)}")


def advice(model: str) -> str:
    """Return a hint at what a model string may have meant that is no folder and no Hub id, or ""."""
    import open_clip

    if model in (names := open_clip.list_models()):
        tags = open_clip.list_pretrained_tags_by_model(model)
        return f"an open_clip model needs a tag: {', '.join(f'{model}:{tag}' for tag in tags[:4])}" if tags else ""
    near = difflib.get_close_matches(model, names, 3)
    return f"did you mean the open_clip model {' or '.join(near)}, with one of its tags (NAME:TAG)?" if near else ""


def _nearest(word: str, known: list[str], show_all: bool = False) -> str:
    """Return the end of an error message: the known names that are most like `word`."""
    lower = {name.lower(): name for name in known}
    near = [lower[name] for name in difflib.get_close_matches(word.lower(), lower, 3, 0.5)]
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f": choose one of {', '.join(known)}" if show_all else " (`open_clip.list_models()` names all)"


def find(model: str | Path, **options: Any) -> Path:
    """Return the folder of a model: of a path, itself; of a Hub id, where the Hub's client keeps its files, all of one
    commit; of NAME:TAG, where the cache keeps it.

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
