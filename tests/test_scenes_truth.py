"""Scenes' error analysis and the concepts' purity, by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks import Clip
from emoji_scenes import probes
from emoji_scenes.probes import average_precision, count_errors, difference, naming_words, one_act, purity

from suma.similarity import Videos


def scene(*actors: tuple[str, str, str, float], kind: str = "solo") -> dict:
    """name, setting, action, start of each actor; it is seen for two of the four seconds."""
    told = []
    for name, setting, action, start in actors:
        boxes = [[0, 0, 9, 9] if start <= f < start + 2 else None for f in range(4)]
        told.append({"name": name, "setting": setting, "actions": [[action, start, start + 2]], "boxes": boxes})
    return {"kind": kind, "fps": 1, "actors": told}


DOG, CAT = ("dog", "snow", "left", 0.0), ("cat", "snow", "up", 2.0)


def test_the_first_difference_is_named():
    assert difference(scene(DOG), scene(CAT)) == "actor"
    assert difference(scene(DOG), scene(("dog", "beach", "left", 0.0))) == "setting"
    assert difference(scene(DOG), scene(("dog", "snow", "right", 0.0))) == "action"
    assert difference(scene(DOG, CAT), scene(("dog", "snow", "left", 2.0), ("cat", "snow", "up", 0.0))) == "order"
    assert difference(scene(DOG), scene(DOG)) == "nothing"


def clip(n: int) -> Clip:
    return Clip(f"v{n}", Path("none"), ("x",), 0, str(n), "Scenes")


def test_errors_are_counted_by_kind_and_by_what_is_wrong():
    scenes = {"v0": scene(DOG), "v1": scene(("dog", "snow", "right", 0.0)), "v2": scene(CAT, kind="cut")}
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 0.5]])
    before = scores.clone()
    found = count_errors(scores, [clip(n) for n in range(3)], scenes)
    assert torch.equal(scores, before)
    assert found["by kind"] == {"cut": (0.0, 1), "solo": (50.0, 2)}
    wrong = found["wrong first"]
    assert wrong["action"] == (50.0, 1) and wrong["actor"] == (50.0, 1) and wrong["order"] == (0.0, 0)


def test_one_act_is_asked_for_where_one_video_answers(monkeypatch: pytest.MonkeyPatch):
    down = ("cat", "snow", "down", 0.0)
    scenes = {"v0": scene(DOG), "v1": scene(DOG, CAT, kind="duo"), "v2": scene(down, kind="cut")}
    asked: list[str] = []
    monkeypatch.setattr(probes, "encode_captions", lambda model, queries: asked.extend(queries))
    always_the_second = SimpleNamespace(score=lambda texts, videos: torch.tensor([[0.0, 1.0, 0.5]] * len(asked)))
    found = one_act(always_the_second, [clip(n) for n in range(3)], None, scenes)  # type: ignore[arg-type]
    assert found == {"cut": (0.0, 1), "duo": (100.0, 1)} and len(asked) == 2  # the dog goes left in two of them
    assert all(query.split()[0] in ("a", "some", "an") for query in asked), asked


def test_average_precision_by_hand():
    true = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), true) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([1.0, 2.0, 0.0, 3.0]), true) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_words_of_several_things_name_none():
    found = naming_words()
    assert "dog" in found["actor dog"] and "puppy" in found["actor dog"]
    words = [w for own in found.values() for w in own]
    assert len(words) == len(set(words)) and not {"in", "the", "left"} & set(words)


def test_a_concept_that_fires_where_its_actor_is_is_pure():
    members = {0: ["dog", "puppy"], 1: ["cat"], 2: ["the"], 3: ["horse"], 4: ["bus", "bee"], 5: ["of"]}
    space = SimpleNamespace(num_concepts=6, members=members.__getitem__)
    scenes = {"v0": scene(DOG, CAT)}
    heat = torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(0)) * 0.1
    heat[0, :2, 0] += 1  # the dog, while it is there
    heat[0, :2, 1] += 1  # the cat, while it is not
    videos = Videos(torch.zeros(1, 2), torch.zeros(1, 4, 2), torch.ones(1, 4, dtype=torch.bool), heat[:, 0], heat)
    found = purity(SimpleNamespace(space=space), [clip(0)], videos, scenes)
    apart = (1 / 3 + 2 / 4) / 2  # of the cat: its two frames come last
    assert found["average precision"][0] == pytest.approx(50 * (1 + apart))
    assert found["average precision"][1] == pytest.approx(50)
    assert found["names"][0] == pytest.approx(50)  # dog and puppy, bus and bee
