"""Map HDR pictures (PQ and HLG, ITU-R BT.2100) to the SDR picture that a screen shows.

Light is in units of HDR reference white, 203 cd/m2 (BT.2408). So SDR material in an HDR file stays as it was, and only
light above three quarters of white is compressed.
"""

from functools import cache

import numpy as np

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
