"""Scenes' own probes by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import Clip
from emoji_scenes.probes import moment_spans, time_probe

from suma.similarity import Texts, Videos


class Stub:
    """Stands for a model whose score of a caption and a video is a table's entry."""

    device = torch.device("cpu")

    def __init__(self, captions: list[str], scores: list[list[float]]):
        self.captions, self.scores, self.batches = captions, torch.tensor(scores), []

    def eval(self) -> None:
        pass

    def make_texts(self, sentences: list[str]) -> Texts:
        self.batches.append(sentences)
        at = torch.tensor([[self.captions.index(s)] for s in sentences])
        return Texts(at, at)

    def score(self, texts: Texts, videos: Any) -> torch.Tensor:
        return self.scores[texts.features[:, 0]]


def twin(n: int, label: str) -> Clip:
    return Clip(f"v{n}", Path("none"), ("x" * (9 - n),), 0, f"pair {n // 2}", label)


def test_the_time_probe_by_hand():
    clips = [twin(0, "order"), twin(1, "order"), twin(2, "turn"), twin(3, "turn"), twin(4, "order"), twin(5, "order")]
    scores = [
        [5, 1, 9, 9, 9, 9],  # right: only its twin counts
        [3, 2, 0, 0, 0, 0],  # wrong
        [0, 0, 4, 4, 0, 0],  # level
        [0, 0, 4, 4, 0, 0],  # level
        [0, 0, 0, 0, 2, 1],  # right
        [0, 0, 0, 0, 1, 2],  # right
    ]
    model = Stub([clip.captions[0] for clip in clips], scores)
    assert time_probe(model, clips, None) == {"order": (75.0, 2), "turn": (50.0, 1)}
    told = ["go from a to b", "go from b to a", "go a", "go b", "x then y", "y then x"]
    clips = [replace(clip, captions=(text,)) for clip, text in zip(clips, told, strict=True)]
    clips = [replace(clip, label=label) for clip, label in zip(clips, ["side"] * 4 + ["order"] * 2, strict=True)]
    found = time_probe(Stub(told, scores), clips, None)
    assert found == {"order": (100.0, 1), "side": (50.0, 2), "side, the same words in another order": (50.0, 1)}
    with pytest.raises(ValueError, match="pair 1"):
        time_probe(model, clips[:3], None)


def test_the_spans_of_two_successive_events_by_hand():
    def make_texts(sentences: list[str]) -> Texts:  # the first event of a clip looks one way, the second another
        assert all("dog" in s or "hound" in s or "puppy" in s for s in sentences) and len(sentences) == 4
        at = torch.eye(2)[[int("spins" in s) for s in sentences]]
        return Texts(at, torch.zeros(4, 1))

    model = SimpleNamespace(
        device=torch.device("cpu"),
        eval=lambda: None,
        make_texts=make_texts,
        config=SimpleNamespace(concept_share=0.0),
    )
    actor = {
        "name": "dog",
        "setting": "snow",
        "actions": [["grow", 0.0, 2.0], ["spin", 2.0, 4.0]],
        "boxes": [None] * 40,
    }
    scene = {"kind": "seq", "fps": 10, "actors": [actor]}
    clips = [Clip(f"v{n}", Path("none"), ("x",), 0, "s", "Scenes") for n in range(3)]
    scenes = {"v0": scene, "v1": scene, "v2": {**scene, "kind": "solo"}}
    frames = torch.zeros(3, 8, 2)
    frames[0, :4, 0] = frames[0, 4:, 1] = 1.0  # each event in its half
    frames[1, :, 0] = frames[1, 7, 1] = 1.0  # the first event everywhere, the second in the last frame alone
    videos = Videos(frames[:, 0], frames, torch.ones(3, 8, dtype=torch.bool), frames[:, 0, :1], frames[..., :1])
    found = moment_spans(model, clips, videos, scenes)
    # spans: [0, 2] and [2, 4], then [0, 4] and [3.5, 4]; halves: [0, 1.25], [1.25, 3.25], [0, 1.25], [2.75, 4]
    assert found["span, IoU 0.5"] == (75.0, 4) and found["span, IoU 0.7"] == (50.0, 4)
    assert found["half of the video, IoU 0.5"][0] == 75.0 and found["half of the video, IoU 0.7"][0] == 0.0
