"""Further training data of Scenes: short captions as visitors type them, mirrored pictures, and more clips."""

import random
from collections.abc import Iterator
from dataclasses import replace

from emoji_scenes import visitors
from emoji_scenes.captions import Wording, choose_words, inflect, is_clear, paraphrases, pick, with_article
from emoji_scenes.render import Act, Clip
from emoji_scenes.specs import TWINS, Spec, draw_kind, draw_still, draw_training, draw_until, is_common
from emoji_scenes.words import ACTORS, SIDES, VERBS

SHORT = 8  # short captions of each training clip
MIRRORED = 1 / 3  # mirrored pictures per training clip
FORMS = {  # of a single actor
    "noun": 0.2,
    "noun place": 0.24,
    "noun doing": 0.2,
    "noun does": 0.12,
    "noun that does": 0.06,
    "doing noun": 0.06,
    "all": 0.12,
}


def short_captions(spec: Spec) -> tuple[str, ...]:
    """Return different short captions of a training clip: one actor or two, with or without place and motion."""
    rng = random.Random(f"short {spec.video_id} {spec.source} {spec.captions[0]}")
    found: dict[str, None] = {}
    while len(found) < SHORT:
        text = _two(spec, rng) if len(_actors(spec.clip)) == 2 and rng.random() < 0.25 else _one(spec.clip, rng)
        fluff = rng.random()
        text = f"{rng.choice(visitors.LEADS)} {text}" if fluff < 0.12 else text
        text = f"{text} {rng.choice(visitors.TAILS)}" if fluff > 0.94 else text
        if is_clear(text):
            found.setdefault(text)
    return tuple(found)


def _actors(clip: Clip) -> list[str]:
    return list(dict.fromkeys(act.actor for act in clip.acts))


def _noun(act: Act, word: Wording, rng: random.Random) -> str:
    """Return who it is, in the captions' words or a visitor's, with or without an article."""
    noun, names = word.noun.removeprefix("a ").removeprefix("an "), visitors.NAMES.get(act.actor, ())
    if names and rng.random() < 0.3:
        noun = rng.choice(names)
    if ACTORS[act.actor].proper:
        return noun
    if noun.startswith("some"):  # body, thing
        return noun
    if rng.random() < 0.12:
        noun = f"{rng.choice(visitors.ADJECTIVES)} {noun}"
    article = rng.random()
    if article < 0.45 or (noun.endswith("s") and noun not in ("bus", "school bus", "octopus", "cactus")):
        return noun
    return with_article(noun) if article < 0.85 else f"{rng.choice(('the', 'the', 'any', 'some'))} {noun}"


def _does(act: Act, word: Wording, form: str, rng: random.Random) -> str:
    """Return what it does, in the captions' words or a visitor's."""
    if rng.random() < 0.5:
        return word.motion(act, form)
    category = ACTORS[act.actor].category
    phrase = rng.choice(visitors.MOTIONS[act.motion])
    return inflect(phrase.format(verb=rng.choice(VERBS[category] + visitors.VERBS[category])), form)


def _one(clip: Clip, rng: random.Random) -> str:
    act = rng.choice(clip.acts)
    word, setting = choose_words(act, rng), clip.setting_of(act)
    noun = _noun(act, word, rng)
    place = word.where(setting) if rng.random() < 0.5 else rng.choice(visitors.PLACES[setting])
    match rng.choices(list(FORMS), list(FORMS.values()))[0]:
        case "noun":
            return noun
        case "noun place":
            return f"{noun} {place}"
        case "noun does" if act.motion == "vanish" and rng.random() < 0.3:
            return rng.choice(visitors.GONE).format(noun)
        case "noun does":
            return f"{noun} {_does(act, word, 'finite', rng)}"
        case "noun that does":
            return f"{noun} that {_does(act, word, 'finite', rng)}"
        case "doing noun" if act.motion in visitors.BEFORE and not ACTORS[act.actor].proper:
            bare = rng.choice((act.actor, *ACTORS[act.actor].synonyms))
            text = f"{rng.choice(visitors.BEFORE[act.motion])} {bare}"
            return with_article(text) if rng.random() < 0.4 else text
        case "all":
            return f"{noun} {_does(act, word, 'gerund', rng)} {place}"
    return f"{noun} {_does(act, word, 'gerund', rng)}"


def _two(spec: Spec, rng: random.Random) -> str:
    one, two = (_noun(act, choose_words(act, rng), rng) for act in spec.clip.acts[:2])
    if spec.kind == "duo":
        return f"{one} {rng.choice(('and', 'with', 'next to'))} {two}"
    return rng.choice((f"{one} then {two}", f"first {one} then {two}", f"{one} and {two}", f"{one} followed by {two}"))


def more(count: int, seed: int, source: int) -> Iterator[Spec]:
    """Yield further training clips, drawn like the others and with as many twins, with long and short captions."""
    number = 0
    while number < count:
        rng = random.Random(f"scenes {seed} more {source}")
        kind = draw_kind(rng)
        for clip in draw_training(rng, kind, rng.random() < TWINS / (1 - TWINS)):
            captions, tells = paraphrases(clip, kind, rng, 8)
            spec = Spec(f"more{number}", "more", kind, source, clip, captions, tells)
            yield replace(spec, captions=captions + short_captions(spec))
            number += 1
        source += 1


def sides(videos: int, source: int) -> Iterator[Spec]:
    """Yield pairs of mirrored pictures: one actor at a side, or two side by side.

    The captions of a pair differ only in the side.
    """
    number = 0
    for pair in range(max(4, round(MIRRORED * videos / 2))):
        rng = random.Random(f"scenes sides {source + pair}")
        clip = draw_until(is_common, draw_still, rng)
        two = rng.random() < 0.4
        if two:
            other = rng.choice([name for name in sorted(ACTORS) if name != clip.acts[0].actor])
            clip = replace(clip, acts=(clip.acts[0], replace(clip.acts[0], actor=other, y=rng.uniform(0.35, 0.65))))
            if not is_common(clip):
                clip, two = replace(clip, acts=clip.acts[:1]), False
        at, size = rng.uniform(0.12, 0.32), rng.uniform(0.3, 0.5)
        left = tuple(replace(act, x=x, size=size) for act, x in zip(clip.acts, (at, 1 - at), strict=False))
        right = tuple(replace(act, x=1 - act.x, mirror=not act.mirror) for act in left)
        templates = [_side_template(left, clip.setting_of(clip.acts[0]), rng) for _ in range(6)]
        for acts, side, away in ((left, "left", "right"), (right, "right", "left")):
            captions = tuple(dict.fromkeys(t.replace("SIDE", side).replace("AWAY", away) for t in templates))
            yield Spec(f"side{number}", "sides", "still", source + pair, replace(clip, acts=acts), captions)
            number += 1


def _side_template(acts: tuple[Act, ...], setting: str, rng: random.Random) -> str:
    """Return a caption with SIDE for the first actor's side and AWAY for the other side."""
    words = [choose_words(act, rng) for act in acts]
    nouns = [_noun(act, word, rng) for act, word in zip(acts, words, strict=True)]
    place = f" {words[0].where(setting)}" if rng.random() < 0.3 else ""
    side = pick(SIDES["at"], rng.random())
    if len(acts) == 1:
        return f"{nouns[0]} {side}{place}"
    if rng.random() < 0.5:
        return f"{nouns[0]} {pick(SIDES['beside'], rng.random())} {nouns[1]}{place}"
    return f"{nouns[0]} {side} and {nouns[1]} {pick(SIDES['at'], rng.random()).replace('SIDE', 'AWAY')}{place}"
