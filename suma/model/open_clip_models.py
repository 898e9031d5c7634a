"""Models named `NAME:TAG`: an open_clip backbone with its pretrained weights, and concepts that need no training.

The first use downloads the weights, makes the concepts and keeps a SUMA folder in the cache;
later uses need no network.
"""

import difflib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suma.atomic_io import cache_folder
from suma.model.tokenizer import brings_tokenizer, load_tokenizer

RECIPE = 1  # part of the folder's name: a later version of the concepts is made anew
_NAMED = re.compile(r"[\w.-]+:[\w.-]+", re.ASCII)


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
