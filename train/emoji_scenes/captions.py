"""What is said of a clip: captions in plain English, drawn at random."""

import random
from dataclasses import dataclass, replace

from emoji_scenes.render import Act, Clip
from emoji_scenes.words import ACTORS, LEADS, MOTIONS, SETTINGS, VERBS, WEATHER

SMALL, MEDIUM, LARGE = 0.38, 0.55, 0.74  # sizes of actors
FINITE_LEADS = ("",) * 6 + tuple(f"{lead} " for lead in LEADS["finite"])  # most captions begin without
GERUND_LEADS = ("",) * 4 + tuple(f"{lead} " for lead in LEADS["gerund"])
STILL_LEADS = ("",) * 2 + tuple(f"{lead} " for lead in LEADS["still"])


def inflect(phrase: str, form: str) -> str:
    """Return a verb phrase in another form.

    >>> [inflect("walk left", form) for form in ("finite", "progressive", "gerund")]
    ['walks left', 'is walking left', 'walking left']
    """
    verb, _, rest = phrase.partition(" ")
    if verb == "not":  # "not move"
        return {"finite": f"does {phrase}", "progressive": "is not moving", "gerund": "not moving"}[form]
    if form == "finite":
        if verb.endswith(("s", "sh", "ch", "o")):
            verb += "es"
        elif verb.endswith("y") and verb[-2] not in "aeiou":
            verb = verb[:-1] + "ies"
        else:
            verb += "s"
    else:
        if verb.endswith("e"):
            verb = verb[:-1]
        elif verb in ("run", "hop", "spin", "get", "drop", "swim", "zigzag", "bob", "flap", "jog", "pop", "sit"):
            verb += verb[-1]
        verb = ("is " if form == "progressive" else "") + verb + "ing"
    return f"{verb} {rest}".rstrip()


def with_article(noun: str) -> str:
    """Return "an owl" for "owl"."""
    return ("an " if noun[0] in "aeiou" and not noun.startswith(("uni", "ufo")) else "a ") + noun


@dataclass(frozen=True)
class Wording:
    """The words chosen for one act: a noun phrase, and numbers in [0, 1) that pick among the phrases of any motion."""

    noun: str
    phrase: float
    verb: float
    place: float

    def motion(self, act: Act, form: str) -> str:
        """Return what the actor does, as a verb phrase."""
        verbs = VERBS[ACTORS[act.actor].category]
        phrase = pick(MOTIONS[act.motion], self.phrase).format(verb=pick(verbs, self.verb))
        return inflect(phrase, form)

    def where(self, setting: str) -> str:
        """Return the setting, with its preposition."""
        return pick(SETTINGS[setting].phrases, self.place)


def pick(options: tuple[str, ...], share: float) -> str:
    """Return the option at `share` (0 to 1) of the list."""
    return options[int(share * len(options))]


def choose_words(act: Act, rng: random.Random) -> Wording:
    """Return random words for one act."""
    actor = ACTORS[act.actor]
    noun = actor.name if rng.random() < 0.5 else rng.choice(actor.synonyms)
    size = ""
    if act.motion not in ("grow", "shrink") and not actor.proper and rng.random() < 0.35:
        if act.size <= SMALL:
            size = rng.choice(("small ", "tiny ", "little "))
        elif act.size >= LARGE:
            size = rng.choice(("big ", "large ", "huge "))
    return Wording(noun if actor.proper else with_article(size + noun), rng.random(), rng.random(), rng.random())


def describe(
    clip: Clip, kind: str, words: tuple[Wording, ...], rng: random.Random, says_place: bool, says_motion: bool
) -> str:
    """Return a caption of the clip, in lower case and without a full stop."""
    form = rng.choices(("finite", "progressive", "gerund"), (0.4, 0.15, 0.45))[0]
    form = form if says_motion else "gerund"  # no verb: the leads of a noun phrase
    lead = rng.choice(GERUND_LEADS if form == "gerund" else FINITE_LEADS)
    said, places = [], []
    for act, word in zip(clip.acts, words, strict=True):
        said.append(f"{word.noun} {word.motion(act, form)}" if says_motion else word.noun)
        places.append(" " + word.where(clip.setting_of(act)) if says_place else "")
    place, layout = places[0], rng.random()
    if kind in ("twoact", "cut"):
        if kind == "twoact":
            places = ["", place] if rng.random() < 0.6 else [place, ""]
        elif layout < 0.12 and not says_motion:
            verb = rng.choice(("the video cuts", "the scene changes", "the clip goes"))
            return f"{verb} from {said[0]}{places[0]} to {said[1]}{places[1]}"
        return lead + one_then_other(said, places, form, lead, rng) + weather_words(clip, rng)
    if kind == "duo" and says_motion:
        joint = rng.choice(("while", "as", "and"))
        if form == "gerund" and joint != "and":
            said[1] = f"{words[1].noun} {words[1].motion(clip.acts[1], 'progressive')}"
        body = f"{said[0]} {joint} {said[1]}"
    elif kind == "duo":
        body = f"{said[0]} {rng.choice(('and', 'next to', 'beside', 'near'))} {said[1]}"
    elif kind == "seq" and says_motion:
        body = one_actor_in_turn(clip.acts, words, form, layout)
    else:
        body = said[0]
    if lead == "" and place and rng.random() < 0.2:
        return f"{place[1:]} {body}{weather_words(clip, rng)}"
    return f"{lead}{body}{place}{weather_words(clip, rng)}"


def one_actor_in_turn(acts: tuple[Act, ...], words: tuple[Wording, ...], form: str, layout: float) -> str:
    """Return the words for two acts of one actor, in one of four layouts."""
    (first, second), (one, two) = acts, words
    if layout < 0.5:
        after = two.motion(second, "finite" if form == "finite" else "gerund")
        return f"{one.noun} {one.motion(first, form)} and then {after}"
    if layout < 0.7 and form != "progressive":
        return f"{one.noun} first {one.motion(first, form)}, then {two.motion(second, form)}"
    if layout < 0.85:
        return f"{one.noun} {one.motion(first, form)} before {two.motion(second, 'gerund')}"
    return f"{one.noun} {two.motion(second, form)} after {one.motion(first, 'gerund')}"


def one_then_other(said: list[str], places: list[str], form: str, lead: str, rng: random.Random) -> str:
    """Return the words for two actors, one after the other."""
    follow = rng.choice((" and then ", ", then ", " followed by "))
    if follow == " followed by " and form != "gerund":
        follow = " and then "
    first = "first " if lead == "" and rng.random() < 0.2 and follow != " followed by " else ""
    return f"{first}{said[0]}{places[0]}{follow}{said[1]}{places[1]}"


def weather_words(clip: Clip, rng: random.Random) -> str:
    """Return words for the weather, or "": a caption may leave it out."""
    return " " + rng.choice(WEATHER[clip.weather]) if clip.weather and rng.random() < 0.6 else ""


def describe_still(clip: Clip, words: tuple[Wording, ...], rng: random.Random) -> str:
    """Return a caption of a single picture."""
    act = clip.acts[0]
    place = " " + words[0].where(clip.setting_of(act)) if rng.random() < 0.6 else ""
    return rng.choice(STILL_LEADS) + words[0].noun + place


def paraphrases(clip: Clip, kind: str, rng: random.Random, count: int) -> tuple[tuple[str, ...], tuple[bool, bool]]:
    """Return `count` different captions, and whether the first tells place and motion; a single one mostly does."""
    found: dict[str, tuple[bool, bool]] = {}
    place, motion = (0.95, 0.97) if count == 1 else (0.8, 0.88)
    while len(found) < count:
        words = tuple(choose_words(act, rng) for act in clip.acts)
        tells = (rng.random() < place, rng.random() < motion)
        text = describe_still(clip, words, rng) if kind == "still" else describe(clip, kind, words, rng, *tells)
        if is_clear(text):
            found.setdefault(text, tells)
    return tuple(found), next(iter(found.values()))


def contrasting_captions(pair: tuple[Clip, Clip], kind: str, rng: random.Random) -> tuple[str, str]:
    """Return captions of two twins, in the same words."""
    while True:
        words = [choose_words(act, rng) for act in pair[0].acts]
        if kind == "twoact":  # one name for the one place
            words = [replace(word, place=words[0].place) for word in words]
        wordings = (tuple(words), tuple(words if kind == "solo" else words[::-1]))
        template = str(rng.random())
        first, second = (
            describe(clip, kind, said, random.Random(template), True, True)
            for clip, said in zip(pair, wordings, strict=True)
        )
        if is_clear(first) and is_clear(second):
            return first, second


def is_clear(caption: str) -> bool:
    """Return False for "fading in in the snow" or "falling down downtown"."""
    return " in in " not in caption and " down downtown" not in caption
