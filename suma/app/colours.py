"""The colour scale of the heat map and the map of concepts."""

# cividis: dark blue to yellow, even in lightness, and the same for colour-blind eyes
SCALE = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")


def colour(share: float) -> str:
    """Return the scale's colour at a share of 0 to 1, interpolated.

    >>> colour(0), colour(1), colour(0.5)
    ('#00224e', '#fee838', '#7d7c76')
    """
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    a, b = (bytes.fromhex(SCALE[i][1:]) for i in (low, low + 1))
    return "#" + bytes(round(x + (at - low) * (y - x)) for x, y in zip(a, b, strict=True)).hex()
