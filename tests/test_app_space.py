"""From the repository to a Space: the README's head, what is pushed to a stand-in for the Hub, a GPU that is lent."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
import pytest
import yaml
from hub import TOKEN, running_hub
from huggingface_hub.utils import filter_repo_objects

from suma.app import space
from suma.app.startup import parser

ROOT = Path(__file__).resolve().parents[1]


def test_the_readmes_head_is_what_spaces_read():
    head = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and (ROOT / head["app_file"]).is_file() and head["license"] == "apache-2.0"
    assert str(head["sdk_version"]) == gr.__version__  # the version that the tests ran with
    assert tuple(map(int, str(head["python_version"]).split("."))) >= (3, 11)
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {head["colorFrom"], head["colorTo"]} <= colours and len(head["title"]) < 60
    assert len(head.get("short_description", "")) <= 60


def test_a_space_is_made_and_gets_what_the_app_needs_and_nothing_else(tmp_path: Path):
    program = (
        "import os, runpy, sys\n"
        "for os.environ['HF_TOKEN'] in sys.argv[1:]:\n"
        "    sys.argv = ['space', 'me/suma']\n"
        "    try: runpy.run_module('suma.app.space', run_name='__main__')\n"
        "    except SystemExit as left: print('left with', left.code)\n"
    )
    with running_hub() as hub:
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-c", program, "hf_wrong", TOKEN, TOKEN]  # refused, made, updated
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        files = hub.files("spaces/me/suma")
    assert re.findall("left with (.*)", done.stdout) == ["2", "0", "0"], done.stderr
    assert done.stderr.startswith("error:") and "Traceback" not in done.stderr
    assert files["app.py"] == (ROOT / "app.py").read_bytes() and "README.md" in files and "requirements.txt" in files
    for folder in ("suma", "docs", "assets/model", "assets/gallery"):
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {path for path in there if "__pycache__" not in path} <= set(files)
    assert not [
        path for path in files if "__pycache__" in path or path.startswith(("tests/", "train/", ".")) or ".git" in path
    ]


def test_nothing_hidden_or_half_written_goes_to_a_space():
    files = ["app.py", "suma/app/page.py", "suma/.env", "assets/gallery/videos/.DS_Store", "suma/__pycache__/a.pyc"]
    files += ["assets/gallery/index/rows.partial", "tests/test_app.py", ".git/config", "secret.txt"]
    sent = filter_repo_objects(files, allow_patterns=space.NEEDED, ignore_patterns=space.NEVER)
    assert list(sent) == files[:2]


def test_a_space_takes_only_models_that_it_could_load(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean PE-Core-B-16"):
        space.push("me/suma", model="PE-Core-B16:meta")
    for model in (str(tmp_path), "assets/model", "no-model"):
        with pytest.raises(ValueError, match="--model"):
            space.push("me/suma", model=model)


def test_every_option_is_explained():
    for action in parser()._actions:
        assert (action.help and len(action.help) > 20) or action.dest == "help", action.dest


def test_a_lent_gpu_is_borrowed_for_the_models_calls_only(monkeypatch: pytest.MonkeyPatch):
    borrowed: list[str] = []

    def lend(function: Any) -> Any:
        return lambda *args: borrowed.append(function.__name__) or function(*args)

    spaces = ModuleType("spaces")
    spaces.GPU = lend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", spaces)

    def double(x: int) -> int:
        return 2 * x

    assert space.on_gpu(double) is double  # no Space that lends
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert space.on_gpu(double)(4) == 8 and borrowed == ["double"]
    monkeypatch.setitem(sys.modules, "spaces", None)  # not installed
    assert space.on_gpu(double) is double
