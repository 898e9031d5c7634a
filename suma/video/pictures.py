"""Read pictures by Pillow: a photograph is a video of one frame that lasts 0 s; WebP, PNG and AVIF may be animated."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from suma.video.upright import check_size

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

PHOTO_EXTENSIONS = frozenset((".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000")
ANIMATED = ("PNG", "WEBP", "AVIF")
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # brands
STEP = 0.1  # seconds of an animation's frame that does not say how long it is shown


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
