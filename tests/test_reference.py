"""Our frame and text features against open_clip's own evaluation and transformers, from the file on."""

from pathlib import Path

import av
import clips
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from test_backbones import tokenizer_folder  # noqa: F401  (a fixture)
from torch import Tensor

from suma import SUMA
from suma.video.frames import read_frames
from suma.video.preprocess import resize_frames

SENTENCES = ["a dog runs", "Two red cars, on a road!", "a man plays the guitar in a kitchen"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 8 frames, 240 x 180, of coloured waves that move."""

    def waves(n: int, height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        three = [np.sin(x / (9 + c) + n) * np.cos(y / (23 - c) - n * c) for c in range(3)]
        return (127 + 120 * np.stack(three, -1)).astype(np.uint8)

    path = tmp_path_factory.mktemp("reference") / "waves.mp4"
    return clips.write_video(path, 8, (240, 180), picture=waves)


def ours(model: SUMA, video: Path) -> Tensor:
    """Frame features (4, D), read and encoded as an index does it."""
    image, frames = model.config.image, read_frames(video, 4).frames
    return model.encode_frames(resize_frames(frames, image["size"], image["resize_mode"], image["interpolation"]))


def pictures(video: Path) -> list[Image.Image]:
    """The frames in the middle of each quarter, decoded by PyAV alone."""
    with av.open(str(video)) as container:
        return [frame.to_image() for frame in container.decode(video=0)][1::2]


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Equal to TOLERANCE, where rows differ by far more than that."""
    found, expected = unit(found), unit(expected)
    assert (expected[0] - expected[1]).abs().max() > 20 * TOLERANCE
    assert (found - expected).abs().max() < TOLERANCE


@torch.no_grad()
def check(model: SUMA, name: str, video: Path) -> None:
    cfg = open_clip.get_pretrained_cfg(name, open_clip.list_pretrained_tags_by_model(name)[0])
    keys = ("mean", "std", "interpolation", "resize_mode")
    size = model.clip.visual.image_size
    transform = open_clip.image_transform(size, is_train=False, **{key: cfg[key] for key in keys})
    expected = model.clip.encode_image(torch.stack([transform(picture) for picture in pictures(video)]))
    assert_equal(ours(model, video), expected)
    assert_equal(model.encode_text(SENTENCES), model.clip.encode_text(model.tokenizer(SENTENCES)))


@pytest.fixture(scope="module")
def two_layers() -> SUMA:
    """A ViT-B-32 with two layers in each tower."""
    cfg = open_clip.get_model_config("ViT-B-32")
    cfg["vision_cfg"]["layers"] = cfg["text_cfg"]["layers"] = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", cfg)
        return SUMA.from_clip("ViT-B-32", SENTENCES, num_concepts=2, temporal_layers=0)


def test_towers_of_two_layers_give_the_features_of_open_clips_evaluation(two_layers: SUMA, video):
    check(two_layers, "ViT-B-32", video)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "PE-Core-B-16", "ViT-B-16-SigLIP2"])
def test_a_backbone_gives_the_features_of_open_clips_evaluation(name: str, video, request: pytest.FixtureRequest):
    folder = request.getfixturevalue("tokenizer_folder") if "SigLIP" in name else None
    model = SUMA.from_clip(name, SENTENCES, num_concepts=2, temporal_layers=0, tokenizer_folder=folder)
    check(model, name, video)


def transformers_state(clip: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of an open_clip ViT under the names that transformers' CLIPModel has for them."""
    state, out = clip.state_dict(), {}
    renamed = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
    }
    inside = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, x in state.items():
        if name in ("visual.proj", "text_projection"):
            out[f"{'visual' if 'visual' in name else 'text'}_projection.weight"] = x.T
        elif "resblocks" in name:
            side = "vision" if name.startswith("visual") else "text"
            n, rest = name.split("resblocks.")[1].split(".", 1)
            layer = f"{side}_model.encoder.layers.{n}."
            if "in_proj" in rest:
                for part, piece in zip("qkv", x.chunk(3), strict=True):
                    out[f"{layer}self_attn.{part}_proj.{rest.split('in_proj_')[1]}"] = piece
            else:
                part, kind = rest.rsplit(".", 1)
                out[f"{layer}{inside[part]}.{kind}"] = x
        elif name != "logit_scale":
            part = next(p for p in sorted(renamed, key=len, reverse=True) if name.startswith(p))
            out[renamed[part] + name.removeprefix(part)] = x
    return out


@torch.no_grad()
def test_towers_of_two_layers_give_the_features_of_transformers(two_layers: SUMA, video):
    transformers = pytest.importorskip("transformers")
    model = two_layers
    two = {"num_hidden_layers": 2, "hidden_act": "gelu"}
    text, vision = {**two, "eos_token_id": 49407, "bos_token_id": 49406}, {**two, "patch_size": 32}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).eval()
    missing, left_over = theirs.load_state_dict(transformers_state(model.clip), strict=False)
    assert set(missing) <= {"logit_scale"} and not left_over
    processor = transformers.CLIPImageProcessor()
    pixels = processor(pictures(video), return_tensors="pt")["pixel_values"]
    assert_equal(ours(model, video), features(theirs.get_image_features(pixel_values=pixels)))
    tokens = model.tokenizer(SENTENCES)
    assert_equal(model.encode_text(SENTENCES), features(theirs.get_text_features(input_ids=tokens)))


def features(found: object) -> Tensor:
    """The tensor, also of versions that wrap it."""
    return found if isinstance(found, Tensor) else found.pooler_output  # type: ignore[attr-defined]
