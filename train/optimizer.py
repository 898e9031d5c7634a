"""What is trained and how fast: frozen parts, parameter groups, the learning rate's course."""

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
    """Leave out of the training what `c` freezes: the text tower, the image tower, or the first blocks of both.

    With the first blocks goes all that comes before them (patch and token embeddings, positions). The temperature, the
    temporal encoder and the concepts always learn, and the head that open_clip puts on a convolutional timm tower,
    which has no pretrained weights. Raises ValueError where a tower has fewer blocks.
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
            raise ValueError(f"freeze_layers={c.freeze_layers}: the {kind} tower has {blocks} blocks")
        for name, p in tower:
            early = numbers[name] < c.freeze_layers if name in numbers else not OUTPUT.search(name)
            p.requires_grad_(is_new(model, f"clip.{name}") or not (whole or (c.freeze_layers and early)))


def is_new(model: SUMA, name: str) -> bool:
    """Return True for a parameter that no pretrained backbone has: those of SUMA, and a convolutional tower's head."""
    head = name.startswith("clip.visual.head.") and is_convolutional(model.clip.visual)
    return head or not name.startswith("clip.")


def learn(model: SUMA) -> None:
    """Training mode, but for batch norms (MobileCLIP's): their statistics stay those of the pretrained tower.

    Statistics of a batch would make the gradients depend on how it is cut into chunks and shared among processes.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def parameter_groups(model: SUMA, c: TrainConfig) -> list[dict[str, Any]]:
    """Backbone and new modules, each with and without weight decay (none on vectors and scalars)."""
    groups = []
    for new, lr in ((False, c.clip_lr), (True, c.new_lr)):
        named = [(n, p) for n, p in model.named_parameters() if is_new(model, n) == new and p.requires_grad]
        for decay, matrices in ((c.weight_decay, True), (0.0, False)):
            params = [p for _, p in named if (p.ndim >= 2) == matrices]
            groups.append({"params": params, "peak": lr, "lr": lr, "weight_decay": decay})
    return groups


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak rate: linear warm-up, then cosine to 0."""
    rising = max(1, int(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising))
