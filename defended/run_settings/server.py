"""Settings of a server: where it listens, what it serves, and the limits on hostile or many requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from defended_settings.addresses import is_loopback
from defended_settings.fields import Count, NotNegative, Placeholder, Positive, settings_of

_SHORTEST_TOKEN = 16

PemFile = Annotated[Path | None, Placeholder("FILE.pem")]


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server, checked when they are made; most are options of `defended serve`.

    Raises:
        ValueError: for a limit that is not positive, a token that is short, or an address that other machines reach
            without TLS and a token.
    """

    directory: Path
    """A folder of `NAME/VERSION` artefacts, or one model's folder, whose children are versions."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but loopback needs --certificate, --key and --token-file."""
    rest_port: int | None = 8501
    """Port of REST, 0 for a free one, None for no REST."""
    grpc_port: int | None = 8500
    """Port of gRPC, likewise."""
    certificate: PemFile = None
    """The server's certificate chain, for TLS."""
    key: PemFile = None
    """Its private key."""
    token: str | None = field(default=None, repr=False)
    """The bearer token that every request must carry, at least 16 characters."""
    audit_signature: bool | None = None
    """Whether the signature `audit`, whose radii help attackers, is offered. None: on loopback only."""
    versions: Count = 1
    """Serve this many of a model's versions, the largest that load."""
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """For each model, its labels and the versions that they name."""
    poll_seconds: Positive = 2.0
    """Seconds between two looks for new versions."""
    max_batch: Count = 128
    """Merge waiting requests up to this many inputs."""
    max_latency: NotNegative = 0.005
    """Seconds that a request waits for others at most while the model is busy."""
    max_rows: Count = 1024
    """Inputs of one request."""
    max_queued_rows: Count = 4096
    """Inputs that may wait; further requests get 429 or RESOURCE_EXHAUSTED."""
    max_requests: Count = 256
    """Requests in work at a time; further ones likewise."""
    max_body: Count = 32 * 2**20
    """Bytes of one request."""
    max_body_total: Count = 256 * 2**20
    """Bytes of all requests being read or in work over REST."""
    timeout: Positive = 30.0
    """Seconds to answer a request, after which it gets 504 or DEADLINE_EXCEEDED."""
    read_timeout: Positive = 15.0
    """Seconds a client may take to send a request and to receive its answer."""
    shutdown_timeout: Positive = 30.0
    """Seconds that accepted requests get when the server is told to stop."""
    reject_out_of_range: bool = False
    """Refuse inputs that lie outside of the range of training by more than epsilon; otherwise they are counted and
    logged."""
    threads: Count = 2
    """Model runs at a time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        for setting in settings_of(ServerSettings):
            setting.check(getattr(self, setting.name))
        if self.rest_port is None and self.grpc_port is None:
            raise ValueError("`rest_port` and `grpc_port` are both None: give one of them, or 0 for any free port.")
        check_exposure(self.host, self.certificate, self.key, self.token)


def check_exposure(host: str, certificate: Path | None, key: Path | None, token: str | None) -> None:
    """Refuse to listen where other machines connect without TLS and a token.

    Raises:
        ValueError: where they are missing, or do not fit together.
    """
    if (certificate is None) != (key is None):
        raise ValueError("TLS takes both files: give `certificate` and `key`, or neither.")
    if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ValueError(
            f"`token` must be at least {_SHORTEST_TOKEN} printable ASCII characters, drawn at random, such as the "
            "output of: python -c 'import secrets; print(secrets.token_urlsafe(32))'."
        )
    missing = [name for name, value in (("certificate", certificate), ("key", key), ("token", token)) if value is None]
    if missing and not is_loopback(host):
        raise ValueError(
            f"`host` {host!r} is reached from other machines, so TLS and a bearer token are needed; missing: "
            f"{', '.join(missing)}. Give them, or listen on 127.0.0.1."
        )
