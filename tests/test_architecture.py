"""The rules of the layout: what stands at the top, and that imports run one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "train",
    "evaluate",
    "predict",
    "export",
    "soup",
    "prepare",
    "doctor",
    "jobs",
    "cache",
    "options",
    "embed",
    "extend",
    "push",
    "verify",
    "monitor",
}
SHARED = {"errors", "cli"}  # cli: which the commands alone import
# A package imports those after it, never those before it.
ORDER = [
    *(
        "deploy",
        "sweeps",
        "launch",
        "training",
        "monitoring",
        "serve",
        "report",
        "portable",
        "debug",
        "callbacks",
        "audit",
        "data",
    ),
    *("runs", "config", "aws", "models", "images", "system"),
]
DOORS = {
    # Where a run's own methods open what is made from it: lazily, and named one by one.
    ("imgcls.runs.run", "imgcls.report.page"),
    ("imgcls.runs.run", "imgcls.report.figures"),
    ("imgcls.runs.run", "imgcls.portable"),
}


def modules() -> dict[str, Path]:
    """Every module of imgcls by its dotted name."""
    found = {}
    for file in sorted((ROOT / "imgcls").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, known: set[str]) -> Iterator[str]:
    """The modules that `file` imports, at the top, in functions and for annotations."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Each module with those of imgcls that it imports. The public names of `imgcls` itself are a door to all."""
    known = set(files)
    return {name: set(imports(file, known)) & known - {name, "imgcls"} for name, file in files.items()} | {
        "imgcls": set()
    }


def room(module: str) -> str:
    """The package of a module, or the file at the top."""
    return module.split(".")[1] if "." in module else module


def height(name: str) -> int:
    """How far down: commands 0, what all share last."""
    if name in COMMANDS or name == "__main__":
        return 0
    if name == "cli":
        return ORDER.index("system")
    return ORDER.index(name) + 1 if name in ORDER else len(ORDER) + 1


def upward(imported: dict[str, set[str]]) -> list[str]:
    """The imports that run against the order; the `__main__` of a package is a command."""
    return [
        f"{module} -> {target}"
        for module, targets in imported.items()
        if not module.endswith(".__main__")
        for target in sorted(targets)
        if height(room(target)) < height(room(module)) and (module, target) not in DOORS
    ]


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in imported.get(module, ()):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in imported:
        if module not in index:
            visit(module)
    return found


def test_a_file_at_the_top_is_a_command_or_shared_by_all() -> None:
    names = {file.stem for file in (ROOT / "imgcls").glob("*.py")} - {"__init__", "__main__"}
    assert names <= COMMANDS | SHARED
    folders = {folder.name for folder in (ROOT / "imgcls").iterdir() if (folder / "__init__.py").is_file()}
    assert folders == set(ORDER)


def test_packages_import_downwards() -> None:
    assert upward(graph(modules())) == []


def test_stores_import_shards_and_not_the_reverse() -> None:
    shards = {name: targets for name, targets in graph(modules()).items() if name.startswith("imgcls.data.sharding.")}
    assert len(shards) > 5
    assert not [target for targets in shards.values() for target in targets if target.startswith("imgcls.data.stores")]


def test_no_modules_import_each_other() -> None:
    assert circles(graph(modules())) == []


def test_each_package_says_what_lives_there() -> None:
    for folder in ORDER:
        text = ast.get_docstring(ast.parse((ROOT / "imgcls" / folder / "__init__.py").read_text(encoding="utf-8")))
        assert text, folder
        assert "mport" in text, f"imgcls/{folder}/__init__.py does not say what may be imported"


def test_the_rules_find_what_breaks_them(tmp_path: Path) -> None:
    low, high = tmp_path / "files.py", tmp_path / "fit.py"
    low.write_text("def f():\n    from imgcls.training.fit import fit\n")
    high.write_text("from imgcls.system import files\n")
    broken = graph({"imgcls": ROOT / "imgcls/__init__.py", "imgcls.system.files": low, "imgcls.training.fit": high})
    assert upward(broken) == ["imgcls.system.files -> imgcls.training.fit"]
    assert circles(broken) == [["imgcls.system.files", "imgcls.training.fit"]]


def test_the_page_about_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:imgcls|conf|hydra_plugins|tests|docs)/[\w/.]*)`", text))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
