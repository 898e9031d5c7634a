"""The query language: what a person types -> one query under the one score, and which videos may answer.

| typed | means |
|---|---|
| `a dog runs`, `a well-known man`, `he says "hello" - twice` | the sentence, as it stands |
| `+beach`, `+"red car"` | also this: the term is added |
| `-night`, `-"two dogs"` | not this: the term is subtracted |
| `+beach^2`, `-night^0.5` | the term weighs so much (1 where nothing is said, 10 at most) |
| `a dog^2 runs`, `"red car"^2 at night` | stays in the sentence, and counts so many times |
| `[snow -1]`, `[ball 0.8]` | a concept banned, or made stronger |
| `in:holidays`, `in:"my films/2024"`, `in:/data/films` | in a folder of this name, at any depth; an absolute one |
| `longer:10`, `shorter:60` | at least, at most so many seconds |
| `after:2024-01-31`, `before:2024-03-01` | the file's date: from that day on; before that day |
| `score:0.2` | only what scores at least so much |

Terms combine before the score, which stays the same function (our reading; the paper has no such queries): with s(t)
and a(t) the unit feature and anchor of a text, the query is s = unit(s(sentence) + sum of w_i s(t_i)), and its anchor
likewise with a; a minus sign makes w_i negative, and a word with weight w inside the sentence adds w - 1 times itself.
So one inner product still finds the candidates, and an explanation adds up as ever.

Then concepts are steered (the paper does not). A sentence is a unit feature s (D) and a unit anchor a (K), which says
how much it names each concept. Steering sets some of the anchor's weights to values in [-1, 1] and brings the anchor to
length 1 again; s stays as it is. So 0 takes a concept out of the concept space's half of the score, and a negative
weight (-1: banned) takes score from videos that show it. A query without a sentence has s = 0: its score is the concept
space's half alone.

Shapes: T texts, D joint width, K concepts.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from suma.atomic_io import on_disk
from suma.index.storage import Row
from suma.model.encoder import Encoder, Queries
from suma.model.vocabulary import NEGATIONS, Vocabulary, fold, ignored_words, nfc, split_words, unit

MAX_STEERED = 32  # concepts of one query
_BRACKET = re.compile(r"\[\s*([^\[\]\s]+)\s+([-+]?\d*\.?\d+)\s*\]")
MAX_TERMS, MAX_WEIGHT = 32, 10.0
CANCELLED = 1e-3  # length below which what is left of a sum is noise
_PHRASE = r'"[^"]+"'
_TOKEN = re.compile(
    rf"(?<!\S)(?:(?P<name>in|longer|shorter|after|before|score):(?P<value>{_PHRASE}|[^\s\"]\S*)"
    rf"|(?P<sign>[+-]?)(?P<term>{_PHRASE}|\S+?)(?:\^(?P<weight>\d+(?:\.\d+)?|\.\d+))?[,.;]?)(?!\S)"
)
_TERM = re.compile(rf"{_PHRASE}$|[^\W\d_]")  # what may be a term; `-5` and a lone `-` are words of a sentence


def parse_steering(text: str) -> tuple[str, dict[str, float]]:
    """A steered query as text -> the sentence, and word -> weight, cut to [-1, 1].

    >>> parse_steering("a dog runs [ball 0.8] [snow -1]")
    ('a dog runs', {'ball': 0.8, 'snow': -1.0})
    """
    weights = {fold(word): max(-1.0, min(1.0, float(value))) for word, value in _BRACKET.findall(text)}
    return " ".join(_BRACKET.sub(" ", text).split()), weights


def unparse_steering(sentence: str, weights: Mapping[str, float]) -> str:
    """The text that `parse_steering` reads.

    >>> unparse_steering("a dog runs", {"ball": 0.8, "snow": -1.0})
    'a dog runs [ball 0.8] [snow -1]'
    """
    return " ".join([sentence, *(f"[{word} {round(value, 2):g}]" for word, value in weights.items())]).strip()


def concepts_of(model: Encoder, weights: Mapping[str, float]) -> dict[int, float]:
    """word -> weight into concept -> weight; of two words of one concept the later counts.

    Raises ValueError for what is no single word, a weight outside [-1, 1], or more than MAX_STEERED words.
    """
    if len(weights) > MAX_STEERED:
        raise ValueError(f"at most {MAX_STEERED} concepts can be steered, got {len(weights)}")
    for word, value in weights.items():
        if split_words(word) != [fold(word)]:
            raise ValueError(f"a concept is steered by one of its words, and {word!r} is not one word")
        if not -1 <= float(value) <= 1:
            raise ValueError(f"the weight of {word!r} must lie in [-1, 1], got {value}")
    found = model.space.concept_of([fold(word) for word in weights], model.embed_words)
    return dict(zip(found, (float(value) for value in weights.values()), strict=True))


def steer(model: Encoder, texts: Queries | None, weights: Mapping[str, float]) -> Queries:
    """One text (T = 1; None: no sentence) with some of its anchor's weights set."""
    if texts is None:
        texts = Queries(*(np.zeros((1, n), np.float32) for n in (model.dim, model.space.num_concepts)))
    anchors = texts.anchors.copy()
    for concept, value in concepts_of(model, weights).items():
        anchors[0, concept] = value
    return texts._replace(anchors=unit(anchors))


def _seconds(name: str, date: str) -> float:
    """A date in seconds, as files have it."""
    try:
        return datetime.fromisoformat(date).timestamp() if date else 0.0
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{name}: takes a date, like {name}:2024-01-31, not {date!r}") from None


@dataclass(frozen=True)
class Filter:
    """Which files may answer; empty or infinite: all. Raises ValueError for what is no date or no length of time."""

    folder: str = ""  # of this name, or path below any folder; absolute: itself
    longer: float = 0.0  # seconds, at least
    shorter: float = math.inf  # seconds, at most
    after: str = ""  # a date such as 2024-01-31 (local time): files of that day or later
    before: str = ""  # files of an earlier day
    root: str = ""  # the folder above which no name counts for `folder`

    def __post_init__(self) -> None:
        for name, value in (("after", self.after), ("before", self.before)):
            _seconds(name, value)
        spelled = on_disk(self.folder) if os.path.isabs(self.folder) else nfc(self.folder)
        object.__setattr__(self, "folder", spelled)
        if not (self.longer >= 0 and self.shorter >= 0):
            raise ValueError(f"longer and shorter are lengths in seconds, got {self.longer:g} and {self.shorter:g}")

    def __and__(self, other: "Filter") -> "Filter":
        """Both. Raises ValueError where they name different folders."""
        if self.folder and other.folder and self.folder != other.folder:
            raise ValueError(f"one folder at a time: {self.folder!r} or {other.folder!r}")
        return Filter(
            other.folder or self.folder,
            max(self.longer, other.longer),
            min(self.shorter, other.shorter),
            max(self.after, other.after, key=lambda date: _seconds("after", date)),
            min((d for d in (self.before, other.before) if d), key=lambda date: _seconds("before", date), default=""),
            other.root or self.root,
        )

    @property
    def limits(self) -> dict[str, float]:
        """The conditions on a file's columns, each with {} for its value."""
        asked = {
            "duration >= {}": (self.longer, self.longer > 0),
            "duration <= {}": (self.shorter, 0 < self.shorter < math.inf),
            "mtime >= {}": (_seconds("after", self.after), self.after),
            "mtime < {}": (_seconds("before", self.before), self.before),
        }
        return {name: value for name, (value, counts) in asked.items() if counts}

    def condition(self, within: Callable[[str, str], tuple[str, list[object]]]) -> tuple[str, list[object]]:
        """Return the same in SQL, with its values; empty where all may answer. `within`: of the folder (Database)."""
        parts, values = [name.format("?") for name in self.limits], list[object](self.limits.values())
        if self.folder:
            inside, more = within(self.folder, self.root)
            parts.append(inside)
            values += more
        return " AND ".join(parts), values

    def allows(self, row: Row) -> bool:
        """Return whether a file may answer, by what is known of it: what `condition` asks the database."""
        since, until = _seconds("after", self.after), _seconds("before", self.before)
        inside = os.path.join(os.sep, os.path.normpath(self.folder), "")
        below = nfc(row.path.removeprefix(self.root.rstrip(os.sep)))
        there = row.path.startswith(inside) if os.path.isabs(self.folder) else inside in below
        long_enough = self.longer <= row.duration <= self.shorter
        return long_enough and since <= row.mtime < (until or math.inf) and (not self.folder or there)


ALL = Filter()


@dataclass(frozen=True)
class Query:
    """A query that was read: `parse` makes it of what was typed."""

    sentence: str = ""
    terms: tuple[tuple[str, float], ...] = ()  # text and weight, negative where it is subtracted
    weights: tuple[tuple[str, float], ...] = ()  # concepts that are steered: word and weight in [-1, 1]
    filter: Filter = ALL
    min_score: float = -math.inf

    def texts(self, model: Encoder) -> Queries:
        """The query as the model reads it (T = 1). Raises ValueError where it is empty, or its terms cancel out."""
        mixed = self.mixed
        if not self.says:
            raise ValueError("the query is empty: type what happens in the video")
        if not mixed:
            return steer(model, None, dict(self.weights))
        found = model.encode_queries([text for text, _ in mixed])
        if self.terms:
            found = Queries(self._mix(found.features), self._mix(found.anchors))
            if not found.features.any():
                raise ValueError("the terms of the query cancel each other out: nothing is left to search for")
        found = found._replace(known=self.known(model.space))
        return steer(model, found, dict(self.weights)) if self.weights else found

    def anchor(self, model: Encoder) -> np.ndarray | None:
        """Its anchor (K,) as `texts` has it before concepts are steered; None without sentence and terms."""
        anchors = model.space.anchors([text for text, _ in self.mixed], model.embed_words)
        return self._mix(anchors)[0] if self.mixed else None

    @property
    def says(self) -> bool:
        """Whether there is something to search for, beside filters."""
        return bool(self.mixed or self.weights)

    @property
    def mixed(self) -> list[tuple[str, float]]:
        """All texts with their weights, the sentence first."""
        return [(self.sentence, 1.0)] * bool(self.sentence) + list(self.terms)

    @property
    def words(self) -> list[str]:
        """Return the words of all texts."""
        return [word for text, _ in self.mixed for word in split_words(text)]

    def known(self, vocabulary: Vocabulary) -> float:
        """Return the share of its words that the model knows, as they are read."""
        read = [vocabulary.read(word) for word in self.words]
        return sum(map(vocabulary.is_known, read)) / max(1, len(read))

    def notes(self, vocabulary: Vocabulary) -> list[str]:
        """Return lines on what is read otherwise than it may be meant: slips, and what `not`, `no`, `without` deny."""
        read = {word: vocabulary.read(word) for word in self.words}
        notes = [f"'{word}' read as '{meant}'" for word, meant in read.items() if meant != word]
        empty = NEGATIONS.union(ignored_words())
        sentence = [read[word] for word in split_words(self.sentence)]
        for n, word in enumerate(sentence):
            denied = next((w for w in sentence[n + 1 : n + 4] if w not in empty), "") if word in NEGATIONS else ""
            if denied:
                notes.append(f"'{word}' is not understood: type -{denied} for videos without it")
        return notes

    def _mix(self, rows: np.ndarray) -> np.ndarray:
        """The weighted sum (1, n) of the texts' rows (T, n), brought to length 1; zeros where only noise is left."""
        total = np.array([[weight for _, weight in self.mixed]], np.float32) @ rows
        length = float(np.linalg.norm(total))
        return total / length if length >= CANCELLED else 0 * total


def parse(text: str) -> Query:
    """Read what a person typed. Raises ValueError naming what cannot be meant: a date, a number, too many terms.

    >>> parse('a dog^2 runs +"red ball" -night^0.5 longer:10').terms
    (('dog', 1.0), ('red ball', 1.0), ('night', -0.5))
    >>> parse('a well-known man says "hello" - twice').sentence
    'a well-known man says "hello" - twice'
    """
    rest, weights = parse_steering(nfc(text))
    words: list[str] = []
    terms: list[tuple[str, float]] = []
    chosen, least = ALL, -math.inf
    for token in _TOKEN.finditer(rest):
        name, sign, weight = token["name"], token["sign"], token["weight"]
        if name == "score":
            least = max(least, _number(name, token["value"]))
        elif name:
            value = token["value"].strip('"')
            if name in ("longer", "shorter"):
                chosen &= Filter(**{name: _number(name, value)})  # type: ignore[arg-type]
            else:
                chosen &= Filter(**{"folder" if name == "in" else name: value})  # type: ignore[arg-type]
        elif (sign or weight) and _TERM.match(token["term"]):
            term, count = token["term"].strip('"'), float(weight or 1)
            if count > MAX_WEIGHT:
                raise ValueError(f"the weight of {term!r} is {count:g}: {MAX_WEIGHT:g} at most")
            if not sign:
                words.append(term)
                count -= 1
            terms.append((term, -count if sign == "-" else count))
        else:
            words.append(token[0])
    if len(terms) > MAX_TERMS:
        raise ValueError(f"{len(terms)} terms are too many: {MAX_TERMS} at most")
    return Query(" ".join(words), tuple(t for t in terms if t[1]), tuple(weights.items()), chosen, least)


def filter_of(text: str, names: Collection[str]) -> str:
    """Return what a query says by filters of these names, as it was typed.

    >>> filter_of("a dog longer:10 in:holidays shorter:60", ("longer", "shorter"))
    'longer:10 shorter:60'
    """
    return " ".join(token[0] for token in _TOKEN.finditer(text) if token["name"] in names)


def with_filter(text: str, names: Collection[str], chosen: str = "") -> str:
    """Return a query's text with its filters of these names replaced by `chosen`.

    >>> with_filter("a dog longer:10 in:holidays", ("longer", "shorter"), "shorter:60")
    'a dog in:holidays shorter:60'
    """
    rest = _TOKEN.sub(lambda token: "" if token["name"] in names else token[0], text)
    return " ".join(f"{rest} {chosen}".split())


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{name}: takes a number, like {name}:{10 if name != 'score' else 0.2}, not {value!r}")
    return number
