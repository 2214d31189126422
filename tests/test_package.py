"""The packaging: what is installed, what may import what, and what the project's text may not say."""

import ast
import functools
import graphlib
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

import defended

ROOT = Path(__file__).resolve().parents[1]

# In the order of imports: each may import those before it. A folder inside another one belongs to itself.
SOURCES = {
    "defended_settings": ROOT / "defended" / "run_settings",
    "defended": ROOT / "defended",
    "defended.attacks": ROOT / "attacks",
    "defended.serving": ROOT / "serving",
    "defended_cli": ROOT / "serving" / "cli",
}

# The rooms of a package by floors; a room imports from those on lower floors.
FLOORS = {
    "defended.attacks": (
        ("core",), ("gradient",), ("black_box",), ("composed",), ("measurement",), ("paper",),
    ),
    "defended.serving": (
        ("artefacts",), ("exporting", "clients"), ("server", "auditing", "cluster"), ("monitoring",), ("demo",),
    ),
}  # fmt: skip


def packages_of_setup() -> dict[str, str]:
    """Read the mapping out of setup.py without running it."""
    for node in parsed(ROOT / "setup.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "PACKAGES":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py defines no PACKAGES")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def source_files() -> list[tuple[str, str, Path]]:
    """Return every file with its source's name and its own module name."""
    found = []
    for folder in (ROOT / "defended", ROOT / "attacks", ROOT / "serving"):
        for path in sorted(folder.rglob("*.py")):
            owners = [name for name, source in SOURCES.items() if path.is_relative_to(source)]
            owner = max(owners, key=lambda name: len(SOURCES[name].parts))
            parts = path.relative_to(SOURCES[owner]).with_suffix("").parts
            found.append((owner, ".".join((owner, *(part for part in parts if part != "__init__"))), path))
    return found


def packages_on_disk() -> dict[str, str]:
    return {
        module: path.parent.relative_to(ROOT).as_posix()
        for _, module, path in source_files()
        if path.name == "__init__.py"
    }


def imported_modules(path: Path, module: str, known: Collection[str] = ()) -> set[str]:
    """Return the absolute names that a file imports, those inside functions and for types too.

    `from package import name` gives `package.name`, and `package` where it is not a module of `known`.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            inside = {f"{source}.{alias.name}" for alias in node.names}
            names |= inside | (set() if inside <= set(known) else {source})
    return names


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Return the modules of the project that each of them imports."""
    files = source_files()
    known = {module for _, module, _ in files}
    return {module: (imported_modules(path, module, known) & known) - {module} for _, module, path in files}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules of which each imports the one before it and the last is the first, `[]` where there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def faces() -> set[str]:
    """Return the packages whose `__init__.py` hands on names of other modules and defines nothing but `__getattr__`."""
    found = set()
    for _, module, path in source_files():
        body = parsed(path).body
        defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)} - {"__getattr__"}
        if path.name == "__init__.py" and any(isinstance(node, ast.ImportFrom) for node in body) and not defined:
            found.add(module)
    return found


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_setup_lists_every_package_on_the_disk():
    assert packages_of_setup() == packages_on_disk()


def test_every_folder_with_python_files_is_a_package():
    assert not [path.parent for _, _, path in source_files() if not (path.parent / "__init__.py").exists()]


def test_imports_run_one_way():
    """defended_settings <- defended <- defended.attacks <- defended.serving <- defended_cli, in function bodies too."""
    order = list(SOURCES)
    wrong = [
        f"{module} imports {name}"
        for owner, module, path in source_files()
        for name in imported_modules(path, module)
        if any(below(name, later) for later in order[order.index(owner) + 1 :])
    ]
    assert not wrong


def test_the_import_reader_sees_relative_and_nested_imports(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("from . import a\nfrom ..b import c\ndef f():\n    import x.y\n")
    assert imported_modules(path, "p.q.module") == {"p.q", "p.q.a", "p.b", "p.b.c", "x.y"}
    assert imported_modules(path, "p.q.module", {"p.q.a"}) == {"p.q.a", "p.b", "p.b.c", "x.y"}


def test_no_circle_of_imports():
    """Imports inside functions and imports for types count."""
    assert not circle(import_graph())


def test_a_circle_is_found():
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert sorted(circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()})[1:]) == ["b", "c"]


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_from_the_floors_below(package):
    floors = {room: floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    rooms = {
        module: module.removeprefix(f"{package}.").partition(".")[0]
        for module in import_graph()
        if module.startswith(f"{package}.")
    }
    assert set(rooms.values()) == set(floors)
    wrong = [
        f"{module} imports {name}"
        for module, imports in import_graph().items()
        for name in imports
        if module in rooms and name in rooms
        if rooms[module] != rooms[name] and floors[rooms[module]] <= floors[rooms[name]]
    ]
    assert not wrong


def test_modules_import_modules_and_no_faces_of_packages():
    """A face imports all that it hands on; the commands, which import inside functions, read as a user's program."""
    handing = faces()
    assert {"defended", "defended.attacks", "defended.serving"} <= handing
    wrong = [
        f"{module} imports {name}"
        for module, imports in import_graph().items()
        for name in imports & handing
        if module not in handing and not below(module, "defended_cli")
    ]
    assert not wrong


def test_the_commands_import_the_library_inside_functions():
    wrong = [
        f"{module}: {ast.unparse(node)}"
        for owner, module, path in source_files()
        if owner == "defended_cli"
        for node in parsed(path).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "defended" in re.findall(r"\w+", ast.unparse(node))
    ]
    assert not wrong


def test_a_visitor_can_take_in_serving_at_a_glance():
    entries = [path for path in (ROOT / "serving").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(entries) <= 12 + 1  # beside `__init__.py`


@pytest.mark.parametrize("name", ["attacks", "serving"])
def test_a_bare_import_says_what_to_write_instead(name):
    environment = {**os.environ, "PYTHONSAFEPATH": ""}  # which would keep Python from looking here
    command = [sys.executable, "-c", f"import {name}"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "ImportError" in run.stderr
    assert f"defended.{name}" in run.stderr


def test_version_is_the_distributions():
    assert importlib.metadata.version("keras-defended") == defended.__version__


def test_types_are_shipped():
    assert (ROOT / "defended" / "py.typed").is_file()


def project_files() -> list[Path]:
    skipped = {"build", "dist", "site", "__pycache__", "runs", "defended-demo"}
    suffixes = {".py", ".md", ".toml", ".yml", ".yaml", ".html", ".json", ".csv", ".ipynb", ".cfg", ""}
    found = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [
            name
            for name in names
            if name not in skipped and not name.endswith(".egg-info") and (name == ".ci" or not name.startswith("."))
        ]
        # Where the project is a linked worktree, `.git` is a file that holds a path.
        found += [Path(folder) / name for name in files if Path(name).suffix in suffixes and name != ".git"]
    return found


def test_no_text_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w./])/(?:work|farm|root|home|tmp|Users)/\w")
    hits = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(ROOT)}: {line.strip()[:80]}" for line in text.splitlines() if pattern.search(line)]
    assert not hits
