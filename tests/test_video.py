"""Reading videos: every test video tells its frame numbers by gray level (see clips.py), at 10 frames per second."""

import functools
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import clips
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from suma.index import files
from suma.index.files import find_videos
from suma.video import frames, timeline, upright
from suma.video.frames import Frames, parts_of, read_frames, read_parts
from suma.video.preprocess import normalize, resize_frames

REALCLIPS = Path(__file__).parents[2] / "shared" / "realclips"


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    """20 frames at 10 per second, a key frame every 5."""
    return clips.write_video(tmp_path_factory.mktemp("video") / "plain.mp4")


def no_decord(monkeypatch) -> None:
    def fail(*args):
        raise RuntimeError("decord is off")

    monkeypatch.setattr(frames, "_decord_frames", fail)


def no_pyav(monkeypatch) -> None:
    def fail(*args):
        raise RuntimeError("PyAV is off")

    monkeypatch.setattr(frames, "_pyav_frames", fail)


@pytest.fixture(params=["decord", "PyAV"])
def decoder(request, monkeypatch) -> str:
    """Run the test with each decoder alone."""
    (no_pyav if request.param == "decord" else no_decord)(monkeypatch)
    return request.param


# Which frames


def test_the_middle_frame_of_each_segment(mp4, decoder):
    got = read_frames(mp4, 4)  # segments of 0.5 s; their middles 0.25, 0.75, 1.25, 1.75 s
    assert clips.numbers(got.frames) == [2, 7, 12, 17]
    np.testing.assert_allclose(got.times, [0.2, 0.7, 1.2, 1.7], atol=1e-6)
    assert got.duration == pytest.approx(2.0)
    assert got.frames.shape == (4, 48, 64, 3) and got.frames.dtype == np.uint8 and got.times.dtype == np.float64


def test_start_and_end_in_seconds(mp4, decoder):
    got = read_frames(mp4, 2, start=1.0, end=1.8)  # middles 1.2, 1.6
    assert clips.numbers(got.frames) == [12, 16]
    np.testing.assert_allclose(got.times, [1.2, 1.6], atol=1e-6)
    assert got.duration == pytest.approx(2.0)
    assert clips.numbers(read_frames(mp4, 2, start=1.0).frames) == [12, 17]
    assert clips.numbers(read_frames(mp4, 2, end=1.0).frames) == [2, 7]
    assert clips.numbers(read_frames(mp4, 2, end=100.0).frames) == [5, 15]  # an end past the end is the end


def test_a_span_gives_no_frame_of_its_neighbours(mp4, decoder):
    assert clips.numbers(read_frames(mp4, 9, start=0.5, end=0.8).frames) == [5, 6, 7]
    assert clips.numbers(read_frames(mp4, 9, start=0.55, end=0.75).frames) == [5, 6, 7]
    assert clips.numbers(read_frames(mp4, 9, start=0.52, end=0.53).frames) == [5]


def test_fewer_frames_than_asked_come_once_each(mp4, decoder):
    assert clips.numbers(read_frames(mp4, 20).frames) == list(range(20))
    assert clips.numbers(read_frames(mp4, 50).frames) == list(range(20))


def test_one_frame_video(tmp_path, decoder):
    got = read_frames(clips.write_video(tmp_path / "one.mp4", frames=1), 12)
    assert clips.numbers(got.frames) == [0] and got.times.tolist() == [0.0] and got.duration == pytest.approx(0.1)


def test_variable_frame_rate_follows_the_clock(tmp_path, decoder):
    path = clips.write_video(tmp_path / "slides.mp4", frames=6, ticks=[0, 1, 2, 20, 21, 40])
    got = read_frames(path, 4)  # 4.1 s; on screen at 0.51: frame 2, 1.54: 2, 2.56: 4, 3.59: 4
    assert clips.numbers(got.frames) == [2, 4]
    np.testing.assert_allclose(got.times, [0.2, 2.1], atol=1e-6)


def test_key_frames(mp4, decoder):
    got = read_frames(mp4, 3, keyframes=True)  # middles 0.33, 1.0, 1.67; key frames at 0, 0.5, 1.0, 1.5
    assert clips.numbers(got.frames) == [5, 10, 15]
    np.testing.assert_allclose(got.times, [0.5, 1.0, 1.5], atol=1e-6)
    assert clips.numbers(read_frames(mp4, 6, keyframes=True).frames) == [0, 5, 10, 15]  # each once
    assert clips.numbers(read_frames(mp4, 2, 0.3, 0.9, keyframes=True).frames) == [5]
    assert clips.numbers(read_frames(mp4, 2, 0.6, 0.9, keyframes=True).frames) == [6, 8]  # none in the span: exact
    too_many = read_frames(mp4, 10, keyframes=True)  # 0.25 s are more than the 0.2 s between two of them
    assert clips.numbers(too_many.frames) == list(range(1, 20, 2))


def test_an_index_takes_key_frames_where_all_are_near(tmp_path):
    path = clips.write_video(tmp_path / "phone.mp4", frames=200, gop=10)  # 20 s, a key frame each second
    for count, segment, near in ((4, 0.0, 0.125), (4, 12.0, 0.25), (4, 0.0, 0.05), (40, 0.0, 0.125)):
        for start, end, found, exact in read_parts(path, count, segment, near):
            wanted = start + (np.arange(count) + 0.5) * (end - start) / count
            if exact:
                np.testing.assert_array_equal(found.frames, read_frames(path, count, start, end).frames)
            else:
                np.testing.assert_allclose(found.times % 1, 0, atol=1e-6)
                assert abs(found.times - wanted).max() <= near * (end - start) / count
            assert exact == (near * (end - start) / count < 0.5)  # middles lie halfway between two key frames


def test_key_frames_decode_nothing_else(mp4, monkeypatch):
    no_decord(monkeypatch)
    decoded = []
    original = timeline._decode_group
    monkeypatch.setattr(timeline, "_decode_group", lambda *args: decoded.append(found := original(*args)) or found)
    read_frames(mp4, 3, keyframes=True)
    assert [len(found) for found in decoded] == [1, 1, 1]


# Both decoders


@pytest.mark.parametrize("size", [(160, 120), (162, 98)])
def test_decord_and_pyav_agree_bitwise_on_h264(tmp_path, monkeypatch, size):
    path = clips.write_video(tmp_path / "noise.mp4", frames=60, size=size, gop=24, picture=clips.noise_picture)
    for count, start, keyframes in ((7, None, False), (60, None, False), (3, 3.3, False), (4, None, True)):
        with monkeypatch.context() as patch:
            no_pyav(patch)
            one = read_frames(path, count, start, keyframes=keyframes)
        with monkeypatch.context() as patch:
            no_decord(patch)
            other = read_frames(path, count, start, keyframes=keyframes)
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.times, other.times)
        assert one.duration == other.duration


CODECS = [("mp4", "libx264"), ("mkv", "libx264"), ("mp4", "libx265"), ("mkv", "libx265"), ("webm", "libvpx-vp9")]
CODECS += [("mp4", "mpeg4"), ("mkv", "mpeg4"), ("mp4", "libsvtav1"), ("mkv", "libvpx")]


@pytest.mark.parametrize(("suffix", "codec"), CODECS)
def test_decoding_group_by_group_gives_the_bytes_of_decoding_everything(tmp_path, suffix, codec):
    """And decord's, where it reads the codec: unneeded frames may be left out, and a seek may begin in the middle."""
    if not clips.can_encode(codec):
        pytest.skip(f"this PyAV has no {codec}")
    options = {"x265-params": "log-level=none:bframes=4:no-open-gop=1"} if codec == "libx265" else {"bf": "3"}
    options = {} if codec.startswith(("libvpx", "libsvt", "mpeg4")) else options
    path = clips.write_video(
        tmp_path / f"a.{suffix}", 70, (160, 96), codec=codec, gop=24, picture=clips.noise_picture, options=options
    )
    line = timeline.list_frames(str(path))
    assert line.grouped and len(line.ticks) == 70
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for chosen in (np.arange(70), np.array([3]), np.array([23, 24, 25]), np.arange(5, 70, 6), np.array([0, 69])):
        kept = timeline.decode_groups(str(path), line, chosen)
        assert list(kept) == line.ticks[chosen].tolist()
        for number, frame in zip(chosen, kept.values(), strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), everything[number])
        if codec in ("libx264", "libx265", "libvpx-vp9"):
            pictures = np.stack([everything[number] for number in chosen])
            np.testing.assert_array_equal(frames._decord_frames(str(path), line, chosen), pictures)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_comes_upright(tmp_path, decoder, rotation):
    path = clips.write_video(
        tmp_path / "phone.mp4", frames=3, size=(160, 96), rotation=rotation, picture=clips.corner_picture
    )
    picture = read_frames(path, 1).frames[0].astype(int)
    shown = np.rot90(clips.corner_picture(0, 160, 96), rotation // 90).astype(int)  # counter-clockwise
    assert picture.shape == shown.shape
    inside = np.abs(picture - shown)[8:-8, 8:-8]
    assert np.median(inside) < 4 and inside.mean() < 8  # upside down or mirrored it would be 50 or more


FORMATS = [("gif", None), ("ts", None), ("webm", None), ("mkv", None), ("avi", "libx264"), ("flv", "libx264")]
FORMATS += [("mp4", "libsvtav1"), ("mp4", "libx265"), ("mpg", "mpeg2video"), ("h264", "libx264")]


@pytest.mark.parametrize(("suffix", "codec"), FORMATS)
def test_other_formats(tmp_path, suffix, codec):
    codec = codec or clips.CODECS["." + suffix]
    if not clips.can_encode(codec):
        pytest.skip(f"this PyAV has no {codec}")
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = clips.write_video(tmp_path / f"a.{suffix}", size=(176, 144), fps=25, codec=codec, options=options)
    got = read_frames(path, 4)
    assert clips.numbers(got.frames) == [2, 7, 12, 17]
    np.testing.assert_allclose(got.times, [0.08, 0.28, 0.48, 0.68], atol=2e-3)
    assert got.duration == pytest.approx(0.8, abs=0.01)
    assert clips.numbers(read_frames(path, 99).frames) == list(range(20))
    assert clips.numbers(read_frames(path, 1, 0.32, 0.36).frames) == [8]
    snapped = read_frames(path, 4, keyframes=True)  # whichever they are, the times belong to the pictures
    np.testing.assert_allclose(snapped.times * 25, clips.numbers(snapped.frames), atol=0.05)


@pytest.mark.parametrize("params", ["open-gop=1:scenecut=0", "intra-refresh=1"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_every_single_frame_next_to_open_groups_of_pictures(tmp_path, suffix, params):
    """decord alone returns a neighbour, or a frame of the group before."""
    path = clips.write_video(tmp_path / f"open.{suffix}", frames=29, gop=6, options={"x264-params": params})
    alone = [clips.number(read_frames(path, 1, i / 10, (i + 1) / 10).frames[0]) for i in range(29)]
    assert alone == list(range(29))


def test_edit_list_hides_frames(tmp_path):
    """As in a file cut without re-encoding: decord counts the hidden frames and fills up with the last one."""
    path = clips.write_video(tmp_path / "cut.mp4", options={"bf": "0"})
    data = bytearray(path.read_bytes())
    entry = data.find(b"elst") + 12  # after the name, version and count: duration, media time
    duration, media_time = struct.unpack(">Ii", data[entry : entry + 8])
    data[entry : entry + 8] = struct.pack(">Ii", duration - 700, media_time + 7 * 1024)
    path.write_bytes(data)
    got = read_frames(path, 50)
    assert clips.numbers(got.frames) == list(range(7, 20))
    np.testing.assert_allclose(got.times, np.arange(13) / 10, atol=1e-6)
    line = timeline.list_frames(str(path))
    with pytest.raises(ValueError, match=r"15 .*13"):
        frames._decord_frames(str(path), line, np.arange(13))
    with pytest.raises(Exception, match="duplicate frames"):
        frames._decord_frames(str(path), line._replace(times=np.arange(15)), np.arange(15))


STILLS = [("jpg", "mjpeg", "yuvj420p"), ("png", "png", "rgb24"), ("webp", "libwebp", "yuv420p")]


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), STILLS)
def test_an_image_is_a_video_of_one_frame(tmp_path, suffix, codec, pix_fmt):
    if not clips.can_encode(codec):
        pytest.skip(f"this PyAV has no {codec}")
    got = read_frames(clips.write_image(tmp_path / f"50%d off.{suffix}", codec, pix_fmt), 5)
    assert got.frames.shape == (1, 30, 40, 3) and got.times.tolist() == [0.0]
    red, green, blue = got.frames[0, 5, 5].tolist()
    assert red > 180 and green < 80 and blue < 80


@pytest.mark.parametrize("name", ["sp ace, 'quote' & ünïcödé 视频.mp4", "a:b?c=d#e [1] 100%d.mp4", "-i.mp4"])
def test_file_names(mp4, tmp_path, monkeypatch, decoder, name):
    (tmp_path / name).write_bytes(mp4.read_bytes())
    assert clips.numbers(read_frames(str(tmp_path / name), 2).frames) == [5, 15]
    monkeypatch.chdir(tmp_path)
    assert clips.numbers(read_frames(name, 2).frames) == [5, 15]


# Damage


def test_text_file_named_mp4(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("this is no video\n" * 50)
    with pytest.raises(ValueError, match=r"notes\.mp4"):
        read_frames(path, 4)


def test_missing_folder_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        read_frames(tmp_path / "nowhere.mp4", 4)
    with pytest.raises(ValueError, match=r"not a file: .* folder"):
        read_frames(tmp_path, 4)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="empty"):
        read_frames(tmp_path / "empty.mp4", 4)


def test_sound_only(tmp_path):
    with pytest.raises(ValueError, match="no video"):
        read_frames(clips.write_audio(tmp_path / "sound.mp4"), 4)


def test_both_decoders_fail_and_both_reasons_are_told(mp4, monkeypatch):
    no_decord(monkeypatch)
    no_pyav(monkeypatch)
    with pytest.raises(ValueError, match=r"plain\.mp4 .*PyAV is off.*decord is off"):
        read_frames(mp4, 4)


def test_bad_requests(mp4):
    for count, start, end in ((0, None, None), (4, -1.0, None), (4, 1.0, 1.0), (4, 1.0, 0.5), (4, float("nan"), None)):
        with pytest.raises(ValueError, match=r"num_frames|0 <= start < end"):
            read_frames(mp4, count, start, end)
    with pytest.raises(ValueError, match=r"start=2.0 "):
        read_frames(mp4, 4, start=2.0)


def test_oversized_frames_are_refused_before_decoding(mp4, monkeypatch):
    no_pyav(monkeypatch)
    no_decord(monkeypatch)
    monkeypatch.setattr(upright, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(ValueError, match="64x48"):
        read_frames(mp4, 4)


def test_a_file_that_breaks_off_gives_what_is_there(tmp_path):
    whole = clips.write_video(
        tmp_path / "whole.mp4", frames=60, picture=clips.noise_picture, container_options={"movflags": "faststart"}
    )
    begin, end = clips.mp4_boxes(whole)["mdat"]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: (begin + end) // 2])
    got, reference = read_frames(cut, 60), read_frames(whole, 60)
    assert 20 < len(got.frames) < 40 and got.duration < 4.5
    same = [(got.frames[i] == reference.frames[i]).all() for i in range(len(got.frames) - 8)]
    assert all(same)
    np.testing.assert_allclose(got.times, np.sort(got.times))
    few = read_frames(cut, 4)
    assert len(few.frames) == 4 and few.times[-1] < got.duration


def test_a_file_without_its_index_is_an_error(tmp_path):
    whole = clips.write_video(tmp_path / "whole.mp4", frames=60, picture=clips.noise_picture)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: clips.mp4_boxes(whole)["mdat"][1] - 100])  # the index comes last
    with pytest.raises(ValueError, match=r"cut\.mp4"):
        read_frames(cut, 4)


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
def test_damaged_bytes_in_the_middle(tmp_path, suffix):
    path = clips.write_video(tmp_path / f"a.{suffix}", frames=60, gop=10, picture=clips.noise_picture)
    good, data = read_frames(path, 60), bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(data)
    got = read_frames(path, 60)
    assert 24 <= len(got.frames) <= 60 and (np.diff(got.times) > 0).all()
    assert (got.frames[0] == good.frames[0]).all() and (got.frames[-1] == good.frames[-1]).all()
    assert not any((one == other).all() for one, other in zip(got.frames, got.frames[1:], strict=False))  # no filling


def test_random_damage_gives_frames_or_a_value_error(tmp_path):
    """In a process of its own, so that a crash of a decoder would show."""
    whole = clips.write_video(tmp_path / "whole.mp4", frames=30, picture=clips.noise_picture)
    for seed in range(12):
        rng, data = np.random.default_rng(seed), bytearray(whole.read_bytes())
        for at in rng.integers(0, len(data), 30):
            data[at] = rng.integers(256)
        (tmp_path / f"{seed}.mp4").write_bytes(data)
    program = (
        "import sys; from suma.video.frames import read_frames\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(len(read_frames(path, 8).frames))\n"
        "    except ValueError as error: print(0)\n"
    )
    files = [str(tmp_path / f"{seed}.mp4") for seed in range(12)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", program, *files], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == 12 and sum(int(count) > 0 for count in run.stdout.split()) >= 6


@pytest.mark.parametrize(
    ("missing", "instead"), [({9, 13}, {12}), ({12}, {10, 11}), ({10, 11, 12}, {13, 14}), ({10, 11, 12, 13, 14}, set())]
)
def test_a_frame_that_cannot_be_decoded_is_replaced_from_the_span(mp4, monkeypatch, missing, instead):
    no_decord(monkeypatch)
    monkeypatch.setattr(timeline, "decode_groups", lambda *args: {})
    original = timeline._decodable
    monkeypatch.setattr(
        timeline, "_decodable", lambda *args: ((t, f) for t, f in original(*args) if t // 1024 not in missing)
    )
    if not instead:
        with pytest.raises(ValueError, match="no frame"):
            read_frames(mp4, 1, 1.0, 1.5)
        return
    got = read_frames(mp4, 1, 1.0, 1.5)  # the middle is frame 12
    (number,) = clips.numbers(got.frames)
    assert number in instead and got.times[0] == pytest.approx(number / 10)


LONG = [("a.mp4", {}), ("a.ts", {}), ("a.avi", {}), ("open.mp4", {"codec": "libx265"}), ("a.gif", {})]


@pytest.mark.parametrize(("name", "how"), LONG, ids=[name for name, _ in LONG])
def test_the_parts_of_a_long_video_are_what_reading_each_span_gives_and_the_file_is_listed_once(
    tmp_path, monkeypatch, name, how
):
    if how and not clips.can_encode("libx265"):
        pytest.skip("this PyAV has no libx265")
    options = {"x265-params": "log-level=none:bframes=4:open-gop=1:keyint=10:min-keyint=10"} if how else {}
    path = clips.write_video(tmp_path / name, 153, (96, 64), picture=clips.noise_picture, options=options, **how)
    assert timeline.list_frames(str(path)).grouped == (name == "a.mp4")
    listed, passes = [], []
    for log, called in ((listed, "list_frames"), (passes, "decode_spans")):
        original = getattr(timeline, called)
        monkeypatch.setattr(timeline, called, lambda *args, log=log, do=original: log.append(args) or do(*args))
    got = list(read_parts(path, 6, 6.0))
    assert len(listed) == 1 and len(passes) == (name != "a.mp4")  # one pass where one may not begin in the middle
    duration = got[0][2].duration
    assert [(start, end) for start, end, _, _ in got] == parts_of(duration, 6.0) and len(got) == 3
    for start, end, part, exact in got:
        assert exact
        alone = read_frames(path, 6, start, end)
        np.testing.assert_array_equal(part.frames, alone.frames)
        np.testing.assert_array_equal(part.times, alone.times)
        assert start <= part.times[0] and part.times[-1] < end
    ((start, end, whole, _),) = read_parts(path, 6, 0.0)
    assert (start, end) == (0.0, duration)
    np.testing.assert_array_equal(whole.frames, read_frames(path, 6).frames)


@pytest.mark.parametrize("duration", [0.1, 59.9, 60.0, 60.5, 110.0, 110.1, 160.2, 7200.0])
def test_parts_cover_a_video_and_share_a_sixth(duration):
    parts = parts_of(duration, 60.0)
    assert parts[0][0] == 0 and parts[-1][1] == duration and (len(parts) > 1) == (duration > 60)
    assert all(end - start == pytest.approx(60) for start, end in parts[:-1])
    assert all(end - start == pytest.approx(10) for (_, end), (start, _) in pairwise(parts))
    assert len(parts) == 1 or 10 < parts[-1][1] - parts[-1][0] <= 60.001
    assert parts_of(duration, 0.0) == [(0.0, duration)]


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_a_damaged_part_of_a_long_video_is_left_out(tmp_path, suffix):
    path = clips.write_video(tmp_path / f"a.{suffix}", 150, (96, 64), picture=clips.noise_picture)
    data = bytearray(path.read_bytes())
    first, last = clips.mp4_boxes(path)["mdat"] if suffix == "mp4" else (0, len(data))
    third = (last - first) // 3
    data[first + third : last - third] = bytes(last - first - 2 * third)
    path.write_bytes(data)
    parts = list(read_parts(path, 6, 2.0))
    starts = [start for start, *_ in parts]
    assert 0.0 in starts and max(starts) > 11 and starts == sorted(starts)
    assert len(parts) < 9 or suffix == "ts"  # which lists what is there: the last frame stays on screen
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.{suffix}"):
        list(read_parts(path, 6, 2.0))


def test_reading_goes_on_after_a_packet_error():
    class Broken:
        reads = 0

        def demux(self, stream):
            self.reads += 1
            yield self.reads
            if self.reads < 3 or stream == "endless":
                raise av.error.InvalidDataError(1, "damaged")

    assert list(timeline._packets(Broken(), "stream")) == [1, 2, 3]
    assert len(list(timeline._packets(Broken(), "endless"))) == 100


@pytest.mark.skipif(not REALCLIPS.exists(), reason="no folder of real clips")
def test_real_clips(monkeypatch):
    paths = find_videos(REALCLIPS)
    ours = [read_frames(path, 12) for path in paths]
    assert all(len(frames.frames) == 12 and frames.duration > 1 for frames in ours)
    no_decord(monkeypatch)
    for path, found in zip(paths[::4], ours[::4], strict=True):
        np.testing.assert_array_equal(read_frames(path, 12).frames, found.frames)


# Pixels

MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
SIZES = [(320, 240), (240, 320), (161, 97), (960, 540), (200, 200), (20, 30), (224, 224), (225, 1000)]


@functools.cache
def photo(width: int, height: int) -> np.ndarray:
    """Smooth shapes and some noise: closer to a photograph than pure noise."""
    y, x = np.mgrid[:height, :width] / 16.0
    waves = np.stack([np.sin(x + k) * np.cos(y * (k + 1) / 2) for k in range(3)], -1) * 90 + 128
    return (waves + np.random.default_rng(0).normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
def test_pixels_equal_open_clips_transform(size, interpolation, resize_mode):
    picture = photo(*size)
    theirs = open_clip.transform.image_transform(
        224, is_train=False, mean=MEAN, std=STD, resize_mode=resize_mode, interpolation=interpolation
    )(Image.fromarray(picture))
    pixels = resize_frames(np.stack([picture, picture[::-1]]), 224, resize_mode, interpolation)
    assert pixels.shape == (2, 3, 224, 224) and pixels.dtype == torch.uint8
    ours = normalize(pixels, MEAN, STD)[0]
    assert ours.dtype == torch.float32
    difference = (ours - theirs).abs() * torch.tensor(STD)[:, None, None] * 255  # in gray levels
    assert difference.mean() < 1 and difference.max() < 3.01


def test_normalize_by_hand():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1).expand(2, 5, 3, 1, 1)
    got = normalize(pixels, (0.5, 0.1, 0.0), (0.5, 0.1, 2.0))
    assert got.shape == (2, 5, 3, 1, 1)
    torch.testing.assert_close(got[1, 4].flatten(), torch.tensor([-1.0, 1.0, 0.5]))
    assert pixels.flatten()[:3].tolist() == [0, 51, 255]  # the argument is left as it was


def test_resize_takes_rotated_views_and_names_bad_options(mp4):
    turned = np.rot90(read_frames(mp4, 2).frames, axes=(1, 2))
    assert resize_frames(turned, 32).shape == (2, 3, 32, 32)
    for arguments in ({"resize_mode": "stretch"}, {"interpolation": "nearest"}):
        with pytest.raises(ValueError, match="must be"):
            resize_frames(turned, 32, **arguments)
    with pytest.raises(ValueError, match=r"uint8 \(F, h, w, 3\)"):
        resize_frames(turned.astype(np.float32), 32)


# Files


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_find_videos(tmp_path):
    touch(tmp_path, "b/2.mp4", "b/1.MKV", "a/deep/3.webm", "a/notes.txt", "a/.hidden.mp4", ".git/4.mp4", "clip.dat")
    names = ["a/deep/3.webm", "b/1.MKV", "b/2.mp4"]
    assert find_videos(tmp_path) == find_videos(str(tmp_path)) == [tmp_path / name for name in names]
    assert find_videos(tmp_path / "clip.dat") == [tmp_path / "clip.dat"]  # named outright
    assert find_videos([tmp_path / "b/2.mp4", tmp_path]) == [tmp_path / name for name in (names[2], *names[:2])]
    assert find_videos(f"{tmp_path}/*/*") == [tmp_path / name for name in names]  # a/deep is a folder, no notes.txt
    assert find_videos(f"{tmp_path}/**/*.mp4") == [tmp_path / "b/2.mp4"]
    assert find_videos(f"{tmp_path}/*.dat") == [tmp_path / "clip.dat"]
    assert find_videos([]) == []


def test_find_videos_names_what_is_not_there(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=r"no video in .*\.mp4"):
        find_videos(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        find_videos([tmp_path / "gone.mp4"])
    with pytest.raises(FileNotFoundError, match=r"\*\.mp4"):
        find_videos(f"{tmp_path}/*.mp4")


def test_find_videos_follows_links_once(tmp_path, monkeypatch):
    looked_at, is_file = [], files._is_file
    monkeypatch.setattr(files, "_is_file", lambda path, found: looked_at.append(path) or is_file(path, found))
    touch(tmp_path, "real/1.mp4", "in/2.mp4", "in/a[1].mp4")
    try:
        (tmp_path / "in/linked").symlink_to(tmp_path / "real")
        (tmp_path / "in/loop").symlink_to(tmp_path / "in")
        (tmp_path / "in/broken.mp4").symlink_to(tmp_path / "gone.mp4")
    except OSError:
        pytest.skip("no symbolic links here")
    assert find_videos(tmp_path / "in") == [tmp_path / "in" / name for name in ("2.mp4", "a[1].mp4", "linked/1.mp4")]
    assert len(looked_at) == 4  # not again and again in the loop
    assert find_videos(tmp_path / "in/a[1].mp4") == [tmp_path / "in/a[1].mp4"]  # a name before a pattern


def test_import_is_light():
    """Neither decoder nor torchvision is loaded until a file is read."""
    program = "import sys, suma.video.frames; print([m for m in ('av', 'decord', 'torchvision') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_frames_unpack(mp4):
    frames, times, duration = read_frames(mp4, 2)
    assert isinstance(read_frames(mp4, 2), Frames) and len(frames) == len(times) == 2 and duration > 0
