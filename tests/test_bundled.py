"""The bundled model: of a size to ship, without unwanted words, and good for real videos."""

import json
from pathlib import Path

import pytest

from suma.model.vocabulary import ignored_words

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "model"
REALCLIPS = ROOT.parent / "shared" / "realclips"


def test_it_is_small_and_names_no_concept_by_an_unwanted_word():
    assert (MODEL / "model.safetensors").stat().st_size < 40e6
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert not set(config["words"]) & set(ignored_words())
    assert len(config["words"]) == len(config["word_counts"]) > 10_000


def test_its_card_states_the_terms_of_its_data():
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for said in ("non-commercial research", "473 of the 1,000 test clips", "EfficientNet-Lite2", "all-MiniLM-L6-v2"):
        assert said in card


@pytest.mark.slow
def test_it_finds_real_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not REALCLIPS.is_dir():
        pytest.skip("no ../shared/realclips")
    from evaluate import evaluate

    from suma import SUMA

    monkeypatch.setenv("SUMA_CACHE", str(tmp_path))
    found = evaluate(SUMA.from_pretrained(MODEL), str(REALCLIPS), "captions")["retrieval"]["SUMA"]
    assert found["t2v"]["r5"] >= 80 and found["t2v"]["mnr"] <= 3.5 and found["v2t"]["r1"] >= 40
