"""Static word vectors that know nothing of pictures: those that `pip install wordllama` brings (MIT licence).

Shapes: E width of the vectors.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor


def folder_of(package: str) -> Path:
    """Where a package lies. Raises ValueError where it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"{package} is not installed: pip install {package.replace('_', '-')}")
    return Path(found.origin).parent


def static_vectors() -> Callable[[str], Tensor]:
    """Text -> unit vector (E,): the mean of its tokens', as the package has it. Raises ValueError where it is missing.

    Its own loader would ask the Hub for the tokenizer that it carries.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = folder_of("wordllama")
    table = load_file(next(folder.glob("weights/*.safetensors")))["embedding.weight"].float()
    tokenizer = Tokenizer.from_file(str(next(folder.glob("tokenizers/*.json"))))
    return lambda text: F.normalize(table[tokenizer.encode(text, add_special_tokens=False).ids].mean(0), dim=-1)
