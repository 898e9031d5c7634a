"""Publish a trained model on the Hub: write its card from the facts of the run, and upload it."""

import os
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks import is_hub_id
from huggingface_hub import EvalResult, HfApi, ModelCard, constants
from huggingface_hub.file_download import repo_folder_name
from mixture import parse_mix
from report import results_table

from suma import __version__
from suma.model.checkpoint import CONFIG, TOKENIZER, WEIGHTS
from suma.model.suma import SUMA

FILES = [CONFIG, WEIGHTS, f"{TOKENIZER}/*", "README.md"]  # what is pushed, and nothing else
WAYS = {"t2v": "text-to-video", "v2t": "video-to-text"}
MEASURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "mdr": "MdR", "mnr": "MnR"}
PACKAGES = ("torch", "open_clip_torch", "accelerate", "huggingface_hub", "numpy")
PAPER = """@article{wang2023video,
  title   = {Video-Text Retrieval by Supervised Sparse Multi-Grained Learning},
  author  = {Yimu Wang and Peng Shi},
  journal = {arXiv preprint arXiv:2302.09473},
  year    = {2023}
}"""
OVERLAP = """
**Training and test clips overlap in their sources**: 372 of the 1,000 test videos of MSR-VTT 1k-A are cut from source
videos that the 9,000 training clips are cut from too, which flatters every model trained so. `train_7k` has none of
them.
"""
CARD = """
# {name}

A SUMA model for video-text retrieval: it finds videos by a sentence and sentences by a video, and names the concepts
behind each match. It is a CLIP with a temporal encoder and an aligned concept space, trained with an open
implementation of [Video-Text Retrieval by Supervised Sparse Multi-Grained Learning](https://arxiv.org/abs/2302.09473).

## How to use it

```python
from suma import SUMA, VideoIndex
index = VideoIndex(SUMA.from_pretrained("{name}"))
index.add("my_videos"); print(index.search("a dog catches a ball"))
```

## Data

{data}

## Results

{results}

## Recipe

{parameters:.1f} M parameters, width {dim}; {concepts} concepts of {words:,} caption words; {frames} frames per video, \
{size} x {size} pixels.
The backbone started from {backbone}. {steps}, {batch} pairs per step, {precision}.

```bash
{command}
```

Finished on {hardware}, with {versions}. Local paths are shortened to their last part.

## Limits

- It knows the kind of video and the words it was trained on; the results above say nothing about other footage.
- It sees {frames} frames of a video and hears nothing. Sentences are cut at {context} tokens.
- Scores rank candidates; they are no probabilities, and there is always a first result, also where nothing fits.

## Licence

Apache-2.0. The data and the weights that the backbone started from have licences of their own.

## Citation

The paper's authors have no part in this implementation or in this model.

```bibtex
{paper}
```
"""


def shown(value: str) -> str:
    """Return an option's value without the folders of this machine."""
    return Path(value).name if Path(value).is_absolute() or value.startswith("~") else value


def downloaded_revision(data: str) -> str:
    """Return the commit of a Hub dataset that was last downloaded here, or "" if it is not known."""
    if not is_hub_id(data):
        return ""
    ref = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=data, repo_type="dataset") / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else ""


def command_line(config: dict[str, Any]) -> str:
    """Return the run's command with every option but the push, so that later defaults do not change its meaning."""
    options = []
    for name, value in config.items():
        flag = name.replace("_", "-")
        if name == "push_to_hub":
            continue
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        elif name == "mix":
            entries = [f"{shown(data)}:{'+'.join(configs)}={share:g}" for data, configs, share in parse_mix(value)]
            options.append(f"--{flag} {shlex.quote(','.join(entries))}")
        else:
            options.append(f"--{flag} {shlex.quote(shown(value) if isinstance(value, str) else str(value))}")
    lines = [" ".join(options[i : i + 4]) for i in range(0, len(options), 4)]
    return " \\\n  ".join(["accelerate launch train/train.py", *lines])


def hardware() -> str:
    """Return what this process runs on, as words."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{kind} ({platform.machine()}), {processes} process{'es' if processes > 1 else ''}"


def eval_results(results: dict[str, Any], data: str, revision: str) -> list[EvalResult]:
    """Return the evaluation as entries of the card's model-index, R@1 with its interval."""
    entries = []
    for way, title in WAYS.items():
        found = results["retrieval"]["SUMA"][way]
        for key, measure in MEASURES.items():
            interval = {"confidence_interval_95": [round(found["low"], 2), round(found["high"], 2)]}
            entries.append(
                EvalResult(
                    task_type="video-text-retrieval",
                    task_name="Video-text retrieval",
                    dataset_type=shown(data),
                    dataset_name=f"{shown(data)} {results['config']}",
                    dataset_config=results["config"],
                    dataset_revision=revision or None,
                    metric_type=f"{way}_{key}",
                    metric_name=f"{title} {measure}",
                    metric_value=round(found[key], 2),
                    metric_args=interval if key == "r1" else None,
                )
            )
    return entries


def describe_data(config: dict[str, Any], model: SUMA, revision: str) -> str:
    """Return sentences on the training data, on how the model was selected, and on known faults of both."""
    data = config["dataset"]
    where = (
        f"[{data}](https://huggingface.co/datasets/{data})" if is_hub_id(data) else f"the local folder `{shown(data)}`"
    )
    at = f", revision `{revision}`" if revision else ""
    text = f"Trained on {model.config.num_captions:,} captions: `{config['train_config']}` of {where}{at}"
    for name, configs, share in parse_mix(config["mix"]):
        text += f", and `{shown(name)}:{'+'.join(configs)}` ({share:.0%} of each batch)"
    text += "."
    if config["held_out"]:
        text += f" The best step and the concept space's share of the score ({model.config.concept_share}) were chosen"
        text += f" on held-out *training* videos (at least {config['held_out']}, whole source videos at a time);"
        text += " the test split took no part in that."
    else:
        text += " No videos were held out: these are the weights of the last step."
    is_msrvtt = "msrvtt" in shown(data).lower().replace("-", "").replace("_", "")
    if is_msrvtt and (config["train_config"], config["test_config"]) == ("train_9k", "test_1k"):
        text += "\n" + OVERLAP.rstrip()
    return text


def describe_backbone(config: dict[str, Any]) -> str:
    """Return what the backbone started from, as words."""
    clip, weights = config["backbone"], config["pretrained"]
    if Path(clip).is_dir():
        return f"the towers of an earlier SUMA, `{shown(clip)}`"
    return f"`{shown(clip)}` with " + (f"the weights `{shown(weights)}`" if weights else "random weights")


def model_card(model: SUMA, config: dict[str, Any], results: dict[str, Any]) -> str:
    """Return the README.md of a trained model.

    config: the run's options. results: those of `evaluate`, empty if there was no evaluation.
    """
    name = config["push_to_hub"] or Path(config["output"]).name
    revision = downloaded_revision(config["dataset"])
    head: Any = model.generate_model_card().data  # licence, library, task and tags, as SUMA declares them
    head.model_name = name
    if is_hub_id(config["dataset"]):
        head.datasets = [config["dataset"]]
    if results:
        head.eval_results = eval_results(results, config["dataset"], revision)
    c = model.config
    versions = [f"SUMA {__version__}", f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]
    body = CARD.format(
        name=name,
        data=describe_data(config, model, revision),
        paper=PAPER,
        command=command_line(config),
        results=results_table(results) if results else "Not evaluated on a test split.",
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        dim=model.dim,
        concepts=c.num_concepts,
        words=len(c.words),
        frames=c.num_frames,
        size=c.image["size"],
        backbone=describe_backbone(config),
        batch=config["batch_size"],
        steps=f"{config['steps']:,} steps" if config["steps"] else f"{config['epochs']} epochs",
        precision="float32" if config["mixed_precision"] == "no" else config["mixed_precision"],
        hardware=hardware(),
        versions=", ".join(versions),
        context=c.clip["text_cfg"].get("context_length", 77),
    )
    text = f"---\n{head.to_yaml()}\n---\n{body}"
    ModelCard(text)  # raises if the Hub could not read the head
    return text


def push(folder: Path, repo_id: str) -> None:
    """Upload a saved model and its card, and nothing else of the folder, in one commit: all of it or nothing."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id  # with the owner, if only a name was given
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=FILES, commit_message="Upload a trained SUMA"
    )
    print(f"pushed: {commit.commit_url}")
