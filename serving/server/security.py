"""The token that requests carry, and TLS."""

from __future__ import annotations

import hmac
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


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


def grpc_credentials(certificate: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    """Return the credentials of gRPC's TLS, None for plain HTTP/2."""
    if certificate is None or key is None:
        return None
    import grpc

    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
