"""Other people's packages, timed in turn with ours: each in a process of its own, in the environment that has it.

`start("gloro", ...)` runs `gloro_worker.py` with the interpreter that `DEFENDED_GLORO_PYTHON` names, or else
`DEFENDED_PEERS_PYTHON`, or else with this one. The process imports the package, prepares what it will be asked for, and
then waits; it works only while it is asked, so that calls of both sides can alternate. A question is a line of JSON
with a function's name and its arguments, the answer a line with its value and the milliseconds that it took inside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

BENCHMARKS = Path(__file__).resolve().parents[1]


def start(name: str, **arguments: Any) -> Peer | None:
    """The peer, prepared with these arguments; None, and a printed line with the reason, where it does not run here."""
    python = interpreter(name)
    peer = Peer(name, python)
    try:
        peer.begin()
        peer.ask("prepare", **arguments)
    except (PeerError, OSError) as error:
        print(f"{name}, left out (by {python}): {error}", flush=True)
        peer.close()
        return None
    return peer


def interpreter(name: str) -> str:
    """The interpreter that runs a peer: its own variable's, that for all of them, or this one."""
    own = os.environ.get(f"DEFENDED_{name.upper()}_PYTHON")
    return own or os.environ.get("DEFENDED_PEERS_PYTHON") or sys.executable


def version(name: str, package: str) -> str:
    """A package's version in the environment of a peer, as text that says so where there is none."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    try:
        told = subprocess.run([interpreter(name), "-c", code, package], capture_output=True, text=True)
    except OSError:
        return f"{package} not installed"
    return f"{package} {told.stdout.strip() or 'not installed'}"


def save_network(path: Path, network: Any, images: Any) -> str:
    """Write a Keras network's weights and images for a worker; the path, as it is passed on."""
    weights = {f"weight_{number}": weight for number, weight in enumerate(network.get_weights())}
    np.savez(path, images=images, **weights)
    return str(path.resolve())


class PeerError(RuntimeError):
    """A peer that could not be started, or that answered with an error."""


class Peer:
    """A worker process; `ask` calls a function of it, `milliseconds` times one."""

    versions: str  # of the packages that it measures

    def __init__(self, name: str, python: str) -> None:
        self._command = [python, "-m", f"peers.{name}_worker"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  what it writes beside its answers, until it is closed
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Start the process, and wait until the package is imported."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            cwd=BENCHMARKS, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        self.versions = str(self._answer()["value"])

    def ask(self, function: str, **arguments: Any) -> Any:
        """The value of a function of the worker."""
        return self._call(function, arguments)["value"]

    def milliseconds(self, function: str, **arguments: Any) -> float:
        """Milliseconds that a call took, clocked by the worker, so that the way there and back does not count."""
        return float(self._call(function, arguments)["milliseconds"])

    def close(self) -> None:
        """End the process: it ends when nothing more can be asked."""
        if self._process is not None:
            self._process.communicate()
        self._said.close()

    def _call(self, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"function": function, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer below says how it ended
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()
            raise PeerError(said[-1] if said else f"it ended with exit code {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer
