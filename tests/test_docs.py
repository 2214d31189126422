"""Code of pages is found, run and compared as `docs/run_pages.py` says; `make pages` runs the documentation itself."""

import importlib.util
import re
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("run_pages", ROOT / "docs" / "run_pages.py")
run_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_pages)

PAGE = """# A page

```python
name = "world"
```

Between them, words.

```python
print(f"hello {name} {12.5:.1f} %")
```

```text
hello world 99.0 %
```

```toml title="limits.toml"
[conditions]
```

```sh
cat limits.toml
```

```text
[conditions]
```

<!-- not run: needs docker -->
```sh
docker compose up
```

```text
a formula, which is no output
```

```toml
alone = true
```
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a page's text in an empty folder; give the exit code and what was printed."""
    monkeypatch.setattr(run_pages, "ROOT", tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")

    def run(text):
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        return run_pages.run_here(page, show=False), capsys.readouterr().out

    return run


def test_blocks_of_a_page():
    found = run_pages.blocks(PAGE)
    assert [(block.number, block.language, block.line) for block in found] == [
        (1, "python", 4), (2, "python", 10), (3, "toml", 18), (4, "sh", 22), (5, "sh", 31),
    ]  # fmt: skip
    assert [block.title for block in found] == [None, None, "limits.toml", None, None]
    assert [block.output for block in found[:4]] == [None, "hello world 99.0 %\n", None, "[conditions]\n"]
    assert [block.reason for block in found] == [None, None, None, None, "needs docker"]


def test_a_page_runs_from_top_to_bottom(run, tmp_path):
    assert run(PAGE) == (0, "")
    assert (tmp_path / "folder" / "limits.toml").read_text() == "[conditions]\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (PAGE.replace('name = "world"', 'other = "world"'), 10, "NameError"),
        (PAGE.replace("cat limits.toml", "false\necho on"), 22, "exit code 1"),
        (PAGE.replace("cat limits.toml", "defended-nothing"), 22, "exit code 127"),
        (PAGE.replace("hello world 99.0 %", "hello there 99.0 %"), 10, "hello there"),
        (
            PAGE.replace("<!-- not run: needs docker -->\n", "").replace("docker compose up", "exit 3"),
            30,
            "exit code 3",
        ),
    ],
)
def test_a_failure_names_page_block_and_line(run, text, line, says):
    code, printed = run(text)
    assert code == 1
    assert re.search(rf"^page.md, block \d \((python|sh)\), line {line}: ", printed)
    assert says in printed


def test_what_is_left_in_the_background_is_stopped(run, tmp_path):
    assert run("```sh\nsleep 600 &\necho $! > pid\n```\n") == (0, "")
    status = Path("/proc", (tmp_path / "folder" / "pid").read_text().strip(), "stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"{status} is a running process")


@pytest.mark.parametrize(
    ("expected", "received", "same"),
    [
        ("rate 1.0 %", "rate  97.25 %", True),
        ("rate 1.0 %", "share 1.0 %", False),
        ("[0.1, 0.2] of 1,797", "[12.1, 1e-3] of 360", True),
        ("[ 86.11,  97.14]", "[ 9.10, 100.00]", True),
        ("[ 86.11,  97.14]", "[100.00, 100.00]", True),
        ("a  b\n----\n1  2", "a b\n1 2", True),
        ('{"label":…,"scores":[…]}', '{"label":-1,"scores":[-0.93709,1.1]}', True),
        ("first\n…\nlast", "first\nsecond\nthird\nlast", True),
        ("first\n…\nlast", "first\nlast", True),
        ("first\nlast", "first\nsecond\nlast", False),
        ("first", "first\nsecond", False),
        ("first\nsecond", "first", False),
        ("written to … at once", "written to /a/b at once", True),
        ("True", "False", False),
    ],
)
def test_numbers_may_differ_and_words_may_not(expected, received, same):
    assert (run_pages.difference(expected, received) is None) is same


def test_every_mark_stands_directly_above_a_block():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall("^<!-- not run", text, re.MULTILINE)) == len(
            [block for block in run_pages.blocks(text) if block.reason]
        ), page


def test_the_home_page_shows_the_readmes_lines():
    readme, home = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/index.md"))
    (code,) = [block.code for block in run_pages.blocks(readme) if block.language == "python"]
    assert code in [block.code for block in run_pages.blocks(home)]
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_into_the_repository_exist(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_home_page_shows_the_readmes_table():
    readme, home = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/index.md"))
    (table,) = re.findall(r"^\| \| trained at ε .*?(?=^$)", readme, re.DOTALL | re.MULTILINE)
    assert table in home
