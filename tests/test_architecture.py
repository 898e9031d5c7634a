"""Imports run one way, and the heavy ones stay out of `import suma`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {  # a file imports only files of lower levels
    "suma.hdr": -2, "suma.upright": -1, "suma.heif": 0, "suma.flv": -1,
    "suma.arrays": 0, "suma.packets": 0, "suma.disk": 0, "suma.rows": 0, "suma.codes": 0, "suma.backbone": 1,
    "suma.saved": 3, "suma.temporal": 0, "suma.clusters": 0, "suma.pixels": 0, "suma.text": 0, "suma.cpu": 0,
    "suma.tokens": 0, "suma.video": 1, "suma.words": 1, "suma.similarity": 1, "suma.snapshot": 1, "suma.config": 2,
    "suma.open_clip_models": 1, "suma.zero_shot": 2,
    "suma.files": 2, "suma.decoder": 2, "suma.store": 2, "suma.concepts": 3, "suma.candidates": 3, "suma.stores": 3,
    "suma.caption_files": 0, "suma.progress": 0,
    "suma.milvus_client": 4, "suma.model": 4, "suma.build": 5, "suma.reader": 5,
    "suma.caption_list": 6, "suma.hubness": 6, "suma.steer": 6, "suma.query": 7, "suma.search": 8,
    "suma.milvus_state": 8, "suma.milvus": 9, "suma.index": 10, "suma.explain": 11, "suma.merge": 11,
    "suma.shards": 12, "suma": 12, "suma.__main__": 13,
}  # fmt: skip
ROOMS = ("suma", "train", "ui", "app", "tests")


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            module = node.module or ""
            for alias in node.names:  # `from suma import store` imports suma.store, `from suma import SUMA` suma
                inner = f"{module}.{alias.name}"
                yield inner if inner in LEVELS else module


SUMA_FILES = sorted((ROOT / "suma").glob("**/*.py"))


def test_every_file_of_the_package_has_its_level():
    assert {name_of(file) for file in SUMA_FILES} == set(LEVELS)


@pytest.mark.parametrize("file", SUMA_FILES, ids=name_of)
def test_a_file_imports_only_files_of_lower_levels(file: Path):
    ours = {name for name in imported(file) if name.split(".")[0] == "suma"}
    wrong = {name for name in ours if name not in LEVELS or LEVELS[name] >= LEVELS[name_of(file)]}
    assert not wrong


@pytest.mark.parametrize("file", SUMA_FILES, ids=name_of)
def test_the_package_knows_nothing_of_training_or_the_app(file: Path):
    scripts = {path.stem for path in (ROOT / "train").glob("*.py")}
    known = {name.split(".")[0] for name in imported(file)}
    assert not known & ({"app", "ui", "train", "tests", "gradio", "accelerate", "datasets"} | scripts)


def test_training_and_the_app_do_not_know_each_other():
    scripts = {path.stem for path in (ROOT / "train").glob("*.py")} | {"train"}
    for file in (ROOT / "train").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(file)} & {"app", "ui", "gradio", "tests"}, file.name
    for file in [*ROOT.glob("app.py"), *(ROOT / "ui").glob("*.py")]:
        assert not {name.split(".")[0] for name in imported(file)} & ((scripts - {"app"}) | {"accelerate"}), file.name
    assert not (ROOT / "train" / "__init__.py").exists()  # `accelerate launch train/train.py` imports its siblings


def test_importing_suma_is_light_and_silent():
    heavy = ["gradio", "datasets", "accelerate", "matplotlib", "faiss", "av", "decord", "open_clip", "torchvision"]
    program = f"import suma, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_search_from_the_command_line_imports_what_it_needs():
    heavy = ["torch", "open_clip", "timm", "torchvision", "faiss", "av", "decord", "huggingface_hub", "matplotlib"]
    program = (
        "import sys; from suma.__main__ import main\n"
        "code = main(['search', 'assets/gallery/index', 'an elephant falls', '--json', '-k', '1'])\n"
        f"print([m for m in {heavy} if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1:] == ["[] 0"], done.stderr


@pytest.mark.parametrize("file", SUMA_FILES, ids=name_of)
def test_everything_public_has_a_docstring(file: Path):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree) is not None
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in tree.body if isinstance(node, kinds)]
    for owner in [node for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]:
        nodes += [node for node in owner.body if isinstance(node, kinds)]
    assert not [n.name for n in nodes if not n.name.startswith("_") and ast.get_docstring(n) is None]
