"""`suma doctor`: what this installation has, what it lacks, and what a model would download."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from suma.atomic_io import cache_folder
from suma.model.checkpoint import BUNDLED, CONFIG, WEIGHTS, check_name, find, is_named

PACKAGES = ("torch", "open_clip_torch", "timm", "gradio", "av", "decord", "faiss-cpu", "huggingface_hub")
EXTRAS = {
    "pillow-heif": "reads HEIC pictures",
    "transformers": "the tokenizers of SigLIP",
    "pymilvus": "indexes in Milvus",
    "mcp": "tools for language models: app --mcp",
}


def check(model: str = "") -> Iterator[tuple[bool, str]]:
    """Yield what was found, one line each, and whether it is as it should be.

    model: also say whether this model is here, or what would be downloaded.
    """
    checks: list[Callable[[], str]] = [_versions, _processor, _decoders, _cache, _extras, lambda: _model(model)]
    for one in checks:
        try:
            yield True, one()
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            yield False, " ".join(str(error).split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _versions() -> str:
    from suma import __version__

    found = {package: _version(package) for package in PACKAGES}
    missing = [package for package, version in found.items() if not version and package != "decord"]
    if missing:
        raise ImportError(f"{', '.join(missing)} not installed: pip install -r requirements.txt")
    listed = ", ".join(f"{package} {version}" for package, version in found.items() if version)
    return f"suma {__version__}, Python {platform.python_version()}: {listed}"


def _processor() -> str:
    import torch

    from suma.model.cpu import has_bf16

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return (
        f"{os.cpu_count()} processors of {platform.machine()}, bfloat16 {'yes' if has_bf16() else 'no'}; "
        f"GPU: {', '.join(gpus) or 'none (everything runs without one)'}"
    )


def _decoders() -> str:
    import av

    wanted = ("h264", "hevc", "vp9", "av1", "mpeg4", "prores")
    missing = [name for name in wanted if name not in av.codecs_available]
    if missing:
        raise ImportError(f"PyAV {av.__version__} cannot decode {', '.join(missing)}: pip install --upgrade av")
    return f"decoders of PyAV {av.__version__}: {', '.join(wanted)}" + (
        f"; decord {_version('decord') or _version('decord2') or 'not installed (PyAV reads nearly all without it)'}"
    )


def _cache() -> str:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise OSError(f"the cache {folder} cannot be written: set SUMA_CACHE to another folder")
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"cache {folder}: {used / 1e6:,.0f} MB, {shutil.disk_usage(folder).free / 1e9:,.0f} GB of the disk free"


def _extras() -> str:
    found = {name: f"{_version(name) or 'not installed'} ({what})" for name, what in EXTRAS.items()}
    return "optional: " + ", ".join(f"{name} {text}" for name, text in found.items())


def _model(model: str) -> str:
    if not model:
        if not (BUNDLED / WEIGHTS).is_file():
            raise FileNotFoundError(f"the bundled model is missing: {BUNDLED} has no {WEIGHTS}")
        return f"bundled model {BUNDLED}: {(BUNDLED / WEIGHTS).stat().st_size / 1e6:.0f} MB"
    if Path(model).is_dir():
        return f"model {find(model)}: a folder, nothing is downloaded"
    if is_named(model):
        check_name(*model.split(":"))
    try:
        return f"model {model}: here ({find(model, local_files_only=True)}), nothing is downloaded"
    except FileNotFoundError:
        if not is_named(model) and model.count("/") != 1:
            raise
    what = "its weights, by open_clip" if is_named(model) else f"{CONFIG} and {WEIGHTS} from the Hugging Face Hub"
    return f"model {model}: not here yet, its first use downloads {what}"
