"""Today's backbones, checkpoint files, tokenizers that travel with a model, and the zero-shot model."""

import gc
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from suma import SUMA, SUMAConfig, VideoIndex
from suma.model.backbone import (
    build_clip,
    can_shorten,
    cell_width,
    encode_trunk,
    family_preprocessing,
    load_backbone,
    project,
    token_table,
)
from suma.model.config import ANCHORS
from suma.model.from_clip import PROMPTS, ZERO_SHOT_SHARE, base_form, mean_picture
from suma.model.tokenizer import load_tokenizer
from suma.model.vocabulary import common_words, ignored_words, split_words
from suma.video.frames import read_frames
from suma.video.preprocess import resize_frames

CLIP = (list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD), "bicubic", "shortest")
SIGLIP = ([0.5] * 3, [0.5] * 3, "bicubic", "squash")
PE = ([0.5] * 3, [0.5] * 3, "bilinear", "squash")
MOBILE = ([0.0] * 3, [1.0] * 3, "bilinear", "shortest")
# name: tags, preprocessing, size, joint width D, token width E, context, whether padding may be left out
BACKBONES: dict[str, tuple[list[str], Any, int, int, int, int, bool]] = {
    "ViT-B-32": (["openai", "laion2b_s34b_b79k", "datacomp_xl_s13b_b90k"], CLIP, 224, 512, 512, 77, True),
    "ViT-B-32-quickgelu": (["openai"], CLIP, 224, 512, 512, 77, True),
    "ViT-B-16": (["openai", "laion2b_s34b_b88k", "datacomp_xl_s13b_b90k"], CLIP, 224, 512, 512, 77, True),
    "ViT-L-14": (["openai", "laion400m_e32", "datacomp_xl_s13b_b90k"], CLIP, 224, 768, 768, 77, True),
    "PE-Core-B-16": (["meta"], PE, 224, 1024, 1024, 32, True),
    "PE-Core-L-14-336": (["meta"], PE, 336, 1024, 1024, 32, True),
    "ViT-B-16-SigLIP2": (["webli"], SIGLIP, 224, 768, 768, 64, False),
    "ViT-B-32-SigLIP2-256": (["webli"], SIGLIP, 256, 768, 768, 64, False),
    "ViT-gopt-16-SigLIP2-256": (["webli"], SIGLIP, 256, 1536, 1152, 64, False),
    "MobileCLIP2-S0": (["dfndr2b"], MOBILE, 256, 512, 512, 77, False),
    "MobileCLIP2-B": (["dfndr2b"], MOBILE, 224, 512, 512, 77, True),
}
LARGE = {"ViT-L-14", "PE-Core-L-14-336", "ViT-gopt-16-SigLIP2-256"}  # another of each family is built in any case


def described(image: dict[str, Any]) -> tuple[Any, int]:
    return (image["mean"], image["std"], image["interpolation"], image["resize_mode"]), image["size"]


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's tags, without their weights."""
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: "weights")
    monkeypatch.setattr("open_clip.factory.load_checkpoint", lambda *_, **__: {})
    monkeypatch.setattr("open_clip.factory._set_model_device_and_precision", lambda *_, **__: None)  # stay on meta


@pytest.mark.filterwarnings("ignore:QuickGELU mismatch")  # open_clip's advice to take ViT-B-32-quickgelu
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in BACKBONES])
def test_a_backbone_has_its_widths_and_its_familys_preprocessing(name: str, no_downloads: None):
    tags, preprocessing, size, dim, width, context, shorten = BACKBONES[name]
    with torch.device("meta"):  # shapes without memory
        backbone = load_backbone(name, tags[0])
    assert described(backbone.image) == (preprocessing, size)
    for cfg in (family_preprocessing(name), *(open_clip.get_pretrained_cfg(name, tag) for tag in tags)):
        assert (list(cfg["mean"]), list(cfg["std"]), cfg["interpolation"], cfg["resize_mode"]) == preprocessing
    assert backbone.config["embed_dim"] == dim and token_table(backbone.clip).embedding_dim == width
    assert backbone.config["text_cfg"].get("context_length", 77) == context
    assert can_shorten(backbone.clip) is shorten
    if "SigLIP" not in name:
        assert load_tokenizer(name, backbone.config["text_cfg"])(["a dog"]).shape == (1, context)
    assert backbone.clip.logit_scale.shape == ()


def test_preprocessing_follows_the_tag_where_the_tags_of_a_model_differ(no_downloads: None):
    with torch.device("meta"):
        assert load_backbone("ViT-L-14", "laion2b_s32b_b82k").image["mean"] == [0.5] * 3
        assert (
            load_backbone("ViT-L-14", "openai").image["mean"]
            == CLIP[0]
            == load_backbone("ViT-L-14", None).image["mean"]
        )


def test_every_backbone_of_open_clip_has_a_preprocessing_we_can_do():
    for name in open_clip.list_models():
        for tag in open_clip.list_pretrained_tags_by_model(name):
            cfg = open_clip.get_pretrained_cfg(name, tag)
            assert cfg["interpolation"] in ("bicubic", "bilinear") and cfg["resize_mode"] in ("shortest", "squash")


# ---- the cells of a frame grid ---------------------------------------------------------------------------------------


def timm_tower(tower: dict[str, Any], name: str, size: int = 160) -> dict[str, Any]:
    """A CLIP of ours with an image tower of timm's, of random weights."""
    vision = {"timm_model_name": name, "timm_proj": "linear", "timm_pool": "", "image_size": size}
    return {**tower, "vision_cfg": vision}


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "efficientnet_lite0"])
def test_the_cells_of_a_convolutional_tower_are_projected_as_the_whole_picture_is(tower, name: str):
    clip = build_clip(timm_tower(tower, name)).eval()
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    whole, cells = (project(clip.visual, x) for x in encode_trunk(clip.visual, pixels, 5))  # of a map of 5 x 5
    assert cells.shape == (2, 25, cell_width(clip, 64)) and torch.allclose(whole, clip.encode_image(pixels), atol=1e-5)
    features = clip.visual.trunk.forward_features(pixels)
    assert features.shape[2:] == (5, 5)
    for row, column in [(0, 0), (0, 4), (3, 1)]:
        alone = clip.visual.head(clip.visual.trunk.forward_head(features[:, :, row : row + 1, column : column + 1]))
        assert torch.allclose(cells[:, 5 * row + column], alone, atol=1e-5)
    if "efficientnet" in name or "resnet" in name:  # a linear projection of a mean is the mean of the projections
        assert torch.allclose(cells.mean(1), whole, atol=1e-5)


@torch.no_grad()
def test_a_frame_grid_on_a_convolutional_tower_is_trained_saved_and_loaded(tower, captions, tmp_path: Path):
    cfg = timm_tower(tower, "test_efficientnet", 64)
    model = SUMA.from_clip(cfg, captions, num_concepts=12, temporal_layers=1, frame_grid=3)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = SUMA.from_clip(cfg, captions, num_concepts=12, temporal_layers=1)
    assert model.encode_images(pixels).shape == (2, 10 * model.clip.visual.trunk.num_features)
    assert torch.allclose(model.encode_frames(pixels), plain.encode_frames(pixels), atol=1e-5)  # it starts at zero
    with torch.enable_grad():
        model.encode_frames(pixels).sum().backward()
    assert model.grid.out.weight.grad.abs().sum() > 0
    model.grid.out.weight.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(SUMA.from_pretrained(tmp_path).encode_frames(pixels), model.encode_frames(pixels))


@torch.no_grad()
@pytest.mark.parametrize("vision", [{"timm_model_name": "test_vit", "timm_pool": "token"}, {"layers": [1, 1, 1, 1]}])
def test_patches_and_the_maps_of_clips_own_resnets_have_cells_too(tower, vision: dict[str, Any]):
    size = 160 if "timm_model_name" in vision else 64
    clip = build_clip({**tower, "vision_cfg": {"width": 32, "image_size": size, **vision}}).eval()
    pixels = torch.randn(2, 3, size, size)
    whole, cells = encode_trunk(clip.visual, pixels, 2)
    assert cells.shape == (2, 4, cell_width(clip, 64)) and torch.allclose(whole, clip.encode_image(pixels), atol=1e-5)


# ---- whole models ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: SUMA) -> list[Tensor]:
    size = model.config.image["size"]
    pixels = torch.randint(0, 256, (1, 2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask = torch.ones(1, 2, dtype=torch.bool)
    texts = model.make_texts(["a dog runs", "two red cars on a road", ""])
    videos = model.make_videos(*model.encode_video(pixels, mask), mask)
    return [*texts, *videos, model.score(texts, videos)]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in the manner of SigLIP2's, as transformers saves it."""
    transformers = pytest.importorskip("transformers", reason="SigLIP's tokenizers need transformers")
    letters = list("▁abcdefghijklmnopqrstuvwxyz0123456789'")
    merges = [("▁", "d"), ("▁d", "o"), ("▁do", "g"), ("▁", "c"), ("d", "o"), ("do", "g")]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *letters, *(a + b for a, b in merges)]
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.GemmaTokenizerFast(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "PE-Core-B-16", "ViT-B-16-SigLIP2", "MobileCLIP2-S0"])
def test_a_backbone_encodes_saves_and_loads(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    folder = request.getfixturevalue("tokenizer_folder") if "SigLIP" in name else None
    options: dict[str, Any] = {"num_concepts": 64, "temporal_layers": 1, "tokenizer_folder": folder}
    model = SUMA.from_clip(name, concept_start="tokens", **options)  # prompts take many minutes of one core
    before = outputs(model)
    assert all(x.isfinite().all() for x in before)
    with torch.no_grad():  # leaving out padding changes nothing
        whole = F.normalize(model.clip.encode_text(model.tokenizer(["a dog runs"])), dim=-1)
    assert torch.allclose(whole, before[0][:1], atol=1e-5)
    model.save_pretrained(tmp_path)
    del model
    gc.collect()
    loaded = SUMA.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded), before, strict=True))
    shutil.rmtree(tmp_path)  # up to 2 GB


@pytest.mark.slow
def test_a_checkpoint_file_of_a_named_backbone_gets_the_familys_preprocessing(tmp_path: Path):
    weights = load_backbone("MobileCLIP2-S0", None).clip.state_dict()
    save_file(weights, tmp_path / "mobile.safetensors")
    backbone = load_backbone("MobileCLIP2-S0", tmp_path / "mobile.safetensors")
    assert described(backbone.image) == (MOBILE, 256)
    assert all(torch.equal(x, weights[key]) for key, x in backbone.clip.state_dict().items())


# ---- checkpoint files ------------------------------------------------------------------------------------------------


class Evil:
    """What a pickle may hold: a call of any function."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".safetensors"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tower, tmp_path: Path, suffix: str):
    file, witness = tmp_path / f"clip{suffix}", tmp_path / "witness"
    torch.save({"state_dict": Evil(witness)}, file)
    with pytest.raises(ValueError, match=rf"clip\{suffix} .*safetensors\.torch\.save_file"):
        load_backbone(tower, file)
    assert not witness.exists()
    torch.load(file.rename(tmp_path / "any.pt"), weights_only=False)  # it does what it is meant to
    assert witness.exists()


@pytest.mark.parametrize("told", [{}, {"size": 32}, {"mean": [0.5] * 3}, {"mean": [0.5] * 3, "std": [0.5] * 3}])
def test_a_checkpoint_file_without_a_mean_and_deviation_warns_that_openais_are_taken(tower, tmp_path: Path, told):
    save_file(load_backbone(tower, None).clip.state_dict(), tmp_path / "clip.safetensors")
    (tmp_path / "clip.json").write_text(json.dumps({**tower, "preprocess_cfg": told}), encoding="utf-8-sig")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = load_backbone(tmp_path / "clip.json", tmp_path / "clip.safetensors").image
        load_backbone(tower, None)  # of random weights there is nothing to be told
    missing = " and ".join(name for name in ("mean", "std") if name not in told)
    assert [f"the {missing} of" in str(w.message) and "preprocess_cfg" in str(w.message) for w in caught] == [
        True
    ] * bool(missing)
    assert image["std"] == told.get("std", CLIP[1])


def test_files_that_are_no_checkpoint_are_named(tower, tmp_path: Path):
    script = torch.jit.script(torch.nn.Linear(2, 2))
    script.save(str(tmp_path / "script.pt"))
    (tmp_path / "empty.pt").touch()
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)))
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for name, message in {
        "script.pt": "TorchScript",
        "empty.pt": "damaged",
        "noise.bin": "more than tensors",
        "noise.safetensors": "damaged",
        "list.pt": "no checkpoint",
    }.items():
        with pytest.raises(ValueError, match=rf"{name} .*{message}"):
            load_backbone(tower, tmp_path / name)
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match=r"other\.safetensors .*fit"):
        load_backbone(tower, tmp_path / "other.safetensors")


def test_a_tag_or_file_that_does_not_exist_is_named_before_anything_is_built(tower):
    with pytest.raises(ValueError, match=r"'meta' "):
        load_backbone(tower, "meta")
    with pytest.raises(ValueError, match=r"'mata' .*PE-Core-B-16 .*meta"):
        load_backbone("PE-Core-B-16", "mata")
    with pytest.raises(ValueError, match="CoCa"):
        load_backbone("coca_ViT-B-32", "laion2b_s13b_b90k")


# ---- tokenizers that travel with the model ---------------------------------------------------------------------------


def siglip(tower: dict[str, Any]) -> dict[str, Any]:
    """SigLIP2's kind of text tower, tiny, with a tokenizer of the Hub."""
    extra = {"hf_tokenizer_name": "nobody/nothing", "tokenizer_kwargs": {"clean": "canonicalize"}}
    shape = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "context_length": 16}
    return {**tower, "custom_text": True, "init_logit_bias": -10, "text_cfg": {**tower["text_cfg"], **shape, **extra}}


def test_a_saved_model_carries_its_tokenizer(tower, captions, tokenizer_folder: Path, tmp_path: Path):
    cfg = siglip(tower)
    model = SUMA.from_clip(cfg, captions, num_concepts=4, temporal_layers=0, tokenizer_folder=tokenizer_folder)
    assert model.tokenize(["A dog!"]).shape == (1, 16) and not model.shorten
    assert torch.equal(model.tokenize(["A dog!"]), model.tokenize(["a dog"]))
    model.save_pretrained(tmp_path / "one")
    loaded = SUMA.from_pretrained(tmp_path / "one")  # "nobody/nothing" is nowhere, and HF_HUB_OFFLINE is set
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded), outputs(model), strict=True))
    again = SUMA.from_clip(tmp_path / "one", captions, num_concepts=4, temporal_layers=0)
    again.save_pretrained(tmp_path / "two")
    assert sorted(p.name for p in (tmp_path / "two" / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert torch.equal(SUMA.from_pretrained(tmp_path / "two").tokenize(captions), model.tokenize(captions))


def test_a_word_has_the_pieces_it_has_within_a_sentence(tower, tokenizer_folder: Path):
    model = SUMA.from_clip(siglip(tower), ["dog", "a"], num_concepts=2, tokenizer_folder=tokenizer_folder)
    piece = model.tokenizer.tokenizer.convert_tokens_to_ids("▁dog")  # at the start of a sentence it is "d o g"
    assert piece in model.tokenize(["a dog"])[0] and piece not in model.tokenize(["dog"])[0]
    assert np.allclose(model.embed_words(["dog"])[0], token_table(model.clip).weight[piece].detach())


def test_a_tokenizer_that_cannot_be_had_is_an_error_that_says_what_to_do(tower, captions, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing.*Hub.*folder"):
        SUMA.from_clip(siglip(tower), captions, num_concepts=4)
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing.*missing"):
        SUMA.from_clip(siglip(tower), captions, num_concepts=4, tokenizer_folder=tmp_path / "missing")


def test_without_transformers_the_error_names_it(tower, captions, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        SUMA.from_clip(siglip(tower), captions, num_concepts=4)


def test_a_foreign_config_reaches_no_code_through_its_tokenizer(tower):
    cfg = siglip(tower)["text_cfg"]
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer("", {**cfg, "tokenizer_kwargs": {"trust_remote_code": True}})
    with pytest.raises(ValueError, match="hf-hub:evil/model"):
        load_tokenizer("hf-hub:evil/model", tower["text_cfg"])


# ---- zero-shot -------------------------------------------------------------------------------------------------------


def test_the_bundled_words_are_lower_case_whole_and_weighted_like_captions():
    counts, captions = common_words()
    assert len(counts) >= 3000
    assert [word for word in counts if split_words(word) != [word]] == []
    values = list(counts.values())
    assert values == sorted(values, reverse=True) and values[-1] >= 1 and values[0] < captions == 10_000
    for common, rarer in [("a", "man"), ("the", "dog"), ("is", "running"), ("man", "giraffe"), ("dog", "dalmatian")]:
        assert counts[common] > 3 * counts[rarer]
    assert {"children", "runs", "running", "ran", "tomatoes", "wolves", "swimming", "lying", "bigger", "2"} <= set(
        counts
    )


@pytest.fixture(scope="module")
def zero_shot(tower: dict[str, Any]) -> SUMA:
    """A model of all common words, each in one prompt alone: more would only take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("suma.model.from_clip.PROMPTS", PROMPTS[:1])
        return SUMA.from_clip(tower, temporal_layers=0)


def test_a_model_without_captions_has_concepts_of_words_that_have_pictures(zero_shot: SUMA):
    counts, captions = common_words()
    assert zero_shot.space.num_concepts == SUMAConfig.num_concepts == 1024
    assert int(torch.bincount(zero_shot.space.word_to_concept, minlength=1024).min()) >= 1
    assert set(zero_shot.config.words) == set(counts) - set(ignored_words())
    assert zero_shot.config.num_captions == captions and zero_shot.config.untrained
    assert zero_shot.config.anchor in ANCHORS and zero_shot.config.concept_share == ZERO_SHOT_SHARE
    assert zero_shot.space._weight("giraffe", 1, 0) > 3


def test_no_concept_is_named_by_what_has_no_picture_or_hurts():
    words, counts = set(ignored_words()), common_words()[0]
    named = set(counts) - words
    assert not named & {"the", "and", "on", "a", "is", "video", "see", "two", "slowly", "monday", "make", "thing"}
    assert not named & {"kill", "blood", "gun", "naked", "sexy", "fat", "ugly", "lego", "pokemon", "american", "paris"}
    assert named >= {"dog", "man", "girl", "guitar", "swimming", "red", "kitchen", "cut", "football", "snow", "jumps"}
    assert all(split_words(word) == [word] for word in words) and len(named) > 5000


def test_ignored_words_have_no_share_of_an_anchor(zero_shot: SUMA):
    dog, sentence, nothing = zero_shot.anchors(["dog", "the video of a dog, and then slowly a", "the video of a"])
    assert torch.equal(dog, sentence) and not nothing.any()
    assert zero_shot.make_texts(["the video of a"]).features.isfinite().all()


def test_inflected_words_share_a_concept_and_the_base_form_names_it(zero_shot: SUMA):
    dog, dogs, glass, glasses = zero_shot.space.concept_of(["dog", "dogs", "glass", "glasses"], zero_shot.embed_words)
    assert dog == dogs and glass != glasses
    members = zero_shot.space.members(dog)
    assert members.index("dog") < members.index("dogs")


@torch.no_grad()
def test_untrained_concepts_lie_where_prompts_with_their_words_lie_centred_on_both_sides(tower, few_words):
    zero_shot = SUMA.from_clip(tower, num_concepts=150, temporal_layers=0)
    words = ["dog", "guitar", "snow"]
    plain = [F.normalize(sum(zero_shot.encode_text([p.format(w)]) for p in PROMPTS), dim=-1) for w in words]
    bases = list(dict.fromkeys(base_form(w, dict.fromkeys(zero_shot.config.words)) for w in zero_shot.config.words))
    mean = sum(F.normalize(sum(zero_shot.encode_text([p.format(w) for w in bases]) for p in PROMPTS), dim=-1))
    concepts = zero_shot.space.concepts()[zero_shot.space.concept_of(words, zero_shot.embed_words)]
    centred = F.normalize(torch.cat(plain) - mean / len(bases), dim=-1)
    assert ((centred @ concepts.T).argmax(1) == torch.arange(3)).all()
    mean = torch.from_numpy(mean_picture(zero_shot.encode_frames, zero_shot.config.image))
    assert 0.1 < mean.norm() <= 1
    assert zero_shot.space.activations(mean).abs().max() < 1e-4  # the mean picture names nothing


@pytest.mark.parametrize("widths", [(64, 48), (48, 64)], ids=["wide tokens", "narrow tokens"])
def test_untrained_concepts_where_tokens_and_features_have_other_widths(tower, few_words, widths: tuple[int, int]):
    tokens, joint = widths
    text_cfg = {**tower["text_cfg"], "width": tokens}
    model = SUMA.from_clip({**tower, "embed_dim": joint, "text_cfg": text_cfg}, num_concepts=40, temporal_layers=0)
    same = SUMA.from_clip({**tower, "embed_dim": joint, "text_cfg": text_cfg}, num_concepts=40, temporal_layers=0)
    assert model.space.concepts().shape == (40, joint) and torch.equal(model.space.concepts(), same.space.concepts())
    with torch.no_grad():
        mean = torch.from_numpy(mean_picture(model.encode_frames, model.config.image))
        assert model.space.activations(mean).abs().max() < 1e-4


def test_the_name_of_an_untrained_model_does_not_depend_on_the_last_digits_of_its_concepts(tower, few_words):
    model, other = (SUMA.from_clip(tower, num_concepts=40, temporal_layers=0) for _ in range(2))
    with torch.no_grad():
        other.space.centres += 1e-6
    assert model.fingerprint() == other.fingerprint()
    assert model.fingerprint() != SUMA.from_clip(tower, num_concepts=41, temporal_layers=0).fingerprint()
    assert model.fingerprint() != SUMA.from_clip(tower, num_concepts=40, temporal_layers=0, seed=1).fingerprint()


def test_a_share_can_be_asked_for_and_captions_keep_theirs(tower, captions, few_words):
    assert SUMA.from_clip(tower, num_concepts=8, concept_share=0.3).config.concept_share == 0.3
    assert SUMA.from_clip(tower, captions, num_concepts=8).config.concept_share == SUMAConfig.concept_share > 0


@torch.no_grad()
def test_a_zero_shot_model_is_saved_indexes_and_searches(zero_shot: SUMA, tmp_path: Path):
    zero_shot.save_pretrained(tmp_path)
    model = SUMA.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["concept_share"] == ZERO_SHOT_SHARE
    index = VideoIndex(model)
    videos = sorted((Path(__file__).parents[1] / "assets/gallery/videos").glob("*.mp4"))[:3]
    assert len(index.add(videos).added) == 3
    query = "a dog runs on the grass"
    found = index.search(query, top_k=3)
    assert {Path(match.path) for match in found} == set(videos)
    by_hand = {}
    anchor = zero_shot.anchors([query])
    for video in videos:  # both spaces, coarse and fine
        image = model.config.image
        frames = read_frames(video, model.config.num_frames).frames
        pixels = resize_frames(frames, image["size"], image["resize_mode"], image["interpolation"])
        video_feature, frames = model.encode_video(pixels[None])
        scores = (model.encode_text([query]) @ frames[0].T)[0]
        fine = float((torch.softmax(scores / 0.05, 0) * scores).sum())
        original = (float(model.encode_text([query])[0] @ video_feature[0]) + fine) / 2
        named = [F.normalize(model.space.activations(x), dim=-1) @ anchor[0] for x in (video_feature, frames[0])]
        aligned = (float(named[0][0]) + float((torch.softmax(named[1] / 0.05, 0) * named[1]).sum())) / 2
        by_hand[str(video)] = (1 - ZERO_SHOT_SHARE) * original + ZERO_SHOT_SHARE * aligned
    for match in found:
        assert match.score == pytest.approx(by_hand[match.path], abs=2e-3)
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
