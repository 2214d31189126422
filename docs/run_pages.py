"""Run the code blocks of the documentation, page by page, exactly as they are printed.

`python docs/run_pages.py` runs all pages that have code, with names (`tutorial`, `docs/how-to/wrap.md`) these. Each
page is a program of its own: a new process in a new, empty folder, which does not know the folder DEFENDED_DATA.
`--show` prints what each block wrote, to be put behind it.

- `python` blocks share one namespace, from top to bottom.
- `sh` blocks run where they stand, by `bash -e`. What they leave in the background is stopped at the end of the page.
- Blocks of other languages with a title (```` ```toml title="limits.toml" ````) are written to the file of that name.
- A `text` block directly behind a block is what that block writes to standard output. Numbers may have other values,
  and spaces, rules of tables and empty lines may differ; everything else must be the same. `…` in a line stands for any
  text, and as a line for any lines.
- A block behind `<!-- not run: REASON -->` is counted and left out.

The exit code is 1 if a block failed; each failure names page, block and line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ON_PATH = Path(sys.executable).parent  # where the command `defended` is
SECONDS = 900  # for a page; a page should take one minute of one core
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?[^\n]*\n(?P<code>.*?)^```$'
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"[-−+]?\d+(?:,\d{3}(?!\d))*(?:\.\d+)?(?:[eE][-+]?\d+)?|\bnan\b")
RULES = re.compile(r"[-=+|─━┃│┏┓┗┛┡┩╇┳┴┬┼├┤└┘┌┐═]+")


class Block(NamedTuple):
    """A code block of a page: its number and its first line of code there, and what is to be done with it."""

    number: int
    line: int
    language: str
    title: str | None
    code: str
    reason: str | None
    output: str | None


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page that are code or files, in order, each with the output expected of it."""
    found: list[Block] = []
    for match in FENCE.finditer(text):
        language = match["language"]
        if language in ("python", "sh") or match["title"]:
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(
                Block(len(found) + 1, line, language, match["title"], match["code"], match["reason"], match["output"])
            )
    return found


def difference(expected: str, received: str) -> str | None:
    """Return how an output differs from the expected one, numbers, spaces and rules aside; None where it does not."""
    lines = plain(received)
    pattern = ""
    for line in plain(expected):
        pattern += r"(?:[^\n]*\n)*" if line == "…" else re.escape(line).replace("…", r"[^\n]*") + r"\n"
        if not re.match(pattern, "".join(f"{line}\n" for line in lines)):
            return f"expected the line\n    {line}\nof the output, which is\n{received}"
    if not re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)):
        return f"the output has further lines:\n{received}"
    return None


def plain(text: str) -> list[str]:
    """Return the lines that say something, with `0` for every number and single spaces."""
    bare = (RULES.sub(" ", NUMBER.sub("0", line)) for line in text.splitlines())
    lines = (" ".join(re.sub(r"\[ +", "[", line).split()) for line in bare)
    return [line for line in lines if line]


def run_block(page: Path, block: Block, names: dict[str, object], started: list[int]) -> str:
    """Run a block in the current folder and return what it wrote to standard output."""
    if block.title:
        Path(block.title).write_text(block.code, encoding="utf-8")
        return ""
    if block.language == "sh":
        return run_shell(block.code, started)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)  # noqa: S102  (the project's own text)
    return written.getvalue()


def run_shell(code: str, started: list[int]) -> str:
    """Run shell lines in a session of their own, whose processes may go on in the background; return their output."""
    with tempfile.TemporaryFile("w+") as written, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            ["bash", "-e", "-c", code],  # noqa: S607
            stdout=written,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(process.pid)
        status = process.wait()
        for file in (written, errors):
            file.seek(0)
        if status:
            said = f"{written.read()}{errors.read()}".rstrip().splitlines()
            raise RuntimeError("\n".join([f"exit code {status}, behind these lines:", *said[-20:]]))
        return written.read()


def run_here(page: Path, show: bool) -> int:
    """Run a page in this process and its folder; print the failure of a block, and return 1 then."""
    names: dict[str, object] = {"__name__": "__main__"}
    started: list[int] = []
    try:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.reason:
                continue
            try:
                written = run_block(page, block, names, started)
                if show and written:
                    print(f"block {block.number}, line {block.line}:\n{written}", flush=True)
                wrong = None if block.output is None else difference(block.output, written)
            except BaseException as error:
                inner = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(page)]
                line = inner[-1].lineno if inner else block.line
                shown = str(error) if block.language == "sh" else "".join(traceback.format_exception(error))
                return failed(page, block, line, shown)
            if wrong:
                return failed(page, block, block.line, wrong)
    finally:
        for session in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(session, signal.SIGTERM)
    return 0


def failed(page: Path, block: Block, line: int | None, why: str) -> int:
    """Print which block of a page failed and why, and return 1."""
    print(f"{page.relative_to(ROOT)}, block {block.number} ({block.language}), line {line}: {why.rstrip()}")
    return 1


def run_page(page: Path, show: bool) -> bool:
    """Run a page in a new process and an empty folder; print what came of it, and return whether it passed."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("DEFENDED_")}
    environment |= {"PATH": f"{ON_PATH}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "Agg", "COLUMNS": "120"}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+", dir=folder) as errors,
    ):
        process = subprocess.Popen(
            [sys.executable, __file__, "--here", str(page), *(["--show"] if show else [])],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            written = process.communicate(timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # so that it says where it was, and stops what it started
            written = process.communicate()[0] + f"{page.relative_to(ROOT)} took more than {SECONDS} seconds\n"
        if process.returncode and not written:
            errors.seek(0)
            written = f"{page.relative_to(ROOT)}: its process ended with {process.returncode}\n{errors.read()}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    of_page = blocks(page.read_text(encoding="utf-8"))
    left_out = [block.reason for block in of_page if block.reason]
    verdict = "FAILED" if process.returncode else "passed"
    print(
        f"{verdict}  {page.relative_to(ROOT)}: {len(of_page) - len(left_out)} blocks, "
        f"{time.perf_counter() - start:.0f} s, {cpu:.0f} s of one core"
        + (f"; {len(left_out)} not run ({'; '.join(dict.fromkeys(left_out))})" if left_out else ""),
        flush=True,
    )
    if process.returncode or show:
        print(written.rstrip(), flush=True)
    return process.returncode == 0


def all_pages() -> list[Path]:
    """Return the README and every page of the documentation that has blocks to run."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if blocks(page.read_text(encoding="utf-8"))]


def main() -> int:
    """Run what the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PAGE", help="a page's path, or its name without folder and .md")
    parser.add_argument("--show", action="store_true", help="print what each block wrote to standard output")
    parser.add_argument("--here", metavar="PAGE", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        return run_here(arguments.here.resolve(), arguments.show)
    pages = all_pages()
    chosen = [page for page in pages if named(page, arguments.names)]
    if not chosen or len(chosen) < len(arguments.names):
        parser.error(f"no such page with code; there are {', '.join(page.stem for page in pages)}")
    results = [run_page(page, arguments.show) for page in chosen]
    reasons = [block.reason for page in chosen for block in blocks(page.read_text(encoding="utf-8")) if block.reason]
    print(f"{sum(results)} of {len(chosen)} pages passed; {len(reasons)} blocks are marked as not run")
    return 0 if all(results) else 1


def named(page: Path, names: list[str]) -> bool:
    """Return whether a page is one of those named, by path or by stem; all are where none is named."""
    return not names or page.stem in names or any(Path(name).resolve() == page for name in names)


if __name__ == "__main__":
    sys.exit(main())
