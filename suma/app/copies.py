"""Copies of videos that browsers can play, each made by a separate process.

`Copies` starts the process and stops it when nobody waits, `main` is the process. It imports no torch and no gradio, so
that it starts at once.
"""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from suma.app.browser_formats import SOUNDS, plan_for, sounds_of
from suma.video.cut import copied, encoded, in_order
from suma.video.timeline import Timeline, every_frame, list_frames, video_stream
from suma.video.upright import upright

LONGEST_SIDE = 720  # pixels of such a copy
PATIENCE = 5.0  # seconds after the last call of `ask` until a copy is given up
MEMORY_LIMIT = 4 << 30  # bytes of address space, of each process


@dataclass
class _Job:
    """A copy that is being made."""

    done: float = 0.0  # share of it, 0 to 1
    asked: float = field(default_factory=time.monotonic)  # when somebody last waited for it
    failed: str = ""

    def wanted(self) -> bool:
        return time.monotonic() - self.asked < PATIENCE


class Copies:
    """Make copies, `at_once` at a time, each of them as long as somebody asks for it."""

    def __init__(self, at_once: int = max(1, (os.cpu_count() or 1) // 2)):
        self._turn = threading.Semaphore(at_once)
        self._jobs: dict[Path, _Job] = {}
        self._lock = threading.Lock()

    def ask(self, source: str, target: Path) -> float:
        """Return how much of the copy is made, from 0 to 1; the first call starts it.

        Raises OSError where the folder cannot be written, ValueError where no copy can be made.
        """
        if target.is_file():
            return 1.0
        with self._lock:
            job = self._jobs.get(target)
            if job is None:
                target.parent.mkdir(parents=True, exist_ok=True)
                job = self._jobs[target] = _Job()
                threading.Thread(target=self._make, args=(source, target, job), daemon=True).start()
            job.asked = time.monotonic()
            if job.failed:
                del self._jobs[target]
                raise ValueError(job.failed)
            return min(job.done, 0.99)

    def _make(self, source: str, target: Path, job: _Job) -> None:
        partial = target.with_name(f"{target.stem}.{os.getpid()}-{threading.get_ident()}.partial{target.suffix}")
        try:
            while not self._turn.acquire(timeout=1.0):
                if not job.wanted():
                    return
            try:
                if self._watch(_start(source, partial), job):
                    partial.replace(target)
            finally:
                self._turn.release()
        except OSError as error:
            job.failed = error.strerror or str(error)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
                target.parent.rmdir()  # where nothing is left in it: the folder of an upload that is gone
            with self._lock:
                if not job.failed:
                    self._jobs.pop(target, None)

    def _watch(self, child: "subprocess.Popen[str]", job: _Job) -> bool:
        """Follow the process to its end, or kill it when nobody waits any more. Return whether the copy is whole."""
        assert child.stdout is not None
        with child:
            last = ""
            for line in child.stdout:  # two each second, whatever the decoder does
                last = line.strip()
                with suppress(ValueError):
                    job.done = float(last)
                if not job.wanted():
                    child.kill()
                    return False  # where somebody asks again just now, the next call starts it anew
        if child.returncode:
            job.failed = last.removeprefix("error: ") if last.startswith("error: ") else "the video cannot be decoded"
        return child.returncode == 0


def _start(source: str, partial: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "suma.app.copies", os.path.abspath(source), str(partial)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def main() -> int:
    """Make one copy: `python -m suma.app.copies SOURCE TARGET`. Print the share that is done, twice a second."""
    source, target = sys.argv[1], Path(sys.argv[2])
    share = [0.0]
    if os.name == "posix":
        import resource

        os.nice(10)  # searches come first
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    threading.Thread(target=_print_share, args=(share, target), daemon=True).start()
    try:
        make(source, target, share)
    except Exception as error:  # PyAV raises whatever a damaged file leads to
        target.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the video cannot be decoded"
        print(f"error: {reason}", flush=True)
        return 1
    return 0


def _print_share(share: list[float], target: Path) -> None:
    while True:
        try:
            print(f"{share[0]:.3f}", flush=True)
        except OSError:  # the app is gone
            target.unlink(missing_ok=True)
            os._exit(1)
        time.sleep(0.5)


def make(source: str, target: Path, share: list[float]) -> None:
    """Write a copy that browsers play, with the times of `read_frames`; `share[0]` tells how far it is.

    Packets are kept where browsers play them and the copy shows the same at the same times; else the video is encoded
    again, upright and without sound. Raises ValueError, OSError or av.FFmpegError.
    """
    line, plan = list_frames(source), plan_for(source)
    if (plan.remux or plan.as_it_is) and not line.counted and not line.joined:
        with suppress(Exception):  # a container that cannot hold these packets
            remux(source, target, line, share)
            if plan_for(str(target)).as_it_is and _looks_like(str(target), source, line):
                return
    encode(source, target, line, share)


def _looks_like(copy: str, source: str, line: Timeline) -> bool:
    """Return whether a copy with the same packets has the same frame times, rotation and shape of pixels."""
    other = list_frames(copy)
    if len(other.times) != len(line.times) or np.abs(other.times - line.times).max() >= 0.002:
        return False
    (_, first), (_, copied) = next(every_frame(source, line)), next(every_frame(copy, other))
    return np.array_equal(upright(first, line.view), upright(copied, other.view))


def remux(source: str, target: Path, line: Timeline, share: list[float]) -> None:
    """Put the packets of the picture and of one sound track into another container, unchanged."""
    import av

    with av.open(source, metadata_errors="ignore") as read:
        video = video_stream(read)
        assert video.time_base is not None
        zero = int(line.ticks[0]) * video.time_base - Fraction(float(line.times[0]))
        sounds = [index for index, codec in sounds_of(source).items() if codec in SOUNDS[target.suffix]]
        indices = [video.index, *sounds[:1]]
    with av.open(str(target), "w") as written:
        for packet in in_order(copied(source, index, written, zero) for index in indices):
            share[0] = float(packet.pts * packet.time_base) / max(line.duration, 1e-3)
            written.mux(packet)


def encode(source: str, target: Path, line: Timeline, share: list[float]) -> None:
    """Encode all frames for the target's suffix, as `upright` shows them, no side longer than LONGEST_SIDE.

    Raises ValueError where no frame can be decoded.
    """
    import av

    rate = Fraction(max(1.0, len(line.times) / max(line.duration, 1e-3))).limit_denominator(1000)
    with av.open(str(target), "w") as written:
        packets = encoded(written, target.suffix, every_frame(source, line), line.view, rate, LONGEST_SIDE)
        for packet in in_order([packets]):
            share[0] = float(packet.pts * packet.time_base) / max(line.duration, 1e-3)
            written.mux(packet)


if __name__ == "__main__":
    sys.exit(main())
