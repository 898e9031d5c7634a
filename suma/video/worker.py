"""Decode videos in a child process: a file that hangs, crashes or eats memory costs that one video, never the run.

`Decoder` runs in the parent, `main` in the child. The child imports no torch, so it starts in a fifth of a second. It
answers with a line of JSON and raw pixels, nothing that could be executed.
"""

import contextlib
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from suma.video.frames import NEAR, read_parts

if TYPE_CHECKING:
    import psutil

CHILD = ("-m", "suma.video.worker")  # Python's arguments
TIME_LIMIT = 60.0  # seconds without progress
COMPUTING = 1e-3  # share of a processor from which on it computes: a machine may be busy with others
CIRCLES, REREAD = 10, 100  # time limits of computing without a byte, and sizes of the file read without a frame
HASH_BYTES = 1 << 20  # read at once; progress is seen after each
LARGE = 1 << 26  # bytes from which on a file is looked at for holes
MEMORY_LIMIT = 4 << 30  # bytes of address space, of each child


class Work(NamedTuple):
    """How much a child has done so far, and whether the parent waits for it."""

    waiting: bool
    taken: int  # lines and frames
    read: int  # bytes, where the system counts them
    computed: float  # processor seconds


class Part(NamedTuple):
    """A part of a video. Its frames come one by one, so they are never all in memory."""

    duration: float  # seconds, of the whole file
    start: float  # seconds, of this part
    end: float
    times: list[float]  # of the frames, seconds
    exact: bool  # not key frames near the wanted times
    frames: Iterator[np.ndarray]  # F times (1, h, w, 3) uint8; read them before the next part


class Decoder:
    """Decodes in a child process, which starts when it is first needed. Use it from one thread at a time.

    `time_limit` does not limit how long a video may take: a slow disk or a busy machine is no reason to give up. The
    child is killed if it reads and computes nothing for `time_limit` seconds, or reads or computes without an answer.
    """

    def __init__(self, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT):
        self.time_limit, self.memory_limit = time_limit, memory_limit
        self.digest = ""  # of the last file that was read whole
        self._child: subprocess.Popen[bytes] | None = None
        self._waiting, self._taken, self._enough, self._late = False, 0, 0, ""

    def read(self, path: str, num_frames: int, segment: float = 0.0, exact: bool = False) -> Iterator[Part]:
        """Yield the parts of a video (frames.parts_of) with `num_frames` frames each; unless `exact`, of key frames
        where these are near.

        Raises ValueError with the reason if the file cannot be read or the child died of it; OSError if it may not be
        opened, and TimeoutError (an OSError) if it took too long: these two are not the fault of the file's content.
        """
        self.digest, self._enough = "", (1 << 30) + REREAD * os.path.getsize(path)
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        try:
            request = {"path": path, "num_frames": num_frames, "segment": segment, "keyframes": 0.0 if exact else NEAR}
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            while True:
                answer = json.loads(self._take(child.stdout, None))
                if "error" in answer:
                    raise (OSError if answer["kind"] == "OSError" else ValueError)(answer["error"])
                if "digest" in answer:
                    self.digest = answer["digest"]
                    return
                shape = (1, *answer.pop("shape"))
                count = len(answer["times"])
                frames = (self._take(child.stdout, int(np.prod(shape))) for _ in range(count))
                yield Part(**answer, frames=(np.frombuffer(bytearray(f), np.uint8).reshape(shape) for f in frames))
        except (BrokenPipeError, EOFError):
            raise self._end_of(child) from None
        except GeneratorExit:  # the rest is not wanted
            self.close()
            raise

    def _started(self) -> "subprocess.Popen[bytes]":
        """Return the child, started again if it has ended."""
        if self._child is None or self._child.poll() is not None:
            self._late = ""
            self._child = subprocess.Popen(
                [sys.executable, *CHILD, str(self.memory_limit), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parents[2],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
            threading.Thread(target=self._watch, args=[self._child], daemon=True).start()
        return self._child

    def _take(self, stream: IO[bytes], size: int | None) -> bytes:
        """Read one line, or `size` bytes, from the child. Raises EOFError if it died or was killed."""
        self._waiting = True
        got = stream.readline() if size is None else stream.read(size)
        self._waiting, self._taken = False, self._taken + 1
        if not got or (size is not None and len(got) < size):
            raise EOFError
        return got

    def _watch(self, child: "subprocess.Popen[bytes]") -> None:
        """Kill the child if it makes no progress while the parent waits for it. Runs in a thread of its own."""
        import psutil

        step = min(1.0, self.time_limit / 4)  # time is counted in steps: a pause of the whole machine is one step
        idle, circling, answered, before = 0.0, 0.0, 0, Work(False, 0, 0, 0.0)
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.pid)
            while child.poll() is None and not self._late:
                time.sleep(step)
                now = Work(self._waiting, self._taken, *_work_of(process))
                computed = now.computed - before.computed
                if not now.waiting or now.taken != before.taken:
                    idle, circling, answered = 0.0, 0.0, now.read
                elif now.read != before.read:
                    idle, circling = 0.0, 0.0
                else:
                    idle, circling = max(0.0, idle + step - computed / COMPUTING), circling + computed
                before = now
                if idle >= self.time_limit:
                    self._late = f"nothing was read and nothing computed for {self.time_limit:g} s"
                elif circling >= CIRCLES * self.time_limit:
                    self._late = f"it was computed for {circling:.0f} s without reading on"
                elif now.read - answered > self._enough:
                    self._late = f"{now.read - answered} bytes were read without finding a frame"
            if self._late:
                child.kill()

    def _end_of(self, child: "subprocess.Popen[bytes]") -> Exception:
        """Return the error that says why a child ended."""
        code = child.wait()
        self._child = None
        if self._late:
            return TimeoutError(f"given up: {self._late} (`index --time-limit` allows more)")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ValueError(f"the decoder died of it ({name})")

    def close(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def _work_of(process: "psutil.Process") -> tuple[int, float]:
    """Return the bytes that a process has read (0 where the system does not count them), and its processor seconds."""
    import psutil

    times = process.cpu_times()
    try:
        counters = process.io_counters()
    except (AttributeError, psutil.AccessDenied):  # macOS
        return 0, times.user + times.system
    return getattr(counters, "read_chars", counters.read_bytes), times.user + times.system


def main() -> None:
    """Answer the requests on stdin, in the child, until stdin ends."""
    memory_limit, parent = int(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_leave_with, args=[parent], daemon=True).start()
    for line in sys.stdin.buffer:
        try:
            for header, payload in _answer(**json.loads(line)):
                answers.write(json.dumps(header).encode() + b"\n")
                answers.write(payload)
                answers.flush()
        except BrokenPipeError:
            return


def _leave_with(parent: int) -> None:
    """End this process soon after its parent: its stdin would tell only after the current video."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _answer(path: str, num_frames: int, segment: float, keyframes: float) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield headers with their payloads: the parts, then the digest; or an error."""
    try:
        before = os.stat(path)
        if stat.S_ISREG(before.st_mode):  # opening a pipe would wait for its other end
            open(path, "rb").close()  # may it be read? if not, the error is the system's own
        refuse_sparse(path)
        for start, end, frames, exact in read_parts(path, num_frames, segment, keyframes):
            header = {
                "duration": float(frames.duration),
                "start": round(float(start), 3),
                "end": round(float(end), 3),
                "times": [round(float(t), 6) for t in frames.times],
                "exact": exact,
                "shape": frames.frames.shape[1:],
            }
            yield header, np.ascontiguousarray(frames.frames).reshape(-1)
        hashed = hashlib.sha256()
        with open(path, "rb") as file:
            while content := file.read(HASH_BYTES):
                hashed.update(content)
        after = os.stat(path)
        if (before.st_size, before.st_mtime) != (after.st_size, after.st_mtime):
            raise OSError("it changed while it was read")
        yield {"digest": hashed.hexdigest()}, b""
    except MemoryError:
        yield {"error": "decoding needs more memory than is allowed", "kind": "ValueError"}, b""
    except (ValueError, OSError) as error:
        yield {"error": str(error), "kind": "OSError" if isinstance(error, OSError) else "ValueError"}, b""


def refuse_sparse(path: str) -> None:
    """Raise OSError for a large file that is mostly holes: an unfinished download, or a trap.

    Some file systems (FUSE, network) count no blocks. So a small count is only a reason to look for holes.
    """
    info = os.stat(path)
    if info.st_size <= LARGE or 1024 * getattr(info, "st_blocks", info.st_size) >= info.st_size:
        return
    there = data_bytes(path)
    if 2 * there < info.st_size:
        raise OSError(f"only {there} of its {info.st_size} bytes are on the disk (a download that goes on?)")


def data_bytes(path: str) -> int:
    """Return how many bytes of a file are not in holes: all, if the file system knows no holes."""
    there = end = 0
    with open(path, "rb", buffering=0) as file:
        try:
            while True:
                start = file.seek(end, os.SEEK_DATA)
                end = file.seek(start, os.SEEK_HOLE)
                there += end - start
        except OSError as error:  # ENXIO: no data from here on
            return there if error.errno == errno.ENXIO else os.stat(path).st_size


if __name__ == "__main__":
    main()
