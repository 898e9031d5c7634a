"""SUMA as a model of MTEB: its own evaluator, on small tasks of MSRVTTT2V's and MSRVTTV2T's kind."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("mteb", reason="needs `pip install mteb`")

import mteb
import torch
from benchmarks import load_clips
from datasets import Dataset, Features, Value, Video
from metrics import both_ways
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models import SearchProtocol
from mteb_model import TASKS, MTEBModel, main
from test_evaluate import benchmark, encoded_alone  # noqa: F401  (a fixture)

from suma import SUMA

pytestmark = pytest.mark.slow


def small_task(name: str, clips: list, in_memory: bool) -> AbsTaskRetrieval:
    """The task's own class and metadata with a few clips for its data, in the columns that its loader makes."""
    files = [{"bytes": c.path.read_bytes(), "path": None} if in_memory else str(c.path) for c in clips]
    ids = [str(i) for i in range(len(clips))]
    videos = Dataset.from_dict(
        {"id": ids, "video": files}, features=Features({"id": Value("string"), "video": Video()})
    )
    texts = Dataset.from_dict({"id": ids, "text": [clip.captions[0] for clip in clips]})
    queries, corpus = (texts, videos) if name.endswith("T2V") else (videos, texts)
    task = mteb.get_task(name)
    right = {i: {i: 1} for i in ids}
    split = {"queries": queries, "corpus": corpus, "relevant_docs": right, "top_ranked": None}
    task.dataset, task.data_loaded = {"default": {"test": split}}, True
    return task


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("name", "way"), [("MSRVTTT2V", "t2v"), ("MSRVTTV2T", "v2t")])
@torch.no_grad()
def test_mtebs_evaluator_finds_what_our_score_ranks(tiny_model, benchmark, tmp_path, name, way, in_memory):  # noqa: F811
    assert name in TASKS
    clips = load_clips(str(benchmark), "test_1k")
    wrapped = MTEBModel(tiny_model)
    assert isinstance(wrapped, SearchProtocol)
    done = mteb.evaluate(wrapped, small_task(name, clips, in_memory), cache=None)
    (got,) = done.task_results[0].scores["test"]
    sentences, videos = encoded_alone(tiny_model, clips, tmp_path)
    scores = torch.tensor([[float(tiny_model.score(own[0], v)) for v in videos] for own in sentences])
    expected = both_ways(scores, torch.eye(5, dtype=torch.bool))[way]
    assert 100 * got["recall_at_1"] == pytest.approx(expected.r1)
    ranks = (scores if way == "t2v" else scores.T).argsort(1, descending=True).argsort(1).diagonal()
    assert got["main_score"] == pytest.approx(float((1 / torch.log2(2 + ranks.double())).mean()), abs=1e-4)
    assert 0 < got["main_score"] < 1  # ndcg@10 of random weights


def test_the_results_name_the_model_and_its_weights(tiny_model: SUMA):
    meta = MTEBModel(tiny_model, "me/suma").mteb_model_meta
    assert (meta.name, meta.revision) == ("me/suma", tiny_model.fingerprint())
    assert set(meta.modalities) == {"text", "video"}


def test_texts_are_not_searched_by_texts(tiny_model: SUMA):
    texts = Dataset.from_dict({"id": ["0"], "text": ["a dog"]})
    wrapped = MTEBModel(tiny_model)
    wrapped.index(texts)
    with pytest.raises(ValueError, match="items of one kind"):
        wrapped.search(texts, top_k=1)


def test_the_command_prints_the_recalls(tiny_model, benchmark, tmp_path: Path, capsys, monkeypatch):  # noqa: F811
    tiny_model.save_pretrained(tmp_path / "model")
    clips = load_clips(str(benchmark), "test_1k")
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [small_task(name, clips, True) for name in tasks])
    monkeypatch.setattr(sys.modules["mteb_model"], "use_fast_matmul", lambda: True)
    main(["--model", str(tmp_path / "model")])
    printed = capsys.readouterr().out.strip().splitlines()
    assert [line.split(":")[0] for line in printed] == list(TASKS)
    assert all("R@1 " in line and "R@10 100.0" in line for line in printed)
