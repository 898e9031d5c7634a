"""The training script: its flags, its schedule, its batches, and short runs from annotations to results."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import config
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from benchmarks import load_clips
from clips import noise_picture, write_video
from config import TrainConfig, parse
from data import Batches, Part, hold_out
from frame_cache import FrameCache
from metrics import Retrieval
from monitor import by_step, newest_checkpoint
from safetensors.torch import load_file
from test_data import row, write_layout

import train
from suma import SUMA

ROOT = Path(__file__).parents[1]
WORDS = ["dog", "cat", "bird", "horse", "man", "woman", "child", "car", "ball", "tree", "boat", "fish"]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty training clips of two captions and four test clips of one, each a second of noise."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "video").mkdir()
    for n in range(24):
        path = folder / "video" / f"video{n}.mp4"
        write_video(path, 5, (32, 32), fps=5, picture=lambda i, w, h, n=n: noise_picture(9 * n + i, w, h))
    captions = [f"a {WORDS[n % 12]} moves {'left' if n < 12 else 'right'}" for n in range(24)]
    train_rows = [row(n, [captions[n], f"the {WORDS[n % 12]} number {n}"]) for n in range(20)]
    write_layout(folder, train_rows, [row(n, captions[n]) for n in range(20, 24)])
    return folder


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process-wide state of a run outlives its test; only the run that several tests read draws its curve."""
    monkeypatch.setattr("monitor.draw_curve", lambda *_: None)
    monkeypatch.setattr(train, "use_fast_matmul", lambda: True)
    monkeypatch.setattr(train, "use_fast_attention_backward", lambda: None)
    yield
    AcceleratorState._reset_state(True)


def flags(benchmark: Path, tower: dict, output: Path, **changes: object) -> list[str]:
    file = output.parent / "tower.json"
    file.write_text(json.dumps(tower))
    given = {
        "dataset": benchmark,
        "output": output,
        "backbone": file,
        "pretrained": "",
        "num_concepts": 6,
        "temporal_layers": 1,
        "num_frames": 3,
        "train_frames": 3,
        "cache_frames": 4,
        "steps": 4,
        "batch_size": 8,
        "held_out": 3,
        "eval_every": 2,
        "save_every": 2,
        "log_every": 1,
        "clip_lr": 1e-4,
        "new_lr": 1e-3,
        "mixed_precision": "no",
        **changes,
    }
    command = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        command += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return command


# ---- flags ---------------------------------------------------------------------------------------------------------


def test_every_field_is_a_flag_with_the_fields_default():
    assert parse([]) == TrainConfig()
    assert TrainConfig.batch_size == 128 and TrainConfig.clip_lr == 1e-6
    for f in fields(TrainConfig):
        flag = "--" + f.name.replace("_", "-")
        if f.type is bool:
            assert getattr(parse([flag]), f.name) is True
            assert getattr(parse(["--no-" + flag[2:]]), f.name) is False
        elif f.name == "cache_format":
            assert parse([flag, "jpeg"]).cache_format == "jpeg"
        elif f.name != "mixed_precision":
            given = {int: "24", float: "0.5", str: "words"}[f.type]
            assert getattr(parse([flag, given]), f.name) == f.type(given)
        assert f.metadata["help"]


@pytest.mark.slow
def test_the_help_of_training_needs_nothing_of_scenes():
    program = (
        "import sys; sys.path[:0] = ['train', '.']\n"
        "import train\n"
        "try: train.main(['--help'])\n"
        "except SystemExit as end: print(end.code, [m for m in sys.modules if 'scenes' in m])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch-size", "0"], "batch_size"),
        (["--log-every", "0"], "log_every"),
        (["--steps", "many"], "--steps"),
        (["--cache-frames", "8"], "cache_frames=8"),
        (["--train-frames", "32"], "cache_frames=24"),
        (["--learning-rate", "1"], "--learning-rate"),
    ],
)
def test_wrong_flags_are_errors_of_the_command_line(arguments: list[str], told: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains in fp16")
def test_fp16_is_refused_without_a_gpu(capsys):
    with pytest.raises(SystemExit):
        parse(["--mixed-precision", "fp16"])
    assert "choose bf16 or no" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpu", "gpu_bf16", "cpu_bf16", "chosen"),
    [
        (False, False, True, "bf16"),
        (False, False, False, "no"),
        (True, True, False, "bf16"),
        (True, False, True, "fp16"),
    ],
)
def test_precision_is_what_the_hardware_computes_in(
    monkeypatch, gpu: bool, gpu_bf16: bool, cpu_bf16: bool, chosen: str
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)
    monkeypatch.setattr(config, "has_bf16", lambda: cpu_bf16)
    assert parse([]).mixed_precision == chosen
    assert parse(["--mixed-precision", "no"]).mixed_precision == "no"


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loader(tiny_model: SUMA, benchmark: Path) -> Batches:
    clips = load_clips(str(benchmark), "train_9k")
    cache = FrameCache(clips, 5, tiny_model.config.image)
    cache.build()
    config = TrainConfig(batch_size=4, train_frames=3, num_frames=3, cache_frames=5)
    return Batches(tiny_model, clips, cache, [Part("all", 1.0, list(range(2, 20)), [])], config)


def take(loader: Batches, first: int, last: int) -> list[dict[str, torch.Tensor]]:
    """The batches of some steps, kept: the loader writes over its own."""
    return [{name: x.clone() for name, x in batch.items()} for batch in loader(first, last, 0, 1)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_has_the_same_batch_wherever_the_run_starts(loader: Batches):
    assert len(loader.samplers[0].batches) == 4
    whole = take(loader, 0, 10)
    assert len(whole) == 10
    for first in (1, 4, 7):
        assert all(same(a, b) for a, b in zip(whole[first:], take(loader, first, 10), strict=True))
    assert list(loader(10, 10, 0, 1)) == []


def test_epochs_go_through_all_videos_in_other_orders_with_other_frames(loader: Batches):
    whole = take(loader, 0, 8)
    epochs = [[i for batch in part for i in batch["video"].tolist()] for part in (whole[:4], whole[4:])]
    assert all(len(set(epoch)) == 16 and set(epoch) <= set(range(2, 20)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_batch_holds_a_caption_and_frames_of_each_of_its_videos(loader: Batches):
    seen = set()
    for batch in loader(0, 40, 0, 1):
        assert batch["pixels"].shape == (4, 3, 3, 32, 32) and batch["mask"].all()
        for n, member in enumerate(batch["video"].tolist()):
            tokens = batch["tokens"][n][batch["tokens"][n] != 0]
            own = [
                t
                for t, c in enumerate(loader.clips[member].captions)
                if torch.equal(loader.model.tokenize([c])[0], tokens)
            ]
            assert len(own) == 1
            seen.add((member, own[0]))
            frames = loader.cache.get(member, np.arange(5))
            for pixels in batch["pixels"][n].numpy():
                assert any((pixels == frame).all() for frame in frames)
    assert len(seen) > 30  # nearly all of the 18 x 2 captions are drawn


def test_the_parts_of_two_processes_are_the_batch_of_one(loader: Batches):
    wholes = take(loader, 2, 6)
    halves = [[{name: x.clone() for name, x in b.items()} for b in loader(2, 6, rank, 2)] for rank in range(2)]
    for whole, left, right in zip(wholes, *halves, strict=True):
        for name in whole.keys() - {"tokens"}:
            torch.testing.assert_close(torch.cat([left[name], right[name]]), whole[name], atol=1e-6, rtol=0)
        rows = [line[line != 0].tolist() for part in (left, right) for line in part["tokens"]]
        assert rows == [line[line != 0].tolist() for line in whole["tokens"]]


def test_too_few_clips_for_one_batch_is_an_error_with_both_numbers(loader: Batches, tiny_model: SUMA):
    with pytest.raises(ValueError, match=r"3 training clips.*batch of 4"):
        Batches(tiny_model, loader.clips, loader.cache, [Part("few", 1.0, [0, 1, 2], [])], loader.c)


def test_only_whole_checkpoints_are_resumed(tmp_path: Path):
    assert newest_checkpoint(tmp_path) is None
    for step, whole in ((200, True), (1000, True), (1500, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "progress.json").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1000"


def test_only_the_runs_own_checkpoints_rotate(tmp_path: Path):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-20-good", "checkpoint-best"):
        (tmp_path / name).mkdir()
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(benchmark: Path, tower: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an uninterrupted run of four steps."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "use_fast_matmul", lambda: True)
        patch.setattr(train, "use_fast_attention_backward", lambda: None)
        train.main(flags(benchmark, tower, output))
    AcceleratorState._reset_state(True)
    return output


def test_a_run_leaves_its_log_its_models_and_its_results(run: Path):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "total" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(math.isfinite(line[name]) for line in steps for name in ("total", "sim", "asim", "align"))
    assert steps[0]["total"] == pytest.approx(steps[0]["sim"] + 0.1 * steps[0]["align"] + steps[0]["asim"], abs=1e-3)
    assert steps[0]["clip_lr"] == 1e-4 and steps[0]["new_lr"] == 1e-3  # one step of warm-up
    assert [line["step"] for line in lines if "held_out" in line] == [2, 4]
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    results = json.loads((run / "results.json").read_text())
    assert (results["videos"], results["captions"], results["config"]) == (4, 4, "test_1k")
    model = SUMA.from_pretrained(run / "model")
    assert model.fingerprint() == SUMA.from_pretrained(run / "best").fingerprint()
    assert results["concept_share"] == model.config.concept_share
    assert json.loads((run / "train_config.json").read_text())["batch_size"] == 8


def test_the_course_of_a_run_is_drawn_from_its_log(run: Path):
    from PIL import Image

    with Image.open(run / "curve.png") as picture:
        assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_frozen_towers_stay_as_they_were_and_the_rest_learns(benchmark: Path, tower: dict, tmp_path: Path):
    changes = {"steps": 2, "freeze_image": True, "freeze_text": True, "cache_format": "jpeg", "test_config": ""}
    train.main(flags(benchmark, tower, tmp_path / "run", **changes))
    captions = [
        c
        for i in hold_out(load_clips(str(benchmark), "train_9k"), 3, 0)[0]
        for c in load_clips(str(benchmark), "train_9k")[i].captions
    ]
    before = SUMA.from_clip(tower, captions, num_concepts=6, temporal_layers=1).state_dict()
    after = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    for name, value in after.items():
        if name.startswith("clip.") and name != "clip.logit_scale":
            assert torch.equal(value, before[name]), name
    assert not torch.equal(after["space.centres"], before["space.centres"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dataset": "nowhere/at/all"}, "no benchmark folder nowhere/at/all"),
        ({"tracker": "clearml"}, "the tracker clearml is not installed"),
        ({"freeze_layers": 3}, "freeze_layers=3: the image tower has 2 blocks"),
        ({"num_concepts": 1000}, "cannot fill 1000 concepts"),
        ({"tracker": "foo"}, "foo"),
        ({"test_config": "test_1K"}, "no config, split or metadata file test_1K"),
        ({"held_out": 20}, "cannot hold out 20 of 20 clips"),
    ],
)
def test_what_is_wrong_with_a_run_is_one_line(benchmark: Path, tower: dict, tmp_path: Path, changes: dict, told: str):
    with pytest.raises(SystemExit) as left:
        train.main(flags(benchmark, tower, tmp_path / "run", **changes))
    assert str(left.value.code).startswith("error: ") and told in left.value.code and "\n" not in left.value.code


def test_a_loss_that_is_no_number_stops_with_step_rates_and_videos(benchmark, tower, tmp_path, monkeypatch):
    def poisoned(*arguments, **options):
        losses = train_loss(*arguments, **options)
        return losses._replace(total=losses.total * float("nan"))

    train_loss = train.suma_loss
    monkeypatch.setattr(train, "suma_loss", poisoned)
    with pytest.raises(RuntimeError, match=r"step 0 .*'clip_lr': 0.0001.*\['video\d+', "):
        train.main(flags(benchmark, tower, tmp_path / "run", grad_cache_chunk=4))


def test_the_words_are_those_of_the_training_clips_alone(run: Path, benchmark: Path):
    clips = load_clips(str(benchmark), "train_9k")
    kept, held = hold_out(clips, 3, 0)
    config = SUMA.from_pretrained(run / "model").config
    assert config.num_captions == 2 * len(kept)
    assert {f"{i}" for i in kept} == {word for word in config.words if word.isdigit()}
    assert not {f"{i}" for i in held} & set(config.words)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(run: Path, benchmark, tower, tmp_path, monkeypatch):
    save = train.save_checkpoint

    def killed_after_saving(accelerator, output, step, best):
        save(accelerator, output, step, best)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_checkpoint", killed_after_saving)
    arguments = flags(benchmark, tower, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    AcceleratorState._reset_state(True)
    assert not (tmp_path / "killed" / "model").exists()
    monkeypatch.setattr(train, "save_checkpoint", save)
    train.main(arguments)
    for file in ("checkpoint-4/model.safetensors", "model/model.safetensors"):
        whole, resumed = load_file(run / file), load_file(tmp_path / "killed" / file)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (run / "results.json").read_text() == (tmp_path / "killed" / "results.json").read_text()
    log = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "total" in line] == [1, 2, 3, 4]


def test_the_model_that_is_kept_is_the_best_on_held_out_training_videos(benchmark, tower, tmp_path, monkeypatch):
    """Of four evaluations the second is the best, and the run is killed after it."""
    clips = load_clips(str(benchmark), "train_9k")
    held = {clips[i].video_id for i in hold_out(clips, 3, 0)[1]}
    measured, weights = iter([20.0, 60.0, 40.0, 60.0]), []
    encode, save = train.encode_videos, train.save_checkpoint

    def encode_and_note(model, chosen, *rest, **options):
        assert {clip.video_id for clip in chosen} == held
        weights.append(model.temporal.out.weight.detach().clone())
        return encode(model, chosen, *rest, **options)

    def judge(scores):
        assert scores.shape == (len(held), len(held))
        r1 = next(measured)
        return {way: Retrieval(r1, r1, r1, 1.0, 1.0, r1, r1) for way in ("t2v", "v2t")}

    def save_and_die(accelerator, output, step, best):
        save(accelerator, output, step, best)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "encode_videos", encode_and_note)
    monkeypatch.setattr(train, "diagonal", judge)
    monkeypatch.setattr(train, "save_checkpoint", save_and_die)
    arguments = flags(benchmark, tower, tmp_path / "judged", eval_every=1, save_every=1, test_config="")
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(train, "save_checkpoint", save)
    train.main(arguments)
    for folder in ("best", "model"):
        kept = load_file(tmp_path / "judged" / folder / "model.safetensors")["temporal.out.weight"]
        assert [torch.equal(kept, x) for x in weights] == [False, True, False, False]


def test_a_finished_run_of_other_options_is_refused_also_without_its_checkpoints(run: Path, benchmark, tower):
    output = run.parent / "copy"
    shutil.copytree(run, output, ignore=shutil.ignore_patterns("checkpoint-*"))
    before = (output / "model" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="seed 0 -> 5"):
        train.main(flags(benchmark, tower, output, seed=5))
    AcceleratorState._reset_state(True)
    train.main(flags(benchmark, tower, output))
    assert (output / "model" / "model.safetensors").read_bytes() == before
    assert not list(output.glob("checkpoint-*"))


def test_training_moved_every_kind_of_weight(run: Path, benchmark: Path, tower: dict):
    trained = load_file(run / "checkpoint-4" / "model.safetensors")
    assert not torch.equal(trained["space.centres"], trained["space.initial_centres"])
    assert float(trained["temporal.out.weight"].abs().max()) > 0


@pytest.fixture
def broken_benchmark(benchmark: Path, tmp_path: Path) -> Path:
    """The benchmark with one training video that cannot be read."""
    folder = tmp_path / "broken"
    shutil.copytree(benchmark, folder)
    (folder / "video" / "video7.mp4").write_bytes(b"no video")
    return folder


def test_an_unreadable_video_stops_the_run_with_its_name(broken_benchmark: Path, tower: dict, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"^error: .*video7\.mp4"):
        train.main(flags(broken_benchmark, tower, tmp_path / "run", steps=1))


def test_unreadable_videos_are_left_out_on_request_and_weights_saved_in_half(broken_benchmark, tower, tmp_path, capsys):
    changes = {
        "steps": 1,
        "held_out": 0,
        "test_config": "",
        "skip_unreadable": True,
        "save_half": True,
        "group_size": 2,
    }
    train.main(flags(broken_benchmark, tower, tmp_path / "run", **changes))
    out = capsys.readouterr().out
    assert "left out" in out and "video7.mp4" in out
    assert load_file(tmp_path / "run" / "model" / "model.safetensors")["space.centres"].dtype == torch.float16
    assert not (tmp_path / "run" / "results.json").exists()
