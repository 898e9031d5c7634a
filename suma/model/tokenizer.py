"""Sentences -> tokens: CLIP's byte-pair encoding by the `tokenizers` library, SigLIP's tokenizers by open_clip.

Shapes: T texts, L tokens.
"""

import gzip
import html
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

if TYPE_CHECKING:
    from torch import Tensor

CLIP_VOCABULARY = 49408
_SPECIAL = ("<start_of_text>", "<end_of_text>")
_PIECE = regex.compile(
    rf"{'|'.join(_SPECIAL)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)


class ClipTokenizer:
    """CLIP's tokenizer: the tokens of open_clip's SimpleTokenizer, without importing torch.

    CLIP's byte-pair merges are ordered by frequency, so the first n of them are a lossless tokenizer for any text: a
    smaller vocabulary only makes captions a little longer.
    """

    def __init__(self, vocab_size: int = CLIP_VOCABULARY, context_length: int = 77):
        """Read the first merges of open_clip's vocabulary file. Raise ValueError for a size that it cannot have."""
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel

        if not 514 <= vocab_size <= CLIP_VOCABULARY:
            raise ValueError(f"text_cfg vocab_size must be 514 to {CLIP_VOCABULARY}, got {vocab_size}")
        with gzip.open(_open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
            lines = itertools.islice(file, 1, vocab_size - 513)  # the first holds its version
            merges = [(left, right) for left, right in map(str.split, lines)]
        letters = _byte_letters()
        pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), *_SPECIAL]
        self.encoder = {piece: i for i, piece in enumerate(pieces)}
        self._bpe = Tokenizer(BPE(self.encoder, merges, end_of_word_suffix="</w>"))
        self._bpe.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
        self._bpe.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
        self.vocab_size, self.context_length = vocab_size, context_length
        self.sot_token_id, self.eot_token_id = vocab_size - 2, vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without those of its start and end."""
        return self._bpe.encode(_PIECE.findall(clean(text)), is_pretokenized=True, add_special_tokens=False).ids

    def ids(self, sentences: Sequence[str], context_length: int) -> np.ndarray:
        """Return ids (T, L) int64 between start and end, L the longest sentence's; longer ones than the context are
        cut and keep their end."""
        rows = [[self.sot_token_id, *self.encode(text)][: context_length - 1] for text in sentences]
        out = np.zeros((len(rows), 1 + max(map(len, rows), default=-1)), np.int64)
        for row, ids in zip(out, rows, strict=True):
            row[: len(ids) + 1] = [*ids, self.eot_token_id]
        return out

    def __call__(self, sentences: Sequence[str], context_length: int | None = None) -> "Tensor":
        """Return ids (T, context) as a tensor, padded with zeros: open_clip's interface."""
        import torch

        context = context_length or self.context_length
        ids = self.ids(sentences, context)
        return torch.from_numpy(np.pad(ids, [(0, 0), (0, context - ids.shape[1])]))


def clean(text: str) -> str:
    """Return a text as CLIP reads it: encoding mistakes repaired, HTML entities resolved, one space between words,
    lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else there is nothing to repair
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _byte_letters() -> list[str]:
    """Return the letters by which CLIP writes the 256 bytes, in the order of their ids: printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printable, *range(256, 512 - len(printable))]]


def load_tokenizer(name: str, text_cfg: dict[str, Any], folder: str | Path | None = None) -> Any:
    """Return the tokenizer of an open_clip model name, or ("" = a model of our own) CLIP's with
    `text_cfg["vocab_size"]` tokens.

    Where `text_cfg` names a tokenizer of the Hub (SigLIP's), read that from `folder`, as saved with a model, or else
    from the Hub. Raise ValueError for a name or size that is unknown, and as `_hub_tokenizer` does.
    """
    if text_cfg.get("hf_tokenizer_name"):
        return _hub_tokenizer(text_cfg, folder)
    if name and not brings_tokenizer(name):
        raise ValueError(f"tokenizer {name!r} is no open_clip model")
    size = CLIP_VOCABULARY if name else text_cfg.get("vocab_size", CLIP_VOCABULARY)
    return ClipTokenizer(size, text_cfg.get("context_length", 77))


def brings_tokenizer(name: str) -> bool:
    """Return whether a name is one of open_clip's own models, and not one that was added to its list."""
    return (_open_clip_folder() / "model_configs" / f"{name}.json").is_file()


def _open_clip_folder() -> Path:
    """Return where open_clip is installed, without importing it."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ImportError("open_clip is missing: pip install open_clip_torch")
    return Path(found.submodule_search_locations[0])


def _hub_tokenizer(text_cfg: dict[str, Any], folder: str | Path | None) -> Any:
    """Return a tokenizer of the Hub. Raise ValueError without transformers, FileNotFoundError where it is not found."""
    from open_clip.tokenizer import HFTokenizer

    name, options = text_cfg["hf_tokenizer_name"], text_cfg.get("tokenizer_kwargs", {})
    if not set(options) <= {"clean", "strip_sep_token"}:  # others reach transformers, and one of them runs code
        raise ValueError(f"tokenizer_kwargs may hold clean and strip_sep_token, got {', '.join(sorted(options))}")
    try:
        return HFTokenizer(
            str(folder or name),
            text_cfg.get("context_length", 77),
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            trust_remote_code=False,
            **options,
        )
    except ImportError as error:
        raise ValueError(f"the tokenizer {name} needs transformers: pip install transformers ({error})") from error
    except OSError as error:
        where = f"in {folder}" if folder else "at the Hub or in its cache: give the folder that holds it"
        raise FileNotFoundError(f"the tokenizer {name} was not found {where} ({error})") from error
