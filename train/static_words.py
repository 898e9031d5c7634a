"""Static word vectors, made without pictures: those of `pip install wordllama` (MIT licence).

Shapes: E width of the vectors.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor


def folder_of(package: str) -> Path:
    """Return the folder of a package. Raise ValueError if it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"{package} is not installed: pip install {package.replace('_', '-')}")
    return Path(found.origin).parent


def static_vectors() -> Callable[[str], Tensor]:
    """Return a function from a text to its unit vector (E,), the mean of its tokens' vectors.

    Raise ValueError if the package is not installed. Its own loader is not used: it asks the Hub for the tokenizer,
    which the package has too.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = folder_of("wordllama")
    table = load_file(next(folder.glob("weights/*.safetensors")))["embedding.weight"].float()
    tokenizer = Tokenizer.from_file(str(next(folder.glob("tokenizers/*.json"))))
    return lambda text: F.normalize(table[tokenizer.encode(text, add_special_tokens=False).ids].mean(0), dim=-1)
