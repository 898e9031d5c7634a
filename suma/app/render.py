"""HTML from the templates beside this file. Values are escaped, and a value that a template misses is an error."""

import os
import zlib
from itertools import count
from pathlib import Path
from typing import Any

import jinja2

from suma.app.colours import SCALE, colour

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
ENVIRONMENT.globals |= {"colour": colour, "scale": SCALE, "run": count().__next__}
ENVIRONMENT.filters["clip"] = lambda path: zlib.crc32(os.fsencode(path))  # tells page.js that a player has another clip


def render(name: str, /, **values: Any) -> str:
    """Return the HTML of `templates/{name}.html`; half a character (a lone surrogate) becomes "?"."""
    html = ENVIRONMENT.get_template(f"{name}.html").render(values)
    return html.strip().encode("utf-8", "replace").decode()
