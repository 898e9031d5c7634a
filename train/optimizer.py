"""Which weights are trained and how fast: frozen parts, parameter groups, the learning rate over time."""

import math
import re
from typing import Any

from config import TrainConfig
from torch import nn

from suma.model.backbone import is_convolutional
from suma.model.suma import SUMA

BLOCK = re.compile(r"\.(?:resblocks|blocks|layers|layer|stages)\.(\d+)\.")  # of open_clip's, timm's and Hub towers
OUTPUT = re.compile(
    r"(ln_post|ln_final|projection|\.proj$|\.head|attn_pool|final_conv|fc_norm|trunk\.norm\.|conv_head|trunk\.bn2)"
)  # after the blocks


def freeze(model: SUMA, c: TrainConfig) -> None:
    """Exclude from training what `c` freezes: the text tower, the image tower, or the first blocks of both.

    The embeddings and positions before the first blocks are frozen with them. Never frozen are the temperature, the
    temporal encoder, the concepts, and the head that open_clip adds to a convolutional timm tower, which has no
    pretrained weights. Raise ValueError if a tower has fewer blocks.
    """
    for of_image, whole in ((True, c.freeze_image), (False, c.freeze_text)):
        tower = [
            (name, p)
            for name, p in model.clip.named_parameters()
            if name.startswith("visual.") == of_image and not name.startswith("logit_")
        ]
        numbers = {name: int(found[1]) for name, _ in tower if (found := BLOCK.search(f".{name}"))}
        blocks = 1 + max(numbers.values(), default=-1)
        if not whole and c.freeze_layers > blocks:
            kind = "image" if of_image else "text"
            raise ValueError(f"freeze_layers={c.freeze_layers}: the {kind} tower has {blocks} blocks; give fewer")
        for name, p in tower:
            early = numbers[name] < c.freeze_layers if name in numbers else not OUTPUT.search(name)
            p.requires_grad_(is_new(model, f"clip.{name}") or not (whole or (c.freeze_layers and early)))


def is_new(model: SUMA, name: str) -> bool:
    """Return True for a parameter that has no pretrained weights: those of SUMA, and a convolutional tower's head."""
    head = name.startswith("clip.visual.head.") and is_convolutional(model.clip.visual)
    return head or not name.startswith("clip.")


def set_train_mode(model: SUMA) -> None:
    """Set the model to training mode, except batch norms: these keep the statistics of the pretrained tower.

    Statistics of a batch would make the gradients depend on how the batch is cut into chunks and shared by processes.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def parameter_groups(model: SUMA, c: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameters of the backbone and of the new modules, each with and without weight decay.

    Vectors and scalars have no weight decay.
    """
    groups = []
    for new, lr in ((False, c.clip_lr), (True, c.new_lr)):
        named = [(n, p) for n, p in model.named_parameters() if is_new(model, n) == new and p.requires_grad]
        for decay, matrices in ((c.weight_decay, True), (0.0, False)):
            params = [p for _, p in named if (p.ndim >= 2) == matrices]
            groups.append({"params": params, "peak": lr, "lr": lr, "weight_decay": decay})
    return groups


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the peak rate at a step: linear warm-up, then a cosine to 0."""
    rising = max(1, int(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising))
