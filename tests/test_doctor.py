"""`suma doctor` says what is there, what is missing, and what a model would download."""

import json
from pathlib import Path

import pytest

from suma import doctor
from suma.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def report(capsys: pytest.CaptureFixture, *options: str) -> tuple[int, list[dict]]:
    code = main(["doctor", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_a_whole_installation_has_no_problem(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SUMA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "frames").write_bytes(b"0" * 3_000_000)
    code, found = report(capsys)
    assert code == 0 and all(line["ok"] for line in found)
    texts = "\n".join(line["found"] for line in found)
    assert f"cache {tmp_path / 'cache'}: 3 MB" in texts and str(ROOT / "assets" / "model") in texts
    assert main(["doctor"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_a_missing_package_is_named_with_the_command_that_installs_it(capsys: pytest.CaptureFixture, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: "" if package == "faiss-cpu" else version(package))
    code, found = report(capsys)
    (wrong,) = (line["found"] for line in found if not line["ok"])
    assert code == 2 and "faiss-cpu" in wrong and "pip install -r requirements.txt" in wrong


def test_a_model_that_is_not_here_says_what_would_be_downloaded(capsys: pytest.CaptureFixture, tmp_path, monkeypatch):
    monkeypatch.setenv("SUMA_CACHE", str(tmp_path))
    code, found = report(capsys, "--model", "ViT-B-32:openai")
    assert code == 0 and "not here yet" in found[-1]["found"]
    code, found = report(capsys, "--model", "ViT-B-32:opnai")
    assert code == 2 and "openai" in found[-1]["found"]
    code, found = report(capsys, "--model", str(ROOT / "assets" / "model"))
    assert code == 0 and "nothing is downloaded" in found[-1]["found"]
