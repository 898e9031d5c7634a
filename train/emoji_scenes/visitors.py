"""How visitors of Scenes say things, read from visitors.toml; each table's heading there says what it holds."""

from emoji_scenes.words import read_phrases

WORDS = read_phrases("visitors.toml")
NAMES, PLACES, VERBS, MOTIONS, BEFORE = (WORDS[name] for name in ("names", "places", "verbs", "motions", "before"))
GONE, ADJECTIVES, LEADS, TAILS = (WORDS["around"][name] for name in ("gone", "adjectives", "leads", "tails"))
