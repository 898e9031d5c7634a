"""Sentences: shortened without a change, cut to a small vocabulary without a loss."""

import json
import random
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from suma import SUMA
from suma.model.backbone import can_shorten, encode_tokens, text_tower, token_table
from suma.model.tokenizer import CLIP_VOCABULARY, clean, load_tokenizer

MSRVTT = Path(__file__).resolve().parents[2] / "shared" / "msrvtt" / "friedrichor" / "msrvtt_train_7k.json"
SENTENCES = ["a dog", "", "the brown dog catches a red frisbee in the park and then sleeps", "z"]
ODD = [
    "!?",
    "wow!?!",
    "a dog ... 'tis the dog's!!",
    "caf\u00e9 \U0001f436\U0001f98a",
    "\u72d7\u5728\u8dd1",
    "10,000 km/h",
    "&lt;b&gt; @#%",
]


def clip_of(tower: dict[str, Any], custom: bool = False, **text_cfg: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    made = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(
        **{**tower, "text_cfg": {**tower["text_cfg"], **text_cfg}}
    )
    return made.eval()


def model_of(tower: dict[str, Any], captions: list[str], custom: bool = False, **text_cfg: Any) -> SUMA:
    cfg = {**tower, "text_cfg": {**tower["text_cfg"], **text_cfg}, "custom_text": custom}
    return SUMA.from_clip(cfg, captions, num_concepts=4, temporal_layers=0)


@pytest.mark.parametrize("text_cfg", [{}, {"pool_type": "eos", "eos_id": 1023}], ids=["argmax", "eos"])
@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
@torch.no_grad()
def test_shortened_text_has_the_features_of_the_whole_context(tower, captions, custom: bool, text_cfg: dict):
    model = model_of(tower, captions, custom, **text_cfg)
    assert isinstance(model.clip, open_clip.CustomTextCLIP) == custom
    assert can_shorten(model.clip)
    padded = model.tokenizer(SENTENCES)
    assert padded.shape == (4, 40)
    expected = model.clip.encode_text(padded)
    assert torch.allclose(encode_tokens(model.clip, model.tokenize(SENTENCES)), expected, atol=1e-5)
    for i, sentence in enumerate(SENTENCES):  # alone in its batch
        tokens = model.tokenize([sentence])
        assert tokens.shape[1] == int((padded[i] != 0).sum()) < 40
        assert torch.allclose(encode_tokens(model.clip, tokens)[0], expected[i], atol=1e-5)


@pytest.mark.parametrize("sentence", ODD)
@torch.no_grad()
def test_shortening_keeps_the_end_of_text_of_odd_sentences(tiny_model: SUMA, sentence: str):
    tokens = tiny_model.tokenize([sentence])
    assert tokens[0, -1] == 1023
    expected = tiny_model.clip.encode_text(tiny_model.tokenizer([sentence]))
    assert torch.allclose(encode_tokens(tiny_model.clip, tokens), expected, atol=1e-5)


@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
@torch.no_grad()
def test_a_tower_that_looks_at_the_padding_is_not_shortened(tower, captions, custom: bool):
    model = model_of(tower, captions, custom, no_causal_mask=True)
    assert not model.shorten
    tokens = model.tokenize(["a dog"])
    assert tokens.shape == (1, 40)
    assert torch.equal(encode_tokens(model.clip, tokens), model.clip.encode_text(tokens))


def test_a_tower_read_at_the_last_position_is_not_shortened(tower):
    assert not can_shorten(clip_of(tower, pool_type="last"))


@pytest.mark.parametrize("size", [514, 515, 1024, 4096])
def test_a_cut_vocabulary_loses_nothing(size: int):
    tokenizer = load_tokenizer("", {"context_length": 77, "vocab_size": size})
    for text in [*SENTENCES, *ODD]:
        ids = tokenizer.encode(text)
        assert all(0 <= i < size - 2 for i in ids)
        pieces, bytes_of = list(tokenizer.encoder), open_clip.SimpleTokenizer().byte_decoder
        letters = "".join(pieces[i].removesuffix("</w>") for i in ids)
        assert bytes(bytes_of[letter] for letter in letters).decode() == clean(text).replace(" ", "")
    tokens = tokenizer(["a dog"])[0]
    assert tokens[0] == size - 2 and tokens.max() == tokens[int((tokens != 0).sum()) - 1] == size - 1


def test_the_smallest_vocabulary_is_bytes():
    tokenizer = load_tokenizer("", {"vocab_size": 514})
    assert len(tokenizer.encode("dog")) == 3 and len(tokenizer.encode("\U0001f436")) == 4


def test_a_piece_has_the_id_it_has_in_clips_own_vocabulary():
    ours, clips = load_tokenizer("", {"vocab_size": 4096}), open_clip.SimpleTokenizer()
    assert list(ours.encoder)[:-2] == list(clips.encoder)[:4094] and list(ours.encoder.values()) == list(range(4096))
    assert load_tokenizer("", {}).encoder == clips.encoder


def open_clips(size: int) -> open_clip.SimpleTokenizer:
    """open_clip's own tokenizer with a vocabulary of this size: its first merges alone."""
    clips = open_clip.SimpleTokenizer()
    pieces = [*list(clips.encoder)[: size - 2], "<start_of_text>", "<end_of_text>"]
    clips.encoder = {piece: i for i, piece in enumerate(pieces)}
    clips.bpe_ranks = {pair: i for pair, i in clips.bpe_ranks.items() if i < size - 514}
    return clips


def random_sentences(count: int) -> list[str]:
    rng = random.Random(0)
    known = [
        "<start_of_text>",
        "<END_OF_TEXT>",
        "<",
        "&amp;lt;",
        "&",
        "'s",
        "'LL",
        "\u017f",
        "\ufb01",
        "\ud800",
        "a",
        "Dog",
    ]
    known += [
        " ",
        "\n",
        "\0",
        "!",
        "'",
        "\x1b[31m",
        "1",
        "\u0130",
        "caf\u00c3\u00a9",
        "\u201cup\u201d",
        "\u0665",
        "\u65e5",
    ]
    mixed = ["".join(rng.choices(known, k=rng.randint(1, 9))) for _ in range(count)]
    planes = [(1, 0x300), (0x300, 0xD7FF), (0xE000, 0x1FFFF)]
    return mixed + ["".join(chr(rng.randint(*rng.choice(planes))) for _ in range(8)) for _ in range(count)]


@pytest.mark.parametrize("size", [514, 4096, CLIP_VOCABULARY])
def test_the_tokens_are_open_clips(size: int):
    ours, clips = load_tokenizer("", {"vocab_size": size}), open_clips(size)
    for text in [*SENTENCES, *ODD, "x" * 300, "dog " * 200, *random_sentences(1000)]:
        assert ours.encode(text) == clips.encode(text), repr(text)


@pytest.mark.skipif(not MSRVTT.is_file(), reason="needs MSR-VTT's captions")
def test_the_tokens_of_real_captions_are_open_clips():
    captions = sorted({c for clip in json.loads(MSRVTT.read_text()) for c in clip["caption"]})
    odd = [caption for caption in captions if not caption.isascii() or "&" in caption]
    ours, clips = load_tokenizer("", {}), open_clip.SimpleTokenizer()
    for caption in [*odd, *captions[::40]]:
        assert ours.encode(caption) == clips.encode(caption), repr(caption)


def test_the_tensor_is_open_clips():
    clips, texts = open_clip.SimpleTokenizer(), [*SENTENCES, *ODD, "dog " * 200]
    for ours in (load_tokenizer("", {}), load_tokenizer("RN50", {}), load_tokenizer("ViT-B-32", {})):
        assert torch.equal(ours(texts), clips(texts)) and torch.equal(ours(texts, 9), clips(texts, 9))
    ids = ours.ids(texts, 77)
    assert ids.shape == (len(texts), 77) and torch.equal(torch.from_numpy(ids), clips(texts))
    assert ours.ids(texts[:1], 77).shape == (1, 4) and ours([]).shape == clips([]).shape == (0, 77)
    with pytest.raises(ValueError, match="no open_clip model"):
        load_tokenizer("ViT-B-33", {})


@pytest.mark.parametrize("size", [0, 513, CLIP_VOCABULARY + 1])
def test_a_vocabulary_outside_the_limits_is_an_error(size: int):
    with pytest.raises(ValueError, match=f"514 to 49408, got {size}"):
        load_tokenizer("", {"vocab_size": size})


@torch.no_grad()
def test_a_sentence_longer_than_the_context_is_cut_and_keeps_its_end(tiny_model: SUMA):
    tokens = tiny_model.tokenize(["dog " * 200])
    assert tokens.shape == (1, 40)
    assert tokens[0, 0] == 1022 and tokens[0, -1] == 1023
    assert tiny_model.encode_text(["dog " * 200]).isfinite().all()


@torch.no_grad()
def test_sentence_features_have_length_one_and_do_not_depend_on_the_batch(tiny_model: SUMA):
    together = tiny_model.encode_text(SENTENCES)
    assert torch.allclose(together.norm(dim=-1), torch.ones(4), atol=1e-5)
    for row, sentence in zip(together, SENTENCES, strict=True):
        assert torch.allclose(tiny_model.encode_text([sentence])[0], row, atol=1e-5)


def test_one_bare_sentence_is_an_error(tiny_model: SUMA):
    with pytest.raises(ValueError, match="list of sentences"):
        tiny_model.encode_text("a dog")


def test_both_of_open_clips_layouts_are_found(tower):
    plain, custom = clip_of(tower), clip_of(tower, custom=True)
    assert text_tower(plain) is plain and text_tower(custom) is custom.text
    assert token_table(plain).weight.shape == token_table(custom).weight.shape == (1024, 64)


def test_many_texts_are_encoded_in_runs_of_like_length_and_come_back_in_order(tiny_model: SUMA):
    sentences = ["a dog " + "runs " * (n % 7) for n in range(150)]
    tokens = tiny_model.tokenize(sentences)
    together = encode_tokens(tiny_model.clip, tokens)
    alone = torch.cat([encode_tokens(tiny_model.clip, tokens[i : i + 1]) for i in range(150)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
