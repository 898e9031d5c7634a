"""What learns, how fast, and what is frozen."""

import copy
import math

import open_clip
import pytest
import torch
from config import TrainConfig
from optimizer import freeze, learning_rate, parameter_groups, set_train_mode

from suma import SUMA
from suma.model.backbone import build_clip


def test_the_learning_rate_by_hand():
    got = [learning_rate(step, 10, 0.2) for step in range(10)]
    assert got[:3] == [0.5, 1.0, 1.0]
    assert got[6] == pytest.approx(0.5)  # half way down
    assert got[9] == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 7 / 8))
    assert got[2:] == sorted(got[2:], reverse=True)
    assert learning_rate(10, 10, 0.2) == pytest.approx(0)
    assert learning_rate(0, 10, 0.0) == learning_rate(0, 1, 0.1) == 1
    assert learning_rate(0, 1000, 0.1) == 0.01


def test_every_parameter_is_optimised_once_and_vectors_do_not_decay(tiny_model: SUMA):
    groups = parameter_groups(tiny_model, TrainConfig(clip_lr=2e-6, new_lr=3e-4, weight_decay=0.2))
    where = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(where) == len(list(tiny_model.parameters()))
    for name, p in tiny_model.named_parameters():
        group = where[id(p)]
        assert group["peak"] == group["lr"] == (2e-6 if name.startswith("clip.") else 3e-4)
        no_decay = name.endswith(("bias", "logit_scale", "class_embedding")) or "norm" in name or "ln_" in name
        assert group["weight_decay"] == (0.0 if no_decay else 0.2), name


def frozen(model: SUMA, **options: object) -> set[str]:
    """The names of the parameters that do not learn."""
    model = copy.deepcopy(model)
    freeze(model, TrainConfig(**options))
    groups = parameter_groups(model, TrainConfig())
    optimised = {id(p) for group in groups for p in group["params"]}
    assert optimised == {id(p) for p in model.parameters() if p.requires_grad}
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def test_a_frozen_tower_is_all_of_it_and_nothing_else(tiny_model: SUMA):
    names = {name for name, _ in tiny_model.named_parameters()}
    image = {name for name in names if name.startswith("clip.visual.")}
    text = {name for name in names if name.startswith("clip.")} - image - {"clip.logit_scale"}
    assert frozen(tiny_model) == set()
    assert frozen(tiny_model, freeze_image=True) == image
    assert frozen(tiny_model, freeze_text=True) == text
    assert frozen(tiny_model, freeze_image=True, freeze_text=True) == image | text


def test_the_first_blocks_are_frozen_with_all_that_comes_before_them(tiny_model: SUMA):
    names = frozen(tiny_model, freeze_layers=1)
    blocks = {name for name, _ in tiny_model.named_parameters() if ".resblocks.0." in name}
    before = {"conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"}
    text = {"clip.token_embedding.weight", "clip.positional_embedding"}
    assert names == blocks | {f"clip.visual.{name}" for name in before} | text


def test_more_blocks_than_there_are_is_an_error(tiny_model: SUMA):
    with pytest.raises(ValueError, match="freeze_layers=3"):
        frozen(tiny_model, freeze_layers=3)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("PE-Core-B-16", "visual.trunk.patch_embed.proj.weight", "visual.trunk.attn_pool.latent"),
        ("ViT-B-16-SigLIP2", "visual.trunk.pos_embed", "text.text_projection.weight"),
        ("MobileCLIP2-S0", "visual.trunk.stem.0.conv_kxk.0.conv.weight", "visual.trunk.final_conv.se.fc1.weight"),
    ],
)
def test_the_first_blocks_of_todays_backbones(tiny_model: SUMA, name: str, first: str, last: str):
    model = copy.copy(tiny_model)
    model._modules = dict(tiny_model._modules)
    with torch.device("meta"):
        model.clip = build_clip(open_clip.get_model_config(name))
    freeze(model, TrainConfig(freeze_layers=2))
    learns = {name: p.requires_grad for name, p in model.clip.named_parameters()}
    assert not learns[first] and not learns["text.token_embedding.weight"]
    assert learns[last] and learns["logit_scale"] and learns["text.ln_final.weight"]
    blocks = [learns[f"text.transformer.resblocks.{i}.mlp.c_fc.weight"] for i in range(4)]
    assert blocks == [False, False, True, True]


def test_batch_norms_keep_their_statistics(tiny_model: SUMA):
    model = copy.deepcopy(tiny_model)
    model.clip.visual = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 3, 1))
    set_train_mode(model)
    model.clip.visual(torch.randn(4, 3, 5, 5) + 3)
    assert model.training and not model.clip.visual[0].running_mean.any()
