"""`defended serve`."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from defended_cli.common import argument, flag, load_tensorflow, option
from defended_cli.config import Config
from defended_cli.options import options_from
from defended_settings.server import ServerSettings

_LABEL = re.compile(r"([^/=]+)/([^/=]+)=([1-9][0-9]{0,18})")


def port(protocol: str) -> Any:
    """Return the option for a protocol's port."""
    return option(f"Port of {protocol}; 0: a free one, -1: none.", min=-1, max=65535)


@options_from(
    ServerSettings,
    instead={
        "directory": "directory", "rest_port": "rest_port", "grpc_port": "grpc_port", "token": "token_file",
        "audit_signature": "default_signature_only", "labels": "label", "max_body": "max_megabytes",
        "max_body_total": None,
    },
)  # fmt: skip
def serve(
    settings: dict[str, Any],
    directory: Annotated[Path, argument("A folder of NAME/VERSION artefacts, or one model's folder.", "DIR")],
    rest_port: Annotated[int, port("REST")] = ServerSettings.rest_port or -1,
    grpc_port: Annotated[int, port("gRPC")] = ServerSettings.grpc_port or -1,
    token_file: Annotated[Path | None, option("Holds the bearer token that every request must carry.", "FILE")] = None,
    default_signature_only: Annotated[
        bool | None,
        flag(
            "--default-signature-only/--all-signatures",
            "Keep back the signature audit, whose radii help attackers; without either flag it is offered on "
            "loopback only.",
        ),
    ] = None,
    label: Annotated[list[str] | None, option("Name a version; may be repeated.", "NAME/LABEL=VERSION")] = None,
    max_megabytes: Annotated[int, option("Size of one request.", min=1)] = ServerSettings.max_body // 2**20,
    log: Annotated[Path | None, option("Log requests and answers there, as PredictionLog TFRecords.", "DIR")] = None,
    log_sample: Annotated[float, option("Share of the answers that are logged.", min=0.0, max=1.0)] = 1.0,
    log_inputs: Annotated[bool, flag("--log-inputs/--log-verdicts-only", "Whether the log holds the inputs.")] = True,
    log_megabytes: Annotated[int, option("Size of one file of the log.", min=1)] = 64,
    log_files: Annotated[int, option("Files of the log that are kept.", min=1)] = 16,
    config: Config = None,
) -> None:
    """Serve exported models over TensorFlow Serving's REST and gRPC APIs, with `/metrics` for Prometheus.

    For development, tests and small sites; production is TensorFlow Serving itself, over the same folder. Each version
    is verified against its manifest before it is loaded; new versions are picked up while the server runs, and one that
    is half written or was tampered with is refused. SIGTERM ends it, after what was accepted is answered.

    ```
    defended serve models
    defended serve models --versions 2 --label digits/canary=3 --log requests
    defended serve models --host 0.0.0.0 --certificate cert.pem --key key.pem --token-file token
    ```
    """
    load_tensorflow()

    from defended.serving.clients.request_log import RequestLog
    from defended.serving.server.app import Server, serve_until_told
    from defended.serving.server.security import read_token

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    chosen = ServerSettings(
        directory,
        rest_port=None if rest_port < 0 else rest_port,
        grpc_port=None if grpc_port < 0 else grpc_port,
        token=None if token_file is None else read_token(token_file),
        audit_signature=None if default_signature_only is None else not default_signature_only,
        labels=read_labels(label or []),
        max_body=max_megabytes * 2**20,
        **settings,
    )
    request_log = (
        None if log is None else RequestLog(log, log_megabytes * 2**20, log_files, log_sample, keep_inputs=log_inputs)
    )
    server = Server(chosen, request_log)

    def say_where() -> None:
        for name in server.store.names:
            if server.rest_port is not None:
                typer.echo(f"{server.rest_url}/v1/models/{name}:predict")
            if server.grpc_port is not None:
                typer.echo(f"{server.grpc_url}/{name}")
        if server.rest_port is not None:
            typer.echo(f"{server.rest_url}/metrics")

    asyncio.run(serve_until_told(server, say_where))


def read_labels(texts: list[str]) -> dict[str, dict[str, int]]:
    """Return the labels of each model, from `NAME/LABEL=VERSION`."""
    found: dict[str, dict[str, int]] = {}
    for text in texts:
        match = _LABEL.fullmatch(text)
        if match is None:
            raise ValueError(f"`--label` must be NAME/LABEL=VERSION, such as digits/canary=3. Received: {text!r}.")
        found.setdefault(match[1], {})[match[2]] = int(match[3])
    return found
