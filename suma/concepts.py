"""The aligned concept space: concepts made of clusters of words (suma/clusters.py), which sentences name and videos
activate.

Shapes: W words, K concepts, E token-embedding width, D joint width, T texts.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ANCHORS = ("binary", "count", "idf", "self")
ACTIVATIONS = ("cosine", "mlp", "relu", "top", "sparsemax")
TOP, SHARPNESS = 16, 20.0  # concepts that "top" keeps; what multiplies the cosines under "sparsemax"
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W\d_]+)?")


def split_words(text: str) -> list[str]:
    """The lower-cased words of a text, in order: runs of letters and digits of any script, with an inner apostrophe.

    >>> split_words("The dog's RED frisbee, 2 times -- caf\u00e9!")
    ['the', "dog's", 'red', 'frisbee', '2', 'times', 'caf\u00e9']
    """
    return [word.replace("\u2019", "'") for word in _WORD.findall(text.lower())]


def count_words(captions: Iterable[str]) -> dict[str, int]:
    """word -> number of captions that hold it (its document frequency), most frequent first, ties by spelling."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(set(split_words(caption)))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def common_words() -> tuple[dict[str, int], int]:
    """The bundled list of common caption words: word -> captions that hold it, most frequent first, and of how many.

    The words were written for this project, by hand and topic by topic, and inflected by rule; their counts are
    estimates, in steps, of how many of 10,000 captions would hold each. No data set was copied or counted.
    """
    counts: dict[str, int] = {}
    for line in Path(__file__).with_name("caption_words.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            count, *words = line.split()
            counts.update((word, max(int(count), counts.get(word, 0))) for word in words)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), 10_000


def sparsemax(x: Tensor) -> Tensor:
    """The point of the simplex nearest to x (..., K): like a softmax, but with zeros (Martins and Astudillo, 2016).

    >>> sparsemax(torch.tensor([2.0, 1.5, -3.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    ordered = x.sort(dim=-1, descending=True).values
    above = ordered.cumsum(-1) - 1  # less than k times the threshold while the k-th is kept
    order = torch.arange(1, x.shape[-1] + 1, device=x.device)
    kept = (ordered * order > above).sum(-1, keepdim=True)
    return (x - above.gather(-1, kept - 1) / kept).clamp_min(0)


class ConceptSpace(nn.Module):
    """K learned concepts, and which of them each word names.

    `words` come best name first (see `naming_order`), `counts` are their document frequencies among `num_captions`
    training captions. The concepts (K, E) start at the word clusters' centres and are learned by every loss; the
    assignment and the initial centres are buffers, so that a loaded model maps any sentence. Where E differs from D a
    learned linear map brings the concepts to D (our reading).

    anchor: what a sentence's words weigh (see `anchors`), or "self": a sentence is placed as videos are, by its own
    feature, and nothing supervises the space. activation: what a feature's cosines become, "cosine" as they are; "mlp"
    is a network in their place, "relu", "top" and "sparsemax" leave few above 0 (searches need "cosine").
    """

    def __init__(
        self, words: Sequence[str], counts: Sequence[int], num_captions: int, num_concepts: int, width: int, dim: int,
        anchor: str = "idf", activation: str = "cosine",
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (("anchor", anchor, ANCHORS), ("activation", activation, ACTIVATIONS)):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: choose one of {', '.join(known)}")
        if len(words) != len(counts):
            raise ValueError(f"{len(words)} words but {len(counts)} counts")
        self.words, self.anchor, self.activation = list(words), anchor, activation
        self._index = {word: i for i, word in enumerate(self.words)}
        self._idf = [math.log((1 + num_captions) / (1 + min(n, num_captions))) for n in counts]
        self.centres = nn.Parameter(torch.randn(num_concepts, width) * width**-0.5)
        self.map = nn.Linear(width, dim, bias=False) if width != dim else nn.Identity()
        self.network = (
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, num_concepts))
            if activation == "mlp"
            else None
        )
        self.initial_centres: Tensor
        self.word_to_concept: Tensor
        self.register_buffer("initial_centres", self.centres.detach().clone())
        self.register_buffer("word_to_concept", torch.arange(len(words)) % num_concepts)

    def start(self, centres: np.ndarray, assignment: np.ndarray, concepts: np.ndarray | None = None) -> None:
        """Put the concepts on the word clusters: centres (K, E), by which new words are told too, assignment (W,);
        concepts (K, E): start there instead."""
        with torch.no_grad():
            self.initial_centres.copy_(torch.from_numpy(centres))
            self.centres.copy_(self.initial_centres if concepts is None else torch.from_numpy(concepts))
            self.word_to_concept.copy_(torch.from_numpy(assignment))

    @property
    def num_concepts(self) -> int:
        """K."""
        return self.centres.shape[0]

    def concepts(self) -> Tensor:
        """The learned concepts, each of length 1: (K, D)."""
        return F.normalize(self.map(self.centres).float(), dim=-1)

    def activations(self, features: Tensor) -> Tensor:
        """Cosines of features (..., D) with every concept: (..., K) in [-1, 1] (section 2.6: a video in the space), or
        what `activation` makes of them."""
        unit = F.normalize(features.float(), dim=-1)
        if self.network is not None:
            return self.network(unit)
        cosines = unit @ self.concepts().T
        if self.activation == "cosine":
            return cosines
        if self.activation == "sparsemax":
            return sparsemax(SHARPNESS * cosines)
        if self.activation == "top":
            least = cosines.topk(min(TOP, self.num_concepts), dim=-1).values[..., -1:]
            cosines = cosines.masked_fill(cosines < least, 0)
        return cosines.relu()

    def concept_of(self, words: Sequence[str], embed: Callable[[Sequence[str]], Tensor]) -> list[int]:
        """Each word's concept; one never seen goes to the nearest initial centre of its embedding (our reading).

        `embed` maps words to token embeddings (n, E) and is called once, for the unseen words only.
        """
        unseen = sorted({word for word in words if word not in self._index})
        nearest: dict[str, int] = {}
        if unseen:
            unit = F.normalize(embed(unseen).float(), dim=-1)
            similarity = unit @ F.normalize(self.initial_centres.float(), dim=-1).T
            nearest = dict(zip(unseen, similarity.argmax(1).tolist(), strict=True))
        known = self.word_to_concept.tolist()
        return [nearest[word] if word in nearest else known[self._index[word]] for word in words]

    def anchors(self, sentences: Sequence[str], embed: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """Sentences -> unit anchors (T, K): the concepts that the words of each name (a row of zeros without words).

        `binary` marks them, `count` counts the words, `idf` adds up the inverse document frequencies of the distinct
        words (a word never seen weighs as much as the average word of its concept). Rows of zeros under `self`.
        """
        if self.anchor == "self":
            return torch.zeros(len(sentences), self.num_concepts, device=self.centres.device)
        texts = [Counter(split_words(sentence)) for sentence in sentences]
        distinct = sorted(set().union(*texts)) if texts else []
        concept = dict(zip(distinct, self.concept_of(distinct, embed), strict=True))
        out = torch.zeros(len(texts), self.num_concepts)
        for row, text in zip(out, texts, strict=True):
            for word, n in text.items():
                if self.anchor == "binary":
                    row[concept[word]] = 1
                elif self.anchor == "count":
                    row[concept[word]] += n
                else:
                    row[concept[word]] += self._weight(word, concept[word])
        return F.normalize(out, dim=-1).to(self.centres.device)

    def _weight(self, word: str, concept: int) -> float:
        if word in self._index:
            return self._idf[self._index[word]]
        members = self.members(concept)
        return sum(self._idf[self._index[m]] for m in members) / max(1, len(members))

    def members(self, concept: int) -> list[str]:
        """All words of a concept, best names first."""
        if not 0 <= concept < self.num_concepts:
            raise ValueError(f"concept {concept} is outside 0..{self.num_concepts - 1}")
        return [self.words[i] for i in (self.word_to_concept == concept).nonzero().flatten().tolist()]

    def name(self, concept: int, num_words: int = 3) -> str:
        """A concept by its most central, frequent words."""
        return ", ".join(self.members(concept)[:num_words])
