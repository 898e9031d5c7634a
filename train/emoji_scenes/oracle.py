"""The upper bound on Scenes: text to video R@1 of a reader who knows the specs, with and without time."""

import numpy as np

from emoji_scenes.specs import Spec


def features(spec: Spec) -> dict[str, list[tuple]]:
    """Return what a reader of the spec can match: actors, settings, motions, and who does what where in which order."""
    found: dict[str, list[tuple]] = {"actors": [], "settings": [], "motions": [], "place order": [], "motion order": []}
    for act in spec.clip.acts:
        setting, when = spec.clip.setting_of(act), (act.start, act.stop)
        found["actors"].append((act.actor,))
        found["settings"].append((setting,))
        found["motions"].append((act.motion,))
        found["place order"] += [(act.actor, setting), (act.actor, when)]
        found["motion order"] += [(act.actor, act.motion), (act.actor, act.motion, when)]
    return found


def recall_at_1(specs: list[Spec], weights: dict[str, float]) -> float:
    """Return text to video R@1 in percent of a reader who compares what the captions tell with the specs.

    A caption with n best videos counts 1/n.
    """
    scores = np.zeros((len(specs), len(specs)))
    parsed = [features(spec) for spec in specs]
    for name, weight in weights.items():
        index = {key: i for i, key in enumerate(sorted({key for found in parsed for key in found[name]}, key=str))}
        holds = np.zeros((len(specs), len(index)))
        for line, found in zip(holds, parsed, strict=True):
            line[[index[key] for key in found[name]]] = 1
        place = np.array([[spec.tells[0]] for spec in specs])
        motion = np.array([[spec.tells[1]] for spec in specs])
        told = place if name == "settings" else motion if name.startswith("motion") else np.ones_like(place)
        scores += weight * ((holds * told) @ holds.T - 0.2 * told * holds.sum(1))
    best = scores >= scores.max(1, keepdims=True) - 1e-9
    return 100 * float(np.mean(np.diag(best) / best.sum(1)))


def oracle_table(specs: list[Spec]) -> str:
    """Return a table of R@1 on the test clips, of readers who know more or less."""
    unordered: dict[str, float] = {"actors": 3, "settings": 2}
    readers: dict[str, dict[str, float]] = {
        "actors + settings + motions, in order": {**unordered, "motions": 1, "place order": 1, "motion order": 1},
        "actors + settings, without time": unordered,
        "actors only": {"actors": 1},
        "settings only": {"settings": 1},
        "motions only": {"motions": 1},
    }
    test = [spec for spec in specs if spec.split == "test"]
    lines = [f"{'a reader of the specs knows':40} T2V R@1 ({len(test)} test clips)"]
    return "\n".join(lines + [f"{name:40} {recall_at_1(test, weights):5.1f}" for name, weights in readers.items()])
