"""Say how far a long stage is: a bar on a terminal, and where there is none a line now and then."""

import io
import sys
import threading
import time
import weakref
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):
    """tqdm's bar, with its arguments. Where stderr is no terminal (nohup, a container, a batch job) it writes a flushed
    line every EVERY seconds instead, also during a step that takes longer, and none in a stage that takes less."""

    def __init__(self, *args: Any, **options: Any):
        self._ended, self._said, self._began = threading.Event(), 0.0, time.monotonic()
        self._lines = not options.get("disable") and not sys.stderr.isatty()
        if self._lines:
            options |= {"file": io.StringIO(), "bar_format": LINE}
            threading.Thread(target=_keep_saying, args=(weakref.ref(self), self._ended), daemon=True).start()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the state, on a terminal; a line is due only now and then."""
        if not self._lines:
            return bool(super().display(msg, pos))
        if time.monotonic() - (self._said or self._began) >= EVERY:
            self._say()
        return True

    def close(self) -> None:
        """End it: the last line says how long it took, if any was written before."""
        self._ended.set()
        if self._lines and self._said and not self.disable:
            self._say()
        super().close()

    def _say(self) -> None:
        self._said = time.monotonic()
        print(str(self).strip(), file=sys.stderr, flush=True)


def _keep_saying(bar: "weakref.ref[Progress]", ended: threading.Event) -> None:
    """Write the lines that are due while no step ends."""
    while not ended.wait(EVERY / 10):
        if (alive := bar()) is None:
            return
        if hasattr(alive, "start_t"):  # else it is still being made
            alive.refresh()
        del alive
