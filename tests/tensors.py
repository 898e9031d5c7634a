"""What an index holds, in numpy, as the model's own functions take it: tensors."""

import torch

from suma import SUMA
from suma.index.scoring import Clips
from suma.model.encoder import Queries
from suma.similarity import Texts, Videos


def texts_of(queries: Queries) -> Texts:
    return Texts(*map(torch.from_numpy, queries[:2]))


@torch.no_grad()
def videos_of(model: SUMA, clips: Clips) -> Videos:
    return model.make_videos(*map(torch.from_numpy, (clips.features, clips.frames, clips.mask)))


def queries_of(texts: Texts) -> Queries:
    return Queries(*(x.detach().numpy() for x in texts))
