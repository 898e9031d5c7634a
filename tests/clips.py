"""Small video files for the tests, written with PyAV: every frame is one flat colour, so a picture tells its number."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".ts": "libx264", ".avi": "mpeg4", ".gif": "gif", ".webm": "libvpx-vp9"}


def can_encode(codec: str) -> bool:
    """Whether this PyAV was built with the encoder `codec`."""
    try:
        return bool(av.Codec(codec, "w"))
    except ValueError:
        return False


def gray(number: int) -> int:
    """Gray level of frame `number`: steps of 8 (modulo 29 frames), far enough apart to survive a lossy codec."""
    return 12 + 8 * (number % 29)


def number(picture: np.ndarray) -> int:
    """Frame number (modulo 29) told by the mean gray level of one (h, w, 3) picture."""
    return round((float(picture.mean()) - 12) / 8)


def numbers(pictures: np.ndarray) -> list[int]:
    return [number(picture) for picture in pictures]


def gray_picture(index: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), gray(index), np.uint8)


def corner_picture(index: int, width: int, height: int) -> np.ndarray:
    """Mid gray with a red top left and a blue top right quarter: shows which way is up."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = (230, 20, 20)
    picture[: height // 2, width // 2 :] = (20, 20, 230)
    return picture


def noise_picture(index: int, width: int, height: int) -> np.ndarray:
    """Smooth coloured noise that differs from frame to frame: something a codec has to work for."""
    coarse = np.random.default_rng(index).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


def write_video(
    path: str | Path,
    frames: int = 20,
    size: tuple[int, int] = (64, 48),
    fps: int = 10,
    codec: str | None = None,
    gop: int = 5,
    ticks: Sequence[int] | None = None,
    rotation: int | None = None,
    picture: Callable[[int, int, int], np.ndarray] = gray_picture,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: str = "",
) -> Path:
    """Write `frames` pictures of `size` (width, height). `ticks`: each frame's time in 1/fps, for a variable rate;
    `rotation`: degrees, counter-clockwise, that a player must turn the stored picture (display matrix);
    `sound`: the codec of a track that is loud in each odd second, and silent in each even one."""
    path = Path(path)
    codec = codec or CODECS[path.suffix]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.gop_size = gop
        stream.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        heard = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts = ticks[index] if ticks is not None else index
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
            if heard and index % fps == 0:
                wave = np.sin(np.arange(48000) / 10) * (index // fps % 2) * 0.5
                tone = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
                tone.sample_rate, tone.pts = 48000, index // fps * 48000
                container.mux(heard.encode(tone))
        container.mux(stream.encode(None))
        if heard:
            container.mux(heard.encode(None))
    return path


def loud_seconds(path: str | Path) -> list[float]:
    """When a file's sound becomes loud or silent, in seconds on the file's clock, to a twentieth."""
    changes, before, resample = [], False, av.AudioResampler("fltp", "mono", 48000)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            for plain in resample.resample(frame):
                loud = float(np.abs(plain.to_ndarray()).max()) > 0.1
                if loud != before:
                    changes.append(round(float(plain.pts * plain.time_base) * 20) / 20)
                before = loud
    return changes


def write_audio(path: str | Path, seconds: float = 0.5) -> Path:
    """A file with a sound track and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, int(16000 * seconds), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def write_image(path: str | Path, codec: str, pix_fmt: str, size: tuple[int, int] = (40, 30)) -> Path:
    """One still picture, as the raw output of an image encoder (mjpeg, png, libwebp)."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height = size
    context.pix_fmt, context.time_base = pix_fmt, Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(corner_picture(0, *size), format="rgb24").reformat(format=pix_fmt)
    frame.pts, frame.time_base = 0, Fraction(1, 1)
    packets = context.encode(frame) + context.encode(None)
    Path(path).write_bytes(b"".join(bytes(packet) for packet in packets))
    return Path(path)


def mp4_boxes(path: str | Path) -> dict[str, tuple[int, int]]:
    """Top-level boxes of an mp4 file: name -> (first byte, one past the last)."""
    data, boxes, at = Path(path).read_bytes(), {}, 0
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        boxes[name.decode("latin1")] = (at, at + length)
        at += length
    return boxes
