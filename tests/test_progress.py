"""A long stage says how far it is, also where nobody sees a bar."""

import io
import sys
import time

import pytest

from suma import progress
from suma.progress import Progress


class Terminal(io.StringIO):
    """A stderr that is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def lines_of(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_where_there_is_no_terminal_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.2)
    for n in Progress(range(10), desc="decode frames", unit="video"):
        time.sleep(0.05)
        if n == 8:
            first, *_ = before = lines_of(capsys)
    assert first.startswith("decode frames: ") and "/10 [00:00<" in first and 1 <= len(before) <= 4
    (last,) = lines_of(capsys)
    assert last.startswith("decode frames: 10/10 [00:00<00:00, ")


def test_a_line_comes_also_during_one_long_step(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.1)
    with Progress(total=2, desc="index", unit="video") as bar:
        bar.set_postfix(failed=1)
        time.sleep(0.35)
        told = lines_of(capsys)
        assert 1 <= len(told) <= 3 and all(line.startswith("index: 0/2 [") and "failed=1" in line for line in told)
    time.sleep(0.2)
    assert len(lines_of(capsys)) == 1  # how it ended, and none after that


@pytest.mark.parametrize("options", [{}, {"disable": True}, {"leave": False}])
def test_a_short_stage_says_nothing(capsys, options: dict):
    assert list(Progress(range(3), desc="short", **options)) == [0, 1, 2]
    assert lines_of(capsys) == []


def test_a_stage_that_is_broken_off_goes_silent(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    bar = Progress(total=2, desc="index")
    del bar  # nobody closed it
    lines_of(capsys)
    time.sleep(0.2)
    assert lines_of(capsys) == []


def test_a_terminal_has_its_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    list(Progress(range(3), desc="index"))
    assert "100%|" in terminal.getvalue()


def test_lines_are_flushed(monkeypatch: pytest.MonkeyPatch):
    flushed = []
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    monkeypatch.setattr(stream, "flush", lambda: flushed.append(stream.getvalue()), raising=False)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    next(iter(Progress(range(3), desc="encode frames")))
    assert flushed and flushed[-1].startswith("encode frames: 0/3 [")
