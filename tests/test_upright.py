"""Pictures as players and viewers show them: HDR mapped to SDR, square pixels, mirrored, tiled, the right stream."""

import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from PIL import Image, ImageOps

from suma import read_frames
from suma.app.browser_formats import plan_for
from suma.app.copies import encode, make
from suma.index.files import find_videos
from suma.video.timeline import list_frames, video_stream
from suma.video.upright import HLG, PQ, upright, view_of

CASES = Path(__file__).parents[2] / "shared" / "cases"
WHITE = 203.0  # cd/m2
COLOURS = [(253, 0, 0), (0, 253, 0), (0, 0, 253), (200, 140, 110), (128, 128, 128), (30, 30, 30), (255, 255, 255)]
FROM_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
TO_YUV = np.array([[0.2627, 0.6780, 0.0593], [-0.13963, -0.36037, 0.5], [0.5, -0.45979, -0.04021]])  # BT.2020


def pq(light: np.ndarray) -> np.ndarray:
    """PQ's code for cd/m2."""
    power = (light / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light: np.ndarray) -> np.ndarray:
    """HLG's code for cd/m2 on a display of 1000."""
    a, scene = 0.17883277, (light / 1000) ** (1 / 1.2)
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def write_hdr(path: Path, light: np.ndarray, transfer: int) -> Path:
    """Write two frames of (F, h, w, 3) light, in cd/m2 and BT.709's primaries, without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = light.shape[1:3]
        stream.pix_fmt, context = "yuv420p10le", stream.codec_context
        context.colorspace, context.color_trc, context.color_primaries, context.color_range = 9, transfer, 9, 1
        for picture in light:
            codes = {PQ: pq, HLG: hlg}[transfer](np.maximum(picture @ FROM_BT709.T, 0)) @ TO_YUV.T
            y, u, v = np.round(codes * (876, 896, 896) + (64, 512, 512)).astype(np.uint16).transpose(2, 0, 1)
            planes = np.concatenate([y.ravel(), u[::2, ::2].ravel(), v[::2, ::2].ravel()])
            frame = av.VideoFrame.from_ndarray(planes.reshape(-1, y.shape[1]), format="yuv420p10le")
            frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, transfer, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def patches(colours: list[tuple[int, int, int]]) -> np.ndarray:
    """One picture (32, 32 n, 3) of n colours side by side."""
    return np.repeat(np.repeat(np.array(colours)[None], 32, 0), 32, 1)


def centres(picture: np.ndarray) -> np.ndarray:
    return picture[16, 16::32].astype(int)


def copies_of(path: Path) -> Iterator[Path]:
    """The copies that a browser gets of a video: as the app makes it, and encoded again."""
    make(str(path), path.with_name("copy.mp4"), [0.0])
    yield path.with_name("copy.mp4")
    encode(str(path), path.with_name("copy.mp4"), list_frames(str(path)), [0.0])
    yield path.with_name("copy.mp4")


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_sdr_colours_in_an_hdr_file_come_back(tmp_path: Path, transfer: int):
    light = WHITE * (patches(COLOURS) / 255) ** 2.4  # BT.1886's display
    path = write_hdr(tmp_path / "hdr.mkv", light[None].repeat(3, 0), transfer)
    np.testing.assert_allclose(centres(read_frames(path, 1).frames[0]), COLOURS, atol=28)  # 10 bits: black is off
    for copy in copies_of(path):
        np.testing.assert_allclose(centres(read_frames(copy, 1).frames[0]), COLOURS, atol=32)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_keep_their_steps_and_leave_the_rest_alone(tmp_path: Path, transfer: int):
    grays = [2, 20, 100, 203, 400, 990]  # cd/m2
    light = np.repeat(patches([(g, g, g) for g in grays]).astype(float)[None], 2, 0)
    shown = centres(read_frames(write_hdr(tmp_path / "bright.mkv", light, transfer), 1).frames[0])
    assert np.ptp(shown, 1).max() <= 2  # gray stays gray
    unchanged = [255 * (gray / WHITE) ** (1 / 2.4) for gray in grays[:3]]
    np.testing.assert_allclose(shown[:3, 0], unchanged, atol=2)
    assert (np.diff(shown[:, 0]) >= 4).all() and shown[-1, 0] >= 253


def test_plain_pictures_are_the_decoders_to_the_bit(tmp_path: Path):
    path = clips.write_video(tmp_path / "plain.mp4", frames=2, picture=clips.noise_picture)
    with av.open(str(path)) as container:
        stream = video_stream(container)
        frame = next(container.decode(stream))
        assert isinstance(frame, av.VideoFrame)
        np.testing.assert_array_equal(upright(frame, view_of(container, stream)), frame.to_ndarray(format="rgb24"))


# Pixels that are not square


@pytest.mark.parametrize(
    ("suffix", "aspect", "wide"),
    [
        (".mkv", "2", 320),
        (".mkv", "8/9", 142),
        (".mkv", "1/1000", 160),
        (".mp4", "64/45", 228),
        (".ts", "8/9", 142),
    ],
)
def test_pixels_become_square(tmp_path: Path, suffix: str, aspect: str, wide: int):
    path = tmp_path / f"wide{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 240, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(clips.corner_picture(index, 160, 240), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert read_frames(path, 2).frames.shape[1:3] == (240, wide)  # 1/1000 is an error in the file
    for copy in copies_of(path):
        assert read_frames(copy, 1).frames.shape[1:3] == (240, wide)


def test_an_images_dots_per_inch_change_nothing(tmp_path: Path):
    Image.fromarray(four_colours(96, 64)).save(tmp_path / "scan.jpg", dpi=(200, 100))
    assert alike(read_frames(tmp_path / "scan.jpg", 1).frames[0], four_colours(96, 64))


# Mirrored and turned

MATRICES = {  # by EXIF orientation: a, b, c, d
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def four_colours(width: int, height: int) -> np.ndarray:
    """Red, green / blue, white quarters, the left ones wider: no turn or mirroring looks like another."""
    picture = np.empty((height, width, 3), np.uint8)
    down, right = height // 2, width * 5 // 8 // 16 * 16
    picture[:down, :right], picture[:down, right:] = (250, 0, 0), (0, 250, 0)
    picture[down:, :right], picture[down:, right:] = (0, 0, 250), (250, 250, 250)
    return picture


def as_viewers_show(picture: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as Pillow turns it."""
    image = Image.fromarray(picture)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image)).astype(int)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and float(np.abs(one.astype(int) - other.astype(int)).mean()) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_display_matrix_is_followed_mirrored_too(tmp_path: Path, orientation: int):
    picture, path = four_colours(96, 64), tmp_path / "phone.mp4"
    clips.write_video(path, frames=3, size=(96, 64), picture=lambda index, width, height: picture)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44  # version 0: 40 bytes after its version and flags
    a, b, c, d = (65536 * number for number in MATRICES[orientation])
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    shown = as_viewers_show(picture, orientation)
    assert alike(read_frames(path, 1).frames[0], shown)
    for copy in copies_of(path):
        assert alike(read_frames(copy, 1).frames[0], shown)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_exif_orientations_are_followed(tmp_path: Path, suffix: str, orientation: int):
    picture, exif = four_colours(96, 64), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / f"photo{suffix}", exif=exif)
    assert alike(read_frames(tmp_path / f"photo{suffix}", 1).frames[0], as_viewers_show(picture, orientation))


# Tiles


@pytest.mark.parametrize("suffix", [".avif", ".heic"])
def test_a_phones_photo_is_one_frame_without_length(tmp_path: Path, suffix: str):
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.fromarray(four_colours(192, 128)).save(tmp_path / f"photo{suffix}")
    got = read_frames(tmp_path / f"photo{suffix}", 4)
    assert len(got.frames) == 1 and got.duration == 0 and alike(got.frames[0], four_colours(192, 128))
    assert not plan_for(str(tmp_path / f"photo{suffix}")).as_it_is


def test_a_heic_photo_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.heic").write_bytes(struct.pack(">I", 16) + b"ftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"a\.heic.*pip install pillow-heif"):
        read_frames(tmp_path / "a.heic", 1)


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_an_animated_picture_is_a_video(tmp_path: Path, suffix: str):
    shown = [Image.fromarray(clips.gray_picture(n, 64, 48)) for n in range(4)]
    path = tmp_path / f"moving{suffix}"
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=[100, 300, 100, 100], lossless=True)
    got = read_frames(path, 8)
    assert clips.numbers(got.frames) == [0, 1, 2, 3] and got.times == pytest.approx([0, 0.1, 0.4, 0.5])
    assert got.duration == pytest.approx(0.6)
    assert clips.numbers(read_frames(path, 1, start=0.15, end=0.35).frames) == [1]


def test_a_damaged_or_huge_picture_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "half.jpg"
    Image.fromarray(clips.noise_picture(0, 320, 240)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.jpg"):
        read_frames(path, 1)
    Image.fromarray(four_colours(192, 128)).save(tmp_path / "large.png")
    monkeypatch.setattr("suma.video.upright.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="192x128"):
        read_frames(tmp_path / "large.png", 1)


def test_photographs_are_found_below_a_folder_only_where_asked(tmp_path: Path):
    Image.fromarray(four_colours(96, 64)).save(tmp_path / "a.JPG", "JPEG")
    clips.write_video(tmp_path / "b.mp4", frames=1)
    (tmp_path / "notes.txt").write_text("none")
    assert [path.name for path in find_videos(tmp_path)] == ["b.mp4"]
    assert [path.name for path in find_videos(tmp_path, photos=True)] == ["a.JPG", "b.mp4"]


# Which stream, and which container


def write_with_cover(path: Path, cover_codec: str, default: bool) -> Path:
    """Write a cover picture as the first stream, a film of 20 frames as the second."""
    with av.open(str(path), "w") as container:
        cover, film = container.add_stream(cover_codec, rate=10), container.add_stream("libx264", rate=10)
        for stream in (cover, film):
            stream.width, stream.height = 64, 48
        cover.width, cover.height = 640, 480
        cover.pix_fmt, film.pix_fmt = "yuvj420p" if cover_codec == "mjpeg" else "rgb24", "yuv420p"
        if default:
            cover.disposition = 1
        picture = av.VideoFrame.from_ndarray(clips.noise_picture(0, 640, 480), format="rgb24")
        container.mux(cover.encode(picture))
        for index in range(20):
            container.mux(film.encode(av.VideoFrame.from_ndarray(clips.gray_picture(index, 64, 48), format="rgb24")))
        container.mux(cover.encode(None))
        container.mux(film.encode(None))
    return path


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "mjpeg"), (".mkv", "mjpeg"), (".mp4", "png")])
def test_a_cover_in_front_is_not_the_film(tmp_path: Path, suffix: str, codec: str, default: bool):
    path = write_with_cover(tmp_path / f"covered{suffix}", codec, default)
    assert clips.numbers(read_frames(path, 20).frames) == list(range(20))
    assert not plan_for(str(path)).as_it_is
    for copy in copies_of(path):
        assert clips.numbers(read_frames(copy, 20).frames) == list(range(20))


def test_the_suffixes_of_discs_cameras_and_old_films_are_videos(tmp_path: Path):
    names = {"a.vob", "b.MXF", "c.3g2", "d.m2v", "e.f4v", "f.asf", "g.divx", "h.ogm", "i.qt"}
    for name in {*names, "notes.txt", "sound.mp3"}:
        (tmp_path / name).touch()
    assert {path.name for path in find_videos(tmp_path)} == names
