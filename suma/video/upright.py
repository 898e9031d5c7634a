"""Show frames as players do: upright, with square pixels, HDR (PQ and HLG, ITU-R BT.2100) mapped to SDR.

Frames that are read, posters, thumbnails and the copies made for browsers all come from `upright`. Light is in units of
HDR reference white, 203 cd/m2 (BT.2408). So SDR material in an HDR file stays as it was, and only light above three
quarters of white is compressed. Pictures are read by Pillow: a photograph is a video of one frame that lasts 0 s.
"""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.ImageFile import ImageFile

PQ, HLG = 16, 18  # transfer characteristics, as ITU-T H.273 numbers them
WHITE = 203.0  # cd/m2
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # cd/m2 of the nominal display, and its system gamma
SWSCALE_WHITE = 65280  # white of the 16-bit RGB that FFmpeg's scaler makes of limited-range video
KNEE = 0.75  # light below it stays as it is
STRIP = 64  # rows mapped at once: what they need fits the processor's cache

# To BT.709, by the number that H.273 gives the source's primaries. BT.2020 (BT.2087) stands for all others.
BT2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
P3 = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]], np.float32)
TO_BT709 = {1: np.eye(3, dtype=np.float32), 12: P3}
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
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000")
ANIMATED = ("PNG", "WEBP", "AVIF")
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # brands
STEP = 0.1  # seconds of an animation's frame that does not say how long it is shown


def to_sdr(picture: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Return uint8 (h, w, 3) SDR RGB for the uint16 (h, w, 3) HDR RGB `picture`; `transfer` is PQ or HLG.

    Highlights are compressed in each channel, as much as the picture's brightest part needs. Colours that BT.709 lacks
    are clipped.
    """
    sample = _light(picture[::4, ::4], transfer, primaries)
    peak = max(1.0, float(np.quantile(sample, 0.999)))
    out = np.empty(picture.shape, np.uint8)
    for top in range(0, len(picture), STRIP):
        light = _compress(_light(picture[top : top + STRIP], transfer, primaries), peak)
        codes = np.sqrt(np.minimum(light, 1)) * 65535
        out[top : top + STRIP] = _display_codes()[codes.astype(np.uint16)]
    return out


def _light(picture: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Return the light of each pixel, float32 (h, w, 3): BT.709 primaries, 1.0 is reference white, none negative."""
    light = _linear(transfer)[picture] @ TO_BT709.get(primaries, BT2020).T
    return np.maximum(light, 0, out=light)


def _compress(light: np.ndarray, peak: float) -> np.ndarray:
    """Return Reinhard's curve above the knee, which takes `peak` to 1 and is the identity for a peak of 1."""
    over, most = np.maximum(light - KNEE, 0) / (1 - KNEE), (peak - KNEE) / (1 - KNEE)
    return np.minimum(light, KNEE) + (1 - KNEE) * over * (1 + over / most**2) / (1 + over)


@cache
def _linear(transfer: int) -> np.ndarray:
    """Return the light of each 16-bit code, float32 (65536,): PQ's EOTF, or HLG's inverse OETF and system gamma.

    HLG's gamma is applied to each channel, not to the luminance, so saturated colours look as SDR cameras render them.
    """
    code = np.minimum(np.arange(65536) / SWSCALE_WHITE, 1)
    if transfer == PQ:
        power = code ** (32 / 2523)
        fraction = np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)
        return (10000 / WHITE * fraction ** (16384 / 2610)).astype(np.float32)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return (HLG_PEAK / WHITE * scene**HLG_GAMMA).astype(np.float32)


@cache
def _display_codes() -> np.ndarray:
    """Return the 8-bit code for each square root of light, uint8 (65536,): BT.1886's display, gamma 2.4."""
    return np.round(255 * (np.arange(65536) / 65535) ** (2 / 2.4)).astype(np.uint8)


class View(NamedTuple):
    """How the frames of a stream are shown."""

    aspect: float = 1.0  # a pixel's width / height
    transfer: int = 2  # H.273's number of the transfer function; 2: not said
    primaries: int = 2
    turn: Turn | None = None  # None: as each frame says


def view_of(container: "InputContainer", stream: "VideoStream") -> View:
    """Return how a stream's frames are shown, as an open file says."""
    codec, form = stream.codec_context, container.format.name
    if form == "gif":  # viewers ignore its pixel aspect
        return View(1.0, codec.color_trc, codec.color_primaries)
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


def seconds_shown(path: str) -> np.ndarray | None:
    """Return how long each frame of a picture is shown (N,), one 0 for a photograph; None if the file is no picture.

    Raise ValueError for a HEIC picture without pillow-heif, and for a picture that is too large or damaged.
    """
    from PIL import Image

    try:
        with _open(path) as image:
            check_size(*image.size)
            count = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
            if count == 1:
                return np.zeros(1)
            seconds = []
            for n in range(count):
                image.seek(n)
                image.load()  # WebP tells the time only then
                seconds.append(image.info.get("duration", 0) / 1000 or STEP)
            return np.array(seconds)
    except Image.UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture is damaged or too large: {error}") from error


def frames_of(path: str) -> Iterator[np.ndarray]:
    """Yield the frames of a picture as viewers show them: uint8 (h, w, 3) RGB, turned as EXIF says."""
    from PIL import ImageOps

    with _open(path) as image:
        for n in range(getattr(image, "n_frames", 1) if image.format in ANIMATED else 1):
            image.seek(n)
            yield np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _open(path: str) -> "ImageFile":
    from PIL import Image

    formats: tuple[str, ...] = FORMATS
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in HEIF:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise ValueError(f"{Path(path).name} is a HEIC picture: pip install pillow-heif") from None
        register_heif_opener()
        formats = ("HEIF", "AVIF")
    return Image.open(path, formats=formats)
