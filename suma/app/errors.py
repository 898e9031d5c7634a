"""Errors as visitors see them: a message on the page, without HTML and without the folders of the server."""

import functools
import html
import os
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from suma.app.media import CACHE, readable


def error_text(error: Exception, root: str = "") -> str:
    """Return an error as visitors read it: at most 500 characters, without the folders of the server (`root`: the
    gallery's)."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{readable(os.path.basename(os.fsdecode(error.filename)))}: " if error.filename else ""
        return f"{name}{error.strerror}"[:500]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    for folder in (get_upload_folder(), str(CACHE), root):
        if len(folder) > 1:
            text = text.replace(folder + os.sep, "")
    return readable(text)[:500]


def visible_error(error: Exception, root: str, title: str = "That did not work") -> gr.Error:
    """Return an error that Gradio shows as a message, which is HTML."""
    return gr.Error(html.escape(error_text(error, root)), title=title, print_exception=False)


def show_user_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: show expected errors (ValueError, KeyError, OSError) as a message and leave the page as it is."""

    @functools.wraps(handler)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return handler(self, *args, **kwargs)
        except (ValueError, KeyError, OSError) as error:
            raise visible_error(error, self.gallery.root) from error

    return wrapped
