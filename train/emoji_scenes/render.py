"""The pixels of Scenes: sprites, poses, camera. A `Clip` goes in, frames and boxes come out.

Positions and sizes are fractions of the frame's side, times are fractions of the clip (0 to 1), angles are degrees.
"""

import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from emoji_scenes.backgrounds import SIZE, SPRITES, background

FPS = 10
FRAMES = 40  # of a 4 s clip
HANDOVER = 0.25  # share of an act in which an actor glides on from where its previous act left it
Box = tuple[int, int, int, int]  # x, y, w, h in pixels


@dataclass(frozen=True)
class Act:
    """One actor doing one thing from `start` to `stop`."""

    actor: str
    motion: str
    size: float  # width of the sprite at scale 1
    x: float  # where the actor is when it does not travel
    y: float
    middle: tuple[float, float] = (0.5, 0.5)  # centre of a journey
    reach: tuple[float, float] = (0.8, 0.8)  # length of a journey
    tempo: int = 0  # 0, 1, 2: number of hops, turns, zigzags
    turn: int = 1  # 1 or -1: sense of rotation
    tilt: float = 0.0
    mirror: bool = False
    start: float = 0.0
    stop: float = 1.0
    carries_on: bool = False  # the actor goes on from where its act before this one ended


@dataclass(frozen=True)
class Shot:
    """A setting, seen from `start` to `stop`."""

    setting: str
    variant: int
    mirror: bool
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class Clip:
    """Everything that is needed to draw a video."""

    acts: tuple[Act, ...]
    shots: tuple[Shot, ...]
    weather: str = ""  # "", "rain" or "snow"
    camera: str = ""  # "", "zoom" or "pan"
    shift: tuple[float, float] = (0.0, 0.0)  # where the camera looks, -1 to 1
    seed: int = 0
    frames: int = FRAMES

    def shot_at(self, t: float) -> Shot:
        """Return the shot that is seen at time `t`."""
        return next(shot for shot in self.shots if shot.start <= t < shot.stop)

    def setting_of(self, act: Act) -> str:
        """Return where the act takes place."""
        return self.shot_at(act.start).setting


@dataclass(frozen=True)
class Pose:
    """How an actor is placed at one moment."""

    x: float
    y: float
    scale: float = 1.0
    angle: float = 0.0
    alpha: float = 1.0


@cache
def sprite(actor: str, mirror: bool) -> Image.Image:
    """Return the picture of an actor in its full size."""
    image = Image.open(SPRITES / f"{actor.replace(' ', '-')}.webp").convert("RGBA")
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image


@lru_cache(maxsize=512)
def resized(actor: str, mirror: bool, width: int) -> Image.Image:
    """Return the picture of an actor, `width` pixels wide and high."""
    return sprite(actor, mirror).resize((width, width), Image.Resampling.BILINEAR)


def ramp(u: float) -> float:
    """Return 0 before 0.3 of an act, 1 after 0.55, and a straight line between."""
    return min(1.0, max(0.0, (u - 0.3) / 0.25))


def pose(act: Act, u: float) -> Pose:
    """Return where the actor is at `u` (0 to 1) of its act. Opposite motions are each other's reverse."""
    x, y, along_x, along_y = act.x, act.y, act.reach[0] * (u - 0.5), act.reach[1] * (u - 0.5)
    match act.motion:
        case "still":
            return Pose(x, y, angle=act.tilt)
        case "left":
            return Pose(act.middle[0] - along_x, y)
        case "right":
            return Pose(act.middle[0] + along_x, y)
        case "up":
            return Pose(x, act.middle[1] - along_y)
        case "down":
            return Pose(x, act.middle[1] + along_y)
        case "grow":
            return Pose(x, y, scale=0.4 + 1.1 * u)
        case "shrink":
            return Pose(x, y, scale=0.4 + 1.1 * (1 - u))
        case "bounce":
            return Pose(x, y + act.reach[1] * (0.15 - 0.45 * abs(math.sin(math.pi * (act.tempo + 1.5) * u))))
        case "spin":
            return Pose(x, y, angle=360 * (1 + 0.5 * act.tempo) * u * act.turn)
        case "appear":
            return Pose(x, y, alpha=ramp(u))
        case "vanish":
            return Pose(x, y, alpha=ramp(1 - u))
        case "zigzag":
            swing = 2 * math.pi * (1.5 + 0.5 * act.tempo) * u
            return Pose(x + 0.32 * act.reach[0] * math.sin(swing), y + 0.1 * act.reach[1] * math.sin(2 * swing))
    raise ValueError(f"unknown motion {act.motion!r}: words.toml lists the motions")


def blend(a: Pose, b: Pose, share: float) -> Pose:
    """Return a pose between `a` (share 0) and `b` (share 1), with the angle and the alpha of `b`."""
    s = share * share * (3 - 2 * share)
    return Pose(a.x + s * (b.x - a.x), a.y + s * (b.y - a.y), a.scale + s * (b.scale - a.scale), b.angle, b.alpha)


def draw(frame: Image.Image, act: Act, at: Pose) -> Box | None:
    """Paste the actor into the frame; return its visible box, or None if nothing of it can be seen."""
    if at.alpha <= 0.02:
        return None
    image = resized(act.actor, act.mirror, max(4, round(SIZE * act.size * at.scale)))
    if abs(at.angle) > 0.5:
        image = image.rotate(at.angle, Image.Resampling.BILINEAR)
    mask = image.getchannel("A")
    left, top = round(at.x * SIZE - image.width / 2), round(at.y * SIZE - image.height / 2)
    box = mask.getbbox() or (0, 0, 0, 0)
    if at.alpha < 0.99:
        mask = mask.point([int(value * at.alpha) for value in range(256)])
    frame.paste(image, (left, top), mask)
    x0, y0 = max(0, left + box[0]), max(0, top + box[1])
    x1, y1 = min(SIZE, left + box[2]), min(SIZE, top + box[3])
    return (x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 and at.alpha >= 0.1 else None


def view(clip: Clip, t: float) -> Image.Image:
    """Return what the camera sees of the setting, (SIZE, SIZE)."""
    shot = clip.shot_at(t)
    picture = background(shot.setting, shot.variant, shot.mirror)
    slack = (picture.width - SIZE) / 2
    x, y = slack * (1 + clip.shift[0]), slack * (1 + clip.shift[1])
    if clip.camera == "zoom":
        side = picture.width * (1 - 0.2 * t)
        edge = (picture.width - side) / 2
        return picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(edge, edge, edge + side, edge + side))
    if clip.camera == "pan":
        x = 2 * slack * t
    return picture.crop((round(x), round(y), round(x) + SIZE, round(y) + SIZE))


def draw_weather(frame: Image.Image, weather: str, seed: int, t: float) -> None:
    """Draw rain or snow over the frame."""
    rng, pen = random.Random(seed), ImageDraw.Draw(frame)
    for _ in range(34):
        x, y, speed = rng.random() * SIZE, rng.random(), rng.uniform(0.8, 1.4)
        y = ((y + speed * t * (5 if weather == "rain" else 1.5)) % 1) * SIZE
        if weather == "rain":
            pen.line((x, y, x - 0.02 * SIZE, y + 0.07 * SIZE), fill=(190, 215, 245))
        else:
            pen.ellipse((x, y, x + 0.018 * SIZE, y + 0.018 * SIZE), fill=(255, 255, 255))


def render(clip: Clip) -> tuple[list[Image.Image], list[list[Box | None]]]:
    """Return the frames of a clip, and for each act the actor's box in each frame."""
    frames: list[Image.Image] = []
    boxes: list[list[Box | None]] = [[] for _ in clip.acts]
    for number in range(clip.frames):
        t = (number + 0.5) / clip.frames
        frame = view(clip, t)
        for index, act in enumerate(clip.acts):
            if not act.start <= t < act.stop:
                boxes[index].append(None)
                continue
            u = (t - act.start) / (act.stop - act.start)
            at = pose(act, u)
            if act.carries_on and u < HANDOVER:
                at = blend(pose(clip.acts[index - 1], 1.0), at, u / HANDOVER)
            boxes[index].append(draw(frame, act, at))
        if clip.weather:
            draw_weather(frame, clip.weather, clip.seed, t)
        frames.append(frame)
    return frames, boxes


def encode(frames: list[Image.Image], path: Path) -> None:
    """Write frames as h264, with the same bytes each time."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.codec_context.thread_count = 1
        # x264's AVX code writes different bytes from run to run; SSE2 does not, and is no slower at this size
        stream.options = {"preset": "veryfast", "crf": "28", "g": "20", "x264-params": "asm=SSE2"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
