"""Show how far a long stage is: a bar on a terminal, elsewhere a line now and then."""

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
    """tqdm's bar, with its arguments.

    If stderr is no terminal (nohup, a container, a batch job), print a line every EVERY seconds instead: also during a
    long step, and none in a stage that is over sooner.
    """

    def __init__(self, *args: Any, **options: Any):
        self._ended, self._said, self._began = threading.Event(), 0.0, time.monotonic()
        self._lines = not options.get("disable") and not sys.stderr.isatty()
        if self._lines:
            options |= {"file": io.StringIO(), "bar_format": LINE}
            threading.Thread(target=_keep_saying, args=(weakref.ref(self), self._ended), daemon=True).start()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Redraw the bar; without a terminal, print a line if one is due. Return True, as tqdm does."""
        if not self._lines:
            return bool(super().display(msg, pos))
        if time.monotonic() - (self._said or self._began) >= EVERY:
            self._say()
        return True

    def close(self) -> None:
        """End the bar. If a line was printed before, print a last one: how long it took."""
        self._ended.set()
        if self._lines and self._said and not self.disable:
            self._say()
        super().close()

    def _say(self) -> None:
        """Print the state as a line."""
        self._said = time.monotonic()
        print(str(self).strip(), file=sys.stderr, flush=True)


def _keep_saying(bar: "weakref.ref[Progress]", ended: threading.Event) -> None:
    """Print the lines that are due while no step ends."""
    while not ended.wait(EVERY / 10):
        if (alive := bar()) is None:
            return
        if hasattr(alive, "start_t"):  # else its constructor is still running
            alive.refresh()
        del alive
