"""A MkDocs hook: writes each command's own `--help` into the page that asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = "<!-- help pages -->"
COMMANDS = (
    "demo", "train", "attack", "certify", "export", "serve", "audit", "monitor", "keygen", "sign", "verify",
)  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by a section a command."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(
        MARK, "\n".join(f"## defended {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS)
    )


def help_of(name: str) -> str:
    """Return the help page of a command, plain, 90 columns wide."""
    environment = {**os.environ, "COLUMNS": "90", "TERM": "dumb", "NO_COLOR": "1"}
    command = Path(sys.executable).with_name("defended")
    run = subprocess.run([command, name, "--help"], capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in run.stdout.strip("\n").splitlines())
