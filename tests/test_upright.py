"""Pictures as players and viewers show them: HDR mapped to SDR, square pixels, mirrored, tiled, the right stream."""

import io
import struct
from collections.abc import Callable, Iterator
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
from suma.video.heif import read_grid
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


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def one_tile(picture: np.ndarray, codec: str, kind: bytes, tries: int = 5) -> tuple[bytes, bytes]:
    """The decoder's configuration (a box) and the bytes of one encoded picture."""
    out = io.BytesIO()
    try:
        with av.open(out, "w", format="mp4") as container:
            quick = {"x265-params": "pools=none:log-level=error"} if codec == "libx265" else {"preset": "12"}
            stream = container.add_stream(codec, rate=1, options=quick)
            stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    except av.error.PatchWelcomeError:  # FFmpeg finds x265's header damaged, at random
        if not tries:
            raise
        return one_tile(picture, codec, kind, tries - 1)
    data = out.getvalue()
    at, body = data.find(kind) - 4, data.find(b"mdat")
    return data[at : at + struct.unpack_from(">I", data, at)[0]], data[body + 4 : body - 4 + _size(data, body - 4)]


def _size(data: bytes, at: int) -> int:
    return int(struct.unpack_from(">I", data, at)[0])


def write_grid(path: Path, picture: np.ndarray, side: int, size: tuple[int, int], turns: list[bytes]) -> Path:
    """Write the picture in tiles of `side` pixels, of which the first `size` (width, height) pixels are shown."""
    avif = path.suffix == ".avif"
    codec, kind, item = ("libsvtav1", b"av1C", b"av01") if avif else ("libx265", b"hvcC", b"hvc1")
    rows, columns = picture.shape[0] // side, picture.shape[1] // side
    tiles = [picture[y * side :, x * side :][:side, :side] for y in range(rows) for x in range(columns)]
    made = [one_tile(np.ascontiguousarray(tile), codec, kind) for tile in tiles]
    ids, grid = range(2, 2 + len(made)), struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    ispe = [box(b"ispe", bytes(4), struct.pack(">II", *pair)) for pair in (size, (side, side))]
    owners = struct.pack(">HB", 1, 1 + len(turns)) + bytes([1, *range(4, 4 + len(turns))])
    owners += b"".join(struct.pack(">HBBB", id_, 2, 2, 3) for id_ in ids)
    kinds = [
        box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", n, 0, item if n > 1 else b"grid"), b"\0") for n in (1, *ids)
    ]
    brand = b"avif" if avif else b"heic"
    head = box(b"ftyp", brand, bytes(4), b"mif1", brand)

    def meta(begin: int) -> bytes:
        places = struct.pack(">HHHHII", 1, 1, 0, 1, 0, 8)
        for id_, (_, data) in zip(ids, made, strict=True):
            places += struct.pack(">HHHHII", id_, 0, 0, 1, begin, len(data))
            begin += len(data)
        properties = box(b"ipco", ispe[0], ispe[1], made[0][0], *turns)
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), b"\0\1"),
            box(b"iloc", b"\1\0\0\0\x44\0", struct.pack(">H", 1 + len(ids)), places),
            box(b"iinf", bytes(4), struct.pack(">H", len(kinds)), *kinds),
            box(b"iprp", properties, box(b"ipma", bytes(4), struct.pack(">I", 1 + len(ids)), owners)),
            box(b"iref", bytes(4), box(b"dimg", struct.pack(f">HH{len(ids)}H", 1, len(ids), *ids))),
            box(b"idat", grid),
        )

    begin = len(head) + len(meta(0)) + 8
    path.write_bytes(head + meta(begin) + box(b"mdat", *(data for _, data in made)))
    return path


def no_turn(picture: np.ndarray) -> np.ndarray:
    return picture


def mirrored_quarter(picture: np.ndarray) -> np.ndarray:
    return np.rot90(picture)[:, ::-1]  # irot comes first


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
@pytest.mark.parametrize(
    ("turns", "change"),
    [([], no_turn), ([box(b"irot", b"\1"), box(b"imir", b"\1")], mirrored_quarter)],
)
def test_all_tiles_of_a_picture_are_read(tmp_path: Path, suffix: str, turns: list[bytes], change: Callable):
    if not clips.can_encode("libsvtav1" if suffix == ".avif" else "libx265"):
        pytest.skip("this PyAV has no encoder for it")
    picture = four_colours(192, 128)
    path = write_grid(tmp_path / f"photo{suffix}", picture, 64, (150, 120), turns)
    got = read_frames(path, 4)
    assert len(got.frames) == 1 and alike(got.frames[0], change(picture[:120, :150]))
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"mdat") + 4] + bytes(len(data) - data.find(b"mdat") - 4))
    with pytest.raises(ValueError, match=f"photo{suffix}"):
        read_frames(path, 1)


def test_a_file_that_is_no_grid_has_none(tmp_path: Path):
    path = clips.write_video(tmp_path / "one.mp4", frames=1)
    assert read_grid(str(path)) is None
    Image.fromarray(four_colours(96, 64)).save(tmp_path / "one.avif")
    assert read_grid(str(tmp_path / "one.avif")) is None
    assert alike(read_frames(tmp_path / "one.avif", 1).frames[0], four_colours(96, 64))


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared")
def test_a_phones_tiled_photo():
    picture = read_frames(CASES / "tiled_heic" / "quad_tiled.heic", 1).frames[0]
    assert alike(
        picture[::128, ::128][[1, 4]][:, [1, 6]], np.array([[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (250,) * 3]])
    )


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
