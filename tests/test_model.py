"""The model: any number of frames, exact padding, strict loading, and every way it can start."""

import copy
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from suma import SUMA, SUMAConfig, VideoIndex
from suma.model.config import ACTIVATIONS
from suma.model.temporal import TemporalEncoder
from suma.model.vocabulary import unit


def pixels(videos: int = 2, frames: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (videos, frames, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def saved(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A fresh folder with nothing but the two files of a saved model."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(saved / name, fresh / name)
    return fresh


# ---- frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 12, 16, 17, 40, 64])
@torch.no_grad()
def test_any_number_of_frames_is_encoded(tiny_model: SUMA, frames: int):
    video, each = tiny_model.encode_video(pixels(1, frames))
    assert video.shape == (1, 64) and each.shape == (1, frames, 64)
    assert torch.allclose(video.norm(dim=-1), torch.ones(1), atol=1e-5)
    assert torch.allclose(each.norm(dim=-1), torch.ones(1, frames), atol=1e-5)


@torch.no_grad()
def test_padded_frames_never_change_a_feature(tiny_model: SUMA):
    video = pixels(1, 4)
    expected, frames = tiny_model.encode_video(video)
    for seed in (1, 2):
        longer = torch.cat([video, pixels(1, 3, seed)], 1)
        mask = torch.tensor([[True] * 4 + [False] * 3])
        got, got_frames = tiny_model.encode_video(longer, mask)
        assert torch.allclose(got, expected, atol=1e-5)
        assert torch.allclose(got_frames[:, :4], frames, atol=1e-5)


@torch.no_grad()
def test_a_video_has_the_same_feature_beside_a_longer_one(tiny_model: SUMA):
    short, long = pixels(1, 2, 1), pixels(1, 6, 2)
    batch = torch.cat([torch.cat([short, torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)], 1), long])
    mask = torch.tensor([[True] * 2 + [False] * 4, [True] * 6])
    got, _ = tiny_model.encode_video(batch, mask)
    assert torch.allclose(got[0], tiny_model.encode_video(short)[0][0], atol=1e-5)
    assert torch.allclose(got[1], tiny_model.encode_video(long)[0][0], atol=1e-5)


@torch.no_grad()
def test_an_untrained_video_is_the_mean_of_its_frames(tower, captions):
    model = SUMA.from_clip(tower, captions, num_concepts=4, temporal_layers=2)
    video = pixels(1, 3)
    mean = sum(model.encode_frames(video[0, i][None])[0] for i in range(3)) / 3
    assert torch.allclose(model.encode_video(video)[0][0], mean / mean.norm(), atol=1e-5)


@torch.no_grad()
def test_frames_may_be_those_that_the_temporal_encoder_leaves(tiny_model: SUMA):
    video, mask = pixels(1, 4), torch.tensor([[True, True, True, False]])
    before, plain = tiny_model.encode_video(video, mask)
    model = copy.deepcopy(tiny_model)
    model.config.temporal_frames = True
    whole, frames = model.encode_video(video, mask)
    model._fingerprint = ""  # the copy of what it was before
    assert torch.equal(whole, before) and model.fingerprint() != tiny_model.fingerprint()
    one, of_one = model.encode_video(video[:, :1])
    assert torch.allclose(of_one[:, 0], one, atol=1e-6)  # the mean of one frame
    changed = video.clone()
    changed[:, 2] = pixels(1, 1, 7)[:, 0]
    moved = (model.encode_video(changed, mask)[1] - frames)[0, 0].abs().max()
    assert float(moved) > 1e-3 and torch.allclose(tiny_model.encode_video(changed, mask)[1][0, 0], plain[0, 0])
    longer = torch.cat([video, pixels(1, 2, 3)], 1)
    padded = model.encode_video(longer, torch.tensor([[True] * 3 + [False] * 3]))[1]
    assert torch.allclose(padded[:, :3], frames[:, :3], atol=1e-5)


@torch.no_grad()
def test_the_order_of_frames_matters_only_with_a_temporal_encoder(tiny_model: SUMA):
    video = pixels(1, 6)
    forward, backward = tiny_model.encode_video(video)[0], tiny_model.encode_video(video.flip(1))[0]
    assert float((forward - backward).abs().max()) > 1e-3
    blind = copy.deepcopy(tiny_model)
    blind.temporal = None
    assert torch.allclose(blind.encode_video(video)[0], blind.encode_video(video.flip(1))[0], atol=1e-6)


def test_positions_are_interpolated_over_the_valid_frames_by_hand():
    encoder = TemporalEncoder(2, 1, 4)
    with torch.no_grad():
        encoder.positions.copy_(torch.tensor([[0.0, 0], [10, 0], [20, 0], [30, 0]]))
    mask = torch.tensor([[True] * 4 + [False] * 4, [True, True] + [False] * 6, [True] * 8, [True] + [False] * 7])
    place = encoder.positions_at(mask)[..., 0].tolist()
    assert place[0][:4] == [0, 10, 20, 30]  # as many frames as positions
    assert place[1][:2] == [5, 25]  # the middles of the two halves
    assert place[2] == [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30]  # clamped at the ends
    assert place[3][0] == 15
    assert TemporalEncoder(2, 1, 1).positions_at(mask).isfinite().all()


@torch.no_grad()
def test_uint8_pixels_are_normalised_as_the_config_says(tiny_model: SUMA):
    video = pixels(1, 2)
    mean, std = tiny_model.config.image["mean"], tiny_model.config.image["std"]
    by_hand = torch.stack([(video[:, :, c].float() / 255 - mean[c]) / std[c] for c in range(3)], 2)
    assert torch.allclose(tiny_model.encode_video(by_hand)[0], tiny_model.encode_video(video)[0], atol=1e-6)


def test_pixels_that_are_no_videos_are_an_error(tiny_model: SUMA):
    with pytest.raises(ValueError, match=r"\(5, 3, 32, 32\)"):
        tiny_model.encode_video(pixels(1, 5)[0])
    with pytest.raises(ValueError, match="at least one valid frame"):
        tiny_model.encode_video(pixels(2, 2), torch.tensor([[True, True], [False, False]]))


@torch.no_grad()
def test_forward_gives_what_the_encoders_give(tiny_model: SUMA):
    sentences, video = ["a dog runs", "a cat"], pixels(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    out = tiny_model(tiny_model.tokenize(sentences), tiny_model.anchors(sentences), video, mask)
    texts, videos = (
        tiny_model.make_texts(sentences),
        tiny_model.make_videos(*tiny_model.encode_video(video, mask), mask),
    )
    for got, expected in zip([*out["texts"], *out["videos"]], [*texts, *videos], strict=True):
        assert torch.equal(got, expected)
    assert torch.allclose(videos.frame_concepts[mask].norm(dim=-1), torch.ones(4), atol=1e-5)
    assert float(out["logit_scale"]) == pytest.approx(1 / 0.07, rel=1e-4)
    hot = copy.deepcopy(tiny_model)
    hot.clip.logit_scale.fill_(9), hot.concept_logit_scale.fill_(9)
    hot.limit_scales()
    out = hot(hot.tokenize(sentences), hot.anchors(sentences), video, mask)
    assert float(out["logit_scale"]) == float(out["concept_logit_scale"]) == pytest.approx(100)


def test_a_scale_at_its_limit_still_learns(tiny_model: SUMA):
    hot = copy.deepcopy(tiny_model)
    with torch.no_grad():
        hot.clip.logit_scale.fill_(10)
    hot.limit_scales()  # CLIP's own weights stand exactly there
    hot(hot.tokenize(["a dog"]), hot.anchors(["a dog"]), pixels(1, 2), torch.ones(1, 2, dtype=torch.bool))[
        "logit_scale"
    ].backward()
    assert float(hot.clip.logit_scale.grad) > 1


# ---- saving and loading --------------------------------------------------------------------------------------------


@torch.no_grad()
def scores(model: SUMA) -> torch.Tensor:
    video = pixels(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    texts = model.make_texts(["a dog runs", "", "an unseen zebra"])
    return model.score(texts, model.make_videos(*model.encode_video(video), mask))


def test_a_model_loaded_from_its_two_files_gives_the_same_bits(tiny_model: SUMA, folder: Path):
    loaded = SUMA.from_pretrained(folder)
    assert torch.equal(scores(loaded), scores(tiny_model))
    assert loaded.fingerprint() == tiny_model.fingerprint()
    assert loaded.config == tiny_model.config and not loaded.training
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_fingerprint_tells_weights_and_configs_apart(folder: Path, tiny_model: SUMA):
    weights, config = SUMA.from_pretrained(folder), SUMA.from_pretrained(folder)
    with torch.no_grad():
        weights.space.centres[0, 0] += 1e-3
    config.config.concept_share = 0.5
    assert len({tiny_model.fingerprint(), weights.fingerprint(), config.fingerprint()}) == 3


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return apply


def edit(**values: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return apply


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def pickle(folder: Path) -> None:
    torch.save({"concept_logit_scale": torch.zeros(())}, folder / "model.safetensors")


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a shape": (rewrite(lambda s: s.update({"space.centres": torch.zeros(11, 64)})), RuntimeError, r"space\.centres"),
    "a missing key": (rewrite(lambda s: s.pop("temporal.out.bias")), RuntimeError, r"temporal\.out\.bias"),
    "a key too many": (rewrite(lambda s: s.update(stray=torch.zeros(1))), RuntimeError, "stray"),
    "a file cut short": (cut, RuntimeError, r"model\.safetensors is not a whole safetensors file"),
    "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), RuntimeError, "not a whole safetensors"),
    "a pickle in disguise": (pickle, RuntimeError, "not a whole safetensors"),
    "a pickle beside": (only_a_pickle, FileNotFoundError, r"no model\.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"no config\.json"),
    "a config cut short": (lambda f: (f / "config.json").write_text('{"clip": '), ValueError, r"config\.json"),
    "another model's config": (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), ValueError, "clip"),
    "another format": (edit(format_version=2), ValueError, "format_version 2"),
    "an unknown aggregation": (edit(aggregation="median"), ValueError, "'median'"),
    "an unknown anchor": (edit(anchor="tfidf"), ValueError, "'tfidf'"),
    "a share of 2": (edit(concept_share=2), ValueError, r"concept_share.*2"),
    "65 frames": (edit(num_frames=65), ValueError, r"num_frames.*65"),
    "more concepts": (edit(num_concepts=13), RuntimeError, r"space\.centres"),
    "more concepts than words": (edit(num_concepts=99), ValueError, r"42 words.*num_concepts=99"),
    "words too few": (edit(word_counts=[1]), ValueError, "42 words but 1 counts"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_never_loads_and_the_error_names_the_fault(folder: Path, what: str):
    damage, error, message = BROKEN[what]
    damage(folder)
    with pytest.raises(error, match=message):
        SUMA.from_pretrained(folder)


def test_strictness_cannot_be_switched_off(folder: Path):
    rewrite(lambda state: state.pop("temporal.out.bias"))(folder)
    with pytest.raises(RuntimeError, match=r"temporal\.out\.bias"):
        SUMA.from_pretrained(folder, strict=False)


@pytest.mark.parametrize("name", ["no-such-folder", "./nowhere", "a/b/c", "../x"])
def test_a_folder_that_does_not_exist_is_named(name: str):
    with pytest.raises(FileNotFoundError, match=str(Path(name))):
        SUMA.from_pretrained(name)


def test_a_file_is_no_model_folder(folder: Path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        SUMA.from_pretrained(folder / "model.safetensors")


def test_a_model_saved_in_half_precision_loads_and_scores_nearly_the_same(tiny_model: SUMA, tmp_path: Path):
    copy.deepcopy(tiny_model).half().save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16, torch.int64}
    loaded = SUMA.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.allclose(scores(loaded), scores(tiny_model), atol=5e-3)


def test_a_share_chosen_later_is_saved(tiny_model: SUMA, tmp_path: Path):
    model = copy.deepcopy(tiny_model)
    model.config.concept_share = 0.6
    model.save_pretrained(tmp_path / "first")
    loaded = SUMA.from_pretrained(tmp_path / "first")
    assert loaded.config.concept_share == 0.6
    loaded.config.concept_share = 0.7
    loaded.save_pretrained(tmp_path / "second")
    assert SUMA.from_pretrained(tmp_path / "second").config.concept_share == 0.7


# ---- starts --------------------------------------------------------------------------------------------------------


def start(name: Any, captions: list[str], **options: Any) -> SUMA:
    return SUMA.from_clip(name, captions, **{"num_concepts": 4, "temporal_layers": 0, **options})


def same_towers(a: SUMA, b: SUMA) -> bool:
    theirs = b.clip.state_dict()
    return all(torch.equal(x, theirs[name]) for name, x in a.clip.state_dict().items())


def test_a_config_gives_the_same_start_from_a_dict_and_from_a_file(tower, captions, tmp_path: Path):
    given = copy.deepcopy(tower)
    (tmp_path / "tower.json").write_text(json.dumps(tower))
    first = start(tower, captions, seed=3).fingerprint()
    assert tower == given
    assert first == start(tmp_path / "tower.json", captions, seed=3).fingerprint()
    assert first == start(str(tmp_path / "tower.json"), captions, seed=3).fingerprint()
    assert first != start(tower, captions, seed=4).fingerprint()


def test_a_saved_suma_hands_over_its_towers_and_a_like_temporal_encoder(tiny_model: SUMA, saved: Path):
    model = start(saved, ["one two three four", "five"], temporal_layers=1)
    assert same_towers(model, tiny_model)
    assert torch.equal(model.temporal.out.weight, tiny_model.temporal.out.weight)
    assert not bool(start(saved, ["one two three four", "five"], temporal_layers=2).temporal.out.weight.any())
    assert sorted(model.config.words) == ["five", "four", "one", "three", "two"]
    with pytest.raises(ValueError, match="pretrained"):
        start(saved, ["one two three four"], pretrained="openai")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_local_checkpoint_gives_the_backbone_its_weights(tiny_model: SUMA, tower, captions, tmp_path, suffix: str):
    file, state = tmp_path / f"clip{suffix}", tiny_model.clip.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    assert same_towers(start(tower, captions, pretrained=str(file), seed=5), tiny_model)
    assert not same_towers(start(tower, captions, seed=5), tiny_model)


def test_preprocessing_comes_with_the_config(tower, captions, tmp_path: Path):
    assert start(tower, captions).config.image == {
        "size": 32,
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    siglip = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    start({**tower, "preprocess_cfg": siglip}, captions).save_pretrained(tmp_path)
    assert SUMA.from_pretrained(tmp_path).config.image == {"size": 32, **siglip}


@pytest.mark.parametrize("extra", [{"custom_text": True}, {"init_logit_bias": -10.0, "custom_text": True}])
def test_backbones_of_open_clips_other_class_start_save_and_load(tower, captions, tmp_path: Path, extra: dict):
    model = start({**tower, **extra}, captions)
    model.save_pretrained(tmp_path)
    assert torch.equal(scores(SUMA.from_pretrained(tmp_path)), scores(model))


def test_a_text_tower_of_another_width_gets_a_map_to_the_joint_space(tower, captions):
    model = start({**tower, "text_cfg": {**tower["text_cfg"], "width": 32}}, captions)
    assert model.space.centres.shape == (4, 32) and model.space.concepts().shape == (4, 64)
    assert scores(model).isfinite().all()


@pytest.mark.slow
def test_a_name_of_open_clip_is_built_with_its_own_tokenizer(captions, tmp_path: Path):
    model = start("ViT-S-32-alt", captions)
    assert model.config.tokenizer == "ViT-S-32-alt" and model.config.image["size"] == 224 and model.dim == 256
    model.save_pretrained(tmp_path)
    loaded = SUMA.from_pretrained(tmp_path)
    assert torch.equal(loaded.tokenize(captions), model.tokenize(captions))
    assert same_towers(loaded, model)
    with torch.no_grad():
        assert torch.equal(loaded.encode_text(["a dog"]), model.encode_text(["a dog"]))


def test_errors_of_a_start_name_what_was_wrong(tower, captions, tmp_path: Path):
    with pytest.raises(ValueError, match=r"'ViT-B-33'.*open_clip"):
        start("ViT-B-33", captions)
    with pytest.raises(ValueError, match=r"5 distinct words.*6 concepts"):
        start(tower, ["a dog", "the big cat"], num_concepts=6)
    with pytest.raises(ValueError, match=r"2 distinct words.*4 concepts"):
        start(tower, ["a dog", "a dog", "a cat"], min_count=2, num_concepts=4)
    with pytest.raises(ValueError, match="captions"):
        start(tower, [])
    with pytest.raises(ValueError, match=r"colour, depth"):
        start(tower, captions, colour=1, depth=2)
    with pytest.raises(ValueError, match="'median'"):
        start(tower, captions, aggregation="median")
    with pytest.raises(ValueError, match="aggregation_temperature"):
        start(tower, captions, aggregation_temperature=0.0)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        start(tmp_path / "nowhere.json", captions)


def test_words_in_too_few_captions_make_no_cluster_and_go_to_the_nearest(tower):
    model = start(tower, ["a dog", "a dog", "a cat"], min_count=2, num_concepts=2)
    assert sorted(model.config.words) == ["a", "cat", "dog"] and model.config.num_captions == 3
    of = dict(zip(["a", "dog", "cat"], model.space.concept_of(["a", "dog", "cat"], model.embed_words), strict=True))
    assert of["a"] != of["dog"]  # a cluster each
    embedded = unit(model.embed_words(["a", "dog", "cat"]))
    assert of["cat"] == of["a" if embedded[2] @ embedded[0] > embedded[2] @ embedded[1] else "dog"]


def test_every_field_of_the_config_is_read():
    from suma.index import confidence, video_index
    from suma.model import concept_space, config, suma

    sources = "".join(inspect.getsource(module) for module in (suma, concept_space, config, video_index, confidence))
    for name in SUMAConfig.__dataclass_fields__:
        assert f".{name}" in sources, name


# ---- options that the ablation asks for ----------------------------------------------------------------------------


def test_a_frame_grid_starts_without_effect_and_then_tells_left_from_right(tower, captions, tmp_path: Path):
    plain, model = (start(tower, captions, frame_grid=grid) for grid in (0, 2))
    pixels = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.encode_frames(pixels), plain.encode_frames(pixels), atol=1e-5)
    with torch.no_grad():
        model.grid.out.weight.normal_()
    patches = torch.zeros(2, 64, 2, 2)
    patches[0, :, :, 0] = torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    patches[1, :, :, 1] = patches[0, :, :, 0]
    left, right = model.grid(patches.flatten(2).transpose(1, 2).flatten(1))
    assert (left - right).norm() > 0.1 * left.norm()
    model.save_pretrained(tmp_path / "grid")
    again = SUMA.from_pretrained(tmp_path / "grid")
    assert torch.equal(again.encode_frames(pixels), model.encode_frames(pixels))
    kept = start(tmp_path / "grid", captions, frame_grid=2, temporal_layers=4)
    assert torch.equal(kept.grid.out.weight, model.grid.out.weight)
    with pytest.raises(ValueError, match="frame_grid"):
        start(tower, captions, frame_grid=17)


def test_a_sentence_without_supervision_is_placed_by_its_own_feature(tower, captions):
    model = start(tower, captions, anchor="self")
    texts = model.make_texts(["a dog runs", "zzz"])
    expected = F.normalize(texts.features @ model.space.concepts().T, dim=-1)
    assert torch.allclose(texts.anchors, expected, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_by_hand(tower, captions, activation: str):
    model = start(tower, captions, activation=activation)
    features = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    got, cosines = model.space.activations(features), F.normalize(features, dim=-1) @ model.space.concepts().T
    if activation == "cosine":
        assert torch.allclose(got, cosines)
    elif activation in ("relu", "top"):  # 12 concepts, fewer than are kept
        assert torch.allclose(got, cosines.clamp_min(0))
    elif activation == "sparsemax":
        assert torch.allclose(got.sum(1), torch.ones(5), atol=1e-5) and bool((got == 0).any())
        shown = [(row[row > 0], 20 * c[row > 0]) for row, c in zip(got, cosines, strict=True)]
        for row, above in shown:  # the kept ones are lowered by the same threshold
            assert torch.allclose(above - row, (above - row)[:1].expand_as(row), atol=1e-5)
    else:
        assert got.shape == cosines.shape and not torch.allclose(got, cosines)
    if activation != "cosine":
        with pytest.raises(ValueError, match="plain cosines"):
            VideoIndex(model)


def test_concepts_may_start_elsewhere(tower, captions):
    plain, sentences, rand = (start(tower, captions, concept_start=s) for s in ("tokens", "sentences", "random"))
    assert torch.equal(plain.space.word_to_concept, rand.space.word_to_concept)
    assert not torch.allclose(plain.space.centres, rand.space.centres)
    assert torch.equal(plain.space.initial_centres, rand.space.initial_centres)
    words = sentences.config.words
    mean = torch.zeros_like(sentences.space.centres).index_add_(
        0, sentences.space.word_to_concept, sentences.encode_text(words)
    )
    assert torch.allclose(F.normalize(mean, dim=-1), sentences.space.centres, atol=1e-4)
    with pytest.raises(ValueError, match="concept_start 'nowhere'"):
        start(tower, captions, concept_start="nowhere")


def test_words_are_clustered_by_vectors_of_another_origin(tower):
    vectors = {w: np.eye(2)[int(w in ("dog", "cat"))] for w in ("dog", "cat", "runs", "sits")}
    model = start(tower, ["dog cat runs sits unheard"], word_vectors=vectors, num_concepts=2)
    of = dict(zip(model.config.words, model.space.concept_of(model.config.words, model.embed_words), strict=True))
    assert of["dog"] == of["cat"] != of["runs"] == of["sits"] and of["unheard"] in (0, 1)
