"""Imports run one way, and the heavy ones stay out of `import suma`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from house import MODULES, ROOT, files_of, floors, graph, imported, long_functions, module_of, nodes_of

BELOW = {  # what a room may import of suma; explain.py and __main__.py, above the index, may import all but the app
    "suma.video": ("suma.video", "suma.progress", "suma.atomic_io"),
    "suma.model": ("suma.model", "suma.video.preprocess", "suma.similarity", "suma.progress", "suma.atomic_io"),
    "suma.index": ("suma.index", "suma.model", "suma.video", "suma.progress", "suma.atomic_io"),
}
HEAVY = {"gradio", "accelerate", "datasets"}
FILES = sorted(MODULES.values())


def test_imports_run_in_no_circle_and_on_few_floors():
    assert max(floors().values()) < 14


def test_functions_are_short():
    assert long_functions(50) == []


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_what_is_below_it(room: str):
    for name, others in graph().items():
        if name.startswith(room + "."):
            assert not {x for x in others if not any(x == y or x.startswith(y + ".") for y in BELOW[room])}, name


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_the_package_knows_nothing_of_training_and_only_its_app_of_gradio(file: Path):
    scripts = {path.relative_to(ROOT / "train").parts[0].removesuffix(".py") for path in files_of("train")}
    known = {name.split(".")[0] for name in imported(file)}
    in_app = module_of(file).startswith("suma.app")
    assert not known & ({"app", "train", "tests"} | scripts | (HEAVY - {"gradio"} if in_app else HEAVY))
    opens_it = module_of(file) == "suma.__main__"  # `suma app`
    assert in_app or opens_it or not {name for name in imported(file) if name.startswith("suma.app")}


def test_torch_stops_at_the_models_door():
    for file in files_of("suma/index", "suma/app") + [ROOT / "suma" / "explain.py"]:
        known = set(imported(file))
        assert not {name for name in known if name.split(".")[0] == "torch" or name in ("suma.similarity",)}, file


def test_training_does_not_know_the_app():
    for file in files_of("train"):
        assert not {
            name for name in imported(file) if name.split(".")[0] in ("app", "gradio", "tests") or "suma.app" in name
        }
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


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_everything_public_has_a_docstring(file: Path):
    tree = nodes_of(file)[0]
    assert isinstance(tree, ast.Module)
    assert ast.get_docstring(tree) is not None
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in tree.body if isinstance(node, kinds)]
    for owner in [node for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]:
        nodes += [node for node in owner.body if isinstance(node, kinds)]
    assert not [n.name for n in nodes if not n.name.startswith("_") and ast.get_docstring(n) is None]
