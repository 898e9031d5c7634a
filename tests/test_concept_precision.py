"""Mean average precision of concepts, against a ranking written down by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import Clip
from metrics import LEAST, average_precision, concept_precision, named_concepts

from suma import SUMA
from suma.similarity import Videos


def clips_saying(*captions: str) -> list[Clip]:
    return [Clip(str(n), Path(str(n)), (caption,), 0, str(n), "") for n, caption in enumerate(captions)]


def test_average_precision_by_hand():
    true = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), true) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(np.array([4.0, 1.0, 3.0, 2.0]), true) == 1


def test_concepts_are_named_by_the_models_own_words_alone(tiny_model: SUMA):
    word = tiny_model.space.words[0]
    named = named_concepts(tiny_model, clips_saying(f"the {word}", "zyzzyva"))
    assert named[0, int(tiny_model.space.word_to_concept[0])] and not named[1].any()


def test_videos_that_lie_on_the_concept_that_they_name_have_perfect_precision(tiny_model: SUMA):
    concepts = tiny_model.space.concepts().detach()
    words = [(tiny_model.space.members(k) or [""])[0] for k in range(len(concepts))]
    a, b = [k for k, word in enumerate(words) if word][:2]
    order = [a, b] * LEAST
    features = concepts[order]
    videos = Videos(
        features, features[:, None], torch.ones(2 * LEAST, 1, dtype=torch.bool), features, features[:, None]
    )
    clips = clips_saying(*(words[k] for k in order))
    right = concept_precision(tiny_model, clips, videos)
    assert right == {"map": 100, "chance": 50, "concepts": 2}
    swapped = videos._replace(features=features.flip(0))
    assert concept_precision(tiny_model, clips, swapped)["map"] < 40
    fewer = Videos(*(x[2:] for x in videos))
    assert concept_precision(tiny_model, clips[2:], fewer) == {"map": 0, "chance": 0, "concepts": 0}
