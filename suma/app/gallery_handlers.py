"""What the tab of the gallery shows, and the list of its videos that other tabs pick from."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from suma import VideoIndex
from suma.app import media
from suma.app.api import Api, Options
from suma.app.errors import show_user_errors, visible_error
from suma.app.filling import Progress
from suma.app.playing import Players
from suma.app.views import heading, length, render, tiles
from suma.index.files import find_videos
from suma.index.storage import Row

PAGE = 24  # videos of a page of the picker


class GalleryHandlers(Api):
    """The handlers of the gallery's videos."""

    def __init__(self, index: VideoIndex, options: Options | None = None):
        super().__init__(index, options)
        self.players = Players(self.gallery)

    def show_picker(self, words: str, limit: int) -> str:
        """Return the first videos of the gallery that have these words."""
        found, more = self.gallery.page((words or "")[:200], limit)
        return tiles(found, empty="No video has these words.", more=f"{more} more" if more else "")

    def show_more(self, words: str, limit: int) -> tuple[str, int]:
        """Return one page more of them, and how many that are."""
        return self.show_picker(words, limit + PAGE), limit + PAGE

    def _clicked(self, event: gr.EventData) -> Row:
        return self.gallery.row(event._data.get("video", ""))

    def show_gallery(self, words: str, limit: int) -> list[str]:
        """Return what is in the gallery, with the files that could not be read, and its videos."""
        with self.gallery.lock:
            failed = media.by_name((row.path, row.reason) for row in self.index.failed)
            seconds = sum(row.duration for row in self.gallery.rows.values())
        facts = f"{len(self.gallery.names)} videos, {seconds / 60:.1f} minutes"
        facts += f", {len(failed)} files could not be read" if failed else ""
        return [render("note", text=facts) + render("failures", failed=failed), self.show_picker(words, limit)]

    @show_user_errors
    def show_member(self, event: gr.EventData) -> list[Any]:
        """Return one video of the gallery, to play or remove."""
        row, name = self._clicked(event), str(event._data["video"])
        player, missing = self.players.player(row)
        title = heading(self.gallery.title(row.path), f"{name} · {length(row.duration)}", missing=missing)
        return [player, title, name, gr.Button(visible=not self.options.read_only)]

    def add_uploads(self, files: list[str] | None) -> Iterator[str]:
        """Add uploads to the gallery; yield how far that is."""
        yield from self._adding(self.add_files(files or []))

    def add_folder(self, folder: str | None) -> Iterator[str]:
        """Add a folder that the operator allowed; yield how far that is."""
        yield from self._adding(self._folder(folder))

    @show_user_errors
    def remove(self, name: str) -> list[Any]:
        """Remove a video from the gallery."""
        if self.options.read_only:
            raise ValueError("this gallery is read-only")
        self.gallery.remove(name, self.options.library)
        gr.Info(f"{html.escape(name)} is no longer in the gallery.", title="Removed")
        return [gr.Video(None, visible=False), "", "", gr.Button(visible=False)]

    def _folder(self, folder: str | None) -> Iterator[Progress]:
        if not folder or self.options.read_only or folder not in map(str, self.options.folders):
            raise ValueError("choose one of the folders that the operator allowed")
        yield from self.add_paths(find_videos(Path(folder)))

    def _adding(self, steps: Iterator[Progress]) -> Iterator[str]:
        try:
            for p in steps:
                yield render("progress", p=p, said="")
        except (ValueError, OSError) as error:
            raise visible_error(error, self.gallery.root, "Nothing was added") from error
