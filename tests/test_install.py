"""What `pip install .` installs works from any folder, with the bundled model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_installed_package_brings_its_model(tmp_path: Path):
    pytest.importorskip("setuptools", minversion="77")
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    for part in ("suma", "assets/model"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path)
    run(*pip, "install", *tmp_path.glob("*.whl"), "--no-deps", "--no-index", "--target", site)
    shutil.rmtree(source)
    elsewhere.mkdir()

    video = ROOT / "assets" / "gallery" / "videos" / "video9000.mp4"
    where = {"cwd": elsewhere, "env": {**os.environ, "PYTHONPATH": str(site)}}
    assert run(sys.executable, "-c", "import suma; print(suma.__file__)", **where).startswith(str(site))
    assert "1 added" in run(sys.executable, "-m", "suma", "index", video, "-o", "index", **where)
    (found,) = json.loads(run(site / "bin" / "suma", "search", "index", "a dog runs", "--all", "--json", **where))
    assert found["path"] == str(video)
    told = run(site / "bin" / "suma", "doctor", **where)
    assert "PROBLEM" not in told and f"bundled model {site / 'suma' / 'bundled'}" in told
    assert (site / "suma" / "py.typed").is_file()
    app = subprocess.run([site / "bin" / "suma", "app"], capture_output=True, text=True, timeout=300, **where)
    assert app.returncode == 2 and app.stderr.splitlines()[-1].endswith("suma app --videos FOLDER")
