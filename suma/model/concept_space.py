"""The aligned concept space: concepts made of clusters of words (from_clip.py), which sentences name and videos
activate.

Shapes: W words, K concepts, E token-embedding width, D joint width, T texts.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suma.model.config import SUMAConfig
from suma.model.vocabulary import Vocabulary

TOP, SHARPNESS = 16, 20.0  # concepts that "top" keeps; what multiplies the cosines under "sparsemax"


def sparsemax(x: Tensor) -> Tensor:
    """Return the point of the simplex nearest to x (..., K): a softmax with zeros (Martins and Astudillo, 2016).

    >>> sparsemax(torch.tensor([2.0, 1.5, -3.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    ordered = x.sort(dim=-1, descending=True).values
    above = ordered.cumsum(-1) - 1  # less than k times the threshold while the k-th is kept
    order = torch.arange(1, x.shape[-1] + 1, device=x.device)
    kept = (ordered * order > above).sum(-1, keepdim=True)
    return (x - above.gather(-1, kept - 1) / kept).clamp_min(0)


def factors(concepts: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (K, E) and a map (D, E) with centres @ map.T = concepts (K, D).

    Exact where E is at least the smaller of K and D, else the nearest of that rank.
    """
    left, strength, right = np.linalg.svd(concepts, full_matrices=False)
    rank = min(width, len(strength))
    centres, linear = np.zeros((len(concepts), width), np.float32), np.zeros((concepts.shape[1], width), np.float32)
    centres[:, :rank] = left[:, :rank] * strength[:rank]
    linear[:, :rank] = right[:rank].T
    return centres, linear


class ConceptSpace(nn.Module, Vocabulary):
    """Hold K learned concepts, and which of them each word of a config names.

    The concepts (K, E) start at the word clusters' centres and are learned by every loss; the assignment and the
    initial centres are buffers, so that a loaded model maps any sentence. Where E differs from D a learned linear map
    brings the concepts to D (our reading).

    config.anchor: what a sentence's words weigh (see `anchors`), or "self": a sentence is placed as videos are, by its
    own feature, and nothing supervises the space. config.activation: what a feature's cosines become, "cosine" as they
    are; "mlp" is a network in their place, "relu", "top" and "sparsemax" leave few above 0 (searches need "cosine").
    """

    def __init__(self, config: SUMAConfig, width: int):
        nn.Module.__init__(self)
        Vocabulary.__init__(
            self, config.words, config.word_counts, config.num_captions, config.anchor, config.ignored_words
        )
        self.activation, dim, num_concepts = config.activation, int(config.clip["embed_dim"]), config.num_concepts
        self.centres = nn.Parameter(torch.randn(num_concepts, width) * width**-0.5)
        self.map = nn.Linear(width, dim, bias=False) if width != dim else nn.Identity()
        self.network = (
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, num_concepts))
            if self.activation == "mlp"
            else None
        )
        self.initial_centres: Tensor
        self.word_to_concept: Tensor
        self.register_buffer("initial_centres", self.centres.detach().clone())
        self.register_buffer("word_to_concept", torch.arange(len(config.words)) % num_concepts)

    def start(self, centres: np.ndarray, assignment: np.ndarray, concepts: np.ndarray | None = None) -> None:
        """Start the concepts at the centres (K, E) of the word clusters, or at `concepts` (K, E); assignment (W,) says
        each word's concept. The nearest centre also says that of words never seen."""
        with torch.no_grad():
            self.initial_centres.copy_(torch.from_numpy(centres))
            self.centres.copy_(self.initial_centres if concepts is None else torch.from_numpy(concepts))
            self.word_to_concept.copy_(torch.from_numpy(assignment))

    def start_at(self, centres: np.ndarray, assignment: np.ndarray, concepts: np.ndarray) -> None:
        """Start the concepts at points (K, D) of the joint space; centres and assignment as for `start`.

        Where E differs from D the map is set too: exact where E is at least the smaller of K and D."""
        if isinstance(self.map, nn.Linear):
            concepts, linear = factors(concepts, self.centres.shape[1])
            with torch.no_grad():
                self.map.weight.copy_(torch.from_numpy(linear))
        self.start(centres, assignment, concepts)

    def concepts(self) -> Tensor:
        """Return the learned concepts, each of length 1: (K, D)."""
        return F.normalize(self.map(self.centres).float(), dim=-1)

    def activations(self, features: Tensor) -> Tensor:
        """Return the cosines (..., K) of features (..., D) with every concept (section 2.6: a video in the space), or
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

    def assignment(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the buffers as `Vocabulary.assignment` has them."""
        return self.word_to_concept.cpu().numpy(), self.initial_centres.float().cpu().numpy()
