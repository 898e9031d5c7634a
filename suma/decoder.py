"""Decode videos in a process of their own: one that hangs, crashes or eats memory costs one video, never the run.

`Decoder` is the parent's end, `main` the child's. The child imports no torch, so it starts in a fifth of a second. What
comes back is a line of JSON and raw pixels, nothing that could be executed.
"""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from suma.video import read_parts

CHILD = ("-m", "suma.decoder")  # Python's arguments
TIME_LIMIT = 60.0  # seconds without an answer
HASH_BYTES = 1 << 26  # read at once
MEMORY_LIMIT = 4 << 30  # bytes of address space, of each child


class Part(NamedTuple):
    """What is read of one video: its frames come one by one, so that never all of them are in memory."""

    duration: float  # seconds, of the whole file
    start: float  # seconds, of this part
    end: float
    times: list[float]  # of the frames, seconds
    frames: Iterator[np.ndarray]  # F times (1, h, w, 3) uint8; take them before the next part


class Decoder:
    """A child process that decodes, started when it is needed. Not for several threads at once."""

    def __init__(self, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT):
        self.time_limit, self.memory_limit = time_limit, memory_limit
        self.digest = ""  # of the last file that was read whole
        self._child: subprocess.Popen[bytes] | None = None
        self._late = False

    def read(self, path: str, num_frames: int, segment: float = 0.0) -> Iterator[Part]:
        """The parts of a video (suma.video.parts_of), `num_frames` of each. Raises ValueError with the reason where it
        cannot be read, also where the child died, and OSError where the file may not be opened."""
        self.digest = ""
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps({"path": path, "num_frames": num_frames, "segment": segment}).encode() + b"\n")
            child.stdin.flush()
            while True:
                answer = json.loads(self._take(child.stdout, None))
                if "error" in answer:
                    raise (OSError if answer["kind"] == "OSError" else ValueError)(answer["error"])
                if "hashed" in answer:  # a sign of life
                    continue
                if "digest" in answer:
                    self.digest = answer["digest"]
                    return
                shape = (1, *answer.pop("shape"))
                count = len(answer["times"])
                frames = (self._take(child.stdout, int(np.prod(shape))) for _ in range(count))
                yield Part(**answer, frames=(np.frombuffer(bytearray(f), np.uint8).reshape(shape) for f in frames))
        except (BrokenPipeError, EOFError):
            raise ValueError(self._end_of(child)) from None
        except GeneratorExit:  # the rest is not wanted
            self.close()
            raise

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, *CHILD, str(self.memory_limit), str(self.time_limit)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parents[1], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        return self._child

    def _take(self, stream: IO[bytes], size: int | None) -> bytes:
        """A line, or `size` bytes. Raises EOFError where the child died, killed by us or not."""
        assert self._child is not None
        self._late = False
        watch = threading.Timer(self.time_limit, self._kill, [self._child])
        watch.daemon = True
        watch.start()
        try:
            got = stream.readline() if size is None else stream.read(size)
        finally:
            watch.cancel()
        if not got or (size is not None and len(got) < size):
            raise EOFError
        return got

    def _kill(self, child: "subprocess.Popen[bytes]") -> None:
        self._late = True
        child.kill()

    def _end_of(self, child: "subprocess.Popen[bytes]") -> str:
        code = child.wait()
        self._child = None
        if self._late:
            return f"decoding took longer than {self.time_limit:g} s"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decoder died of it ({name})"

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def main() -> None:
    """The child: requests on stdin, answers on stdout, until stdin ends."""
    memory_limit, time_limit = int(sys.argv[1]), float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def limit(seconds: float) -> None:  # for a child whose parent was killed
        if os.name == "posix":
            signal.alarm(int(seconds))

    for line in sys.stdin.buffer:
        try:
            limit(2 * time_limit + 2)
            for header, payload in _answer(**json.loads(line)):
                limit(0)  # the parent may take its time
                answers.write(json.dumps(header).encode() + b"\n")
                answers.write(payload)
                answers.flush()
                limit(2 * time_limit + 2)
            limit(0)
        except BrokenPipeError:
            return


def _answer(path: str, num_frames: int, segment: float) -> Iterator[tuple[dict[str, Any], Any]]:
    """Headers with their payloads: the parts, signs of life while the content is hashed, the digest; or an error."""
    try:
        before = os.stat(path)
        if stat.S_ISREG(before.st_mode):  # opening a pipe would wait for its other end
            open(path, "rb").close()  # whether we may, in the system's words
        refuse_sparse(path)
        for start, end, frames in read_parts(path, num_frames, segment):
            header = {
                "duration": float(frames.duration), "start": round(float(start), 3), "end": round(float(end), 3),
                "times": [round(float(t), 3) for t in frames.times], "shape": frames.frames.shape[1:],
            }  # fmt: skip
            yield header, np.ascontiguousarray(frames.frames).reshape(-1)
        hashed = hashlib.sha256()
        with open(path, "rb") as file:
            while content := file.read(HASH_BYTES):
                hashed.update(content)
                yield {"hashed": len(content)}, b""
        after = os.stat(path)
        if (before.st_size, before.st_mtime) != (after.st_size, after.st_mtime):
            raise OSError("it changed while it was read")
        yield {"digest": hashed.hexdigest()}, b""
    except MemoryError:
        yield {"error": "decoding needs more memory than is allowed", "kind": "ValueError"}, b""
    except (ValueError, OSError) as error:
        yield {"error": str(error), "kind": "OSError" if isinstance(error, OSError) else "ValueError"}, b""


def refuse_sparse(path: str) -> None:
    """Raises OSError for a large file most of which is not there: a download that goes on, or a trap."""
    there = os.stat(path)
    blocks = 512 * getattr(there, "st_blocks", there.st_size)
    if there.st_size > HASH_BYTES and 2 * blocks < there.st_size:
        raise OSError(f"only {blocks} of its {there.st_size} bytes are on the disk (a download that goes on?)")


if __name__ == "__main__":
    main()
