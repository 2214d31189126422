"""`defended serve`."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Annotated

import typer

from defended_cli.common import load_tensorflow
from defended_cli.config import Config

_LABEL = re.compile(r"([^/=]+)/([^/=]+)=([1-9][0-9]{0,18})")


def serve(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of NAME/VERSION artefacts, or one model's folder.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but loopback takes --certificate, --key and --token-file.")
    ] = "127.0.0.1",
    rest_port: Annotated[int, typer.Option(min=-1, max=65535, help="Of REST; 0: a free one, -1: none.")] = 8501,
    grpc_port: Annotated[int, typer.Option(min=-1, max=65535, help="Of gRPC; 0: a free one, -1: none.")] = 8500,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="The server's certificate chain, for TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Its private key.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the bearer token that every request must carry.")
    ] = None,
    default_signature_only: Annotated[
        bool | None,
        typer.Option(
            "--default-signature-only/--all-signatures",
            help="Keep back the signature audit, whose radii help attackers; without either flag it is offered on "
            "loopback only.",
        ),
    ] = None,
    versions: Annotated[int, typer.Option(min=1, help="Serve the so many largest versions of a model that load.")] = 1,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME/LABEL=VERSION", help="Name a version; may be given again.")
    ] = None,
    poll_seconds: Annotated[float, typer.Option(help="Look for new versions so often.")] = 2.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Merge waiting requests up to so many inputs.")] = 128,
    max_latency: Annotated[
        float, typer.Option(min=0.0, help="Seconds a request waits for others at most while the model is busy.")
    ] = 0.005,
    max_rows: Annotated[int, typer.Option(min=1, help="Inputs of one request.")] = 1024,
    max_queued_rows: Annotated[
        int, typer.Option(min=1, help="Inputs that may wait; further requests get 429 or RESOURCE_EXHAUSTED.")
    ] = 4096,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in work at a time; likewise.")] = 256,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Size of one request.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds to answer a request, 504 or DEADLINE_EXCEEDED after.")] = 30.0,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds a client may take to send a request and to receive its answer.")
    ] = 15.0,
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds that accepted requests get when the server is told to stop.")
    ] = 30.0,
    threads: Annotated[int, typer.Option(min=1, help="Model runs at a time.")] = 2,
    log: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Log requests and answers there, as PredictionLog TFRecords.")
    ] = None,
    log_sample: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the answers that are logged.")] = 1.0,
    log_inputs: Annotated[
        bool, typer.Option("--log-inputs/--log-verdicts-only", help="Whether the log holds the inputs.")
    ] = True,
    log_megabytes: Annotated[int, typer.Option(min=1, help="Size of one file of the log.")] = 64,
    log_files: Annotated[int, typer.Option(min=1, help="Files of the log that are kept.")] = 16,
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
    from defended.serving.server.settings import ServerSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = ServerSettings(
        directory,
        host=host,
        rest_port=None if rest_port < 0 else rest_port,
        grpc_port=None if grpc_port < 0 else grpc_port,
        certificate=certificate,
        key=key,
        token=None if token_file is None else read_token(token_file),
        audit_signature=None if default_signature_only is None else not default_signature_only,
        versions=versions,
        labels=read_labels(label or []),
        poll_seconds=poll_seconds,
        max_batch=max_batch,
        max_latency=max_latency,
        max_rows=max_rows,
        max_queued_rows=max_queued_rows,
        max_requests=max_requests,
        max_body=max_megabytes * 2**20,
        timeout=timeout,
        read_timeout=read_timeout,
        shutdown_timeout=shutdown_timeout,
        threads=threads,
    )
    request_log = (
        None if log is None else RequestLog(log, log_megabytes * 2**20, log_files, log_sample, keep_inputs=log_inputs)
    )
    server = Server(settings, request_log)

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
