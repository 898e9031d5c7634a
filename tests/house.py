"""The size and shape of the house: `python tests/house.py` prints what tests/test_architecture.py bounds."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def module_of(file: Path) -> str:
    """Return a file's name as imports have it: suma/video/frames.py is suma.video.frames."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of(*folders: str) -> list[Path]:
    """Return the Python files below these folders, sorted."""
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


MODULES = {module_of(file): file for file in files_of("suma")}


@functools.cache
def nodes_of(file: Path) -> list[ast.AST]:
    """Return a file's syntax tree, all nodes of it, the module first."""
    return list(ast.walk(ast.parse(file.read_text())))


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function, but for type checkers alone."""
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            module = node.module or ""
            for alias in node.names:  # `from suma.index import store` imports suma.index.store
                inner = f"{module}.{alias.name}"
                yield inner if inner in MODULES else module


@functools.cache
def graph() -> dict[str, set[str]]:
    """Return which files of suma each of them imports; the empty __init__ files of rooms are left out."""
    arrows = {}
    for name, file in MODULES.items():
        if file.name != "__init__.py" or name == "suma":
            arrows[name] = {other for other in imported(file) if other in MODULES} - {name}
    return {name: {other for other in found if other in arrows} for name, found in arrows.items()}


def floors() -> dict[str, int]:
    """Return the floor of each file of suma: 0 imports none of the others. Raise ValueError for a circle of imports.

    `suma` itself names its public classes when they are first used, so that it is no arrow to import it.
    """
    arrows, found = {name: others - {"suma"} for name, others in graph().items()}, {}

    def floor(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"imports run in a circle: {' -> '.join((*above, name))}")
        if name not in found:
            found[name] = 1 + max((floor(other, (*above, name)) for other in arrows[name]), default=-1)
        return found[name]

    for name in arrows:
        floor(name)
    return found


def long_functions(limit: int = 50) -> list[str]:
    """Return the functions of more than so many lines."""
    found = []
    for file in files_of("suma", "train"):
        for node in nodes_of(file):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > limit:
                    found.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines")
    return found


def lines_of(*folders: str) -> int:
    """Return the lines of the Python files below these folders."""
    return sum(len(file.read_text().splitlines()) for file in files_of(*folders))


def main() -> None:
    """Print the figures."""
    arrows, level = graph(), floors()
    print(f"suma {lines_of('suma')} lines (of these the app {lines_of('suma/app')}), train {lines_of('train')}")
    print(f"suma: {len(arrows)} files, {sum(map(len, arrows.values()))} arrows, {max(level.values()) + 1} floors")
    for file in files_of("suma", "train"):
        if (lines := len(file.read_text().splitlines())) > 350:
            print(f"{file.relative_to(ROOT)} has {lines} lines")
    print("\n".join(long_functions()))
    mark = "# fmt: " + "skip"
    print(
        f"{mark}: {sum(file.read_text().count(mark) for file in files_of('suma', 'train'))} in suma and train, "
        f"{sum(file.read_text().count(mark) for file in files_of('tests'))} in tests"
    )
    if "-v" in sys.argv:
        for name in sorted(level, key=lambda name: (level[name], name)):
            print(f"{level[name]:2} {name:28} {' '.join(sorted(arrows[name]))}")


if __name__ == "__main__":
    main()
