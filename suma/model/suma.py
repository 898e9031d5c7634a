"""SUMA: a CLIP, a temporal encoder over its frames, and the aligned concept space. Tensors in, tensors out.

Shapes: T texts, V videos, F frames, L tokens, W words, K concepts, D joint width.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from suma.model import backbone, checkpoint
from suma.model.concept_space import ConceptSpace
from suma.model.config import SUMAConfig, fingerprint, first_values, stored_fingerprint
from suma.model.cpu import fast_image_tower, has_bf16
from suma.model.encoder import Queries
from suma.model.from_clip import fill, load_towers, make_clusters, make_config, model_options, start_concepts, words_of
from suma.model.temporal import FrameGrid, TemporalEncoder
from suma.model.tokenizer import load_tokenizer
from suma.model.vocabulary import nfc
from suma.similarity import Texts, Videos, score
from suma.video.preprocess import normalize

BATCH_FRAMES = {"cpu": 48, "cuda": 384}  # of an index that are encoded at once


def _to_numpy(x: Tensor) -> np.ndarray:
    """Return a tensor as an array; bfloat16, which numpy has not, as float32."""
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


class SUMA(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="suma",
    license="apache-2.0",
    pipeline_tag="feature-extraction",
    tags=["video-retrieval", "text-to-video-retrieval", "arxiv:2302.09473"],
):
    """Video-text retrieval by supervised, sparse, multi-grained learning (arXiv 2302.09473).

    The constructor builds random weights; `from_clip` starts a training, `from_pretrained` loads a trained model.
    """

    def __init__(self, config: SUMAConfig, tokenizer_folder: str | Path | None = None):
        super().__init__()
        self.config = config
        cfg = {name: value for name, value in config.clip.items() if name != "init_logit_bias"}  # no use here
        self.clip: Any = backbone.build_clip(cfg)
        dim, width = int(cfg["embed_dim"]), backbone.token_table(self.clip).embedding_dim
        layers, grid = config.temporal_layers, config.frame_grid
        self.temporal = TemporalEncoder(dim, layers, config.temporal_positions) if layers else None
        self.grid = FrameGrid(grid, backbone.cell_width(self.clip, dim), dim) if grid else None
        self.space = ConceptSpace(config, width)
        self.concept_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.tokenizer_folder = tokenizer_folder  # where SigLIP's tokenizer lies
        self.tokenizer = load_tokenizer(config.tokenizer, config.clip["text_cfg"], tokenizer_folder)
        self.shorten = backbone.can_shorten(self.clip)
        self._fingerprint, self._metadata = "", dict[str, str]()  # of the file that it was loaded from
        self.source = ""  # the string that an index remembers its model by

    # ---- where models come from ------------------------------------------------------------------------------------

    @classmethod
    def from_clip(
        cls,
        name: str | Path | dict[str, Any],
        captions: Iterable[str] | None = None,
        pretrained: str | None = None,
        seed: int = 0,
        min_count: int = 1,
        tokenizer_folder: str | Path | None = None,
        concept_start: str | None = None,
        word_vectors: Mapping[str, np.ndarray] | None = None,
        **options: Any,
    ) -> "SUMA":
        """Return an untrained model: an open_clip backbone, and a concept space made from words.

        With captions it is where a training starts; without, a zero-shot model, whose words are the bundled ones and
        whose concepts lie where the text tower puts prompts with them (suma/model/from_clip.py).

        Args:
            name: an open_clip model name ("ViT-B-32-quickgelu"), an open_clip config of your own (a dict or a .json
                file), or a SUMA folder: its towers are taken over, and what else has the same shape.
            captions: the training captions (never those of the test split).
            pretrained: an open_clip tag ("openai"), a checkpoint file (safetensors, or PyTorch's with tensors alone),
                or None for random weights.
            seed: of the k-means and of the new weights.
            min_count: words in fewer captions make no clusters; they go to the nearest one.
            tokenizer_folder: where SigLIP's tokenizer lies (as transformers saves it), instead of at the Hub.
            concept_start: where the concepts begin: at their words' mean token embeddings ("tokens"; default with
                captions), where the text tower puts the words, clustered by that too ("sentences"), or prompts with
                them, centred ("prompts"; default without captions), or at "random".
            word_vectors: cluster the words by these instead (word -> vector, all of one length).
            options: fields of SUMAConfig (num_concepts, temporal_layers, ...).

        Raise ValueError for an unknown name, tag or option, too few words, or a file that holds more than weights;
        RuntimeError for weights of another model; FileNotFoundError for a tokenizer that is nowhere to be had.
        """
        torch.manual_seed(seed)
        options = model_options(options, untrained=captions is None)
        start = concept_start or ("prompts" if captions is None else "tokens")
        towers = load_towers(name, pretrained, tokenizer_folder, cls.from_pretrained)
        counts, number = words_of(captions, options.get("ignored_words", ()))
        clusters = make_clusters(towers, counts, options["num_concepts"], min_count, seed, start, word_vectors)
        model = cls(make_config(towers.backbone, counts, number, clusters, options), towers.tokenizer_folder).eval()
        fill(model, towers)
        start_concepts(model, clusters, start)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "SUMA":  # type: ignore[override]
        """Load a model from a folder or the Hub, or an open_clip model NAME:TAG, whose weights are downloaded once
        (suma/model/checkpoint.py).

        Options for the Hub: revision, token, cache_dir, force_download, local_files_only. Only safetensors are read.
        Raise RuntimeError for weights that are missing, left over or of another shape, ValueError for a config of
        another format, FileNotFoundError for a path that does not exist; see also `checkpoint.find`.
        """
        name, options = (
            str(pretrained_model_name_or_path),
            {k: kwargs.pop(k) for k in checkpoint.HUB_OPTIONS if k in kwargs},
        )
        may_download = not (options.get("local_files_only") or options.get("revision"))
        if checkpoint.is_named(name) and may_download and not checkpoint.prepared_folder(name).is_dir():
            checkpoint.prepare(name, cls.from_clip)
        kwargs.pop("strict", None)  # the mixin's switch: here loading is always strict
        model = super().from_pretrained(checkpoint.find(name, **options), **kwargs)
        model.source = checkpoint.source_of(name)
        return model

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> "SUMA":
        """Load the weights (the mixin has read the config): safetensors or an error, never a pickle."""
        state, metadata = checkpoint.read_weights(Path(model_id, checkpoint.WEIGHTS), map_location)
        for option in checkpoint.HUB_OPTIONS:  # the mixin passes them on; all is here by now
            kwargs.pop(option, None)
        tokenizer = Path(model_id, checkpoint.TOKENIZER)
        model = cls(**{**kwargs, "tokenizer_folder": tokenizer if tokenizer.is_dir() else None})
        if map_location != "cpu":
            model.to(map_location)
        model.load_state_dict(state, strict=True)
        model._metadata = metadata
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Save the weights with the fingerprint, and a tokenizer that open_clip lacks (the mixin saves the config)."""
        from safetensors.torch import save_model

        firsts = fingerprint(self.config, self._weights(first_values))
        names = {"fingerprint": fingerprint(self.config, self._weights()), "sample": firsts}
        save_model(self, str(save_directory / checkpoint.WEIGHTS), metadata={"format": "pt", **names})
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(save_directory / checkpoint.TOKENIZER)

    def fingerprint(self) -> str:
        """Return 16 hex digits that name this model: its config and weights at the first call.

        They are read from the model's file, while a sample of config and weights agrees with it; else all are hashed.
        """
        if not self._fingerprint:
            stored = stored_fingerprint(self._metadata, self.config, self._weights(first_values))
            self._fingerprint = stored or fingerprint(self.config, self._weights())
        return self._fingerprint

    def _weights(self, part: Callable[[Tensor], Tensor] = lambda weight: weight) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the weights, or a part of each, in the order of their names."""
        for name, weight in sorted(self.state_dict().items()):
            yield name, _to_numpy(part(weight))

    def verify(self) -> None:
        """Raise RuntimeError where the weights are not those that `fingerprint` names."""
        if (found := fingerprint(self.config, self._weights())) != self.fingerprint():
            raise RuntimeError(
                f"the model {self.source or '(bundled)'} is damaged: its weights are {found}, its file says "
                f"{self.fingerprint()}. Download it again, or save it again and index the videos again"
            )

    # ---- encoders --------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """D, the joint width."""
        return int(self.config.clip["embed_dim"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.concept_logit_scale.device

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Return token ids (T, L), L the longest sentence's (longer ones than the context are cut)."""
        context = int(self.config.clip["text_cfg"].get("context_length", 77))
        return backbone.tokenize(self.tokenizer, list(map(nfc, sentences)), context, self.shorten)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return unit sentence features (T, D) float32 of token ids (T, L)."""
        return F.normalize(backbone.encode_tokens(self.clip, tokens).float(), dim=-1)

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Return the unit features (T, D) of sentences."""
        if isinstance(sentences, str):
            raise ValueError("encode_text takes a list of sentences: wrap the one in [ ]")
        return self.encode_tokens(self.tokenize(sentences).to(self.device))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels (N, 3, H, W) by the image tower's trunk: whole pictures, then their cells (N, C + G * G * C').
        uint8 is normalised here, floats are taken as they are."""
        if pixels.dtype == torch.uint8:
            pixels = normalize(pixels, self.config.image["mean"], self.config.image["std"])
        pixels = pixels.to(next(self.clip.visual.parameters()).dtype)
        whole, cells = backbone.encode_trunk(self.clip.visual, pixels, self.config.frame_grid)
        return torch.cat([whole, cells.flatten(1)], dim=-1)

    def frame_features(self, images: Tensor) -> Tensor:
        """Return frame features (N, D), not normalised, of what `encode_images` gives (N, C + ...)."""
        visual, grid = self.clip.visual, self.config.frame_grid
        images = images.to(next(visual.parameters()).dtype)
        width = visual.trunk.num_features if backbone.is_convolutional(visual) else self.dim
        whole = backbone.project(visual, images[:, :width])
        if self.grid is None:
            return whole
        cells = backbone.project(visual, images[:, width:].unflatten(1, (grid**2, -1)))
        return whole + self.grid(cells.flatten(1))

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Return frame features (N, D), not normalised, of pixels (N, 3, H, W) as `encode_images` takes them."""
        return self.frame_features(self.encode_images(pixels))

    def encode_temporal(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit features of videos (V, D) and frames (V, F, D), of frame features (V, F, D) and mask (V, F)."""
        x = self.temporal(frames, mask) if self.temporal is not None else frames
        weights = mask.unsqueeze(-1).to(torch.float32)
        video = F.normalize((x.float() * weights).sum(1) / weights.sum(1), dim=-1)
        return video, F.normalize((x if self.config.temporal_frames else frames).float(), dim=-1)

    def encode_video(self, pixels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return unit features of videos (V, D) and frames (V, F, D), of pixels (V, F, 3, H, W) and mask (V, F).

        Pixels are uint8 or normalised, or already what `encode_images` made of them (V, F, C + ...).
        """
        if pixels.ndim not in (3, 5):
            raise ValueError(f"pixels must be (V, F, 3, H, W), got {tuple(pixels.shape)}")
        if mask is None:
            mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        if not bool(mask.any(1).all()):
            raise ValueError("every video needs at least one valid frame")
        encode = self.encode_frames if pixels.ndim == 5 else self.frame_features
        encoded = encode(pixels[mask])  # not the padding
        frames = encoded.new_zeros(*mask.shape, self.dim)
        frames[mask] = encoded
        return self.encode_temporal(frames, mask)

    # ---- the concept space and the score ---------------------------------------------------------------------------

    def embed_words(self, words: Sequence[str]) -> np.ndarray:
        """Return the token embeddings (W, E) of words: the mean over their sub-word tokens."""
        return backbone.word_embeddings(self.clip, self.tokenizer, words)

    def anchors(self, sentences: Sequence[str]) -> Tensor:
        """Return the unit anchors (T, K) of sentences: the concepts that their words name."""
        return torch.from_numpy(self.space.anchors(sentences, self.embed_words)).to(self.device)

    def make_texts(self, sentences: Sequence[str]) -> Texts:
        """Return sentences as `score` takes them."""
        return self.join_texts(self.encode_text(sentences), self.anchors(sentences))

    def join_texts(self, features: Tensor, anchors: Tensor) -> Texts:
        """Return features (T, D) and anchors (T, K) as `score` takes them; `anchor="self"` derives anchors anew."""
        if self.config.anchor == "self":
            with torch.autocast(features.device.type, enabled=False):
                anchors = F.normalize(self.space.activations(features), dim=-1)
        return Texts(features, anchors)

    def make_videos(self, features: Tensor, frames: Tensor, mask: Tensor) -> Videos:
        """Return unit video (V, D) and frame (V, F, D) features as `score` takes them, with their concepts."""
        with torch.autocast(features.device.type, enabled=False):  # similarities are float32, also in mixed precision
            concepts = F.normalize(self.space.activations(features), dim=-1)
            frame_concepts = F.normalize(self.space.activations(frames), dim=-1)
        return Videos(features, frames, mask, concepts, frame_concepts)

    def score(self, texts: Texts, videos: Videos) -> Tensor:
        """Return the score (T, V) by which videos are ranked for texts and texts for videos."""
        return score(texts, videos, self.config.scoring)

    # ---- for an index, in numpy: suma.model.encoder.Encoder --------------------------------------------------------

    def concepts(self) -> np.ndarray:
        """Return the concepts (K, D), each of length 1."""
        return _to_numpy(self.space.concepts())

    @torch.no_grad()
    def encode_queries(self, sentences: Sequence[str]) -> Queries:
        """Return the features and anchors of sentences."""
        return Queries(*map(_to_numpy, self.make_texts(sentences)))

    @torch.no_grad()
    def encode_videos(self, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return unit rows (1 + F, D) float32 of each video's pixels (F, 3, S, S) uint8, encoded in one batch."""
        lengths = [len(pixels) for pixels in videos]
        encoded = self.encode_frames(torch.from_numpy(np.concatenate(videos)).to(self.device))
        frames = nn.utils.rnn.pad_sequence(list(encoded.to(self.concept_logit_scale.dtype).split(lengths)), True)
        mask = torch.arange(max(lengths), device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        video, frames = self.encode_temporal(frames, mask)
        rows = _to_numpy(torch.cat([video[:, None], frames], 1))
        return [of_one[: 1 + length] for of_one, length in zip(rows, lengths, strict=True)]

    @contextmanager
    def encoding(self, bf16: bool = False) -> Iterator[int]:
        """Encode videos faster until the `with` block ends; warn where the processor has no bfloat16 (`bf16`)."""
        if slow := bf16 and self.device.type == "cpu" and not has_bf16():
            warn("this processor has no bfloat16: frames are encoded in float32, which is faster", stacklevel=6)
        with fast_image_tower(self.clip, bf16 and not slow):
            yield BATCH_FRAMES.get(self.device.type, BATCH_FRAMES["cpu"])

    def forward(self, tokens: Tensor, anchors: Tensor, pixels: Tensor, mask: Tensor) -> dict[str, Any]:
        """Return what the losses need: `texts`, `videos`, `logit_scale` and `concept_logit_scale` (the temperatures'
        inverses; `limit_scales` keeps them at most 100). One call, so that data-parallel wrappers see it.

        Tokens (T, L), anchors (T, K), pixels (V, F, 3, H, W), mask (V, F).
        """
        return {
            "texts": self.join_texts(self.encode_tokens(tokens), anchors),
            "videos": self.make_videos(*self.encode_video(pixels, mask), mask),
            "logit_scale": self.clip.logit_scale.float().exp(),
            "concept_logit_scale": self.concept_logit_scale.float().exp(),
        }

    @torch.no_grad()
    def limit_scales(self) -> None:
        """Limit both scales to 100, after a step: a clamp in `forward` would stop their gradient at CLIP's 100."""
        for scale in (self.clip.logit_scale, self.concept_logit_scale):
            scale.clamp_(max=math.log(100))
