"""Who may reach a server: loopback by default, elsewhere only with TLS and a token."""

from __future__ import annotations

import hmac
import ssl
from pathlib import Path
from typing import Any

from defended.serving.clients.transports import is_loopback

_SHORTEST_TOKEN = 16


def check_exposure(host: str, certificate: Path | None, key: Path | None, token: str | None) -> None:
    """Refuse an address that other machines would reach without TLS and a token.

    Raises:
        ValueError: TLS or the token is missing, or they do not fit together.
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


def read_token(path: Path) -> str:
    """Return the token that a file holds, without the white space around it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text.
    """
    try:
        return path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must hold a token of ASCII characters and nothing else.") from error


def bearer_is(token: str | None, header: str | bytes | None) -> bool:
    """Return whether an `Authorization` header carries the token, in time that does not reveal how much of it fits."""
    if token is None:
        return True
    given = header if isinstance(header, bytes) else (header or "").encode("utf-8", "surrogateescape")
    scheme, _, value = given.strip().partition(b" ")
    fits = hmac.compare_digest(value.strip(), token.encode())
    return scheme.lower() == b"bearer" and fits


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the context of REST's TLS, None for plain HTTP."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def grpc_credentials(certificate: Path | None, key: Path | None) -> Any:
    """Return the credentials of gRPC's TLS, None for plain HTTP/2."""
    if certificate is None or key is None:
        return None
    import grpc

    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
