"""Show decoded frames as players do: upright, with square pixels, HDR mapped to SDR.

Frames that are read, posters, thumbnails and the copies made for browsers all come from `upright`.
"""

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from suma.video.hdr import HLG, PQ, to_sdr

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Turn = tuple[int, int, int, int]  # (a, b, c, d): the stored pixel (x, y) is shown at (a x + c y, b x + d y)
# By EXIF orientation.
TURNS: dict[int, Turn] = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
MOST_STRETCH = 8  # a pixel that is wider or higher is taken for an error in the file
MAX_PIXELS = 64_000_000  # per picture; 8K is 33 million


class View(NamedTuple):
    """How the frames of a stream are shown."""

    aspect: float = 1.0  # a pixel's width / height
    transfer: int = 2  # H.273's number of the transfer function; 2: not said
    primaries: int = 2
    turn: Turn | None = None  # None: as each frame says


def view_of(container: "InputContainer", stream: "VideoStream") -> View:
    """Return how a stream's frames are shown, as an open file says."""
    codec, form = stream.codec_context, container.format.name
    if form in ("image2", "gif", "apng") or form.endswith("_pipe"):  # viewers ignore an image's pixel aspect
        return View(1.0, codec.color_trc, codec.color_primaries, _exif_turn(container.name))
    aspect = float(stream.sample_aspect_ratio or 1)
    plausible = 1 / MOST_STRETCH <= aspect <= MOST_STRETCH
    return View(aspect if plausible else 1.0, codec.color_trc, codec.color_primaries)


def view_from(frame: "VideoFrame", view: View) -> View:
    """Return the view with the turn of a first frame, so that all frames get the same shape."""
    if view.turn:
        return view
    small = frame.reformat(16, 16, "gray", threads=1)  # PyAV frees a frame late once its side data was read
    return view._replace(turn=_frame_turn(small))


def shown_size(frame: "VideoFrame", view: View, longest: int | None = None) -> tuple[int, int]:
    """Return width and height with square pixels, before the frame is turned; no side is over `longest` pixels."""
    width, height = frame.width * view.aspect, float(frame.height)
    scale = min(1.0, longest / max(width, height)) if longest else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


def upright(frame: "VideoFrame", view: View, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return uint8 (h, w, 3) RGB as players show the frame: turned and mirrored, square pixels, SDR.

    `size` is the width and height before turning (default: `shown_size`). Raises ValueError for pictures over
    MAX_PIXELS.
    """
    width, height = size or shown_size(frame, view)
    check_size(frame.width, frame.height)
    check_size(width, height)
    if view.transfer in (PQ, HLG):
        codes = frame.to_ndarray(format="rgb48le", width=width, height=height, threads=1)
        picture = to_sdr(codes, view.transfer, view.primaries)
    else:
        picture = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
    return turned(picture, view.turn or _frame_turn(frame))


def check_size(width: int, height: int) -> None:
    """Raise ValueError for a picture that is too large to decode."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"frames of {width}x{height} exceed {MAX_PIXELS // 10**6} megapixels")


def turned(picture: np.ndarray, turn: Turn) -> np.ndarray:
    """Return a view of the picture, turned and mirrored by quarters as `turn` says."""
    a, b, c, d = turn
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _frame_turn(frame: "VideoFrame") -> Turn:
    """Return the turn that the frame's display matrix says."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # type: ignore[call-overload]
    except ValueError:  # side data of a kind that PyAV does not know: it still tells the angle
        return TURNS[{0: 1, 1: 8, -1: 6}.get(round(frame.rotation / 90), 3)]
    if matrix is None:
        return TURNS[1]
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    return a, b, c, d


def _exif_turn(path: str) -> Turn | None:
    """Return the turn that a still picture's EXIF says, or None if it says nothing."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return TURNS.get(image.getexif().get(0x0112, 0))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
