"""Execute the notebooks and keep their outputs.

`python notebooks/run.py` executes all of them and writes the outputs back; with names, these. With `--check` the files
stay as they are, and an error in a cell is an error here. A notebook that needs a data set that is not in the folder
DEFENDED_DATA (its metadata say so: `{"defended": {"data": ["gtsrb"]}}`) is left out, and that is said.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from defended._io import atomic_write_text

FOLDER = Path(__file__).parent


def main() -> None:
    """Execute what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="leave the notebooks as they are")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    paths = sorted(FOLDER.glob("*.ipynb"))
    chosen = [path for path in paths if not arguments.names or path.stem in arguments.names]
    if len(chosen) < len(arguments.names) or not chosen:
        parser.error(f"no such notebook; there are {', '.join(path.stem for path in paths)}")
    with tempfile.TemporaryDirectory() as folder:
        for path in chosen:
            start = time.perf_counter()
            notebook = nbformat.read(path, as_version=4)
            if absent := missing(notebook):
                print(f"{path.stem}: LEFT OUT, {' and '.join(absent)} not in the folder that DEFENDED_DATA names")
                continue
            NotebookClient(
                notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
            ).execute()
            if not arguments.check:
                tidy(notebook)
                text = nbformat.writes(notebook)
                for variable in ("DEFENDED_DATA", "DEFENDED_REFERENCE"):
                    text = text.replace(os.environ.get(variable) or "\0", f"${variable}")
                atomic_write_text(path, text + "\n")
            print(f"{path.stem}: {time.perf_counter() - start:.0f} s")


def missing(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the data sets that a notebook needs and that are not here."""
    folder = os.environ.get("DEFENDED_DATA")
    needed = notebook.metadata.get("defended", {}).get("data", [])
    return [name for name in needed if not (folder and (Path(folder) / f"{name}.npz").is_file())]


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave out what differs between two runs without a reason: times, and what libraries say of themselves."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                out
                for out in cell.outputs
                if out.get("name") != "stderr" and not str(out.get("text", "")).startswith("INFO:tensorflow")
            ]


if __name__ == "__main__":
    main()
