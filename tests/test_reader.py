"""A TextEncoder is the model for texts, without torch: the same features, anchors, scores and answers."""

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from clips import noise_picture, write_video
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from suma import SUMA, VideoIndex
from suma.explain import explain
from suma.model.backbone import build_clip
from suma.model.checkpoint import CONFIG, WEIGHTS
from suma.model.config import fingerprint
from suma.model.text_encoder import TextEncoder, _shapes, erf, load_for_search, supports
from suma.model.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
SENTENCES = [
    "a dog runs",
    "A  man's hat &amp; 2 cafés?!",
    "",
    "日本語 🐕 it's they'll",
    "x" * 300,
    "a b c d e f g h i j k",
]


def close(got: np.ndarray, expected: np.ndarray, atol: float = 1e-5) -> bool:
    return got.shape == expected.shape and got.dtype == expected.dtype and np.allclose(got, expected, atol=atol)


@pytest.fixture
def folder(tiny_model: SUMA, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("embed_dim", [64, 48])
def test_its_texts_are_the_models(tower: dict, captions, tmp_path: Path, quick: bool, embed_dim: int):
    model = SUMA.from_clip({**tower, "quick_gelu": quick, "embed_dim": embed_dim}, captions, num_concepts=12)
    model.save_pretrained(tmp_path)
    reader = load_for_search(tmp_path)
    assert isinstance(reader, TextEncoder)
    assert (reader.fingerprint(), reader.dim) == (model.fingerprint(), embed_dim)
    for got, expected in zip(reader.encode_queries(SENTENCES)[:2], model.encode_queries(SENTENCES)[:2], strict=True):
        assert close(got, expected)
    assert close(reader.embed_words(["frisbee", "日本"]), model.embed_words(["frisbee", "日本"]))
    assert close(reader.concepts(), model.concepts())


def test_a_space_without_supervision_too(tower: dict, captions, tmp_path: Path):
    model = SUMA.from_clip(tower, captions, num_concepts=12, anchor="self")
    model.save_pretrained(tmp_path)
    reader = load_for_search(tmp_path)
    for got, expected in zip(reader.encode_queries(SENTENCES)[:2], model.encode_queries(SENTENCES)[:2], strict=True):
        assert close(got, expected)


def test_its_answers_are_the_models(folder: Path, tmp_path: Path):
    (tmp_path / "videos").mkdir()
    for n in range(5):
        write_video(
            tmp_path / "videos" / f"{n}.mp4", 15 + n, picture=lambda i, w, h, n=n: noise_picture(n + i // 5, w, h)
        )
    whole = VideoIndex(SUMA.from_pretrained(folder), segment=0)
    whole.add(tmp_path / "videos", workers=1)
    whole.set_captions(["a dog runs", "two cats", "snow falls on a red ball"])
    whole.save(tmp_path / "index")
    alone = VideoIndex.load(tmp_path / "index", load_for_search(folder))
    inside, outside = tmp_path / "videos" / "2.mp4", write_video(tmp_path / "other.mp4", picture=noise_picture)

    def same(got: list, expected: list) -> None:
        assert len(got) == len(expected) > 0
        for a, b in zip(got, expected, strict=True):
            numbers = [(getattr(m, "score", None) or m[1]) if not isinstance(m, str) else 0 for m in (a, b)]
            assert abs(numbers[0] - numbers[1]) <= 2e-4
        if hasattr(got[0], "path"):
            assert [(m.path, m.moment, m.concepts and m.concepts[0][0]) for m in got] == [
                (m.path, m.moment, m.concepts and m.concepts[0][0]) for m in expected
            ]
        else:
            assert [caption for caption, _ in got] == [caption for caption, _ in expected]

    for query in ("a dog runs", 'a red ball +"two cats"^0.5 -snow', "[ball 0.8] [snow -1]", "a dog [cat 1] longer:0.1"):
        same(alone.search(query), whole.search(query))
        same(alone.search(query, hubness=True), whole.search(query, hubness=True))
    same(alone.search("a dog", within=inside), whole.search("a dog", within=inside))
    same(alone.similar(inside), whole.similar(inside))
    same(alone.captions(inside), whole.captions(inside))
    told, expected = explain(alone, inside, "a dog runs"), explain(whole, inside, "a dog runs")
    assert told.score == pytest.approx(expected.score, abs=1e-5)
    assert [c.id for c in told.concepts] == [c.id for c in expected.concepts]
    assert [c.id for c in explain(alone, inside).concepts] == [c.id for c in explain(whole, inside).concepts]
    same(alone.similar(outside), whole.similar(outside))  # read and encoded by the whole model
    same(alone.search("a dog", within=outside), whole.search("a dog", within=outside))
    assert alone.add(outside, workers=1).added == [str(outside)]
    same(alone.search("a dog runs"), VideoIndex.load(tmp_path / "index", whole.model).search("a dog runs"))


def test_videos_are_encoded_by_the_model_that_was_read(folder: Path):
    changed, weights = load_for_search(folder), load_file(folder / WEIGHTS)
    weights["space.centres"] += 1
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(RuntimeError, match="has changed"):
        changed.encode_videos([])


def told_by(folder: Path) -> dict[str, str]:
    with safe_open(folder / WEIGHTS, "np") as content:
        return content.metadata()


def computed(folder: Path) -> str:
    """The fingerprint of a folder's weights as they are, whatever the file says."""
    model = SUMA.from_pretrained(folder)
    return fingerprint(model.config, ((n, x.numpy()) for n, x in sorted(model.state_dict().items())))


def both(folder: Path) -> set[str]:
    return {load_for_search(folder).fingerprint(), SUMA.from_pretrained(folder).fingerprint()}


def test_a_saved_model_tells_its_fingerprint_and_is_not_hashed_again(folder: Path, tiny_model: SUMA):
    told = told_by(folder)
    assert told["fingerprint"] == tiny_model.fingerprint() == computed(folder) and both(folder) == {computed(folder)}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {**told, "fingerprint": "trusted"})
    assert both(folder) == {"trusted"}
    with pytest.raises(RuntimeError, match=f"damaged.*{tiny_model.fingerprint()}.*trusted"):
        SUMA.from_pretrained(folder).verify()


@pytest.mark.parametrize(
    "name", ["clip.logit_scale", "clip.visual.conv1.weight", "temporal.positions", "space.centres"]
)
def test_a_fingerprint_of_other_weights_is_not_believed(folder: Path, tiny_model: SUMA, name: str):
    weights, told = load_file(folder / WEIGHTS), told_by(folder)
    save_file({**weights, name: weights[name] + 1}, folder / WEIGHTS, told)
    assert both(folder) == {computed(folder)} != {tiny_model.fingerprint()}
    model = SUMA.from_pretrained(folder)
    model.verify()
    model.save_pretrained(folder)
    assert told_by(folder)["fingerprint"] == computed(folder)


def test_nor_one_of_another_config_and_none_is_needed(folder: Path, tiny_model: SUMA):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "concept_share": 0.7}))
    assert both(folder) == {computed(folder)} != {tiny_model.fingerprint()}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    assert both(folder) == {tiny_model.fingerprint()}


def test_a_weight_changed_in_its_middle_is_found_by_verify(folder: Path):
    weights, told = load_file(folder / WEIGHTS), told_by(folder)
    weights["space.centres"][1, 20] += 1
    save_file(weights, folder / WEIGHTS, told)
    with pytest.raises(RuntimeError, match="damaged"):
        SUMA.from_pretrained(folder).verify()


def test_a_loaded_model_that_is_trained_has_another_fingerprint(folder: Path, tiny_model: SUMA):
    model = SUMA.from_pretrained(folder)
    with torch.no_grad():
        model.concept_logit_scale += 1
    assert model.fingerprint() != tiny_model.fingerprint()


def test_wrong_weights_are_never_read(folder: Path):
    whole = load_file(folder / WEIGHTS)
    for change in ("clip.ln_final.weight", "space.word_to_concept", "clip.transformer.resblocks.0.mlp.c_fc.weight"):
        for weights in (
            {name: x for name, x in whole.items() if name != change},
            {**whole, change: whole[change][1:].clone()},
        ):
            save_file(weights, folder / WEIGHTS)
            with pytest.raises(RuntimeError, match=change):
                load_for_search(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(RuntimeError, match="not a whole safetensors file"):
        load_for_search(folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "format_version": 2}))
    with pytest.raises(ValueError, match="format_version 2"):
        load_for_search(folder)


def test_what_numpy_cannot_read_is_read_by_torch(folder: Path, tiny_model: SUMA):
    half = {n: x.bfloat16() if x.is_floating_point() else x for n, x in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS)
    model = load_for_search(folder)
    assert isinstance(model, SUMA) and model.fingerprint() != tiny_model.fingerprint()


def test_float16_weights_are_the_float32_model_that_they_load_as(folder: Path):
    half = {n: x.half() if x.is_floating_point() else x for n, x in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS)
    reader, model = load_for_search(folder), SUMA.from_pretrained(folder)
    assert isinstance(reader, TextEncoder) and reader.fingerprint() == model.fingerprint()
    assert close(reader.encode_queries(SENTENCES).features, model.encode_queries(SENTENCES).features)


def test_towers_of_other_kinds_are_left_to_open_clip():
    fitting = {name for name in open_clip.list_models() if supports(open_clip.get_model_config(name))}
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14-336", "RN50"} <= fitting
    assert not {"PE-Core-B-16", "ViT-B-16-SigLIP2", "MobileCLIP2-S0", "coca_ViT-B-32", "roberta-ViT-B-32"} & fitting


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-S-32-alt"])
def test_the_weights_that_it_needs_have_open_clips_names_and_shapes(name: str, tiny_model: SUMA):
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"):  # shapes without memory
        theirs = {f"clip.{n}": tuple(x.shape) for n, x in build_clip(cfg).state_dict().items()}
    config = type(tiny_model.config)(cfg, {}, words=["a", "b"], word_counts=[1, 1], num_concepts=2)
    needed = {n: shape for n, shape in _shapes(config).items() if n.startswith("clip.")}
    assert needed.items() <= theirs.items()
    assert {n for n in theirs if not n.startswith(("clip.visual", "clip.logit"))} == set(needed)


def test_a_sentences_ids_are_those_of_its_tensor():
    tokenizer = load_tokenizer("", {"vocab_size": 4096})
    ids, tokens = tokenizer.encode("a dog runs"), tokenizer(["a dog runs"])
    assert tokens.shape == (1, 77) and tokens[0, 1 : 1 + len(ids)].tolist() == ids and len(ids) >= 3


def test_no_sentence_has_no_feature_and_a_bare_one_is_an_error(folder: Path, tiny_model: SUMA):
    reader = load_for_search(folder)
    assert isinstance(reader, TextEncoder)
    for got, expected in zip(reader.encode_queries([])[:2], tiny_model.encode_queries([])[:2], strict=True):
        assert close(got, expected)
    with pytest.raises(ValueError, match="list of sentences"):
        reader.encode_queries("a dog")


def test_the_error_function_is_as_exact_as_float32():
    x = np.linspace(-6, 6, 10_001)
    assert np.abs(erf(x) - np.array([math.erf(v) for v in x])).max() < 2e-7
    assert erf(np.float32([0, -1e9, 1e9])).tolist() == [0, -1, 1]


@torch.no_grad()
def test_a_model_in_bfloat16_reads_words_that_it_never_saw(tiny_model: SUMA, folder: Path):
    model = SUMA.from_pretrained(folder).to(torch.bfloat16)
    words = ["frisbee", "dog", "qwertyish", "zebra"]
    assert model.space.concept_of(words, model.embed_words) == tiny_model.space.concept_of(
        words, tiny_model.embed_words
    )
