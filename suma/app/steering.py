"""The bar under the search box: the query's concepts with their weights, to boost, ban, add and copy."""

from collections.abc import Mapping
from typing import Any

from suma.app.tiles import esc
from suma.index.query import parse as parse_query
from suma.index.steering import MAX_STEERED, concepts_of, parse, unparse
from suma.model.vocabulary import fold, split_words

SHOWN = 6  # concepts of the sentence, strongest first; those that were set always show


def changed(text: str, event: Mapping[str, Any]) -> str:
    """The query's text after a click in the bar: a weight set, a concept added, banned, let go; or all reset."""
    sentence, weights = parse(text)
    kind, word = str(event.get("kind", "")), fold(str(event.get("word", "")).strip())
    if kind == "reset":
        return sentence
    if not word:
        return text
    weights.pop(word, None) if kind == "free" else None
    value = {"ban": -1.0, "add": 0.8, "drop": 0.0}.get(kind)
    if kind == "weight":
        value = max(-1.0, min(1.0, float(event.get("value", 0))))
    if value is not None:
        weights = {**weights, word: value}
        if len(weights) > MAX_STEERED:
            raise ValueError(f"at most {MAX_STEERED} concepts can be steered")
    return unparse(sentence, weights)


def bar(model: Any, text: str) -> str:
    """The bar for a query's text."""
    sentence, weights = parse(text)
    asked = parse_query(sentence)
    anchor, said = asked.anchor(model), " ".join(text for text, _ in asked.mixed)
    set_by = concepts_of(model, weights)
    named = [] if anchor is None else [int(k) for k in anchor.argsort(descending=True)[:SHOWN] if anchor[k] >= 0.005]
    head, chips = "Untrained concepts" if model.config.untrained else "Concepts", []
    word_of = {concept: word for word, concept in zip(weights, _each(model, weights), strict=True)}
    for concept in [*set_by, *(k for k in named if k not in set_by)]:
        value = set_by.get(concept, 0.0 if anchor is None else float(anchor[concept]))
        word = word_of.get(concept) or model.space.members(concept)[0]
        chips.append(_chip(model, concept, word, value, concept in set_by))
    reset = '<button class="suma-link" data-kind="reset" data-event="input">Reset</button>' if weights else ""
    copy = (
        f'<button class="suma-link" data-kind="copy" data-text="{esc(unparse(sentence, weights))}">'
        "Copy as text</button>"
        '<button class="suma-link" data-kind="copy">Copy link</button>'
        if text.strip()
        else ""
    )
    return (
        f'<div class="suma-steer"><div class="suma-knobs"><span class="suma-steer-head">{head}</span>{"".join(chips)}'
        '</div><div class="suma-tools"><form data-add class="suma-add"><input type="text" maxlength="60" '
        'aria-label="add a concept by a word" placeholder="add a word"><button class="suma-link">Add</button></form>'
        f'<span class="suma-actions">{reset}{copy}</span>{_unknown(model, said)}</div></div>'
    )


def _unknown(model: Any, sentence: str) -> str:
    """Return a line naming the words that no concept has: each counts only as far as it is near one."""
    known = set(model.space.words)
    words = [word for word in dict.fromkeys(split_words(sentence)) if word not in known]
    if not words:
        return ""
    shown = ", ".join(word[:24] for word in words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
    return f'<span class="suma-unknown" role="status">not a word of the model: {esc(shown)}</span>'


def _each(model: Any, weights: Mapping[str, float]) -> list[int]:
    return model.space.concept_of(list(weights), model.embed_words) if weights else []


def _chip(model: Any, concept: int, word: str, value: float, is_set: bool) -> str:
    name, members = model.space.name(concept), ", ".join(model.space.members(concept))
    state = "suma-banned" if value < 0 else "suma-off" if value == 0 else "suma-set" if is_set else ""
    ban = (
        _button("free", word, "Allow", "let it count again")
        if value < 0
        else _button("ban", word, "Ban", "videos lose")
    )
    again = _button("free", word, "Undo", "as the sentence says") if is_set and value >= 0 else ""
    return (
        f'<span class="suma-knob {state}" title="{esc(members)}"><b>{esc(name)}</b>'
        f'<input type="range" min="-1" max="1" step="0.05" value="{value:.2f}" data-word="{esc(word)}" '
        f'aria-label="weight of {esc(name)}"><output>{value:.2f}</output>{again}{ban}</span>'
    )


def _button(kind: str, word: str, label: str, title: str) -> str:
    return (
        f'<button class="suma-link" data-kind="{kind}" data-event="input" data-word="{esc(word)}" '
        f'title="{esc(title)}" aria-label="{label} {esc(word)}">{label}</button>'
    )
