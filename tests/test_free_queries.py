"""Free queries at a gallery of several data sets: the rank of the first right video."""

import json
from pathlib import Path

import free_queries
import pytest
from clips import noise_picture, write_video
from test_data import row, write_layout

from suma import SUMA


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two folders of two clips each: video0, video1 and video2, video3."""
    found = []
    for first in (0, 2):
        folder = tmp_path_factory.mktemp("data")
        (folder / "video").mkdir()
        for n in (first, first + 1):
            path = folder / "video" / f"video{n}.mp4"
            write_video(path, 3, (32, 32), picture=lambda i, w, h, n=n: noise_picture(9 * n + i, w, h))
        rows = [row(n, "a dog runs") for n in (first, first + 1)]
        write_layout(folder, rows, rows)
        found.append(f"{folder}:test_1k")
    return found


def test_the_first_right_video_of_all_data_sets_counts(tiny_model: SUMA, datasets: list[str], monkeypatch, tmp_path):
    monkeypatch.setenv("SUMA_CACHE", str(tmp_path))
    wishes = [{"query": "a dog", "videos": [f"video{n}.mp4"]} for n in range(4)]
    ranks = free_queries.right_ranks(tiny_model, datasets, wishes)
    assert sorted(ranks.tolist()) == [1, 2, 3, 4]
    best = int(ranks.argmin())
    both = [{"query": "a dog", "videos": [f"video{best}.mp4", f"video{(best + 1) % 4}.mp4"]}]
    assert free_queries.right_ranks(tiny_model, datasets, both).tolist() == [1]
    with pytest.raises(ValueError, match="video9"):
        free_queries.right_ranks(tiny_model, datasets, [{"query": "a dog", "videos": ["video9.mp4"]}])


def test_the_queries_are_sixty_and_each_names_its_videos():
    wishes = json.loads(free_queries.QUERIES.read_text(encoding="utf-8"))
    assert len(wishes) == len({wish["query"] for wish in wishes}) == 60
    assert all(wish["videos"] and all(Path(name).suffix == ".mp4" for name in wish["videos"]) for wish in wishes)
