"""The settings of Scenes, painted: meadow, road, night sky and so on, each in many variants."""

import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SPRITES = Path(__file__).resolve().parents[2] / "assets" / "sprites"
SIZE = 160  # pixels, both sides of a frame
VARIANTS = 24  # pictures of each setting
MARGIN = 1.25  # a background is this much larger than the frame: room for the camera
HORIZONS = {  # colour at the top, colour at the horizon, ground, grain of the ground
    "meadow": ((110, 180, 250), (200, 228, 255), (90, 170, 60), 50),
    "snow": ((190, 205, 225), (232, 238, 245), (246, 249, 253), 8),
    "beach": ((90, 180, 250), (190, 230, 255), (235, 212, 160), 18),
    "road": ((150, 190, 225), (215, 225, 235), (92, 94, 100), 12),
    "room": ((225, 205, 170), (215, 190, 155), (165, 105, 60), 4),
}
TILES = ("desert", "city", "sunrise", "sea sunset", "bridge", "space")


def noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Return smooth noise (side, side, 1) from -0.5 to 0.5, with `cells` bumps in a row."""
    grid = (rng.random((cells, cells)) * 255).astype(np.uint8)
    smooth = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32)[..., None] / 255 - 0.5


class Canvas:
    """Coordinates and colours shared by the painters below."""

    def __init__(self, rng: np.random.Generator, side: int):
        self.rng, self.side = rng, side
        self.y = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
        self.x = np.linspace(0, 1, side, dtype=np.float32)[None, :, None]
        self.flat = np.zeros((side, side, 3), np.float32)

    def colour(self, rgb: tuple[int, int, int], jitter: float = 14) -> np.ndarray:
        """Return a random colour near `rgb`."""
        return np.clip(np.array(rgb, np.float32) + self.rng.uniform(-jitter, jitter, 3), 0, 255).astype(np.float32)

    def gradient(self, top: tuple[int, int, int], bottom: tuple[int, int, int]) -> np.ndarray:
        """Return a gradient from one colour at the top to another at the bottom."""
        return self.colour(top) * (1 - self.y) + self.colour(bottom) * self.y + self.flat

    def noise(self, cells: int) -> np.ndarray:
        """Return smooth noise over the whole canvas."""
        return noise(self.rng, self.side, cells)


def paint_horizon(c: Canvas, name: str) -> np.ndarray:
    """Paint ground below a sky, or a floor below a wall, in the colours of `HORIZONS`."""
    top, low, soil, grain = HORIZONS[name]
    sky, horizon = c.gradient(top, low), c.rng.uniform(0.45, 0.62)
    ground = c.colour(soil) * (1 - 0.25 * (c.y - horizon)) + c.noise(40) * grain
    edge = horizon + 0 * c.x
    if name in ("meadow", "snow"):
        edge = edge + 0.04 * np.sin(c.x * c.rng.uniform(4, 9) + c.rng.uniform(0, 6))
    if name == "room":
        ground = ground - 26 * (((c.y - horizon) * 14) % 1 < 0.09) - 18 * (((c.x - 0.5) / (c.y + 0.2) * 7) % 1 < 0.05)
    if name == "beach":
        sea = c.colour((50, 140, 200)) + 10 * np.sin(c.y * 160 + c.x * 5)
        ground = np.where(c.y < horizon + 0.16, sea, ground)
    if name == "road":
        line = (np.abs(c.y - (horizon + 0.24)) < 0.012) & ((c.x * 6 + c.rng.uniform(0, 1)) % 1 < 0.55)
        ground = np.where(line, 240.0, ground)
    return np.where(c.y > edge, ground, sky)


def paint_underwater(c: Canvas) -> np.ndarray:
    """Paint rays of light in the sea, with sand below."""
    rays = np.clip(np.sin((c.x + c.y * 0.35) * c.rng.uniform(16, 24) + c.rng.uniform(0, 6)), 0, 1)
    water = c.gradient((70, 190, 230), (10, 60, 130)) + 22 * rays * (1 - c.y)
    return np.where(c.y > 0.9 + 0.03 * np.sin(c.x * 9), c.colour((200, 180, 120)), water)


def paint_night_sky(c: Canvas) -> np.ndarray:
    """Paint stars."""
    return np.where(c.rng.random((c.side, c.side, 1)) > 0.993, 245.0, c.gradient((8, 10, 35), (30, 40, 90)))


def paint_clouds(c: Canvas) -> np.ndarray:
    """Paint clouds in a blue sky."""
    sky = c.gradient((80, 160, 245), (180, 220, 255))
    return sky + np.clip((c.noise(6) + 0.4 * c.noise(14)) * 4, 0, 1) * (255 - sky) * 0.95


def paint_stage(c: Canvas) -> np.ndarray:
    """Paint a red curtain above wooden boards."""
    folds = 0.72 + 0.28 * np.sin(c.x * c.rng.uniform(40, 60) + c.rng.uniform(0, 6))
    return np.where(c.y > 0.78, c.colour((120, 75, 40)), c.colour((165, 25, 35)) * folds + c.flat)


def paint_bricks(c: Canvas) -> np.ndarray:
    """Paint a wall of bricks."""
    row = np.floor(c.y * 11)
    mortar = ((c.y * 11) % 1 < 0.12) | ((c.x * 6 + 0.5 * (row % 2)) % 1 < 0.06)
    return np.where(mortar, c.colour((205, 195, 185)), c.colour((170, 80, 60)) + c.noise(30) * 30)


def paint_table(c: Canvas) -> np.ndarray:
    """Paint a chequered tablecloth."""
    return np.where((np.floor(c.x * 8) + np.floor(c.y * 8)) % 2 > 0, c.colour((200, 40, 40), 35), 245.0) + c.flat


def paint_pool(c: Canvas) -> np.ndarray:
    """Paint water above tiles."""
    water = c.colour((80, 200, 225)) + c.noise(9) * 40
    return np.where(((c.x * 9) % 1 < 0.06) | ((c.y * 9) % 1 < 0.06), water + 32, water)


def paint_forest(c: Canvas) -> np.ndarray:
    """Paint trunks under leaves."""
    wood = c.gradient((70, 120, 60), (40, 75, 30)) + c.noise(30) * 30
    for _ in range(9):
        place, width, foot = c.rng.uniform(0, 1), c.rng.uniform(0.02, 0.05), c.rng.uniform(0.7, 0.9)
        wood = np.where((np.abs(c.x - place) < width) & (c.y < foot), c.colour((80, 55, 35)), wood)
    return wood + np.clip(c.noise(12) * 3, 0, 1) * np.array([10, 70, 10], np.float32) * (1 - c.y)


def paint_court(c: Canvas) -> np.ndarray:
    """Paint the floor of a basketball court."""
    floor = c.colour((205, 150, 90)) + 8 * np.sin(c.y * 70) + c.flat
    circle = np.abs(np.sqrt((c.x - 0.5) ** 2 + (c.y - 0.55) ** 2) - 0.25) < 0.012
    floor = np.where(circle | (np.abs(c.x - 0.5) < 0.01), 250.0, floor)
    return np.where(c.y < 0.2, c.colour((90, 110, 150)), floor)


def paint_tile(c: Canvas, name: str) -> np.ndarray:
    """Return a scenic emoji, cropped at random."""
    tile = Image.open(SPRITES / f"setting-{name.replace(' ', '-')}.webp").convert("RGB")
    margin = tile.width * c.rng.uniform(0.03, 0.12)
    left, top = margin * (1 + c.rng.uniform(-0.8, 0.8)), margin * (1 + c.rng.uniform(-0.8, 0.8))
    inner = tile.width - 2 * margin
    tile = tile.resize((c.side, c.side), Image.Resampling.LANCZOS, box=(left, top, left + inner, top + inner))
    return np.asarray(tile, np.float32) + c.rng.uniform(-10, 10, 3).astype(np.float32)


PAINTERS: dict[str, Callable[[Canvas], np.ndarray]] = {
    "underwater": paint_underwater,
    "night sky": paint_night_sky,
    "clouds": paint_clouds,
    "stage": paint_stage,
    "bricks": paint_bricks,
    "table": paint_table,
    "pool": paint_pool,
    "forest": paint_forest,
    "court": paint_court,
}


@lru_cache(maxsize=1200)
def background(setting: str, variant: int, mirror: bool) -> Image.Image:
    """Return one picture of a setting, `SIZE * MARGIN` pixels wide."""
    side = int(SIZE * MARGIN)
    canvas = Canvas(np.random.default_rng(zlib.crc32(f"{setting}{variant}".encode())), side)
    if setting in PAINTERS:
        picture = PAINTERS[setting](canvas)
    elif setting in HORIZONS:
        picture = paint_horizon(canvas, setting)
    elif setting in TILES:
        picture = paint_tile(canvas, setting)
    else:
        raise ValueError(f"unknown setting {setting!r}; known: {sorted([*PAINTERS, *HORIZONS, *TILES])}")
    picture = picture + canvas.rng.normal(0, 2.0, (side, side, 1))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image
