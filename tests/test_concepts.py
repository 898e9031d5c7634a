"""Words, their clusters, and the anchors that sentences make of them."""

import copy
import doctest
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from suma import SUMA, SUMAConfig, VideoIndex
from suma.model import concept_space
from suma.model.concept_space import ConceptSpace
from suma.model.from_clip import cluster_words, naming_order
from suma.model.text_encoder import load_for_search
from suma.model.vocabulary import Vocabulary, count_words, nfc, split_words

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man IS driving a Car.", ["a", "man", "is", "driving", "a", "car"]),
        ("the dog's bone, dogs' bones", ["the", "dog's", "bone", "dogs", "bones"]),
        ("it\u2019s", ["it's"]),
        ("rock 'n' roll", ["rock", "n", "roll"]),
        ("3d 2 times, 10,000 men", ["3d", "2", "times", "10", "000", "men"]),
        (
            "caf\u00e9 \u00fcber \u0441\u043e\u0431\u0430\u043a\u0430 \u72d7",
            ["caf\u00e9", "\u00fcber", "\u0441\u043e\u0431\u0430\u043a\u0430", "\u72d7"],
        ),
        ("a\U0001f436dog snake_case", ["a", "dog", "snake", "case"]),
        ("well-known  --  (very)\tgood\n", ["well", "known", "very", "good"]),
        ("?! ... \U0001f600", []),
        ("बिल्ली दौड़ती है।", ["बिल्ली", "दौड़ती", "है"]),  # combining marks belong to their letters
        ("தமிழ் நாய்", ["தமிழ்", "நாய்"]),
        ("แมววิ่ง สุนัขวิ่งบน", ["แมว", "วิ่ง", "สุ", "นัข", "วิ่ง", "บน"]),  # by syllables, as a rule finds them
        ("一只狗在汽车旁。", list("一只狗在汽车旁")),  # by characters
        ("犬がボールをキャッチする", ["犬", "が", "ボール", "を", "キャッチ", "する"]),  # by scripts
        ("Tシャツ2枚", ["t", "シャツ", "2", "枚"]),
        ("قِطَّة تجري", ["قِطَّة", "تجري"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("İstanbul'da", ["i\u0307stanbul'da"]),
        ("ab\u200cc \u200d", ["ab\u200cc"]),  # a joiner inside a word, as in Persian
        ("\u0301 a \u0301", ["a"]),  # a mark without a letter is none
        ("Cafe\u0301 l'e\u0301te\u0301 E\u0323\u0302", ["caf\u00e9", "l'\u00e9t\u00e9", "\u1ec7"]),
        ("", []),
    ],
)
def test_a_text_falls_into_these_words(text: str, words: list[str]):
    assert split_words(text) == words


@pytest.mark.parametrize(
    "text", ["na\u00efve se\u00f1or", "Ti\u1ebfng Vi\u1ec7t", "\ud55c\uad6d\uc5b4", "\u00dcberblick", "\u0928\u093c"]
)
def test_composed_and_decomposed_texts_are_the_same(tiny_model: SUMA, text: str):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert split_words(forms[0]) == split_words(forms[1]) == [nfc(word.lower()) for word in text.split()]
    assert torch.equal(tiny_model.anchors(forms[:1]), tiny_model.anchors(forms[1:]))
    assert torch.equal(tiny_model.encode_text(forms[:1]), tiny_model.encode_text(forms[1:]))


def test_every_letter_with_its_marks_is_one_word():
    for code in (*range(0x250), *range(0x370, 0x3400), *range(0xA000, 0xD800), *range(0x10000, 0x12000)):
        letter = chr(code)
        if unicodedata.category(letter)[0] == "M":
            assert len(split_words(f"a{letter}b")) == 1, hex(code)
        forms = {tuple(split_words(unicodedata.normalize(form, f"{letter}\u0323x"))) for form in ("NFC", "NFD")}
        assert len(forms) == 1, hex(code)


VOCABULARY = Vocabulary(
    ["elephant", "elegant", "elepant", "leash", "horse", "house", "dog", "box", "torch"],
    [700, 12, 1, 50, 400, 500, 900, 30, 200],
    1000,
    "idf",
    ["slowly"],
)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("elephant", "elephant"),
        ("elefant", "elephant"),  # beside elegant and a misspelling, both of which are rare
        ("elehpant", "elephant"),
        ("leashes", "leash"),
        ("leahs", "leash"),
        ("boxes", "box"),  # a plural may be short
        ("doog", "doog"),  # but no misspelling
        ("hoise", "hoise"),  # horse or house
        ("eleffants", "eleffants"),  # two edits
        ("slowli", "slowly"),
        ("without", "without"),
        ("porch", "porch"),  # a common word is no slip
    ],
)
def test_slips_are_read_as_the_one_word_near(word: str, meant: str):
    assert VOCABULARY.read(word) == meant


def test_slips_name_what_the_right_word_names_and_negations_nothing(tiny_model: SUMA):
    meant, typed = tiny_model.anchors(["child kitchen", "dog"]), ["Childs KITCHENS", "no dog, not without"]
    assert torch.allclose(tiny_model.anchors(typed), meant, atol=1e-6)


def test_counts_are_the_number_of_captions_that_hold_a_word():
    counts = count_words(["a dog and a dog", "A cat", "the cat, a cat"])
    assert list(counts.items()) == [("a", 3), ("cat", 2), ("and", 1), ("dog", 1), ("the", 1)]


def blobs(sizes: Sequence[int], width: int = 6, seed: int = 0) -> np.ndarray:
    """Words around the axes of a space, `sizes` of them around each."""
    rng = np.random.default_rng(seed)
    middles = np.repeat(np.eye(width)[: len(sizes)], sizes, axis=0)
    return (middles + 0.05 * rng.standard_normal(middles.shape)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_lie_apart_are_found(seed: int):
    _, assignment = cluster_words(blobs([12, 5]), 2, seed)
    groups = set(assignment[:12]), set(assignment[12:])
    assert groups in [({0}, {1}), ({1}, {0})]


def test_a_word_belongs_to_its_nearest_centre_whatever_its_length():
    embeddings = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    centres, assignment = cluster_words(embeddings, 5)
    assert np.linalg.norm(centres, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    for word, concept in zip(embeddings, assignment, strict=True):
        cosines = [float(word @ centre / np.linalg.norm(word)) for centre in centres]
        assert cosines[concept] == pytest.approx(max(cosines))
    lengths = np.random.default_rng(1).uniform(0.1, 9, (60, 1)).astype(np.float32)
    assert (cluster_words(embeddings * lengths, 5)[1] == assignment).all()


def test_clustering_is_the_same_for_the_same_seed():
    embeddings = np.random.default_rng(0).standard_normal((80, 8)).astype(np.float32)
    first, second = cluster_words(embeddings, 9, seed=3), cluster_words(embeddings, 9, seed=3)
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()


@pytest.mark.parametrize("num_concepts", [1, 2, 5, 19, 20])
@pytest.mark.parametrize("kind", ["random", "two points", "one point", "zeros"])
def test_no_concept_is_ever_empty(kind: str, num_concepts: int):
    embeddings = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    if kind == "two points":
        embeddings = embeddings[[0, 1] * 10]
    elif kind == "one point":
        embeddings = embeddings[[0] * 20]
    elif kind == "zeros":
        embeddings[:] = 0
    centres, assignment = cluster_words(embeddings, num_concepts)
    assert centres.shape == (num_concepts, 4) and assignment.shape == (20,)
    assert set(assignment.tolist()) == set(range(num_concepts))
    assert np.isfinite(centres).all()


def test_fewer_words_than_concepts_is_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"7 distinct words.*9 concepts"):
        cluster_words(blobs([7]), 9)
    with pytest.raises(ValueError, match="got 0"):
        cluster_words(blobs([7]), 0)


def test_a_central_frequent_word_names_its_concept():
    centre = np.array([[1.0, 0.0]])
    embeddings = np.array([[0.2, 1.0], [1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])  # far; central; central; opposite
    order = naming_order(embeddings, centre, np.zeros(4, int), np.array([500, 1, 9, 999]))
    # closeness x log(1 + count): .196 x 6.2 = 1.2; 1 x .69; 1 x 2.3; 0
    assert order.tolist() == [2, 0, 1, 3]


WORDS, COUNTS = ["a", "dog", "cat", "runs", "sleeps"], [3, 2, 1, 1, 1]
AXES = {"wolf": (0.9, 0.1, 0.0), "lion": (0.1, 0.8, 0.0), "sprints": (0.0, 0.1, 0.7)}


def embed(words: Sequence[str]) -> np.ndarray:
    return np.array([AXES[word] for word in words], np.float32)


def config(dim: int = 3, anchor: str = "idf", counts: Sequence[int] = COUNTS) -> SUMAConfig:
    clip = {"embed_dim": dim}
    return SUMAConfig(clip, {}, words=WORDS, word_counts=counts, num_captions=3, num_concepts=3, anchor=anchor)


def space(anchor: str = "idf") -> ConceptSpace:
    """Of the corpus "a dog runs", "a dog sleeps", "a cat": concept 0 {a, dog}, 1 {cat}, 2 {runs, sleeps}."""
    made = ConceptSpace(config(anchor=anchor), width=3)
    made.start(np.eye(3, dtype=np.float32), np.array([0, 0, 1, 2, 2]))
    return made


NEAR = {word: max(at) / math.hypot(*at) for word, at in AXES.items()}  # the cosine with the nearest centre
IDF = {"a": math.log(4 / 4), "dog": math.log(4 / 3), "cat": math.log(4 / 2), "runs": math.log(4 / 2)}


@pytest.mark.parametrize(
    ("anchor", "sentence", "weights"),
    [
        ("binary", "a dog runs", (1, 0, 1)),
        ("binary", "a dog, a dog, a cat", (1, 1, 0)),
        ("count", "a dog, a dog, a cat", (5, 1, 0)),
        ("idf", "a dog runs", (IDF["a"] + IDF["dog"], 0, IDF["runs"])),
        ("idf", "dog dog dog cat", (IDF["dog"], IDF["cat"], 0)),
        ("idf", "a", (0, 0, 0)),  # in every caption: it tells nothing
        ("idf", "?!", (0, 0, 0)),
        ("count", "", (0, 0, 0)),
        ("count", "wolf", (1, 0, 0)),  # never seen: the nearest initial centre
        ("count", "a lion sprints", (1, NEAR["lion"], NEAR["sprints"])),
        ("binary", "dog wolf lion", (1, NEAR["lion"], 0)),
        # the average of the concept's words, times the nearness
        ("idf", "wolf lion", (NEAR["wolf"] * (IDF["a"] + IDF["dog"]) / 2, NEAR["lion"] * IDF["cat"], 0)),
        ("idf", "dog lion", (IDF["dog"], NEAR["lion"] * IDF["dog"], 0)),  # no more than a seen word
        ("idf", "a lion", (0, 1, 0)),  # but a word that is in every caption sets no bound
    ],
)
def test_anchors_by_hand(anchor: str, sentence: str, weights: tuple[float, ...]):
    length = math.sqrt(sum(w * w for w in weights)) or 1
    got = space(anchor).anchors([sentence], embed)[0].tolist()
    assert got == pytest.approx([w / length for w in weights], abs=1e-6)


@pytest.mark.parametrize(("cosine", "weight"), [(0.55, 0), (0.59, 0), (0.7, 0.7), (0.99, 0.99), (-0.5, 0)])
def test_a_word_never_seen_counts_as_far_as_it_is_near_and_not_at_all_where_concepts_lie_as_near(
    cosine: float, weight: float
):
    made = space("count")
    made.initial_centres = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.6, -0.8, 0]])  # each 0.6 from its nearest
    couch = np.array([[cosine, 0, math.sqrt(1 - cosine**2)]], np.float32)
    got = made.anchors(["cat couch"], lambda words: couch)[0].tolist()
    assert got == pytest.approx([weight / math.hypot(weight, 1), 1 / math.hypot(weight, 1), 0], abs=1e-6)


UNKNOWN = "xylophone qwzx \u65e5\u672c quokka samovar abacus theodolite marmot sextant loom trebuchet zither astrolabe"


def test_a_cat_is_found_wherever_it_is():
    reader = load_for_search(ROOT / "assets" / "model")
    index = VideoIndex.load(ROOT / "assets" / "gallery" / "index", reader)
    cat, best = reader.space.concept_of(["cat"], reader.embed_words)[0], index.search("a cat", 1)[0].path
    assert not set(UNKNOWN.split()) & set(reader.config.words)
    for word in UNKNOWN.split():
        anchor = reader.encode_queries([f"a cat on a {word}"]).anchors[0]
        assert anchor.argmax() == cat and anchor[cat] > 0.7, word
    assert index.search("a cat on a couch", 1)[0].path == best


def test_anchors_of_a_batch_are_those_of_its_sentences():
    sentences = ["a dog runs", "", "wolf", "cat"]
    together = space().anchors(sentences, embed)
    assert np.array_equal(together, np.concatenate([space().anchors([s], embed) for s in sentences]))
    assert space().anchors([], embed).shape == (0, 3)


def test_learning_moves_the_concepts_but_not_what_words_mean():
    moved = space()
    with torch.no_grad():
        moved.centres.copy_(torch.eye(3)[[2, 0, 1]])
    assert moved.concept_of(["wolf", "dog", "lion"], embed) == [0, 0, 1]
    assert np.array_equal(moved.anchors(["wolf cat"], embed), space().anchors(["wolf cat"], embed))
    assert torch.equal(moved.concepts(), torch.eye(3)[[2, 0, 1]])


def test_words_never_seen_are_embedded_once_together():
    asked = []

    def spy(words: Sequence[str]) -> np.ndarray:
        asked.append(list(words))
        return embed(words)

    space().anchors(["a wolf", "a lion, a wolf", "dog"], spy)
    assert asked == [["lion", "wolf"]]


def test_activations_are_cosines_with_the_concepts():
    made = space()
    with torch.no_grad():
        made.centres.copy_(torch.tensor([[2.0, 0, 0], [0, 3, 0], [1, 1, 0]]))
    got = made.activations(torch.tensor([[3.0, 4.0, 0.0]]))
    assert got.tolist()[0] == pytest.approx([0.6, 0.8, 1.4 / math.sqrt(2)])


def test_where_widths_differ_a_learned_map_brings_concepts_to_the_joint_space():
    made = ConceptSpace(config(dim=5), width=3)
    assert made.concepts().shape == (3, 5)
    made.concepts().sum().backward()
    assert made.map.weight.grad.shape == (5, 3)
    assert not list(space().map.parameters())


def test_members_partition_the_vocabulary(tiny_model: SUMA):
    members = [tiny_model.space.members(k) for k in range(12)]
    assert all(members)
    assert sorted(word for group in members for word in group) == sorted(tiny_model.config.words)
    assert tiny_model.space.name(3) == ", ".join(members[3][:3])
    for wrong in (-1, 12):
        with pytest.raises(ValueError, match=str(wrong)):
            tiny_model.space.members(wrong)


def test_a_words_embedding_is_the_mean_of_its_sub_words_rows(tiny_model: SUMA):
    table = tiny_model.clip.token_embedding.weight.detach()
    pieces = tiny_model.tokenizer.encode("frisbee")
    assert len(pieces) > 1
    expected = [sum(float(table[piece, e]) for piece in pieces) / len(pieces) for e in range(64)]
    got = tiny_model.embed_words(["dog", "frisbee"])
    assert got.shape == (2, 64)
    assert got[1].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_concepts_start_at_the_clusters_of_the_token_embeddings(tiny_model: SUMA, captions: list[str]):
    counts = count_words(captions)
    centres, assignment = cluster_words(tiny_model.embed_words(list(counts)), 12, seed=0)
    assert torch.equal(tiny_model.space.centres.detach(), torch.from_numpy(centres))
    assert torch.equal(tiny_model.space.initial_centres, torch.from_numpy(centres))
    assert tiny_model.space.concept_of(list(counts), tiny_model.embed_words) == assignment.tolist()
    config = tiny_model.config
    assert dict(zip(config.words, config.word_counts, strict=True)) == counts


def test_words_and_their_concepts_survive_saving_also_after_learning(tiny_model: SUMA, tmp_path: Path):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.space.centres.normal_()
        model.clip.token_embedding.weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    loaded = SUMA.from_pretrained(tmp_path)
    sentences = ["a dog runs", "an unseen xylophone", "", "the dog's frisbee"]
    assert loaded.config.words == model.config.words
    assert [loaded.space.members(k) for k in range(12)] == [tiny_model.space.members(k) for k in range(12)]
    assert torch.equal(loaded.anchors(sentences), model.anchors(sentences))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"'tfidf'.*binary, count, idf"):
        config(anchor="tfidf")
    with pytest.raises(ValueError, match=r"5 words .*2 counts"):
        ConceptSpace(config(counts=COUNTS[:2]), width=3)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(concept_space).failed == 0


def test_words_that_are_to_be_ignored_name_no_concept_and_weigh_nothing(tower):
    captions = ["a dog runs on the grass", "the cat sleeps on a bed", "two red cars race", "the bird sings"] * 2
    model = SUMA.from_clip(tower, captions, num_concepts=8, ignored_words=["a", "the", "on", "two"])
    assert not {"a", "the", "on", "two"} & set(model.space.words) and {"dog", "cat"} <= set(model.space.words)
    plain, wordy = model.anchors(["dog grass"]), model.anchors(["the dog on a grass"])
    assert torch.equal(plain, wordy) and not model.anchors(["on the two"]).any()
