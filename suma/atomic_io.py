"""Write files so that a kill or a full disk leaves them whole: append, replace files, lock out other writers."""

import contextlib
import errno
import hashlib
import json
import os
import signal
import socket
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LOCK, WRITER = "lock", "writer.json"


class IndexBusyError(OSError):
    """Another process writes to the index."""


def on_disk(path: str | os.PathLike[str]) -> str:
    """Return a path as the disk spells it, or unchanged if no spelling of it exists.

    Some systems (macOS) store letters and accents apart, so a path that is not there as given may be there composed or
    decomposed.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    if path.isascii() or not name or os.path.lexists(path):
        return path
    folder, wanted = on_disk(folder), unicodedata.normalize("NFC", name)
    with contextlib.suppress(OSError, ValueError):
        name = next((n for n in os.listdir(folder or ".") if unicodedata.normalize("NFC", n) == wanted), name)
    return os.path.join(folder, name)


def cache_folder() -> Path:
    """Return the folder for files that can be made again: SUMA_CACHE, or ~/.cache/suma."""
    return Path(os.environ.get("SUMA_CACHE") or Path.home() / ".cache" / "suma")


def digest_of(path: str | Path) -> str:
    """Return the sha256 of a file's content, or "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def append(file: Path, start: int, content: Iterable[bytes]) -> None:
    """Write to a file from byte `start` on, and flush it to the disk. What a killed run left behind `start` is cut off;
    at 0 the file is made anew, for those who still read the one before."""
    if not start:
        file.unlink(missing_ok=True)
    with open(file, "r+b" if start else "wb") as stream:
        stream.truncate(start)
        stream.seek(start)
        stream.writelines(content)
        stream.flush()
        os.fsync(stream.fileno())


def replace(path: Path, content: bytes) -> None:
    """Replace a file by `content`, whole or not at all: write a temporary file, flush it to the disk, rename it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename(partial, path)


def keep_checked(folder: Path, name: str, content: bytes, instead_of: str) -> None:
    """Keep what can be made anew in a file whose name holds its checksum (NAME with a {}), and delete the files that
    the pattern `instead_of` names."""
    old = list(folder.glob(instead_of))
    replace(folder / name.format(hashlib.sha256(content).hexdigest()[:32]), content)
    for file in old:
        file.unlink(missing_ok=True)


def read_checked(file: Path) -> bytes | None:
    """Return the content that `keep_checked` wrote; None if it is damaged or cannot be read."""
    with contextlib.suppress(OSError):
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest()[:32] == file.stem.rpartition("-")[2]:
            return content
    return None


def rename(partial: Path, path: Path) -> None:
    """Give a file that is on the disk its name, and flush the name."""
    partial.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


@contextlib.contextmanager
def clear_errors(folder: Path) -> Iterator[None]:
    """Give errors of writing a message: the folder, the reason, what to do, and that what was saved is intact."""
    try:
        yield
    except IndexBusyError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        kept = "what was saved before is intact"
        code = getattr(error, "errno", None)
        # SQLite reports a limit of the file size as a write that failed
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "full" in str(error) or "disk I/O" in str(error):
            raise OSError(
                errno.ENOSPC, f"no space left to write {folder} ({error}): make room, then run again; {kept}"
            ) from error
        if code in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in str(error):
            raise PermissionError(
                errno.EACCES, f"{folder} cannot be written to ({error}): choose another folder; {kept}"
            ) from error
        raise OSError(code or errno.EIO, f"cannot write {folder} ({error}); {kept}") from error


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for writing until the block ends; a kill releases the lock too.

    Raises IndexBusyError, naming the process that holds the lock.
    """
    import filelock

    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        with clear_errors(folder):
            try:
                lock.acquire()
            except filelock.Timeout:
                raise IndexBusyError(
                    f"{folder} is being written by {_holder(folder)}: wait for it, or stop it"
                ) from None
            who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            (folder / WRITER).write_text(json.dumps(who))
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                (folder / WRITER).unlink()
            lock.release()


def _holder(folder: Path) -> str:
    """Return which process says that it writes to the folder."""
    try:
        who = json.loads((folder / WRITER).read_text())
        return f"process {who['pid']} on {who['host']} (since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the block ends, where Python handles them (main thread only)."""
    came: list[tuple[int, Any]] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, lambda *signal_and_frame: came.append(signal_and_frame))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came:
            handlers[number](number, frame)
