"""Settings of a server: where it listens, what it serves, and the limits on hostile or numerous requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from defended.serving.server.security import check_exposure


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server; checked when they are made.

    Args:
        directory: a folder of `NAME/VERSION` artefacts, or one model's folder, whose children are versions.
        host: the address to listen on. Other machines reach the server only with `certificate`, `key` and `token`.
        rest_port: port of REST, 0 for a free one, None for no REST.
        grpc_port: port of gRPC, likewise.
        certificate: PEM file of the server's certificate chain, for TLS.
        key: PEM file of its private key.
        token: the bearer token that every request must carry, at least 16 characters.
        audit_signature: whether the signature `audit`, whose radii help attackers, is offered. None: on loopback only.
        versions: versions of a model served at once, the largest that load.
        labels: for each model, its labels and the versions that they name.
        poll_seconds: time between two looks at the folder.
        max_batch: inputs that requests are merged up to; a larger request runs by itself.
        max_latency: seconds after which a waiting request is run beside the batch that it waits for.
        max_rows: inputs that one request may hold.
        max_queued_rows: inputs that may wait for one signature; further requests are refused.
        max_requests: requests in work at a time; further ones are refused.
        max_body: bytes of one request.
        max_body_total: bytes of all requests being read or in work over REST.
        timeout: seconds a request may take, reading its body not included.
        read_timeout: seconds a client may take to send a request and to receive its answer.
        shutdown_timeout: seconds that accepted requests get when the server stops.
        threads: model runs at a time.

    Raises:
        ValueError: a limit that is not positive, a token that is short, or an address that other machines reach
            without TLS and a token.
    """

    directory: Path
    host: str = "127.0.0.1"
    rest_port: int | None = 8501
    grpc_port: int | None = 8500
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)
    audit_signature: bool | None = None
    versions: int = 1
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    poll_seconds: float = 2.0
    max_batch: int = 128
    max_latency: float = 0.005
    max_rows: int = 1024
    max_queued_rows: int = 4096
    max_requests: int = 256
    max_body: int = 32 * 2**20
    max_body_total: int = 256 * 2**20
    timeout: float = 30.0
    read_timeout: float = 15.0
    shutdown_timeout: float = 30.0
    threads: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        positive = (
            "versions", "poll_seconds", "max_batch", "max_rows", "max_queued_rows", "max_requests", "max_body",
            "max_body_total", "timeout", "read_timeout", "shutdown_timeout", "threads",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive. Received: {getattr(self, name)!r}.")
        if not self.max_latency >= 0:
            raise ValueError(f"`max_latency` must be a time in seconds. Received: {self.max_latency!r}.")
        if self.rest_port is None and self.grpc_port is None:
            raise ValueError("`rest_port` and `grpc_port` are both None: give one of them, or 0 for any free port.")
        check_exposure(self.host, self.certificate, self.key, self.token)
