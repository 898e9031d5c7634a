"""Explanations are the model's own numbers: the parts add up to the score."""

from pathlib import Path

import numpy as np
import pytest
from clips import noise_picture, write_video

from suma import SUMA, VideoIndex
from suma.explain import explain, heat_map


@pytest.fixture(scope="module")
def index(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    folder = tmp_path_factory.mktemp("explain")
    for n in range(3):
        pictures = [noise_picture(50 * n + i // 3, 64, 48) for i in range(12)]
        write_video(folder / f"{n}.mp4", frames=12, size=(64, 48), picture=lambda i, w, h, p=pictures: p[i])
    index = VideoIndex(tiny_model)
    index.add(folder)
    return index


def test_shares_add_up_to_the_score_of_search(index: VideoIndex):
    match = index.search("a dog runs", top_k=1)[0]
    why = explain(index, match.path, "a dog runs")
    assert sum(why.shares.values()) == pytest.approx(match.score, abs=1e-4)
    assert why.score == pytest.approx(match.score, abs=1e-4)


def test_concept_parts_add_up_to_the_aligned_share(index: VideoIndex):
    why = explain(index, index.rows[0].path, "a dog runs", top_k=99)
    aligned = why.shares["concept_coarse"] + why.shares["concept_fine"]
    assert sum(concept.part for concept in why.concepts) == pytest.approx(aligned, abs=1e-5)
    assert all(concept.query_weight > 0 for concept in why.concepts)
    parts = [concept.part for concept in why.concepts]
    assert parts == sorted(parts, reverse=True)


def test_heat_is_the_cosine_of_each_frame_to_the_concept(index: VideoIndex):
    why = explain(index, index.rows[1].path, "a dog runs")
    _, video = index.read(index.rows[1].path)
    concepts = index.model.concepts()
    for concept in why.concepts:
        for f, value in enumerate(concept.heat):
            assert value == pytest.approx(float(video.frames[0, f] @ concepts[concept.id]), abs=1e-5)
        assert set(concept.name.split(", ")) <= set(concept.words)


def test_the_strongest_of_the_video_stand_out_most_against_the_gallery(index: VideoIndex):
    why = explain(index, index.rows[2].path, by="video", top_k=3)
    _, video = index.read(index.rows[2].path)
    mean, deviation = index.concept_statistics()
    standing = ((video.frames[0] @ index.model.concepts().T - mean) / deviation).max(0)
    assert [c.id for c in why.concepts] == np.argsort(-standing)[:3].tolist()
    assert why.query == "" and why.frame_scores == [] and why.shares == {}


def test_one_frame_score_per_frame_with_times_inside_the_video(index: VideoIndex):
    why = explain(index, index.rows[0].path, "a cat")
    assert len(why.frame_scores) == len(why.times) == len(why.concepts[0].heat)
    assert all(0 <= t <= why.duration for t in why.times)


def test_a_query_without_known_concepts_is_explained_by_the_original_space(index: VideoIndex):
    why = explain(index, index.rows[0].path, "?!")
    assert why.concepts == []
    assert why.shares["concept_coarse"] == why.shares["concept_fine"] == 0


def test_bad_arguments_are_named(index: VideoIndex, tmp_path: Path):
    with pytest.raises(ValueError, match="sideways"):
        explain(index, index.rows[0].path, by="sideways")
    with pytest.raises(FileNotFoundError, match="gone"):
        explain(index, tmp_path / "gone.mp4", "a dog")


def test_the_heat_map_is_drawn_with_names_and_seconds(index: VideoIndex, tmp_path: Path):
    why = explain(index, index.rows[0].path, "a dog runs")
    figure = heat_map(why)
    figure.savefig(tmp_path / "heat.png")
    axes = figure.axes[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [c.name for c in why.concepts]
    assert axes.get_xticklabels()[0].get_text() == f"{why.times[0]:.1f} s"
    assert (tmp_path / "heat.png").stat().st_size > 5000
