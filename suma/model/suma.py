"""SUMA: a CLIP, a temporal encoder over its frames, and the aligned concept space. Tensors in, tensors out.

Shapes: T texts, V videos, F frames, L tokens, W words, K concepts, D joint width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from suma.model import text_tower
from suma.model.backbone import build_clip, cell_width, encode_trunk, is_convolutional, load_backbone, project
from suma.model.checkpoint import HUB_OPTIONS, TOKENIZER, WEIGHTS, find, saved_tokenizer, source_of
from suma.model.concept_space import ConceptSpace
from suma.model.config import SUMAConfig, fingerprint
from suma.model.open_clip_models import is_named, prepare, prepared_folder
from suma.model.temporal import FrameGrid, TemporalEncoder
from suma.model.tokenizer import load_tokenizer
from suma.model.vocabulary import common_words, count_words, ignored_words, nfc
from suma.model.word_clusters import STARTS, Clusters, cluster
from suma.model.zero_shot import cluster_by_prompts, mean_picture, orthogonal
from suma.similarity import Texts, Videos, score
from suma.video.preprocess import normalize

ZERO_SHOT_SHARE = 0.1  # of untrained concepts in the score: on Scenes no R@1 differs up to 0.3; at 0 steering is idle


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
        self.clip: Any = build_clip(cfg)
        dim, width = int(cfg["embed_dim"]), text_tower.token_table(self.clip).embedding_dim
        layers, grid = config.temporal_layers, config.frame_grid
        self.temporal = TemporalEncoder(dim, layers, config.temporal_positions) if layers else None
        self.grid = FrameGrid(grid, cell_width(self.clip, dim), dim) if grid else None
        self.space = ConceptSpace(
            config.words,
            config.word_counts,
            config.num_captions,
            config.num_concepts,
            width,
            dim,
            config.anchor,
            config.activation,
            config.ignored_words,
        )
        self.concept_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.tokenizer = load_tokenizer(config.tokenizer, config.clip["text_cfg"], tokenizer_folder)
        self.shorten = text_tower.can_shorten(self.clip)
        self._fingerprint = ""
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
        """The start of a training, or a zero-shot model: an open_clip backbone and a concept space made from words.

        Without captions the words are those of `common_words` but for `ignored_words`, and the concepts lie where the
        text tower puts prompts with their words (suma/model/zero_shot.py).

        Args:
            name: an open_clip model name ("ViT-B-32-quickgelu"), an open_clip model config of your own (a dict, or a
                .json file of one), or the folder of a saved SUMA, whose towers are taken over, and whose temporal
                encoder and frame grid where the options ask for the same.
            captions: the training captions (never those of the test split); none for a zero-shot model.
            pretrained: an open_clip tag ("openai"), a local checkpoint file (safetensors, or PyTorch's with tensors
                alone; preprocessing is that of the model's tags), or None for random weights.
            seed: of the k-means and of the new weights.
            min_count: words in fewer captions make no clusters; they go to the nearest one.
            tokenizer_folder: where SigLIP's tokenizer lies (as transformers saves it), instead of at the Hub.
            concept_start: where the concepts begin: at their words' mean token embeddings ("tokens", the default with
                captions), where the text tower puts the words, which are then clustered by that too ("sentences"),
                where it puts prompts with the words, centred on both sides ("prompts", the default without captions),
                or at "random".
            word_vectors: cluster the words by these instead (word -> vector, all of one length).
            options: fields of SUMAConfig (num_concepts, temporal_layers, ...).

        Raises ValueError for an unknown name or tag, fewer words than concepts, or a file that holds more than weights;
        RuntimeError for weights of another model; FileNotFoundError for a tokenizer that is nowhere to be had.
        """
        torch.manual_seed(seed)
        trained: dict[str, Tensor] = {}
        if not isinstance(name, dict) and Path(name).is_dir():
            if pretrained:
                raise ValueError(f"{name} holds trained towers: leave `pretrained` out")
            saved = cls.from_pretrained(name)
            clip, cfg, image, tokenizer_name = saved.clip, saved.config.clip, saved.config.image, saved.config.tokenizer
            tokenizer_folder = tokenizer_folder or saved_tokenizer(Path(name))
            trained = {name: x for name, x in saved.state_dict().items() if name.startswith(("temporal.", "grid."))}
        else:
            clip, cfg, image, tokenizer_name = load_backbone(name, pretrained)
        unknown = set(options) - {f.name for f in fields(SUMAConfig)}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: no such option of SUMAConfig")
        counts, num_captions = _words_of(captions)
        if captions is None:
            options = {"concept_share": ZERO_SHOT_SHARE, "untrained": True, "ignored_words": ignored_words()} | options
        for word in options.get("ignored_words", ()):
            counts.pop(word, None)
        concept_start = concept_start or ("prompts" if captions is None else "tokens")
        tokenizer = load_tokenizer(tokenizer_name, cfg["text_cfg"], tokenizer_folder)
        num_concepts = options.pop("num_concepts", SUMAConfig.num_concepts)
        clusters = _clusters(
            clip, tokenizer, cfg["text_cfg"], counts, num_concepts, min_count, seed, concept_start, word_vectors
        )
        words = list(counts)
        config = SUMAConfig(
            clip=cfg,
            image=image,
            tokenizer=tokenizer_name,
            num_concepts=num_concepts,
            num_captions=num_captions,
            words=[words[i] for i in clusters.order],
            word_counts=[counts[words[i]] for i in clusters.order],
            **options,
        )
        model = cls(config, tokenizer_folder)
        towers = {name: x for name, x in clip.state_dict().items() if name != "logit_bias"}  # SigLIP's: no use here
        model.clip.load_state_dict(towers)
        for part in ("temporal", "grid"):
            new, old = model.state_dict(), {n: x for n, x in trained.items() if n.startswith(part + ".")}
            wanted = {n: x.shape for n, x in new.items() if n.startswith(part + ".")}
            if old and wanted == {n: x.shape for n, x in old.items()}:
                model.load_state_dict(new | old)
        model.eval()
        if concept_start == "prompts" and clusters.concepts is not None:
            mean = mean_picture(model.encode_frames, image)
            model.space.start_at(clusters.centres, clusters.assignment, orthogonal(clusters.concepts, mean))
        else:
            model.space.start(clusters.centres, clusters.assignment, clusters.concepts)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "SUMA":  # type: ignore[override]
        """A model from a folder or the Hub: weights, config, words and preprocessing, nothing else needed; or an
        open_clip model NAME:TAG, whose weights are downloaded once (suma/model/open_clip_models.py).

        Options for the Hub: revision, token, cache_dir, force_download, local_files_only.
        Strict: weights that are missing, left over or of another shape raise RuntimeError, a config of another format
        ValueError, a path that does not exist FileNotFoundError; see also `checkpoint.find`. Only safetensors are read.
        """
        name, options = str(pretrained_model_name_or_path), {k: kwargs.pop(k) for k in HUB_OPTIONS if k in kwargs}
        may_download = not (options.get("local_files_only") or options.get("revision"))
        if is_named(name) and may_download and not prepared_folder(name).is_dir():
            prepare(name, cls.from_clip)
        kwargs.pop("strict", None)  # the mixin's switch: here loading is always strict
        model = super().from_pretrained(find(name, **options), **kwargs)
        model.source = source_of(name)
        return model

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> "SUMA":
        """Load weights (the mixin has read the config): safetensors or an error, never a pickle."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = Path(model_id, WEIGHTS)
        try:
            state = load_file(file, device=map_location)
        except SafetensorError as error:
            raise RuntimeError(f"{file} is not a whole safetensors file: {error}") from error
        for option in HUB_OPTIONS:  # the mixin passes them on; all is here by now
            kwargs.pop(option, None)
        model = cls(**{**kwargs, "tokenizer_folder": saved_tokenizer(Path(model_id))})
        if map_location != "cpu":
            model.to(map_location)
        model.load_state_dict(state, strict=True)
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Save the weights and, where it is not open_clip's own, the tokenizer (the mixin saves the config)."""
        super()._save_pretrained(save_directory)
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(save_directory / TOKENIZER)

    def fingerprint(self) -> str:
        """16 hex digits that name this model: config and weights as they are at the first call."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self.config, sorted(self.state_dict().items()))
        return self._fingerprint

    # ---- encoders --------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """D, the joint width."""
        return int(self.config.clip["embed_dim"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.concept_logit_scale.device

    def whole(self) -> "SUMA":
        """Itself: a `suma.model.text_encoder.Reader` gives one."""
        return self

    def array(self, values: np.ndarray) -> Tensor:
        """An array as the model takes it: a tensor where the weights are."""
        return torch.from_numpy(values).to(self.device)

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """Sentences -> token ids (T, L), L the longest sentence's (longer ones than the context are cut)."""
        context = int(self.config.clip["text_cfg"].get("context_length", 77))
        return text_tower.tokenize(self.tokenizer, list(map(nfc, sentences)), context, self.shorten)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids (T, L) -> unit sentence features (T, D), float32."""
        return F.normalize(text_tower.encode_tokens(self.clip, tokens).float(), dim=-1)

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Sentences -> unit features (T, D)."""
        if isinstance(sentences, str):
            raise ValueError("encode_text takes a list of sentences: wrap the one in [ ]")
        return self.encode_tokens(self.tokenize(sentences).to(self.device))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return what the image tower's trunk gives of pixels (N, 3, H, W): whole pictures and their cells, one after
        the other (N, C + G * G * C'). uint8 is normalised here, floats are taken as they are."""
        if pixels.dtype == torch.uint8:
            pixels = normalize(pixels, self.config.image["mean"], self.config.image["std"])
        pixels = pixels.to(next(self.clip.visual.parameters()).dtype)
        whole, cells = encode_trunk(self.clip.visual, pixels, self.config.frame_grid)
        return torch.cat([whole, cells.flatten(1)], dim=-1)

    def frame_features(self, images: Tensor) -> Tensor:
        """What `encode_images` gives (N, C + ...) -> frame features (N, D), not normalised."""
        visual, grid = self.clip.visual, self.config.frame_grid
        images = images.to(next(visual.parameters()).dtype)
        width = visual.trunk.num_features if is_convolutional(visual) else self.dim
        whole = project(visual, images[:, :width])
        if self.grid is None:
            return whole
        cells = project(visual, images[:, width:].unflatten(1, (grid**2, -1)))
        return whole + self.grid(cells.flatten(1))

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), as `encode_images` takes them -> frame features (N, D), not normalised."""
        return self.frame_features(self.encode_images(pixels))

    def in_time(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frame features (V, F, D), not normalised, mask (V, F) -> unit features: video (V, D), frames (V, F, D)."""
        x = self.temporal(frames, mask) if self.temporal is not None else frames
        weights = mask.unsqueeze(-1).to(torch.float32)
        video = F.normalize((x.float() * weights).sum(1) / weights.sum(1), dim=-1)
        return video, F.normalize((x if self.config.temporal_frames else frames).float(), dim=-1)

    def encode_video(self, pixels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels (V, F, 3, H, W), uint8 or normalised, mask (V, F) -> unit features: video (V, D), frames (V, F, D).

        Instead of pixels, what `encode_images` made of them (V, F, C + ...).
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
        return self.in_time(frames, mask)

    # ---- the concept space and the score ---------------------------------------------------------------------------

    def embed_words(self, words: Sequence[str]) -> Tensor:
        """Words -> token embeddings (W, E): the mean over their sub-word tokens."""
        return text_tower.word_embeddings(self.clip, self.tokenizer, words)

    def anchors(self, sentences: Sequence[str]) -> Tensor:
        """Sentences -> unit anchors (T, K): the concepts their words name."""
        return self.space.anchors(sentences, self.embed_words)

    def texts(self, sentences: Sequence[str]) -> Texts:
        """Sentences -> features and anchors, ready for `score`."""
        return self.place(self.encode_text(sentences), self.anchors(sentences))

    def place(self, features: Tensor, anchors: Tensor) -> Texts:
        """Sentence features (T, D) and anchors (T, K), ready for `score`: under `anchor="self"` the features decide."""
        if self.config.anchor == "self":
            with torch.autocast(features.device.type, enabled=False):
                anchors = F.normalize(self.space.activations(features), dim=-1)
        return Texts(features, anchors)

    def videos(self, features: Tensor, frames: Tensor, mask: Tensor) -> Videos:
        """Unit video (V, D) and frame (V, F, D) features -> the same with their places in the concept space."""
        with torch.autocast(features.device.type, enabled=False):  # similarities are float32, also in mixed precision
            concepts = F.normalize(self.space.activations(features), dim=-1)
            frame_concepts = F.normalize(self.space.activations(frames), dim=-1)
        return Videos(features, frames, mask, concepts, frame_concepts)

    def score(self, texts: Texts, videos: Videos) -> Tensor:
        """The score (T, V) by which videos are ranked for texts and texts for videos."""
        return score(texts, videos, self.config.scoring)

    def forward(self, tokens: Tensor, anchors: Tensor, pixels: Tensor, mask: Tensor) -> dict[str, Any]:
        """Everything that the losses need, so that data-parallel wrappers see it.

        Tokens (T, L), anchors (T, K), pixels (V, F, 3, H, W), mask (V, F) -> `texts`, `videos`, `logit_scale`,
        `concept_logit_scale` (the temperatures' inverses; `limit_scales` keeps them at most 100).
        """
        return {
            "texts": self.place(self.encode_tokens(tokens), anchors),
            "videos": self.videos(*self.encode_video(pixels, mask), mask),
            "logit_scale": self.clip.logit_scale.float().exp(),
            "concept_logit_scale": self.concept_logit_scale.float().exp(),
        }

    @torch.no_grad()
    def limit_scales(self) -> None:
        """Keep both scales at most 100, after a step: a clamp in `forward` would stop their gradient at CLIP's 100."""
        for scale in (self.clip.logit_scale, self.concept_logit_scale):
            scale.clamp_(max=math.log(100))


def _words_of(captions: Iterable[str] | None) -> tuple[dict[str, int], int]:
    """Return word -> captions that hold it, and their number; of the bundled list where there are no captions."""
    if captions is None:
        return common_words()
    captions = list(captions)
    counts = count_words(captions)
    if not counts:
        raise ValueError("`captions` hold no words to make concepts of: leave them out to start from common words")
    return counts, len(captions)


def _clusters(
    clip: Any,
    tokenizer: Any,
    text_cfg: dict[str, Any],
    counts: Mapping[str, int],
    num_concepts: int,
    min_count: int,
    seed: int,
    start: str,
    vectors: Mapping[str, np.ndarray] | None,
) -> Clusters:
    """Return the clusters of the words of `counts`, as `SUMA.from_clip` says."""
    if start not in STARTS:
        raise ValueError(f"concept_start {start!r}: choose one of {', '.join(STARTS)}")
    words = list(counts)
    embeddings = text_tower.word_embeddings(clip, tokenizer, words).cpu().numpy()
    if start == "prompts":
        return cluster_by_prompts(clip, tokenizer, text_cfg, counts, embeddings, num_concepts, seed)
    sentences = None
    if start == "sentences":
        sentences = text_tower.word_sentences(clip, tokenizer, words, text_cfg)
        if sentences.shape[1] != embeddings.shape[1]:
            raise ValueError('concept_start="sentences" needs token embeddings as wide as the joint space')
    return cluster(counts, embeddings, num_concepts, min_count, seed, sentences, vectors, start == "random")
