"""Files that visitors upload: checked, made playable, copied into the gallery's library, deleted after use."""

import os
import re
import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from suma.app.browser_formats import plan_for
from suma.atomic_io import digest_of
from suma.video.frames import read_frames


@dataclass
class Uploads:
    """The limits of uploads, and who uses which: an upload is deleted when nobody uses it any more."""

    max_megabytes: int = 200
    max_seconds: float = 600
    _uses: Counter[str] = field(default_factory=Counter)  # path -> how many use it
    _of: dict[str, str] = field(default_factory=dict)  # session -> its upload
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, path: str) -> None:
        """Raise ValueError, for the visitor to read, for a file that is too large, too long or no video."""
        name, megabytes = Path(path).name, os.path.getsize(path) / 1e6
        if megabytes > self.max_megabytes:
            raise ValueError(f"{name} has {megabytes:.0f} MB; the limit is {self.max_megabytes} MB")
        try:
            seconds = read_frames(path, 1, keyframes=1).duration
        except ValueError as error:
            text = f"{name} cannot be read as a video. An MP4 or WebM file should work."
            raise ValueError(text) from error
        if seconds > self.max_seconds:
            raise ValueError(f"{name} lasts {seconds:.0f} s; the limit is {self.max_seconds:.0f} s")

    def hold(self, path: str, session: str = "") -> None:
        """Note that a call uses an upload; or a session, which releases the one it used before."""
        with self._lock:
            self._uses[path] += 1
        if session:
            before, self._of[session] = self._of.get(session, ""), path
            self.release(before)

    def release(self, path: str) -> None:
        """Note that one use of an upload has ended; after the last one delete it."""
        with self._lock:
            if path not in self._uses:
                return
            self._uses[path] -= 1
            if self._uses[path] > 0:
                return
            del self._uses[path]
        for file in (played_copy(path), Path(path)):
            file.unlink(missing_ok=True)
            if file.parent.is_dir() and not any(file.parent.iterdir()):
                file.parent.rmdir()

    def forget_session(self, session: str) -> None:
        """Release the upload of a visitor who has left or removed it."""
        self.release(self._of.pop(session, ""))


def played_copy(path: str) -> Path:
    """Return where the copy of an upload for browsers belongs."""
    return Path(path).with_name("playable") / f"copy{plan_for(path).suffix}"


def upload_plays(path: str) -> bool:
    """Return whether browsers play an upload as it is. It is served under its own name: that must be right, too."""
    plan = plan_for(path)
    return plan.as_it_is and Path(path).suffix.lower() == plan.suffix


def playable_upload(path: str) -> str:
    """Return the upload, or the copy beside it that a browser can play; "" while that is to be made."""
    shown = Path(path) if upload_plays(path) else played_copy(path)
    return str(shown) if shown.is_file() else ""


def keep_upload(path: str, folder: Path) -> Path:
    """Copy an upload to `folder`/digest/name, so that nothing is ever overwritten; return that path."""
    name = re.sub(r"[^\w.() -]+", "_", Path(path).name).strip(". ")
    name = name.encode("utf-8", "ignore")[-100:].decode("utf-8", "ignore").strip(". ") or "video"  # 255 bytes at most
    target = folder / digest_of(path)[:16] / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{name}.{threading.get_ident()}.partial")
        shutil.copyfile(path, partial)
        partial.replace(target)
    return target
