"""The notebooks as they are shipped: executed, without errors, and free of the machine that ran them."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shipped_with_outputs(path):
    text = path.read_text(encoding="utf-8")
    for folder in ("work", "tmp", "root", "home"):
        assert f"/{folder}/" not in text
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    # Pictures come first: the first code cell draws one.
    assert any("image/png" in output.get("data", {}) for cell in code[:2] for output in cell["outputs"])


def test_links_between_them_hold():
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            for target in [part.split(")")[0] for part in text.split("](")[1:]]:
                assert target.startswith("http") or (FOLDER / target).exists(), f"{path.name}: {target}"
