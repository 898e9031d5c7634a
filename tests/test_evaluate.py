"""The evaluation against loops over every sentence and every video, its command, and its errors."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from benchmarks import load_clips
from clips import noise_picture, write_video
from data import pick_frames
from frame_cache import FrameCache
from metrics import Rerank, Retrieval
from report import rerank_table, results_table
from test_data import row, write_layout
from test_metrics import naive_rank

from suma import SUMA
from suma.index.hubness import word_bundles
from suma.similarity import Texts, Videos, combine, four_similarities

ROOT = Path(__file__).resolve().parents[1]
ANIMALS = ("dog", "cat", "bird", "horse", "man")


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process-wide state of the command outlives its test."""
    monkeypatch.setattr(evaluate, "use_fast_matmul", lambda: True)
    yield
    AcceleratorState._reset_state(True)


def write_clips(folder: Path, names: list[str]) -> None:
    """Videos of 2 to 6 frames of noise."""
    (folder / "video").mkdir()
    for n, name in enumerate(names):
        path = folder / "video" / f"{name}.mp4"
        write_video(path, 2 + n % 5, (32, 32), picture=lambda i, w, h, n=n: noise_picture(9 * n + i, w, h))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MSR-VTT's layout: five test clips of one caption, four training clips of two."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_clips(folder, [f"video{n}" for n in range(9)])
    train = [row(n, [f"a {ANIMALS[n - 5]} sleeps", f"a bird sees a {ANIMALS[n - 5]}"]) for n in range(5, 9)]
    write_layout(folder, train, [row(n, f"a {ANIMALS[n]} runs") for n in range(5)])
    return folder


@pytest.fixture(scope="module")
def msvd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MSVD's files: four test videos of 1 to 3 sentences, one of them said of two videos."""
    folder = tmp_path_factory.mktemp("msvd")
    names = [f"yt{n}_1_{n}" for n in range(4)]
    write_clips(folder, names)
    said = [["a dog runs"], ["a cat sits", "the cat is on a mat"], ["a bird", "a dog runs", "birds fly"], ["a man"]]
    (folder / "captions_msvd.json").write_text(json.dumps(dict(zip(names, said, strict=True))))
    (folder / "test_list.txt").write_text("\n".join(names))
    return folder


@pytest.fixture(scope="module")
def activitynet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ActivityNet Captions' rows: five videos, each told in two or three sentences."""
    folder = tmp_path_factory.mktemp("activitynet")
    write_clips(folder, [f"v_{n}" for n in range(5)])
    said = [[f"A {a} runs.", f"The {a} sleeps on the grass.", *["It sings."] * (n % 2)] for n, a in enumerate(ANIMALS)]
    rows = [{"video_id": f"v_{n}", "video": f"v_{n}.mp4", "caption": x} for n, x in enumerate(said)]
    (folder / "val1.json").write_text(json.dumps(rows))
    return folder


def encoded_alone(model: SUMA, clips: list, folder: Path) -> tuple[list[list[Texts]], list[Videos]]:
    """Each clip's sentences and video, one by one."""
    cache = FrameCache(clips, model.config.num_frames, model.config.image, folder)
    cache.build()
    videos = []
    for i in range(len(clips)):
        frames = torch.from_numpy(cache.get(i, pick_frames(int(cache.counts[i]), model.config.num_frames)))[None]
        mask = torch.ones(frames.shape[:2], dtype=torch.bool)
        videos.append(model.make_videos(*model.encode_video(frames, mask), mask))
    return [[model.make_texts([caption]) for caption in clip.captions] for clip in clips], videos


def naive_metrics(ranks: list[float]) -> dict[str, float]:
    middle = sorted(ranks)
    half = len(middle) // 2
    return {
        **{f"r{k}": 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)},
        "mdr": middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2,
        "mnr": sum(ranks) / len(ranks),
    }


@torch.no_grad()
def naive_evaluation(model: SUMA, clips: list, folder: Path) -> dict[str, dict[str, float]]:
    """One score at a time; every sentence is a query; a video has the rank of its best sentence among the others'."""
    sentences, videos = encoded_alone(model, clips, folder)
    scores = [[[float(model.score(s, v)) for v in videos] for s in own] for own in sentences]
    t2v = [naive_rank(line, [u == v for u in range(len(clips))]) for v, own in enumerate(scores) for line in own]
    v2t = []
    for v in range(len(clips)):
        column = [(line[v], owner == v) for owner, own in enumerate(scores) for line in own]
        v2t.append(naive_rank([s for s, _ in column], [right for _, right in column]))
    return {"t2v": naive_metrics(t2v), "v2t": naive_metrics(v2t)}


@pytest.mark.parametrize(
    ("name", "config", "paragraph", "videos", "captions"),
    [("benchmark", "test_1k", False, 5, 5), ("msvd", "test", False, 4, 7), ("activitynet", "val1", True, 5, 5)],
)
def test_a_protocol_gives_the_ranks_of_a_loop_over_sentences_and_videos(
    tiny_model, request, tmp_path, name, config, paragraph, videos, captions
):
    folder = str(request.getfixturevalue(name))
    results = evaluate.evaluate(tiny_model, folder, config, paragraph=paragraph)
    assert (results["videos"], results["captions"]) == (videos, captions)
    expected = naive_evaluation(tiny_model, load_clips(folder, config, paragraph=paragraph), tmp_path)
    for way, wanted in expected.items():
        got = results["retrieval"]["SUMA"][way]
        assert {key: got[key] for key in wanted} == pytest.approx(wanted), way


def test_each_video_and_each_caption_is_encoded_once(tiny_model: SUMA, msvd: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list] = {"frames": [], "videos": [], "captions": []}
    encode_frames, encode_temporal, encode_text = SUMA.encode_frames, SUMA.encode_temporal, SUMA.encode_text

    def frames_seen(self: SUMA, pixels: torch.Tensor) -> torch.Tensor:
        seen["frames"] += [picture.numpy().tobytes() for picture in pixels if picture.any()]  # padding is black
        return encode_frames(self, pixels)

    def videos_seen(self: SUMA, frames: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen["videos"] += [video.numpy().tobytes() for video in frames]
        return encode_temporal(self, frames, mask)

    def captions_seen(self: SUMA, sentences: list[str]) -> torch.Tensor:
        seen["captions"] += sentences
        return encode_text(self, sentences)

    monkeypatch.setattr(SUMA, "encode_frames", frames_seen)
    monkeypatch.setattr(SUMA, "encode_temporal", videos_seen)  # the temporal encoder
    monkeypatch.setattr(SUMA, "encode_text", captions_seen)
    evaluate.evaluate(tiny_model, str(msvd), "test")
    clips = load_clips(str(msvd), "test")
    assert len(seen["frames"]) == len(set(seen["frames"])) == 2 + 3 + 4 + 5
    assert len(seen["videos"]) == len(set(seen["videos"])) == 4
    assert Counter(seen["captions"]) == Counter(caption for clip in clips for caption in clip.captions)


def test_a_nan_in_the_weights_is_an_error_and_never_a_rank(tiny_model: SUMA, benchmark: Path, monkeypatch):
    monkeypatch.setattr(SUMA, "encode_text", lambda self, sentences: torch.full((len(sentences), 64), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        evaluate.evaluate(tiny_model, str(benchmark))


# ---- re-ranking ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_inverted_softmax_takes_its_bank_from_training_clips(tiny_model, benchmark, tmp_path, monkeypatch):
    constants = []
    correct = evaluate.inverted_softmax
    monkeypatch.setattr(evaluate, "inverted_softmax", lambda s, bank: constants.append(bank) or correct(s, bank))
    how = Rerank("inverted-softmax", inverse_temperature=40.0)
    done = evaluate.evaluate(tiny_model, str(benchmark), how=how)["rerank"]
    assert (done["bank_videos"], done["bank_captions"], done["transductive"]) == (4, 8, False)

    sentences, videos = encoded_alone(tiny_model, load_clips(str(benchmark), "test_1k"), tmp_path)
    texts = [own[0] for own in sentences]
    bank_sentences, bank_videos = encoded_alone(tiny_model, load_clips(str(benchmark), "train_9k"), tmp_path)
    bank_texts = [text for own in bank_sentences for text in own]

    def score(text: Texts, video: Videos) -> float:
        return float(tiny_model.score(text, video))

    t2v = [np.log(np.mean([np.exp(40 * score(b, v)) for b in bank_texts])) / 40 for v in videos]
    v2t = [np.log(np.mean([np.exp(40 * score(t, b)) for b in bank_videos])) / 40 for t in texts]
    for got, expected in zip(constants, (t2v, v2t), strict=True):
        assert got.tolist() == pytest.approx(expected, abs=1e-5)
    by_video = [[score(t, v) - z for v, z in zip(videos, t2v, strict=True)] for t in texts]
    by_text = [[score(t, v) - z for t, z in zip(texts, v2t, strict=True)] for v in videos]
    for way, lines in (("t2v", by_video), ("v2t", by_text)):
        ranks = [naive_rank(line, [i == j for j in range(5)]) for i, line in enumerate(lines)]
        got = done["retrieval"][way]
        assert {key: got[key] for key in naive_metrics(ranks)} == pytest.approx(naive_metrics(ranks)), way


@torch.no_grad()
def test_re_ranking_as_a_search_does_takes_the_folded_scores_of_captions_or_words(tiny_model, benchmark, tmp_path):
    done = evaluate.evaluate(tiny_model, str(benchmark), how=Rerank("search"))["rerank"]
    assert (done["bank_captions"], done["bank_words"], done["transductive"]) == (8, 1000, False)
    sentences, videos = encoded_alone(tiny_model, load_clips(str(benchmark), "test_1k"), tmp_path)
    captions = [caption for clip in load_clips(str(benchmark), "train_9k") for caption in clip.captions]
    how = tiny_model.config.scoring
    for name, texts in (("captions", captions), ("words", word_bundles(tiny_model))):
        bank = tiny_model.make_texts(texts)
        means = [combine(four_similarities(bank, video, "mean"), how)[:, 0].tolist() for video in videos]
        popular = [np.log(np.mean([np.exp(10 * score) for score in of_one])) / 10 for of_one in means]
        lines = [
            [float(tiny_model.score(own[0], v)) - z for v, z in zip(videos, popular, strict=True)] for own in sentences
        ]
        ranks = [naive_rank(line, [i == j for j in range(5)]) for i, line in enumerate(lines)]
        got = done["retrieval"][name]
        assert {key: got[key] for key in naive_metrics(ranks)} == pytest.approx(naive_metrics(ranks)), name
    printed = "\n".join(rerank_table(done))
    assert "8 captions of `train_9k`" in printed and "search, bank of words | text -> video" in printed


def test_a_bank_of_few_clips_is_a_fixed_sample(tiny_model: SUMA, benchmark: Path):
    how = Rerank("inverted-softmax", bank_size=2)
    first, again = (evaluate.evaluate(tiny_model, str(benchmark), how=how) for _ in range(2))
    assert (first["rerank"]["bank_videos"], first["rerank"]["bank_captions"]) == (2, 4)
    assert first == again


@pytest.mark.parametrize("method", ["inverted-softmax", "dual-softmax"])
def test_re_ranking_leaves_the_headline_as_it_is_and_says_what_it_knew(tiny_model, benchmark, method: str):
    plain = evaluate.evaluate(tiny_model, str(benchmark))
    both = evaluate.evaluate(tiny_model, str(benchmark), how=Rerank(method))
    done = both.pop("rerank")
    assert both == plain and done["transductive"] == (method == "dual-softmax")
    printed = results_table({**both, "rerank": done})
    assert printed.startswith(results_table(plain))
    apart = printed.removeprefix(results_table(plain))
    assert apart.count(f"SUMA, {method}") == 2
    assert ("**transductive**" in apart, "8 captions and 4 videos of `train_9k`" in apart) == (
        (True, False) if method == "dual-softmax" else (False, True)
    )


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model.save_pretrained(folder)
    return str(folder)


def test_the_command_writes_what_it_prints(saved: str, benchmark: Path, tmp_path: Path, capsys):
    output = tmp_path / "new" / "r.json"
    arguments = ["--model", saved, "--dataset", str(benchmark), "--output", str(output), "--cpu"]
    assert evaluate.main([*arguments, "--rerank", "dual-softmax", "--inverse-temperature", "7.5"]) == 0
    results = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert printed.strip() == results_table(results) == output.with_suffix(".md").read_text().strip()
    assert (results["videos"], results["captions"], results["config"]) == (5, 5, "test_1k")
    assert set(results["retrieval"]) == {"original", "aligned", "SUMA"}
    assert printed.count("| text -> video |") == printed.count("| video -> text |") == 4
    assert Retrieval(**results["retrieval"]["SUMA"]["t2v"]).row() in printed
    assert results["rerank"]["inverse_temperature"] == 7.5 and "inverse temperature 7.5" in printed


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--dataset", "./nowhere"], "no benchmark folder ./nowhere"),
        (["--model", "./nothing"], "no model folder nothing"),
        (["--config", "test_2k"], "no config, split or metadata file test_2k; it has train_9k, test_1k"),
        (["--limit", "-1"], "limit=-1"),
        (["--rerank", "inverted-softmax", "--bank-config", "absent"], "needs a bank of training clips (--bank-config)"),
        (["--rerank", "inverted-softmax", "--bank-config", "test_1k"], "the bank must not be the evaluated split"),
        (["--rerank", "inverted-softmax", "--bank-config", "test.json"], "holds video0, which is evaluated"),
        (["--rerank", "dual-softmax", "--inverse-temperature", "-1"], "inverse_temperature=-1.0"),
        (["--output", "results.md"], "results.md is for JSON"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(saved, benchmark, capsys, flags: list[str], told: str):
    assert evaluate.main(["--model", saved, "--dataset", str(benchmark), "--cpu", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err
    assert err.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in err


def test_an_unknown_re_ranking_is_an_error_of_the_command_line(saved: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--model", saved, "--rerank", "qb-norm"])
    assert stopped.value.code == 2 and "inverted-softmax" in capsys.readouterr().err


@pytest.mark.slow
def test_accelerate_launch_with_two_processes_writes_the_numbers_of_one(saved: str, benchmark: Path, tmp_path: Path):
    script = [str(ROOT / "train" / "evaluate.py"), "--model", saved, "--dataset", str(benchmark)]
    script += ["--rerank", "inverted-softmax", "--output"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    results = []
    for name, start in (("one", [sys.executable]), ("two", launch)):
        output = tmp_path / f"{name}.json"
        done = subprocess.run([*start, *script, str(output)], env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == output.with_suffix(".md").read_text().strip()  # printed once
        results.append(json.loads(output.read_text()))
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_mistake_under_accelerate_launch_is_told_once(saved: str, tmp_path: Path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = [str(ROOT / "train" / "evaluate.py"), "--model", saved, "--dataset", "./nowhere"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *script], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and done.stderr.count("error: no benchmark folder ./nowhere") == 1
