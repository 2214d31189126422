"""Run the blocks of `how-to/tools.md`, each tool in an environment of its own.

    python docs/try_tools.py [TOOL ...]

For each section a virtual environment gets this project and the packages of the section's `pip install`; then its
Python block runs there, behind the lines that all share, in a fresh folder. Some minutes and gigabytes for each; give
the names of sections to try these alone. Exits with 1 where one fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from run_pages import blocks

ROOT = Path(__file__).resolve().parents[1]


def sections() -> tuple[str, dict[str, tuple[list[str], str]]]:
    """The lines that all share; and for each tool its packages and its block."""
    first, *others = (ROOT / "docs" / "how-to" / "tools.md").read_text(encoding="utf-8").split("\n## ")
    (shared,) = blocks(first)
    found = {}
    for section in others:
        install, block = blocks(section)
        found[section.splitlines()[0]] = install.code.removeprefix("pip install").split(), block.code
    return shared.code, found


def tried(packages: list[str], code: str) -> int:
    """The exit code of a block in a new environment."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        python = home / "venv" / "bin" / "python"
        install = [python, "-m", "pip", "install", "-qq", str(ROOT), *packages]
        if status := subprocess.run(install, check=False).returncode:
            return status
        (home / "block.py").write_text(code, encoding="utf-8")
        return subprocess.run([python, "block.py"], cwd=home, check=False).returncode


def main() -> None:
    """Try all tools, or those named."""
    shared, tools = sections()
    failed = []
    for name in sys.argv[1:] or tools:
        packages, block = tools[name]
        print(f"== {name}", flush=True)
        if tried(packages, f"{shared}\n\n{block}"):
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else None)


if __name__ == "__main__":
    main()
