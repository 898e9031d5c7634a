"""Saved clips: the right moments with their sound, packets kept where the cut allows, and no file ever lost for one."""

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
from clips import can_encode, corner_picture, gray_picture, loud_seconds, numbers, write_video

from suma import read_frames
from suma.video.cut import save_clip
from suma.video.timeline import list_frames


def packets(path: Path) -> list[int]:
    """A hash of each packet of the picture."""
    with av.open(str(path)) as read:
        return [hash(bytes(packet)) for packet in read.demux(video=0) if packet.size]


FILMS = [  # suffix, codec, frames between key frames (0.1 s each), sound, whether packets are kept
    (".mp4", "libx264", 5, "aac", True),
    (".mp4", "libx264", 100, "aac", False),
    (".mkv", "libx264", 5, "ac3", True),
    (".mkv", "libx264", 100, "pcm_s16le", False),
    (".mov", "libx264", 5, "pcm_s16le", True),
    (".ts", "libx264", 10, "aac", True),
    (".ts", "libx264", 100, "mp2", False),
    (".webm", "libvpx-vp9", 5, "libopus", True),
    (".avi", "mpeg4", 5, "mp3", False),
    (".flv", "flv1", 5, "mp3", False),
]


@pytest.mark.parametrize(("suffix", "codec", "gop", "sound", "kept"), FILMS)
def test_a_clip_shows_the_span_and_is_heard_with_it(
    tmp_path: Path, suffix: str, codec: str, gop: int, sound: str, kept: bool
):
    film = write_video(tmp_path / f"film{suffix}", frames=80, codec=codec, gop=gop, sound=sound)
    clip = save_clip(film, 3.0, 5.0, tmp_path / "clips")
    assert clip == tmp_path / "clips" / "film 0-00-03.mp4"
    assert list_frames(str(clip)).duration == pytest.approx(4.0, abs=0.11)
    expected, shown = read_frames(film, 16, 2.0, 6.0).frames, read_frames(clip, 16, 0.0, 4.0).frames
    late = np.array(numbers(shown)) - numbers(expected)
    assert set(late.tolist()) == {0}
    assert loud_seconds(clip) == pytest.approx([1.0, 2.0, 3.0], abs=0.051)  # the film's third second is silent
    assert (set(packets(clip)) <= set(packets(film))) is kept or suffix == ".ts"  # whose packets are laid out otherwise
    assert [file.name for file in (tmp_path / "clips").iterdir()] == [clip.name]


def test_a_key_frame_in_the_padding_will_do(tmp_path: Path):
    """It is cut a little earlier, or a little later, but never into the span."""
    film = write_video(tmp_path / "film.mp4", frames=100, gop=20, options={"bf": "2"})
    for start, first, kept in ((3.0, 20, True), (3.4, 20, True), (4.5, 40, True), (3.8, 28, False)):
        clip = save_clip(film, start, 6.0, tmp_path)
        assert numbers(read_frames(clip, 1, 0.0, 0.1).frames) == [first % 29]
        assert (packets(clip)[0] in packets(film)) is kept
        times = list_frames(str(clip)).times
        assert np.diff(times) == pytest.approx(0.1, abs=0.002)  # no hole where B-frames end
        assert first / 10 + times[-1] == pytest.approx(6.9, abs=0.21)


@pytest.mark.parametrize("gop", [5, 100])
def test_a_clip_stands_as_its_film_does(tmp_path: Path, gop: int):
    film = write_video(tmp_path / "film.mp4", 50, gop=gop, rotation=90, picture=corner_picture)
    shown = [read_frames(path, 1).frames[0] for path in (film, save_clip(film, 2.0, 3.0, tmp_path))]
    assert shown[0].shape == shown[1].shape == (64, 48, 3)
    assert np.abs(shown[0].astype(int) - shown[1]).mean() < 3


@pytest.mark.skipif(not can_encode("libx265"), reason="this PyAV encodes no HEVC")
def test_hevc_is_marked_as_apples_players_know_it(tmp_path: Path):
    film = write_video(tmp_path / "film.mkv", 40, codec="libx265", options={"x265-params": "log-level=none"})
    with av.open(str(save_clip(film, 2.0, 3.0, tmp_path))) as clip:
        assert clip.streams.video[0].codec_context.codec_tag == "hvc1"


def test_recordings_in_one_file_are_cut_on_the_players_clock(tmp_path: Path):
    with open(tmp_path / "film.ts", "wb") as film:
        for first in (0, 40):
            later = lambda i, w, h, first=first: gray_picture(first + i, w, h)  # noqa: E731
            film.write(write_video(tmp_path / "half.ts", 40, picture=later).read_bytes())
    clip = save_clip(tmp_path / "film.ts", 5.0, 6.0, tmp_path, padding=0)
    assert numbers(read_frames(clip, 10).frames) == [n % 29 for n in range(50, 60)]


def test_a_film_whose_key_frames_are_none_is_decoded_from_its_beginning(tmp_path: Path):
    data = write_video(tmp_path / "film.mp4", 80, gop=250).read_bytes()
    (tmp_path / "film.mp4").write_bytes(data.replace(b"stss", b"free"))  # every frame is called a key frame
    clip = save_clip(tmp_path / "film.mp4", 5.0, 6.0, tmp_path, padding=0)
    assert numbers(read_frames(clip, 10).frames) == [n % 29 for n in range(50, 60)]


def test_no_file_is_ever_replaced(tmp_path: Path):
    film = write_video(tmp_path / "film.mp4", frames=40)
    (tmp_path / "film 0-00-01.mp4").write_bytes(b"mine")
    names = [save_clip(film, 1.0, 2.0, tmp_path).name for _ in range(2)]
    assert names == ["film 0-00-01 (2).mp4", "film 0-00-01 (3).mp4"]
    assert (tmp_path / "film 0-00-01.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize("span", [(3.0, 2.0), (-1.0, 2.0), (0.0, float("inf")), (50.0, 60.0)])
def test_what_cannot_be_cut_is_said_and_leaves_nothing(tmp_path: Path, span: tuple[float, float]):
    film = write_video(tmp_path / "film.mp4", frames=20)
    with pytest.raises(ValueError):
        save_clip(film, *span, tmp_path / "clips")
    assert not list(tmp_path.glob("clips/*"))
    (tmp_path / "no.mp4").write_bytes(b"no video")
    for name in ("no.mp4", "gone.mp4"):
        with pytest.raises(ValueError, match=name):
            save_clip(tmp_path / name, 0.0, 1.0, tmp_path / "clips")
    assert not list(tmp_path.glob("clips/*"))


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_leaves_no_half_clip_and_the_next_save_clears_up(tmp_path: Path):
    film, clips = write_video(tmp_path / "film.mp4", frames=3000, gop=3000, fps=30), tmp_path / "clips"
    program = f"from suma.video.cut import save_clip; save_clip({str(film)!r}, 1, 99, {str(clips)!r})"
    child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 60
    while not any(left.stat().st_size for left in clips.glob(".suma-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (left,) = clips.iterdir()
    assert left.name.startswith(".suma-")
    os.utime(left, (0, 0))  # an hour later
    clip = save_clip(film, 1.0, 2.0, clips)
    assert list(clips.iterdir()) == [clip]


def long_film(path: Path, hours: float = 2) -> Path:
    """A film of 25 frames a second with sound: one minute, again and again."""
    minute = write_video(path.with_name("minute.mp4"), 1500, fps=25, gop=250, sound="aac")
    with av.open(str(minute)) as read, av.open(str(path), "w") as written:
        out = [written.add_stream_from_template(stream) for stream in read.streams]
        for turn in count():
            if turn == round(60 * hours):
                return path
            read.seek(0)
            for packet in read.demux():
                if packet.size:
                    shift = round(60 * turn / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    if packet.stream_index and turn and packet.pts < shift:
                        continue
                    packet.stream = out[packet.stream_index]
                    written.mux(packet)
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_clip_of_two_hours_takes_less_than_three_seconds(tmp_path: Path, suffix: str):
    film = long_film(tmp_path / f"film{suffix}")
    save_clip(film, 1.0, 2.0, tmp_path)  # what is imported and loaded once
    for start in (6003.0, 6000.5):  # encoded, copied
        before, begun = bytes_read(), (time.monotonic(), time.process_time())
        clip = save_clip(film, start, start + 5, tmp_path)
        wall, cpu = time.monotonic() - begun[0], time.process_time() - begun[1]
        read, size = bytes_read() - before, film.stat().st_size
        print(f"{clip.name}: {wall:.2f} s, {cpu:.2f} s of a processor, {read / 1e6:.1f} of {size / 1e6:.1f} MB read")
        assert cpu < 3  # not what other programs take
        assert read < size / 2
        assert list_frames(str(clip)).duration == pytest.approx(7.0, abs=1.1)


def bytes_read() -> int:
    """What this process has read so far, where the system counts that."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.exists() else 0
