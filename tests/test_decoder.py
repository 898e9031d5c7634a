"""What hangs, crashes, eats memory or was made to hurt costs one video: a row with its reason, and the run goes on."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import clips
import numpy as np
import pytest

from suma import SUMA, VideoIndex
from suma.video import worker
from suma.video.frames import read_frames
from suma.video.worker import Decoder

ROOT = Path(__file__).parents[1]
CHILD = """
import ctypes, os, sys, time
from suma.video import worker
read = worker.read_parts
def burn(until):
    while time.process_time() < until: pass
def read_parts(path, *rest):
    name = os.path.basename(path)
    if "hang" in name: time.sleep(1000)
    if "crash" in name: ctypes.string_at(0)
    if "leave" in name: os._exit(3)
    if "eat" in name: return bytearray(1 << 33)
    if "grow" in name:
        then = os.stat(path)
        open(path, "ab").write(b"more")
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    if "touch" in name: os.utime(path, (1, 1))
    if "busy" in name: burn(time.process_time() + 1.5)
    if "circle" in name: burn(1e9)
    if "trickle" in name:
        with open(path, "rb", buffering=0) as file:
            for _ in range(5): file.read(1); file.seek(0); time.sleep(0.4)
    if "again" in name:
        with open("/dev/zero", "rb", buffering=0) as file:
            while True: file.read(1 << 24)
    if "chatter" in name: print("a library prints", flush=True); os.system("echo so does a child")
    return read(path, *rest)
worker.read_parts = read_parts
worker.main()
"""


@pytest.fixture
def naughty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that hangs, crashes, ... at files with such a name: a real process that really does."""
    monkeypatch.setattr(worker, "CHILD", ("-c", CHILD))


def frames_of(path: Path, **limits: float) -> np.ndarray:
    child = Decoder(**limits)  # type: ignore[arg-type]
    try:
        return np.concatenate([np.concatenate(list(part.frames)) for part in child.read(str(path), 4)])
    finally:
        child.close()


def test_the_frames_of_the_other_process_are_those_of_this_one(tmp_path: Path):
    path = clips.write_video(tmp_path / "a.mp4", picture=clips.noise_picture)
    child = Decoder()
    (part,) = ((p.times, p.duration, list(p.frames)) for p in child.read(str(path), 4, exact=True))
    here = read_frames(path, 4)
    np.testing.assert_array_equal(np.concatenate(part[2]), here.frames)
    assert part[0] == pytest.approx(here.times) and part[1] == here.duration and len(child.digest) == 64
    child.close()


def test_one_that_hangs_crashes_or_eats_memory_costs_one_video(tiny_model: SUMA, tmp_path: Path, naughty: None):
    names = ("0 touch", "1 fine", "2 hang", "3 fine", "4 crash", "5 leave", "6 eat", "7 grow", "8 chatter", "9 fine")
    for name in names:
        clips.write_video(tmp_path / f"{name}.mp4", frames=3 + int(name[0]), picture=clips.noise_picture)
    index = VideoIndex(tiny_model)
    report = index.add(tmp_path, time_limit=2)
    assert [Path(path).stem for path in report.added] == ["1 fine", "3 fine", "8 chatter", "9 fine"]
    reasons = {Path(path).stem[2:]: reason for path, reason in report.failed.items()}
    assert reasons == {
        "hang": "given up: nothing was read and nothing computed for 2 s (`index --time-limit` allows more)",
        "crash": "the decoder died of it (SIGSEGV)",
        "leave": "the decoder died of it (exit code 3)",
        "eat": "decoding needs more memory than is allowed",
        "grow": "it changed while it was read",
        "touch": "it changed while it was read",
    }
    again = sorted(Path(row.path).stem for row in index.failed if row.mtime == 0.0)
    assert again == ["0 touch", "2 hang", "7 grow"]  # what is not the file's fault is tried again


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere bytes are not counted")
def test_a_slow_disk_or_a_long_computation_gives_up_no_video(tiny_model: SUMA, tmp_path: Path, naughty: None):
    for n, name in enumerate(("busy", "trickle")):
        clips.write_video(tmp_path / f"{name}.mp4", frames=3 + n, picture=clips.noise_picture)
    began = time.monotonic()
    report = VideoIndex(tiny_model).add(tmp_path, workers=1, time_limit=1)
    assert report.failed == {} and len(report.added) == 2
    assert time.monotonic() - began > 3  # each took longer than the limit


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere bytes are not counted")
@pytest.mark.parametrize(
    ("name", "told"), [("circle", "computed for .* without reading on"), ("again", "bytes were read")]
)
def test_what_goes_round_in_circles_is_given_up(
    tmp_path: Path, naughty: None, monkeypatch: pytest.MonkeyPatch, name: str, told: str
):
    monkeypatch.setattr(worker, "CIRCLES", 2)
    path = clips.write_video(tmp_path / f"{name}.mp4", frames=3)
    with pytest.raises(TimeoutError, match=rf"{told}.*--time-limit"):
        frames_of(path, time_limit=0.6)


def test_what_was_given_up_for_time_is_tried_at_the_next_run_and_so_are_its_copies(tiny_model, tmp_path, monkeypatch):
    path = clips.write_video(tmp_path / "hang.mp4", frames=5)
    shutil.copy(path, path.with_name("hang too.mp4"))
    index = VideoIndex(tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "CHILD", ("-c", CHILD))
        report = index.add(path.parent, time_limit=1)
        assert len(report.failed) == 2 and "--time-limit" in "".join(report.failed.values())
    report = index.add(path.parent)
    assert report.failed == {} and len(report.added) == len(report.duplicates) == 1


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_file_system_that_counts_no_blocks_holds_no_downloads(tmp_path: Path, monkeypatch, blocks: int):
    monkeypatch.setattr(worker, "LARGE", 1 << 20)
    path, size = tmp_path / "large.mp4", 2 << 20
    path.write_bytes(bytes(size))
    stat = os.stat

    def uncounted(name: str) -> SimpleNamespace:
        return SimpleNamespace(st_size=stat(name).st_size, st_blocks=blocks)

    monkeypatch.setattr(worker.os, "stat", uncounted)
    worker.refuse_sparse(str(path))
    with open(path, "r+b") as file:  # a hole behind the data, and one that is all
        for data in (1 << 19, 0):
            file.truncate(data)
            file.truncate(size)
            with pytest.raises(OSError, match=rf"only {data} of its {size} bytes"):
                worker.refuse_sparse(str(path))


def test_reading_outside_the_index_is_as_safe(tiny_model: SUMA, tmp_path: Path, naughty: None):
    clips.write_video(tmp_path / "crash.mp4")
    with pytest.raises(ValueError, match="SIGSEGV"):
        VideoIndex(tiny_model).similar(tmp_path / "crash.mp4")


@pytest.mark.slow
def test_a_hanging_child_ends_also_when_its_parent_was_killed(tmp_path: Path):
    clips.write_video(tmp_path / "hang.mp4")
    program = (
        "import sys; from suma.video import worker; worker.CHILD = ('-c', sys.argv[1])\n"
        "child = worker.Decoder(time_limit=1); child._started(); print(child._child.pid, flush=True)\n"
        "next(child.read(sys.argv[2], 4))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, CHILD, str(tmp_path / "hang.mp4")], cwd=ROOT, stdout=-1, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.6)
    parent.kill()
    parent.wait()
    for _ in range(80):
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it hangs on")


# Files that were made to hurt


def gif(path: Path, frames: int, width: int = 1, height: int = 1) -> Path:
    """A GIF of one-pixel pictures."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    head = b"GIF89a" + size + b"\x80\x00\x00" + bytes((0, 0, 0, 255, 255, 255))
    picture = (
        b"\x21\xf9\x04\x00\x05\x00\x00\x00" + b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00" + b"\x02\x02\x4c\x01\x00"
    )
    path.write_bytes(head + picture * frames + b";")
    return path


def png(path: Path, side: int) -> Path:
    """A black picture that is a thousand times larger than its file."""
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    header = side.to_bytes(4) + side.to_bytes(4) + b"\x08\x00\x00\x00\x00"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_a_frame_of_16k_by_16k_is_refused(tmp_path: Path):
    path = png(tmp_path / "bomb.mp4", 16384)
    assert path.stat().st_size < 2_000_000
    with pytest.raises(ValueError, match=r"16384x16384|too large"):
        frames_of(path)


def test_a_header_that_lies_about_the_size_is_refused(tmp_path: Path):
    path = clips.write_video(tmp_path / "liar.mp4", frames=3)
    data = path.read_bytes()
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24  # width and height
    assert data[at : at + 4] == (64).to_bytes(2) + (48).to_bytes(2)
    path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    try:
        assert frames_of(path).shape[1] == 48  # the stream knows better; the width follows the header's aspect
    except ValueError as error:
        assert "exceed" in str(error)


@pytest.mark.slow
def test_a_million_frames_of_one_pixel_end_within_the_limits(tiny_model: SUMA, tmp_path: Path):
    gif(tmp_path / "many.gif", 1_000_000)
    clips.write_video(tmp_path / "fine.mp4", picture=clips.noise_picture)
    index = VideoIndex(tiny_model, segment=0)  # as one part; in parts it would take as long as a film of that length
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    report = index.add(tmp_path, time_limit=10)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 60
    assert str(tmp_path / "fine.mp4") in report.added and len(report.added) + len(report.failed) == 2


def test_odd_names_loops_and_things_that_are_no_files(tiny_model: SUMA, tmp_path: Path):
    odd = [
        "new\nline.mp4",
        "dog \U0001f415.mp4",
        "\u05db\u05dc\u05d1 \u202e4pm.mp4",
        "x" * 251 + ".mp4",
        os.fsdecode(b"\xff\xfe.mp4"),
    ]
    for n, name in enumerate(odd):
        clips.write_video(tmp_path / "plain.mp4", frames=4 + n).rename(tmp_path / name)
    clips.write_video(tmp_path / "really.avi", frames=12).rename(tmp_path / "wrong extension.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "round.mp4").symlink_to(tmp_path / "round.mp4")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    index = VideoIndex(tiny_model)
    report = index.add(tmp_path)
    assert sorted(Path(path).name for path in report.added) == sorted([*odd, "wrong extension.mp4"])
    assert report.failed == {}
    report = index.add([tmp_path, tmp_path / "pipe.mp4"], time_limit=5)
    assert list(report.failed.values()) == [f"not a file: {tmp_path / 'pipe.mp4'}"]
    index.save(tmp_path / "index")
    again = VideoIndex.load(tmp_path / "index", tiny_model)
    assert {row.path for row in again.rows} == {row.path for row in index.rows}


def test_a_sparse_file_of_a_terabyte_is_one_failure(tiny_model: SUMA, tmp_path: Path):
    for name in ("zeros.mp4", "zeros.mkv", "zeros.ts", "zeros.avi"):
        try:
            with open(tmp_path / name, "wb") as file:
                file.truncate(1 << 40)
        except OSError:
            pytest.skip("no large files here")
    index = VideoIndex(tiny_model)
    began = time.monotonic()
    report = index.add(tmp_path, time_limit=3)
    assert len(report.failed) == 4 and len(index) == 0 and time.monotonic() - began < 20


def test_a_file_without_permission_says_so(monkeypatch: pytest.MonkeyPatch):
    place = Path(tempfile.mkdtemp(prefix="suma-tests-"))
    place.chmod(0o755)
    clips.write_video(place / "secret.mp4").chmod(0)
    nobody = (
        "import av, os, resource; from suma.video import worker\nif os.getuid() == 0: os.setuid(65534)\nworker.main()"
    )
    monkeypatch.setattr(worker, "CHILD", ("-c", nobody))
    with pytest.raises(OSError, match=r"Permission denied: .*secret\.mp4"):
        frames_of(place / "secret.mp4")
    shutil.rmtree(place)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One of seven ways to break a file."""
    broken, n = bytearray(data), len(data)
    way, at = int(rng.integers(7)), int(rng.integers(n))
    if way == 0:  # cut
        del broken[at:]
    elif way == 1:  # a hole
        broken[at : at + 400] = bytes(len(broken[at : at + 400]))
    elif way == 2:  # a piece missing
        del broken[at : at + 200]
    elif way == 3:  # a piece twice
        broken[at:at] = broken[at // 2 : at // 2 + 300]
    elif way == 4:  # the head
        for i in rng.integers(0, min(n, 600), 12):
            broken[i] = rng.integers(256)
    elif way == 5:  # a few bytes
        for i in rng.integers(0, n, 20):
            broken[i] = rng.integers(256)
    else:  # huge numbers
        for i in rng.integers(0, n - 4, 6):
            broken[i : i + 4] = b"\xff\xff\xff\xff"
    return bytes(broken)


@pytest.mark.slow
def test_240_damaged_files_of_6_formats(tiny_model: SUMA, tmp_path: Path):
    """Each is found, or a row with its reason; the whole ones among them are all found, and again from the disk."""
    (tmp_path / "videos").mkdir()
    rng = np.random.default_rng(0)
    for suffix in ("mp4", "mkv", "webm", "avi", "ts", "gif"):
        whole = clips.write_video(tmp_path / f"whole.{suffix}", frames=30, size=(96, 64), picture=clips.noise_picture)
        shutil.copy(whole, tmp_path / "videos" / f"whole.{suffix}")
        for n in range(40):
            (tmp_path / "videos" / f"{n:02}.{suffix}").write_bytes(damage(whole.read_bytes(), rng))
    index = VideoIndex(tiny_model)
    report = index.add(tmp_path / "videos", time_limit=20)
    told = set(report.added) | set(report.failed) | set(report.duplicates)
    assert told == {str(path) for path in (tmp_path / "videos").iterdir()} and len(told) == 246
    assert all(report.failed.values()) and 20 < len(report.failed) < 200
    assert {f"whole.{s}" for s in ("mp4", "mkv", "webm", "avi", "ts", "gif")} <= {
        Path(path).name for path in [*report.added, *report.duplicates]
    }
    index.save(tmp_path / "index")
    again = VideoIndex.load(tmp_path / "index", tiny_model)
    assert len(again) == len(report.added) and len(again.failed) == len(report.failed)
    features = again.videos(range(len(again))).features
    assert np.isfinite(features).all() and abs(np.linalg.norm(features, axis=-1) - 1).max() < 1e-3
    print(len(report.added), "read", len(report.failed), "failed")
