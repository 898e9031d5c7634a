"""The README's program prints what the README says."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_short_program_prints_what_stands_below_it(monkeypatch: pytest.MonkeyPatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", readme, re.S)
    assert found, "the README has no program with its output"
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(found[1], "README.md", "exec"), {})
    assert printed.getvalue().strip() == found[2].strip()


def test_every_file_the_readme_points_to_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert len(links) > 5
    assert not [link for link in links if not (ROOT / link).exists()]
