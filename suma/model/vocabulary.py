"""The words of sentences, and which concepts they name: what a concept space knows without a gradient.

Shapes: W words, K concepts, E token-embedding width, T texts.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import regex  # knows the classes of Unicode, as `re` does not

# Scripts without spaces, by rule: a Chinese character is a word, and a run of hiragana or katakana; in Thai
# about a syllable: a vowel in front, a consonant, its marks and vowels, and a consonant that has none.
_THAI_VOWELS = r"\u0e30-\u0e3a\u0e45\u0e47-\u0e4e"
_UNSPACED = (
    r"\p{Han}\p{M}*|\p{Hiragana}[\p{Hiragana}\p{M}\u30fc]*|\p{Katakana}[\p{Katakana}\p{M}\u30fc]*"
    rf"|[\u0e40-\u0e44]?[\u0e01-\u0e2e][{_THAI_VOWELS}]*(?:[\u0e01-\u0e2e](?![{_THAI_VOWELS}]))?"
)
# Else letters and digits with their combining marks, and the two joiners that stand inside words of many scripts.
_SPACED = r"[[\p{L}\p{N}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\u0e01-\u0e2e\u0e40-\u0e44]]"
_INNER = rf"(?:{_SPACED}|[\u200c\u200d](?={_SPACED}))"
_WORD = regex.compile(rf"(?V1)(?=[\p{{L}}\p{{N}}])(?:{_UNSPACED}|{_SPACED}{_INNER}*(?:'\p{{L}}[\p{{L}}\p{{M}}]*)?)")
NEGATIONS = frozenset(("not", "no", "without"))  # name no concept, whatever a model ignores
SLIP = 0.9  # how surely a misspelled word names the concept of the right one
Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]  # words -> their token embeddings (n, E) float32
UNLIKE = 0.75  # an unseen word must be nearer to a concept than this share of the concepts is to another concept


def unit(x: np.ndarray) -> np.ndarray:
    """Return the rows (..., n), each of length 1; a row of zeros stays.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nfc(text: str) -> str:
    """Return the text with each letter and its accents composed (Unicode's NFC): how all texts and names are compared.

    >>> nfc("cafe\u0301") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """Return the text as words are compared: lower case, composed, with straight apostrophes."""
    return nfc(text.lower()).replace("\u2019", "'")


def split_words(text: str) -> list[str]:
    """Return the words of a text, in order, as `fold` leaves them: letters and digits of any script with their
    combining marks, and an inner apostrophe; of Chinese, Japanese and Thai, parts of the sentence (see _UNSPACED).

    >>> split_words("The dog's RED frisbee, 2 times -- caf\u00e9!")
    ['the', "dog's", 'red', 'frisbee', '2', 'times', 'caf\u00e9']
    >>> split_words("\u72ac\u304c\u8d70\u3063\u3066\u3044\u308b")
    ['\u72ac', '\u304c', '\u8d70', '\u3063\u3066\u3044\u308b']
    """
    return _WORD.findall(fold(text))


def count_words(captions: Iterable[str]) -> dict[str, int]:
    """Return word -> captions that hold it (its document frequency), most frequent first, ties by spelling."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(set(split_words(caption)))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def common_words() -> tuple[dict[str, int], int]:
    """Return the bundled common caption words: word -> captions that hold it, most frequent first, and of how many.

    The words were written for this project, by hand and topic by topic, and inflected by rule; their counts are
    estimates, in steps, of how many of 10,000 captions would hold each. No data set was copied or counted.
    """
    counts: dict[str, int] = {}
    for line in Path(__file__).with_name("caption_words.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            count, *words = line.split()
            counts.update((word, max(int(count), counts.get(word, 0))) for word in words)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), 10_000


@cache
def _well_known() -> frozenset[str]:
    """Return the bundled common words, none of which is a slip."""
    return frozenset(common_words()[0])


def ignored_words() -> list[str]:
    """Return the bundled words that name no concept without training: see the head of ignored_words.txt."""
    lines = Path(__file__).with_name("ignored_words.txt").read_text(encoding="utf-8").splitlines()
    return sorted({word for line in lines if not line.startswith("#") for word in line.split()})


class Vocabulary:
    """Know which concept each word names, and what it weighs in a sentence."""

    def __init__(
        self, words: Sequence[str], counts: Sequence[int], num_captions: int, anchor: str, ignored: Sequence[str] = ()
    ):
        """Take words, best names of a concept first, and how many of `num_captions` captions hold each; `anchor`: see
        `anchors`; ignored: words that name no concept. Raise ValueError for another number of counts than words."""
        if len(words) != len(counts):
            raise ValueError(f"{len(words)} words but {len(counts)} counts")
        self.words, self.anchor, self.ignored = list(words), anchor, frozenset(ignored)
        self._index = {word: i for i, word in enumerate(self.words)}
        self._letters = sorted(set("".join([*self.words, *self.ignored])))
        self._idf = [math.log((1 + num_captions) / (1 + min(n, num_captions))) for n in counts]

    def assignment(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each word's concept (W,) int64, and the centres (K, E) by which words never seen are told."""
        raise NotImplementedError

    @property
    def num_concepts(self) -> int:
        """Return K."""
        return len(self.assignment()[1])

    def read(self, word: str) -> str:
        """Return the word that a word never seen is read as: its singular or plural (s, es), or else, of 5 letters and
        more, the one word with its first letter that is one edit away (a letter more, less or another, two swapped, ph
        for f). Itself where no word is near, several are, or it is one of the bundled common words.

        Where one word is ten times as frequent as all others near, it is the one: captions hold misspellings.
        """
        if self.is_known(word):
            return word
        plurals = [word + "s", word + "es", word.removesuffix("s"), word.removesuffix("es")]
        near = {other for other in plurals if min(len(word), len(other)) > 2 and other in self._index}
        if not near and len(word) >= 5 and word not in _well_known():
            near = {other for other in self._edits(word) if self.is_known(other)}
        rarity = {other: self._idf[self._index[other]] if other in self._index else 0.0 for other in near}
        best = min(near, key=lambda other: rarity[other], default=word)
        return best if all(rarity[other] - rarity[best] > math.log(10) for other in near - {best}) else word

    def is_known(self, word: str) -> bool:
        """Return whether a word was in the training captions, or is one that names nothing."""
        return word in self._index or word in self.ignored or word in NEGATIONS

    def _edits(self, word: str) -> set[str]:
        """Return what is one edit away from a word and begins as it does."""
        cuts = [(word[:i], word[i:]) for i in range(1, len(word) + 1)]
        edits = {a + c + b[n:] for a, b in cuts for n in (0, 1) for c in ("", *self._letters)}
        edits |= {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
        return edits | {a + "ph" + b[1:] for a, b in cuts if b[:1] == "f"}

    def concept_of(self, words: Sequence[str], embed: Embed) -> list[int]:
        """Return each word's concept, as it is `read`; for a word never seen, that of the nearest initial centre (our
        reading).

        `embed` maps words to token embeddings (n, E) and is called once, for the unseen words only.
        """
        return [concept for concept, _ in self._named([self.read(word) for word in words], embed)]

    def _named(self, words: Sequence[str], embed: Embed) -> list[tuple[int, float]]:
        """Return each word's concept and how surely it names it: 1, or for a word never seen the cosine with the
        concept's initial centre, 0 where that is not above what UNLIKE of the centres reach with another centre.

        Words were taken out of the vocabulary of MSR-VTT's captions, whose vectors know English (wordllama): two thirds
        of them are above it, and 89 % of these nearest to the concept of their likes.
        """
        unseen = sorted({word for word in words if word not in self._index})
        (concepts, centres), found = self.assignment(), dict[str, tuple[int, float]]()
        if unseen:
            centres, new = unit(centres), unit(embed(unseen))
            alike, cosines = centres @ centres.T, new @ centres.T
            np.fill_diagonal(alike, 0)
            least = max(0.0, float(np.quantile(alike.max(1), UNLIKE)))
            for word, concept, cosine in zip(unseen, cosines.argmax(1).tolist(), cosines.max(1).tolist(), strict=True):
                found[word] = concept, min(cosine, 1.0) if cosine > least else 0.0
        return [found[word] if word in found else (int(concepts[self._index[word]]), 1.0) for word in words]

    def anchors(self, sentences: Sequence[str], embed: Embed) -> np.ndarray:
        """Return unit anchors (T, K): the concepts that the words of each sentence name (a row of zeros without words).

        `binary` marks them, `count` counts the words, `idf` adds up the inverse document frequencies of the distinct
        words. A word never seen weighs what the average word of its concept does, but no more than the sentence's
        heaviest seen word, times how surely it names the concept; so does a slip, by the word that it is `read` as.
        Ignored words and negations add nothing. Rows of zeros under `self`.
        """
        out = np.zeros((len(sentences), self.num_concepts), np.float32)
        if self.anchor == "self":
            return out
        left_out = self.ignored | NEGATIONS
        meant = {word: self.read(word) for sentence in sentences for word in split_words(sentence)}
        texts = [Counter(w for w in split_words(sentence) if meant[w] not in left_out) for sentence in sentences]
        distinct = sorted(set().union(*texts)) if texts else []
        named = dict(zip(distinct, self._named([meant[word] for word in distinct], embed), strict=True))
        for row, text in zip(out, texts, strict=True):
            weights = {word: self._weight(meant[word], count, named[word][0]) for word, count in text.items()}
            heaviest = max((weight for word, weight in weights.items() if word in self._index), default=0.0)
            for word, weight in weights.items():
                concept, sureness = named[word]
                if word not in self._index:
                    weight = sureness * min(weight, heaviest or weight) * (1 if meant[word] == word else SLIP)
                row[concept] = max(row[concept], weight) if self.anchor == "binary" else row[concept] + weight
        return unit(out)

    def _weight(self, word: str, count: int, concept: int) -> float:
        """Return the weight of a word that a text has `count` times; an unseen one has its concept's average."""
        if self.anchor != "idf":
            return 1 if self.anchor == "binary" else count
        if word in self._index:
            return self._idf[self._index[word]]
        members = self.members(concept)
        return sum(self._idf[self._index[m]] for m in members) / max(1, len(members))

    def members(self, concept: int) -> list[str]:
        """Return all words of a concept, best names first. Raise ValueError for a concept that is none."""
        if not 0 <= concept < self.num_concepts:
            raise ValueError(f"concept {concept} is outside 0..{self.num_concepts - 1}")
        return [self.words[i] for i in np.flatnonzero(self.assignment()[0] == concept).tolist()]

    def name(self, concept: int, num_words: int = 3) -> str:
        """Return a concept's name: its most central, frequent words."""
        return ", ".join(self.members(concept)[:num_words])
