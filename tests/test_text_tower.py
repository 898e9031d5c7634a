"""The text tower alone is open_clip's, without open_clip."""

import random
from pathlib import Path

import open_clip
import pytest
import torch

from suma import SUMA, text
from suma.backbone import build_clip
from suma.text_tower import TextTower, fits

SENTENCES = [
    "a dog runs",
    "A  man's hat &amp; 2 cafés?!",
    "",
    "日本語 🐕 it's they'll",
    "x" * 300,
    "a b c d e f g h i j k",
]


@pytest.mark.parametrize("quick", [False, True])
def test_its_features_are_open_clips(tower: dict, quick: bool):
    cfg = {**tower, "quick_gelu": quick}
    assert fits(cfg)
    whole, alone = build_clip(cfg).eval(), TextTower(cfg).eval()
    weights = {name: x for name, x in whole.state_dict().items() if not name.startswith("visual.")}
    alone.load_state_dict(weights, strict=True)
    assert text.can_shorten(alone)
    tokens = text.tokenize(text.load_tokenizer("", cfg["text_cfg"]), SENTENCES, 40, shorten=False)
    with torch.no_grad():
        expected = whole.encode_text(tokens)
        assert torch.allclose(text.encode_tokens(alone, tokens), expected, atol=1e-6)
        assert torch.allclose(text.encode_tokens(whole, tokens), expected, atol=1e-6)


def test_towers_of_other_kinds_are_left_to_open_clip():
    fitting = {name for name in open_clip.list_models() if fits(open_clip.get_model_config(name))}
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14-336", "RN50"} <= fitting
    others = {"PE-Core-B-16", "ViT-B-16-SigLIP2", "MobileCLIP2-S0", "coca_ViT-B-32", "roberta-ViT-B-32", "ViT-B-32-alt"}
    assert not others - {"ViT-B-32-alt"} & fitting
    for name in fitting & {"ViT-B-32", "RN50", "ViT-B-32-alt"}:
        weights = build_clip(open_clip.get_model_config(name)).state_dict()
        alone = TextTower(open_clip.get_model_config(name)).state_dict()
        assert {n: x.shape for n, x in weights.items() if not n.startswith("visual.")} == {
            n: x.shape for n, x in alone.items()
        }


def test_a_text_only_model_is_the_model_for_texts(tiny_model: SUMA, tmp_path: Path):
    tiny_model.save_pretrained(tmp_path)
    whole, alone = SUMA.from_pretrained(tmp_path), SUMA.from_pretrained(tmp_path, text_only=True)
    assert isinstance(alone.clip, TextTower) and alone.temporal is None
    assert alone.fingerprint() == whole.fingerprint() == tiny_model.fingerprint()
    with torch.no_grad():
        for got, expected in zip(alone.texts(SENTENCES[:2]), whole.texts(SENTENCES[:2]), strict=True):
            assert torch.allclose(got, expected, atol=1e-6)
    with pytest.raises(RuntimeError, match="text_only"):
        alone.encode_frames(torch.zeros(1, 3, 32, 32))


def test_the_tokenizer_is_open_clips():
    ours, theirs = text.load_tokenizer("ViT-B-32", {}), open_clip.get_tokenizer("ViT-B-32")
    random.seed(0)
    letters = "abc dé日🐕'!&;<>09\n\t"
    sentences = SENTENCES + ["".join(random.choices(letters, k=30)) for _ in range(200)]
    assert torch.equal(ours(sentences), theirs(sentences))
    with pytest.raises(ValueError, match="no open_clip model"):
        text.load_tokenizer("ViT-B-33", {})
