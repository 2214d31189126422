"""The command `defended`: it parses, calls the library and prints.

`setup.py` installs this folder as `defended_cli`, beside `defended` and not below it: importing a module imports its
parent packages first, and `defended` imports TensorFlow, which takes seconds that a help page and a mistyped option
should not cost. For the same reason the commands import the library inside their functions.
"""

if __name__ != "defended_cli":
    raise ImportError(f"import defended_cli, not {__name__}: setup.py installs serving/cli under that name")

import os
import sys

from defended_cli.app import app
from defended_cli.attack import attack
from defended_cli.audit import audit
from defended_cli.certify import certify
from defended_cli.demo import demo
from defended_cli.diagnose import diagnose
from defended_cli.export import export
from defended_cli.monitor import monitor
from defended_cli.reproduce import reproduce
from defended_cli.serve import serve
from defended_cli.signing import keygen, sign, verify
from defended_cli.train import train

__all__ = ["app", "main"]

_COMMANDS = (
    demo, diagnose, train, attack, certify, export, serve, audit, monitor, keygen, sign, verify, reproduce,
)  # fmt: skip

for _command in _COMMANDS:
    app.command()(_command)


def main() -> None:
    """Run the command; the process leaves with its exit code."""
    # TensorFlow describes its build and the CPU on every start; warnings of consequence and errors still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if sys.argv[1:2] == ["train"]:  # TensorFlow leaves oneDNN off on other makers' CPUs, and trains at half the speed
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    sys.exit(app(prog_name="defended"))
