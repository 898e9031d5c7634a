"""Hugging Face Spaces: `python -m suma.app.space OWNER/NAME` creates one of this app and pushes what it needs.

Log in first (`hf auth login`, or HF_TOKEN). The README's head says how the Space runs; its settings are environment
variables (`python app.py --help`). Push again to update it. On Spaces that lend GPUs (ZeroGPU), each call of the model
borrows one; elsewhere nothing changes.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from suma.model.checkpoint import check_name, is_named

Function = TypeVar("Function", bound=Callable)


def zero_gpu() -> bool:
    """Return whether this is a Space that lends GPUs call by call."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")


def on_gpu(function: Function) -> Function:
    """Return the function, which borrows a GPU while it runs. ZeroGPU runs it in another process, so it must change
    nothing in this one."""
    if not zero_gpu():
        return function
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(function)


ROOT = Path(__file__).resolve().parents[2]
NEEDED = [
    "app.py",
    "README.md",
    "LICENSE",
    "requirements.txt",
    "suma/**",
    "assets/model/**",
    "assets/gallery/**",
    "assets/*.png",
    "assets/*.gif",
    "docs/*.md",
]
NEVER = ["**/__pycache__/**", "**/.*", "**/*.partial"]


def push(name: str, private: bool = False, model: str = "") -> str:
    """Create the Space unless it exists, push the app, and return its address.

    Raises ValueError for a model that the Space could not load: a folder of this computer, an unknown NAME:TAG.
    """
    from huggingface_hub import HfApi

    if is_named(model):
        check_name(*model.split(":"))
    elif model and (model.count("/") != 1 or Path(model).exists()):
        raise ValueError(f"--model {model}: a Space loads a Hub id OWNER/NAME or an open_clip model NAME:TAG")

    api = HfApi()
    address = str(api.create_repo(name, repo_type="space", space_sdk="gradio", private=private, exist_ok=True))
    api.upload_folder(
        repo_id=name,
        repo_type="space",
        folder_path=ROOT,
        allow_patterns=NEEDED,
        ignore_patterns=NEVER,
        commit_message="Update the app",
    )
    if model:
        api.add_space_variable(name, "SUMA_MODEL", model)
    return address


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    p = argparse.ArgumentParser(prog="python -m suma.app.space", description=__doc__)
    p.add_argument("name", help="OWNER/NAME of the Space")
    p.add_argument("--private", action="store_true", help="only you can see it (where it is made now)")
    p.add_argument(
        "--model",
        default="",
        help="a Hub id, or an open_clip model NAME:TAG, that the Space loads instead of the bundled model",
    )
    args = p.parse_args(argv)
    try:
        print(push(args.name, args.private, args.model))
    except (OSError, ValueError) as error:  # the Hub's errors are OSErrors
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
