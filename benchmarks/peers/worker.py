"""The worker's side of `peers`: answers calls, one line of JSON each, until its standard input ends."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def serve(packages: tuple[str, ...], functions: dict[str, Callable[..., Any]]) -> None:
    """Tell the packages' versions, then answer.

    What the package prints goes to standard error, so that standard output holds answers alone.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    tell({"value": ", ".join(f"{package} {version(package)}" for package in packages)})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            start = time.perf_counter()
            value = functions[question["function"]](**question["arguments"])
            tell({"value": value, "milliseconds": 1000 * (time.perf_counter() - start)})
        except Exception as error:  # whatever it is, the other side prints it
            tell({"error": f"{type(error).__name__}: {error}"})
