"""Models and datasets from the Hub and back to it, over real HTTP against a stand-in on localhost."""

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from card import downloaded_revision, model_card
from clips import write_video
from config import TrainConfig
from hub import TOKEN, Files, Hub, running_hub
from huggingface_hub import ModelCard
from test_backbones import siglip, tokenizer_folder  # noqa: F401  (a fixture)
from test_model import scores
from test_train import benchmark, flags  # noqa: F401  (a fixture)

from suma import SUMA
from suma.index.store import remembered_model

ROOT = Path(__file__).resolve().parents[1]
REPO = "models/me/suma"
RETRIEVAL = {"r1": 40.123, "r5": 60.0, "r10": 80.0, "mdr": 2.0, "mnr": 9.5, "low": 30.0, "high": 50.0}
RESULTS = {
    "data": "friedrichor/MSR-VTT",
    "config": "test_1k",
    "videos": 10,
    "captions": 10,
    "concept_share": 0.25,
    "retrieval": {"SUMA": {"t2v": RETRIEVAL, "v2t": {**RETRIEVAL, "r1": 45.0}}},
}


# ---- the client: another process, as huggingface_hub reads its environment when it is imported -----------------------


def loaded(name: str, **options: Any) -> list[list[float]]:
    torch.set_num_threads(1)  # as in the tests' own process: the order of sums is part of every bit
    return scores(SUMA.from_pretrained(name, **options)).tolist()


def refused(name: str, **options: Any) -> tuple[str, str]:
    """The error (its class, its text) that a model which must not load gives."""
    try:
        SUMA.from_pretrained(name, **options)
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError(f"{name} loaded")


def finished(output: Path, **options: Any) -> str:
    """What `finish` prints at a run's end, or the line it leaves the process with."""
    import io

    import train

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            train.finish(TrainConfig(output=str(output), **options), output)
    except SystemExit as left:
        return f"exit: {left.code}"
    return printed.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def client(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Calls a function of this file in the client process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server, tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(os.getpid).result() != os.getpid()
            patch.undo()
            yield lambda function, *args, **options: pool.submit(function, *args, **options).result(300)


@pytest.fixture(scope="module")
def files(tiny_model: SUMA, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The two files of a model."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@pytest.fixture
def hub(server: Hub, files: Files) -> Hub:
    """The stand-in with one model, me/suma, and no faults."""
    for held in (server.repos, server.private, server.faults, server.calls):
        held.clear()
    server.commit(REPO, files)
    return server


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """A cache of the test's own."""
    return {"cache_dir": tmp_path / "cache"}


# ---- from the Hub ----------------------------------------------------------------------------------------------------


def test_a_model_from_the_hub_scores_with_the_same_bits(hub, client, options, tiny_model):
    assert client(loaded, "me/suma", **options) == scores(tiny_model).tolist()


def test_a_tokenizer_that_open_clip_has_not_comes_with_the_model(
    hub,
    client,
    options,
    tower,
    captions,
    tokenizer_folder: Path,  # noqa: F811
    tmp_path: Path,
):
    model = SUMA.from_clip(siglip(tower), captions, num_concepts=4, tokenizer_folder=tokenizer_folder)
    model.save_pretrained(tmp_path / "model")
    names = ("config.json", "model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
    held = {name: (tmp_path / "model" / name).read_bytes() for name in names}
    hub.commit(REPO, held)
    assert client(loaded, "me/suma", **options) == scores(model).tolist()
    hub.commit(REPO, {name: held[name] for name in names[:3]})
    assert "tokenizer/tokenizer_config.json" in client(refused, "me/suma", **options)[1]


def test_a_second_load_downloads_nothing_and_a_new_commit_is_seen(hub, client, options, files, tiny_model):
    client(loaded, "me/suma", **options)
    hub.calls.clear()
    client(loaded, "me/suma", **options)
    assert not [call for call in hub.calls if call.startswith("GET")]
    (first,) = hub.repos[REPO]
    config = json.loads(files["config.json"])
    hub.commit(REPO, {**files, "config.json": json.dumps({**config, "concept_share": 1.0}).encode()})
    now, then = client(loaded, "me/suma", **options), client(loaded, "me/suma", revision=first, **options)
    assert then == scores(tiny_model).tolist() != now


def test_config_and_weights_are_of_one_commit(hub, client, options, files, tiny_model):
    """Also where the config of a new commit cannot be had: then both are of the old one, from the cache."""
    client(loaded, "me/suma", **options)
    state = safetensors.torch.load(files["model.safetensors"])
    state["space.centres"] = state["space.centres"].flip(0)
    hub.commit(REPO, {**files, "model.safetensors": safetensors.torch.save(state)})
    assert client(loaded, "me/suma", cache_dir=options["cache_dir"] / "new") != scores(tiny_model).tolist()
    hub.faults["config.json"] = 503
    assert client(loaded, "me/suma", **options) == scores(tiny_model).tolist()


def test_without_a_network_the_cache_is_used(hub, client, options, tiny_model):
    kind, told = client(refused, "me/suma", local_files_only=True, **options)
    assert kind == "FileNotFoundError" and told.startswith("config.json of me/suma is neither")
    client(loaded, "me/suma", **options)
    hub.calls.clear()
    assert client(loaded, "me/suma", local_files_only=True, **options) == scores(tiny_model).tolist()
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # this process knows no other Hub
    assert loaded("me/suma", **options) == scores(tiny_model).tolist()
    assert hub.calls == []
    kind, told = refused("me/other", **options)
    assert kind == "FileNotFoundError" and "config.json of me/other" in told


def test_a_private_model_needs_the_right_token(hub, client, options, tiny_model):
    hub.private.add(REPO)
    kind, told = client(refused, "me/suma", token="hf_wrong", **options)
    assert "401" in told and "Invalid credentials" in told, (kind, told)
    kind, told = client(refused, "me/suma", token=False, **options)
    assert kind == "RepositoryNotFoundError" and "me/suma" in told
    assert not [call for call in hub.calls if call.startswith("GET")]  # not even its config
    assert client(loaded, "me/suma", token=TOKEN, **options) == scores(tiny_model).tolist()


@pytest.mark.parametrize(
    ("name", "asked", "error", "told"),
    [
        ("me/none", {}, "RepositoryNotFoundError", "me/none"),
        ("me/suma", {"revision": "v9"}, "RevisionNotFoundError", "v9"),
    ],
)
def test_what_does_not_exist_is_named(hub, client, options, name, asked, error, told):
    kind, text = client(refused, name, **asked, **options)
    assert kind == error and told in text


@pytest.mark.parametrize(
    ("kept", "error", "told"),
    [
        ({"config.json": None}, "EntryNotFoundError", "config.json"),
        ({"model.safetensors": None}, "EntryNotFoundError", "model.safetensors"),
        ({"model.safetensors": b"half"}, "RuntimeError", "not a whole safetensors file"),
        ({"config.json": b'{"clip": '}, "ValueError", "damaged"),
        ({"config.json": b'{"model_type": "bert"}'}, "ValueError", "not the config of a SUMA"),
    ],
    ids=["no config", "only a config", "weights pushed in part", "a broken config", "another model"],
)
def test_a_repository_that_is_no_whole_model_is_refused(hub, client, options, files, kept, error, told):
    hub.commit(REPO, {name: body for name, body in {**files, **kept}.items() if body is not None})
    kind, text = client(refused, "me/suma", **options)
    assert kind.endswith(error) and told in text, (kind, text)


def test_the_weights_of_a_config_that_cannot_be_read_are_not_fetched(hub, client, options, files):
    later = json.dumps({**json.loads(files["config.json"]), "format_version": 2}).encode()
    hub.commit(REPO, {**files, "config.json": later})
    kind, text = client(refused, "me/suma", **options)
    assert kind == "ValueError" and "format_version 2" in text
    assert not [call for call in hub.calls if "model.safetensors" in call]


@pytest.mark.parametrize(
    ("method", "fault", "told"),
    [
        ("GET", 503, "503"),  # a HEAD is asked again for 23 s before it is given up
        ("GET", 401, "401"),
        ("HEAD", 401, "401"),
        ("GET", "short", "Consistency check failed"),
    ],
)
def test_weights_that_do_not_arrive_are_an_error_and_the_next_call_is_right(
    hub, client, options, method, fault, told, tiny_model
):
    (commit,) = hub.repos[REPO]
    hub.faults[f"{method} /me/suma/resolve/{commit}/model.safetensors"] = fault
    kind, text = client(refused, "me/suma", **options)
    assert told in text and "model.safetensors" in text, (kind, text)
    hub.faults.clear()
    assert client(loaded, "me/suma", **options) == scores(tiny_model).tolist()


def test_a_dropped_download_goes_on_where_it_stopped(hub, client, options, tiny_model):
    hub.faults["model.safetensors"] = "dropped"
    assert client(loaded, "me/suma", **options) == scores(tiny_model).tolist()
    assert not hub.faults and len([call for call in hub.calls if call.startswith("GET") and "safetensors" in call]) == 2


# ---- to the Hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tiny_model: SUMA, tmp_path: Path) -> Path:
    """A run's folder at the end of its training, with things beside the model that are nobody's business."""
    tiny_model.save_pretrained(tmp_path / "run" / "best")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / ".env").write_text("secret")
    (tmp_path / "run" / "model" / "notes.txt").write_text("mine")
    return tmp_path / "run"


def test_a_run_pushes_its_model_its_card_and_nothing_else(hub, client, options, output, tiny_model):
    printed = client(finished, output, test_config="", push_to_hub="me/tiny")
    assert f"{hub.url}/me/tiny/commit/" in printed
    pushed = hub.files("models/me/tiny")
    assert sorted(pushed) == ["README.md", "config.json", "model.safetensors"]
    assert pushed["README.md"] == (output / "model" / "README.md").read_bytes()
    assert client(loaded, "me/tiny", **options) == scores(tiny_model).tolist()


@pytest.mark.parametrize(
    ("path", "fault", "told"),
    [("/commit/", 403, "injected 403"), ("/api/repos/create", 401, "401"), ("/preupload/", 400, "injected 400")],
)
def test_a_failed_push_keeps_the_model_and_the_same_call_tries_again(hub, client, output, path, fault, told):
    hub.faults[path] = fault
    left = client(finished, output, test_config="", push_to_hub="me/tiny")
    assert left.startswith("exit: not pushed to me/tiny") and told in left and "\n" not in left
    assert str(output / "model") in left and left.endswith("the same command tries again")
    assert SUMA.from_pretrained(output / "model").fingerprint() == SUMA.from_pretrained(output / "best").fingerprint()
    hub.faults.clear()
    assert "pushed:" in client(finished, output, test_config="", push_to_hub="me/tiny")
    assert len(hub.files("models/me/tiny")) == 3


def test_what_was_evaluated_is_pushed_with_a_card_that_names_the_repository(hub, client, output):
    """No model is saved or evaluated again: here, each would fail."""
    (output / "best").rename(output / "model.new")
    shutil.copytree(output / "model.new", output / "model", dirs_exist_ok=True)
    (output / "model" / "README.md").write_text("# As it was")
    (output / "results.json").write_text(json.dumps(RESULTS))
    client(finished, output, dataset="no-such-folder", push_to_hub="me/tiny")
    card = hub.files("models/me/tiny")["README.md"].decode()
    assert 'SUMA.from_pretrained("me/tiny")' in card and "40.1 (30.0 to 50.0)" in card


# ---- the card --------------------------------------------------------------------------------------------------------


def card(model: SUMA, results: dict[str, Any] = RESULTS, **changes: Any) -> ModelCard:
    return ModelCard(model_card(model, asdict(TrainConfig(push_to_hub="me/suma", **changes)), results))


def test_the_cards_head_is_what_the_hub_reads(tiny_model: SUMA):
    head = card(tiny_model).data
    assert (head.license, head.library_name, head.model_name) == ("apache-2.0", "suma", "me/suma")
    assert head.pipeline_tag and "arxiv:2302.09473" in head.tags and head.datasets == ["friedrichor/MSR-VTT"]
    found = {entry.metric_type: entry for entry in head.eval_results}
    assert {name: entry.metric_value for name, entry in found.items()} == {
        "t2v_r1": 40.12,
        "t2v_r5": 60,
        "t2v_r10": 80,
        "t2v_mdr": 2,
        "t2v_mnr": 9.5,
        "v2t_r1": 45,
        "v2t_r5": 60,
        "v2t_r10": 80,
        "v2t_mdr": 2,
        "v2t_mnr": 9.5,
    }
    assert found["t2v_r1"].metric_name == "text-to-video R@1" and found["t2v_r5"].metric_args is None
    assert found["t2v_r1"].metric_args == {"confidence_interval_95": [30, 50]}
    assert found["v2t_r1"].dataset_type == "friedrichor/MSR-VTT" and found["v2t_r1"].dataset_config == "test_1k"


def test_the_card_tells_the_run(tiny_model: SUMA):
    text = card(tiny_model, batch_size=96, save_half=True, pretrained="").text
    assert "from suma import" in text and 'SUMA.from_pretrained("me/suma")' in text
    assert "| SUMA | text -> video | 40.1 (30.0 to 50.0) | 60.0 | 80.0 | 2.0 | 9.5 |" in text
    assert (
        "--batch-size 96" in text
        and "--save-half" in text
        and "--pretrained ''" in text
        and "--push-to-hub" not in text
    )
    assert "with random weights" in text and "12 concepts of 42 caption words" in text
    assert "at least 500" in text and "372 of the 1,000 test videos" in text
    assert f"torch {version('torch')}" in text and "2302.09473" in text


def test_the_cards_command_makes_the_same_run(tiny_model: SUMA):
    import shlex

    from config import parse

    text = card(tiny_model, clip_lr=3e-7, steps=7, dataset="me/my-data", checkpoint_activations=True).text
    command = text.split("```bash\n")[1].split("\n```")[0].replace("\\\n", " ")
    arguments = shlex.split(command)[3:]
    assert parse(arguments) == TrainConfig(clip_lr=3e-7, steps=7, dataset="me/my-data", checkpoint_activations=True)


def test_the_card_says_nothing_that_the_run_does_not_know(tiny_model: SUMA, tmp_path: Path):
    changes = {"dataset": str(tmp_path / "clips"), "output": str(tmp_path / "out"), "held_out": 0, "test_config": ""}
    made = ModelCard(model_card(tiny_model, asdict(TrainConfig(**changes)), {}))
    assert made.data.eval_results is None and made.data.datasets is None and made.data.model_name == "out"
    assert "Not evaluated" in made.text and "No videos were held out" in made.text and "372" not in made.text
    assert str(tmp_path.parent) not in made.content and "`clips`" in made.text  # no folder of the user's machine
    assert "372" not in card(tiny_model, train_config="train_7k").text
    assert "372" not in card(tiny_model, dataset="me/scenes").text


def test_the_datas_revision_is_the_one_that_was_downloaded(tiny_model: SUMA, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert downloaded_revision("me/scenes") == ""
    refs = tmp_path / "datasets--me--scenes" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123")
    assert downloaded_revision("me/scenes") == "abc123"
    made = card(tiny_model, dataset="me/scenes")
    assert "revision `abc123`" in made.text and made.data.eval_results[0].dataset_revision == "abc123"


# ---- open_clip's models by name and tag ------------------------------------------------------------------------------

NAMED, TAG = "tiny-CLIP-B", "web_s1b"


def named(cache: Path, *argv: str, repo: str = "me/tower") -> tuple[int, list[list[float]], str, str]:
    """Have open_clip list a tiny model whose weights are at the Hub; run the command line or, without one, load the
    model: exit code, scores, output, errors."""
    import io

    import open_clip
    from conftest import TOWER

    from suma.__main__ import main

    torch.set_num_threads(1)
    os.environ["SUMA_CACHE"] = str(cache)
    open_clip.factory._MODEL_CONFIGS[NAMED] = TOWER
    tagged = open_clip.pretrained._pcfg(hf_hub=f"{repo}/", mean=(0.5, 0.5, 0.5), interpolation="bilinear")
    open_clip.pretrained._PRETRAINED[NAMED] = {TAG: tagged, "other_s2b": tagged}
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if argv:
            return main(argv), [], out.getvalue(), err.getvalue()
        found = scores(SUMA.from_pretrained(f"{NAMED}:{TAG}")).tolist()
    return 0, found, out.getvalue(), err.getvalue()


@pytest.fixture
def weights(hub: Hub, tower: dict[str, Any], request: pytest.FixtureRequest) -> str:
    """A repository of the test's own with weights of an open_clip model, which the client has not cached."""
    import open_clip

    torch.manual_seed(3)
    repo = f"me/{request.node.name.replace('_', '-')[:40].rstrip('-')}"
    state = open_clip.CLIP(**tower).state_dict()
    hub.commit(f"models/{repo}", {"open_clip_model.safetensors": safetensors.torch.save(state)})
    return repo


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with two videos."""
    (tmp_path / "videos").mkdir()
    for fps in (5, 10):
        write_video(tmp_path / "videos" / f"{fps}.mp4", 8, (64, 64), fps)
    return tmp_path / "videos"


def timm_start(cfg: dict[str, Any], captions: list[str]) -> tuple[list[float], dict[str, Any]]:
    """The image feature of a grey picture, of a new model with timm's weights, and its preprocessing."""
    model = SUMA.from_clip(cfg, captions, num_concepts=4, temporal_layers=0)
    assert not model.config.clip["vision_cfg"].get("timm_model_pretrained") or SUMA(model.config)  # builds offline
    with torch.no_grad():
        feature = model.clip.visual.trunk(torch.full((1, 3, 64, 64), 0.5))
    return feature[0, :4].tolist(), model.config.image


def test_an_image_tower_gets_the_weights_that_timm_has_at_the_hub(hub: Hub, client, tower, captions):
    import timm

    torch.manual_seed(5)
    trunk = timm.create_model("test_efficientnet", pretrained=False).eval()
    files = {"model.safetensors": safetensors.torch.save(trunk.state_dict()), "config.json": b"{}"}
    hub.commit("models/timm/test_efficientnet.r160_in1k", files)
    vision = {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    cfg = {**tower, "vision_cfg": {**vision, "timm_model_pretrained": True}}
    found, image = client(timm_start, cfg, captions)
    trunk.reset_classifier(0)
    with torch.no_grad():
        expected = trunk(torch.full((1, 3, 64, 64), 0.5))[0, :4].tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert image["mean"] == pytest.approx([0.485, 0.456, 0.406]) and image["interpolation"] == "bicubic"


def test_an_index_made_with_an_open_clip_model_remembers_it_and_later_needs_no_network(hub, client, weights, videos):
    cache, index = videos.parent / "cache", str(videos.parent / "my.index")
    command = ("index", str(videos), "-o", index, "--model", f"{NAMED}:{TAG}", "--workers", "1")
    code, _, _, told = client(named, cache, *command, repo=weights)
    assert code == 0 and "the bundled model" not in told, told
    assert [call for call in hub.calls if call.startswith("GET") and "open_clip_model.safetensors" in call]
    hub.repos.clear()
    hub.calls.clear()
    code, _, out, told = client(named, cache, "search", index, "a dog", "--json")  # no --model, and the Hub has nothing
    assert code == 0 and len(json.loads(out)) == 2 and hub.calls == [], told
    assert client(named, cache, "index", str(videos), "-o", index)[0] == 0 and hub.calls == []
    config = json.loads(next(cache.glob(f"models/{NAMED}--{TAG}-*/config.json")).read_text())
    image = config["image"]
    assert config["untrained"] and image["mean"] == [0.5] * 3 and image["interpolation"] == "bilinear"
    assert [folder.name for folder in (cache / "models").iterdir()] == [f"{NAMED}--{TAG}-1"]


def test_an_open_clip_model_has_the_weights_of_its_tag(hub, client, weights, tower, tmp_path):
    _, first, _, _ = client(named, tmp_path, repo=weights)
    model = SUMA.from_pretrained(next(tmp_path.glob("models/*")))
    told = safetensors.torch.load(hub.files(f"models/{weights}")["open_clip_model.safetensors"])
    assert all(torch.equal(model.clip.state_dict()[name], x) for name, x in told.items())
    assert client(named, tmp_path, repo=weights)[1] == first
    assert torch.allclose(torch.tensor(first), scores(model), atol=1e-4)  # commands make the client's products faster
    with pytest.raises(ValueError, match="no revisions"):
        SUMA.from_pretrained(f"{NAMED}:{TAG}", revision="main")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (f"tiny-CLIP-C:{TAG}", f"did you mean {NAMED}"),
        ("PE-Core-B16:meta", "did you mean PE-Core-B-16"),
        (f"{NAMED}:web_s2b", f"'web_s2b' is no tag of {NAMED}: did you mean {TAG}"),
        (f"{NAMED}:qqq", f"choose one of {TAG}, other_s2b"),
        (NAMED, f"{NAMED}:{TAG}"),
        ("ViT-B32", "did you mean the open_clip model ViT-B-32"),
    ],
)
def test_a_wrong_name_or_tag_is_answered_with_the_nearest(hub, client, tmp_path, model, told):
    code, _, out, error = client(named, tmp_path, "search", str(tmp_path), "a dog", "--model", model)
    assert (code, out) == (2, "") and told in error and error.count("\n") == 1, error
    assert hub.calls == []


def test_weights_that_cannot_be_downloaded_are_one_line_that_says_what_to_do(hub, client, tmp_path, weights, videos):
    command = ("index", str(videos), "-o", str(tmp_path / "index"), "--model", f"{NAMED}:{TAG}")
    code, _, _, error = client(named, tmp_path / "cache", *command, repo="me/nothing")
    assert code == 2 and error.count("\n") == 1, error
    assert f"{NAMED}:{TAG} are not in the cache" in error and "connect to the internet once" in error
    assert not (tmp_path / "index").exists() and not (tmp_path / "cache").exists()
    assert client(named, tmp_path / "cache", *command, repo=weights)[0] == 0


def test_without_a_network_an_open_clip_model_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, capsys):
    from suma.__main__ import main

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("SUMA_CACHE", str(tmp_path))
    assert main(["search", "my.index", "a dog", "--model", "ViT-B-32:laion2b_s34b_b79k"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "connect to the internet once" in error and str(tmp_path) in error
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        SUMA.from_pretrained("ViT-B-32:openai", local_files_only=True)


def test_the_stronger_models_are_named_once_to_who_indexes_with_the_bundled_one(videos, capsys):
    from suma.__main__ import main

    command = ["index", str(videos), "-o", str(videos.parent / "my.index"), "--workers", "1"]
    assert main(command) == 0
    assert "--model PE-Core-B-16:meta" in capsys.readouterr().err
    assert main(command) == 0
    assert "--model" not in capsys.readouterr().err
    assert remembered_model(videos.parent / "my.index") == ""


def test_an_index_remembers_a_folder_and_says_where_it_was(videos, tiny_model, capsys):
    from suma import VideoIndex
    from suma.__main__ import main

    folder, place = videos.parent / "model", str(videos.parent / "my.index")
    tiny_model.save_pretrained(folder)
    assert main(["index", str(videos), "-o", place, "--model", str(folder), "--workers", "1"]) == 0
    assert main(["search", place, "a dog"]) == 0
    assert VideoIndex.load(place).model.fingerprint() == tiny_model.fingerprint()
    folder.rename(videos.parent / "moved")
    capsys.readouterr()
    assert main(["search", place, "a dog"]) == 2
    assert f"{folder}, which is gone" in capsys.readouterr().err
    assert main(["search", place, "a dog", "--model", str(videos.parent / "moved")]) == 0


# ---- the whole road --------------------------------------------------------------------------------------------------


def search(model: str, videos: Path, query: str) -> list[str]:
    """The names of the videos that a pushed model finds."""
    from suma import VideoIndex

    index = VideoIndex(SUMA.from_pretrained(model))
    index.add(videos)
    return [Path(match.path).name for match in index.search(query, 3)]


@pytest.mark.slow
def test_from_a_dataset_on_the_hub_to_a_model_on_the_hub(hub, client, benchmark, tower, tmp_path):  # noqa: F811
    data: Files = {f.name: f.read_bytes() for f in benchmark.iterdir() if f.is_file()}
    archive = shutil.make_archive(str(tmp_path / "videos"), "zip", benchmark, "video")
    revision = hub.commit("datasets/me/scenes", {**data, "Videos.zip": Path(archive).read_bytes()})

    arguments = flags(Path("me/scenes"), tower, tmp_path / "run", steps=2, push_to_hub="me/tiny")
    command = [sys.executable, str(ROOT / "train" / "train.py"), *arguments]
    env = {**os.environ, **environment(hub, tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "datasets")}

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)

    hub.faults["/commit/"] = 403
    first = run()
    assert first.returncode == 1 and first.stderr.rstrip().endswith("the same command tries again"), first.stderr
    kept = {name: (tmp_path / "run" / name).read_bytes() for name in ("log.jsonl", "results.json", "model/README.md")}
    assert "| SUMA | text -> video |" in first.stdout and hub.files("models/me/tiny") == {}

    hub.faults.clear()
    second = run()
    assert second.returncode == 0 and "pushed:" in second.stdout and "| SUMA |" not in second.stdout, second.stderr
    assert kept == {name: (tmp_path / "run" / name).read_bytes() for name in kept}  # neither trained nor evaluated

    made = ModelCard(hub.files("models/me/tiny")["README.md"].decode())
    assert made.data.datasets == ["me/scenes"] and f"revision `{revision}`" in made.text
    assert made.data.eval_results[0].dataset_revision == revision and "2 steps, 8 pairs per step" in made.text
    assert str(tmp_path) not in made.content
    found = client(search, "me/tiny", benchmark / "video", "a dog moves left")
    assert len(found) == 3 and all(name.endswith(".mp4") for name in found)


# ---- the app ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_app_searches_with_a_model_of_the_hub(hub: Hub, tmp_path: Path):
    from gradio_client import Client

    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "gray.mp4", 8, (64, 64))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, **environment(hub, tmp_path / "home"), "SUMA_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "app.py", "--model", "me/suma", "--videos", str(tmp_path / "videos"), "--port", port]
    log = (tmp_path / "log").open("w")
    app = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            assert app.poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
                break
            time.sleep(0.25)
        found = Client(f"http://127.0.0.1:{port}", verbose=False).predict("a dog", api_name="/search")
    finally:
        app.terminate()
        app.wait(20)
    assert [match["video"] for match in found] == ["gray.mp4"]
    assert any("model.safetensors" in call for call in hub.calls)
