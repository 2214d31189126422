"""A MkDocs hook: writes each command's own `--help`, and the cards of the nets that ship, into the pages that ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = "<!-- help pages -->"
CARDS = "<!-- cards -->"
COMMANDS = (
    "demo", "train", "attack", "certify", "export", "serve", "audit", "monitor", "keygen", "sign", "verify",
)  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks by a section a command, and a section a net."""
    if MARK in markdown:
        pages = "\n".join(f"## defended {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS)
        return markdown.replace(MARK, pages)
    if CARDS in markdown:
        from defended.pretrained.cards import cards

        return markdown.replace(CARDS, cards())
    return markdown


def help_of(name: str) -> str:
    """Return the help page of a command, plain, 90 columns wide."""
    environment = {**os.environ, "COLUMNS": "90", "TERM": "dumb", "NO_COLOR": "1"}
    command = Path(sys.executable).with_name("defended")
    run = subprocess.run([command, name, "--help"], capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in run.stdout.strip("\n").splitlines())
