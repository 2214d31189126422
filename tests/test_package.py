"""The packaging: what is installed, what may import what, and what the project's text may not say."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
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


def packages_of_setup() -> dict[str, str]:
    """Read the mapping out of setup.py without running it."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "PACKAGES":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py defines no PACKAGES")


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


def imported_modules(path: Path, module: str) -> set[str]:
    """Return the absolute names that a file imports, those inside functions too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names.update({source} | {f"{source}.{alias.name}" for alias in node.names})
    return names


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
