"""The bar under the search box: the query's concepts with their weights, to boost, ban, add and copy."""

from collections.abc import Mapping
from typing import Any

from suma.app.render import render
from suma.index.query import Query
from suma.index.steering import MAX_STEERED, concepts_of, parse, unparse
from suma.model.vocabulary import NEGATIONS, fold, split_words

SHOWN = 6  # concepts of the sentence, strongest first; those that were set always show
SETS = {"ban": -1.0, "add": 0.8}  # what a button of the bar sets a weight to


def changed(text: str, event: Mapping[str, Any]) -> str:
    """Return the query's text after a click in the bar: one weight set or let go, or all of them reset."""
    sentence, weights = parse(text)
    kind, word = str(event.get("kind", "")), fold(str(event.get("word", "")).strip())
    if kind == "reset":
        return sentence
    if not word:
        return text
    if kind == "free":
        weights.pop(word, None)
    elif kind == "weight":
        weights[word] = max(-1.0, min(1.0, float(event.get("value", 0))))
    elif kind in SETS:
        weights[word] = SETS[kind]
    if kind != "free" and len(weights) > MAX_STEERED:
        raise ValueError(f"at most {MAX_STEERED} concepts can be steered")
    return unparse(sentence, weights)


def bar(model: Any, text: str, query: Query) -> str:
    """Return the bar for a query as it was typed and as it was read."""
    space, weights = model.space, dict(query.weights)
    weight_of = concepts_of(model, weights)
    word_of = dict(zip(space.concept_of(list(weights), model.embed_words), weights, strict=True)) if weights else {}
    anchor = query.anchor(model)
    if anchor is not None:
        strongest = anchor.argsort(descending=True)[:SHOWN].tolist()
        weight_of |= {k: float(anchor[k]) for k in strongest if anchor[k] >= 0.005 and k not in weight_of}
    knobs = [
        {
            "name": space.name(k),
            "members": space.members(k),
            "word": word_of.get(k) or space.members(k)[0],
            "weight": weight,
            "is_set": k in word_of,
        }
        for k, weight in weight_of.items()
    ]
    words, known = split_words(" ".join(term for term, _ in query.mixed)), {*space.words, *space.ignored, *NEGATIONS}
    return render(
        "steer",
        untrained=model.config.untrained,
        knobs=knobs,
        text=text,
        steered=bool(weights),
        unknown=[word for word in dict.fromkeys(map(space.read, words)) if word not in known],
        notes=query.notes(space),
    )
