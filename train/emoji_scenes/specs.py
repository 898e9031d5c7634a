"""What happens in Scenes: clips drawn at random from a seed, their twins, and the splits."""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from emoji_scenes.backgrounds import VARIANTS
from emoji_scenes.captions import LARGE, MEDIUM, SMALL, contrasting_captions, paraphrases
from emoji_scenes.render import Act, Clip, Shot
from emoji_scenes.words import ACTORS, HABITATS, MOTIONS, SETTINGS

PAIRS = (("left", "right"), ("up", "down"), ("grow", "shrink"), ("appear", "vanish"))
OPPOSITE = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
KINDS = {  # shares of the clips
    "solo": 0.25,  # one act
    "duo": 0.27,  # two actors at once
    "seq": 0.18,  # one actor, two motions in turn
    "twoact": 0.15,  # two actors in turn, in one setting
    "cut": 0.15,  # two actors in turn, each in its own setting
}
PROBES = {"order": 120, "appear/vanish": 100, "grow/shrink": 100, "up/down": 100, "left/right": 100}  # pairs
TWINS = 0.2  # pairs of twins per training clip


@dataclass(frozen=True)
class Spec:
    """A video to be written: its clip, its captions, and whether the first of these tells place and motion."""

    video_id: str
    split: str
    kind: str
    source: int  # shared by twins
    clip: Clip
    captions: tuple[str, ...]
    tells: tuple[bool, bool] = (True, True)
    probe: str = ""  # the kind of minimal pair


def held_out(clip: Clip) -> bool:
    """Return True if the clip combines an actor with a setting, motion or other actor as only test clips may."""
    keys: set[tuple[str, ...]] = {("setting", act.actor, clip.setting_of(act)) for act in clip.acts}
    if clip.frames > 1:
        keys |= {("motion", act.actor, act.motion) for act in clip.acts}
    actors = sorted({act.actor for act in clip.acts})
    if len(actors) == 2:
        keys.add(("actors", *actors))
    return any(zlib.crc32("|".join(key).encode()) % 8 == 0 for key in keys)


def is_common(clip: Clip) -> bool:
    """Return True if the clip may be in the training data."""
    return not held_out(clip)


def is_held_out_with(clip: Clip, motions: tuple[str, ...]) -> bool:
    """Return True if the clip may be in a probe of these motions."""
    return held_out(clip) and clip.acts[0].motion in motions


def face_ahead(act: Act) -> Act:
    """Return the act with its actor turned to where it goes."""
    facing = ACTORS[act.actor].facing
    if facing == "none" or act.motion not in ("left", "right"):
        return act
    return replace(act, mirror=act.motion != facing)


def draw_act(rng: random.Random, actor: str, motion: str) -> Act:
    """Return a random way for the actor to do this motion."""
    size = rng.choices((SMALL, MEDIUM, LARGE), (0.2, 0.6, 0.2))[0]
    far = 1.1 if rng.random() < 0.5 else 0.7
    return Act(
        actor=actor,
        motion=motion,
        size=rng.uniform(0.5, 0.65) if motion in ("grow", "shrink") else size,
        x=rng.uniform(0.3, 0.7),
        y=rng.uniform(0.38, 0.64),
        reach=(far, 0.85),
        tempo=rng.randrange(3),
        turn=rng.choice((-1, 1)),
        mirror=rng.random() < 0.5,
    )


def keep_apart(rng: random.Random, acts: tuple[Act, Act]) -> tuple[Act, Act]:
    """Give each of two actors its own row (if one of them travels sideways) or its own column."""
    rows = any(act.motion in ("left", "right", "zigzag") for act in acts)
    lanes = rng.sample((0.27, 0.73), 2)
    placed = []
    for act, lane in zip(acts, lanes, strict=True):
        free = rng.uniform(0.35, 0.65)
        x, y = (free, lane) if rows else (lane, free)
        size = min(act.size, 0.45 if act.motion in ("grow", "shrink") else MEDIUM)
        reach = (0.8, 0.45) if rows else (0.45, 0.85)
        placed.append(replace(act, size=size, x=x, y=y, middle=(0.5, lane) if rows else (lane, 0.5), reach=reach))
    return placed[0], placed[1]


def draw_clip(rng: random.Random, kind: str) -> Clip:
    """Return a random clip, for any split."""
    actors = rng.sample(sorted(ACTORS), 2)
    places: list[str] = []
    while len(places) < 2:
        habitat = HABITATS[ACTORS[actors[len(places)]].category]
        place = rng.choice(habitat if rng.random() < 0.75 else tuple(SETTINGS))
        if place not in places:
            places.append(place)
    if kind == "seq":
        actors[1] = actors[0]
        if rng.random() < 0.05:
            motions = rng.sample(("appear", "vanish"), 2)
        else:
            motions = rng.sample([motion for motion in MOTIONS if motion not in ("appear", "vanish")], 2)
    else:
        motions = rng.sample(list(MOTIONS), 2)
    one, two = (face_ahead(draw_act(rng, actor, motion)) for actor, motion in zip(actors, motions, strict=True))
    shots = [Shot(place, rng.randrange(VARIANTS), rng.random() < 0.5) for place in places]
    weather = rng.choices(("", "rain", "snow"), (0.84, 0.08, 0.08))[0]
    if not SETTINGS[places[0]].weather or (kind == "cut" and not SETTINGS[places[1]].weather):
        weather = ""
    acts: tuple[Act, ...]
    if kind == "solo":
        acts = (one,)
    elif kind == "duo":
        acts = keep_apart(rng, (one, two))
    else:
        if kind == "seq":
            two = face_ahead(replace(one, motion=two.motion))
            one, two = (replace(act, size=min(act.size, MEDIUM)) for act in (one, two))
        acts = in_order(one, two, kind)
    seen = (replace(shots[0], stop=0.5), replace(shots[1], start=0.5)) if kind == "cut" else (shots[0],)
    camera = rng.choices(("", "zoom", "pan"), (0.7, 0.15, 0.15))[0]
    return Clip(acts, seen, weather, camera, seed=rng.randrange(2**31))


def in_order(first: Act, second: Act, kind: str) -> tuple[Act, Act]:
    """Return the two acts, one after the other."""
    return (
        replace(first, start=0.0, stop=0.5, carries_on=False),
        replace(second, start=0.5, stop=1.0, carries_on=kind == "seq"),
    )


def twin(clip: Clip, kind: str) -> Clip | None:
    """Return the clip that differs only in time: the opposite motion, or the other order. None if there is none."""
    if kind in ("solo", "duo"):
        for index, act in enumerate(clip.acts):
            if act.motion in OPPOSITE:
                other = face_ahead(replace(act, motion=OPPOSITE[act.motion]))
                return replace(clip, acts=(*clip.acts[:index], other, *clip.acts[index + 1 :]))
        return None
    shots = clip.shots
    if kind == "cut":
        shots = (replace(shots[1], start=0.0, stop=0.5), replace(shots[0], start=0.5, stop=1.0))
    return replace(clip, acts=in_order(clip.acts[1], clip.acts[0], kind), shots=shots)


def draw_still(rng: random.Random) -> Clip:
    """Return a random clip of a single frame."""
    actor, setting = rng.choice(sorted(ACTORS)), rng.choice(list(SETTINGS))
    size = rng.uniform(0.36, 0.95)
    tilt = rng.uniform(-25, 25) if rng.random() < 0.25 else 0.0
    act = Act(
        actor, "still", size, rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.65), tilt=tilt, mirror=rng.random() < 0.5
    )
    shot = Shot(setting, rng.randrange(VARIANTS), rng.random() < 0.5)
    return Clip((act,), (shot,), shift=(rng.uniform(-1, 1), rng.uniform(-1, 1)), frames=1)


def draw_until(accept: Callable[[Clip], bool], draw: Callable[..., Clip], *arguments: object) -> Clip:
    """Return the first drawn clip that is accepted."""
    while not accept(clip := draw(*arguments)):
        pass
    return clip


def draw_pair(rng: random.Random, kind: str, accept: Callable[[Clip], bool]) -> tuple[Clip, Clip]:
    """Return the first drawn clip that is accepted, as its twin is, and its twin."""
    while True:
        clip = draw_clip(rng, kind)
        other = twin(clip, kind)
        if other is not None and accept(clip) and accept(other):
            return clip, other


def draw_training(rng: random.Random, kind: str, paired: bool) -> tuple[Clip, ...]:
    """Return a random clip without held-out combinations; if `paired`, with its twin."""
    return draw_pair(rng, kind, is_common) if paired else (draw_until(is_common, draw_clip, rng, kind),)


def draw_kind(rng: random.Random) -> str:
    """Return a random kind of clip, by the shares of KINDS."""
    return rng.choices(list(KINDS), list(KINDS.values()))[0]


def train_and_test(videos: int, seed: int) -> Iterator[Spec]:
    """Yield the training clips, then the test clips."""
    pairs = round(TWINS * videos)
    has_twin = [True] * pairs + [False] * (videos - 2 * pairs)
    random.Random(f"scenes {seed}").shuffle(has_twin)
    number = 0
    for source, paired in enumerate(has_twin):
        rng = random.Random(f"scenes {seed} train {source}")
        kind = draw_kind(rng)
        for clip in draw_training(rng, kind, paired):
            captions, tells = paraphrases(clip, kind, rng, 8)
            yield Spec(f"video{number}", "train", kind, source, clip, captions, tells)
            number += 1
    for source in range(len(has_twin), len(has_twin) + max(8, videos // 9)):
        rng = random.Random(f"scenes {seed} test {source}")
        kind = draw_kind(rng)
        clip = draw_until(held_out, draw_clip, rng, kind)
        captions, tells = paraphrases(clip, kind, rng, 1)
        yield Spec(f"video{number}", "test", kind, source, clip, captions, tells)
        number += 1


def probe(videos: int, seed: int, source: int) -> Iterator[Spec]:
    """Yield minimal pairs of held-out combinations; the captions of a pair differ in nothing but time."""
    number = 0
    for name, count in PROBES.items():
        for index in range(max(2, round(count * videos / 9000))):
            rng = random.Random(f"scenes {seed} probe {source}")
            kind = "solo" if name != "order" else ("cut", "twoact")[index % 2]
            motions = tuple(MOTIONS) if name == "order" else tuple(name.split("/"))
            pair = draw_pair(rng, kind, partial(is_held_out_with, motions=motions))
            for clip, caption in zip(pair, contrasting_captions(pair, kind, rng), strict=True):
                yield Spec(f"probe{number}", "probe", kind, source, clip, (caption,), probe=name)
                number += 1
            source += 1


def stills(videos: int, seed: int, source: int) -> Iterator[Spec]:
    """Yield single pictures without held-out combinations."""
    for number in range(max(8, round(8000 * videos / 9000))):
        rng = random.Random(f"scenes {seed} stills {source + number}")
        clip = draw_until(is_common, draw_still, rng)
        captions, tells = paraphrases(clip, "still", rng, 8)
        yield Spec(f"still{number}", "stills", "still", source + number, clip, captions, tells)


def all_specs(videos: int, seed: int) -> list[Spec]:
    """Return the videos of all splits; `videos` is the number of training clips."""
    specs = list(train_and_test(videos, seed))
    specs += probe(videos, seed, specs[-1].source + 1)
    return specs + list(stills(videos, seed, specs[-1].source + 1))
