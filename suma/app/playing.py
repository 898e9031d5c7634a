"""Players on the page: a video at once where browsers play it, else its copy as soon as it is made."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from suma.app import media
from suma.app.errors import error_text
from suma.app.gallery import Gallery
from suma.app.uploads import playable_upload
from suma.app.views import render
from suma.index.storage import Row


class Players:
    """What fills the players of all visitors."""

    def __init__(self, gallery: Gallery):
        self.gallery = gallery
        self._watching: dict[tuple[str, str], object] = {}  # who waits for a copy -> the last call of show_copy

    def player(self, row: Row, play: bool = False) -> tuple[gr.Video, str]:
        """Return the player, hidden where there is nothing to play (yet), and why there never will be, else ""."""
        try:
            shown = media.playable(row)
        except OSError as error:
            return gr.Video(None, visible=False), error_text(error)
        return gr.Video(shown or None, autoplay=play, visible=bool(shown)), ""

    async def show_copy(
        self, video: str | dict[str, str], watcher: tuple[str, str], play: bool = False
    ) -> AsyncIterator[list[Any]]:
        """Yield the player and a bar while the copy of a video is made, at most until this watcher asks for another.

        Args:
            video: its name in the gallery, or {"video": name} or {"file": an upload}; "" or {} for none.
            watcher: who waits: a session and its player.
            play: whether the copy plays at once.
        """
        mine = self._watching[watcher] = object()
        try:
            done = False
            while not done and self._watching.get(watcher) is mine:
                *shown, done = await asyncio.to_thread(self._copy, video, play)
                if self._watching.get(watcher) is mine:
                    yield shown
                    await asyncio.sleep(0 if done else 0.5)
        finally:
            if self._watching.get(watcher) is mine:
                del self._watching[watcher]

    def _copy(self, video: str | dict[str, str], play: bool) -> tuple[Any, str, bool]:
        """Return the player, the bar, and whether there is nothing to wait for."""
        current = {"video": video} if isinstance(video, str) else video
        try:
            row = self.gallery.row(current["video"]) if current.get("video") else None
            file = row or current.get("file", "")
            if not file or media.plays(file):
                return gr.skip(), "", True
            share = media.ask(file)
            if share < 1:
                return gr.skip(), render("copying", share=share), False
            if row is None:
                return playable_upload(current["file"]), "", True
            return self.player(row, play)[0], "", True
        except (OSError, ValueError) as error:
            reason = error_text(error, self.gallery.root)
            said = f"It cannot be played here: no copy for browsers can be made ({reason})."
            return gr.skip(), render("note", text=said), True
