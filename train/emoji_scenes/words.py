"""The words of Scenes: its actors, settings and motions, and the phrases that captions have for them."""

import csv
import tomllib
from dataclasses import dataclass
from pathlib import Path

from emoji_scenes.backgrounds import SPRITES

Phrases = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Actor:
    """Who can be in a clip."""

    name: str
    synonyms: tuple[str, ...]
    category: str  # a key of VERBS
    facing: str  # left, right or none
    proper: bool  # a name without article


@dataclass(frozen=True)
class Setting:
    """Where a clip can take place."""

    name: str
    phrases: tuple[str, ...]
    weather: bool  # it can rain or snow there


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table among the sprites."""
    with (SPRITES / name).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def read_phrases(name: str) -> dict[str, Phrases]:
    """Return the phrases of a .toml file in this folder, by section and key.

    The key "travel" becomes "left" and "right", whose phrases differ in the words for SIDE and OTHER alone.
    """
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    found: dict[str, Phrases] = {}
    for section, entries in tomllib.loads(text).items():
        found[section] = {}
        for key, phrases in entries.items():
            options = tuple(phrase.strip() for phrase in phrases.split(","))
            if key != "travel":
                found[section][key] = options
                continue
            for side, other in (("left", "right"), ("right", "left")):
                found[section][side] = tuple(x.replace("SIDE", side).replace("OTHER", other) for x in options)
    return found


ACTORS = {
    r["name"]: Actor(r["name"], tuple(r["synonyms"].split("|")), r["category"], r["facing"], r["article"] == "none")
    for r in read_table("actors.csv")
}
SETTINGS = {
    r["name"]: Setting(r["name"], tuple(r["phrases"].split("|")), bool(r["weather"]))
    for r in read_table("settings.csv")
}
WORDS = read_phrases("words.toml")
HABITATS, VERBS, MOTIONS = WORDS["habitats"], WORDS["verbs"], WORDS["motions"]
WEATHER, SIDES, LEADS = WORDS["weather"], WORDS["sides"], WORDS["leads"]
