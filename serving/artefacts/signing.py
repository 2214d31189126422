"""Signed manifests: proof of who exported an artefact, by an Ed25519 key that need not be on the serving machine.

The manifest lists the hash of every file, so a signature of the manifest's bytes covers the artefact. It lies beside
the manifest in a file of its own, which TensorFlow Serving ignores, so an artefact can be signed later and
elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defended._io import atomic_write_text, canonical_json
from defended.exceptions import SignatureError
from defended.serving.artefacts.manifest import MANIFEST, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSPHRASE = "DEFENDED_SIGNING_PASSPHRASE"  # noqa: S105  (the variable's name)

# What is signed begins with this, so a signature of anything else by the same key does not pass for a manifest's.
_CONTEXT = b"defended manifest, ed25519, 1\n"
_MOST_BYTES = 10_000


def generate_key(path: str | os.PathLike[str], passphrase: str | None = None) -> tuple[Path, Path]:
    """Make a key pair: the private key at `path`, readable by its owner only, the public one at `path` + `.pub`.

    Both are PEM files. Keep the private one where nothing is served.

    Args:
        path: where the private key goes; nothing is overwritten.
        passphrase: encrypts the private key; signing then reads it from the variable `DEFENDED_SIGNING_PASSPHRASE`.

    Raises:
        FileExistsError: one of the files exists.
        ImportError: the extra is not installed: `pip install 'keras-defended[signing]'`.
    """
    serialization, ed25519 = _cryptography()
    private, public = Path(path), Path(f"{os.fspath(path)}.pub")
    key = ed25519.Ed25519PrivateKey.generate()
    hidden = serialization.NoEncryption()
    if passphrase:
        hidden = serialization.BestAvailableEncryption(passphrase.encode())
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for file in (private, public):
        if os.path.lexists(file):
            raise FileExistsError(errno.EEXIST, "exists and is never overwritten: choose another name", str(file))
    private.parent.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    try:
        for file, content, mode in ((private, secret, 0o600), (public, shown, 0o644)):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(file)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
    except BaseException:  # half a key pair is useless
        for file in made:
            file.unlink(missing_ok=True)
        raise
    return private, public


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of a public key's 32 bytes: its name in messages."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:32]


def sign(artefact: str | os.PathLike[str], signing_key: str | os.PathLike[str]) -> Path:
    """Sign the manifest of an artefact; an earlier signature is replaced.

    Args:
        artefact: the artefact's directory. Verify it first: a signature says that you did.
        signing_key: PEM file of an Ed25519 private key, as `defended keygen` makes it.

    Returns:
        The signature's file, `manifest.json.sig` in the artefact.

    Raises:
        ValueError: the file is not such a key, or its passphrase is missing or wrong.
        ImportError: the extra is not installed: `pip install 'keras-defended[signing]'`.
    """
    key = read_signing_key(signing_key)
    content = (Path(artefact) / MANIFEST).read_bytes()
    return atomic_write_text(Path(artefact) / SIGNATURE, signature_of(content, key))


def signature_of(manifest: bytes, key: Ed25519PrivateKey) -> str:
    """Return the content of the signature's file, for a manifest's bytes."""
    return canonical_json(
        {
            "algorithm": "ed25519",
            "key": key_fingerprint(key.public_key()),
            "signature": base64.b64encode(key.sign(_CONTEXT + manifest)).decode(),
        }
    )


def verify_signature(directory: Path, manifest: bytes, public_key: str | os.PathLike[str]) -> None:
    """Check that the manifest's bytes were signed by the owner of a key.

    Args:
        directory: the artefact's directory.
        manifest: the bytes that were read from its manifest.
        public_key: PEM file of an Ed25519 public key, kept apart from the artefact.

    Raises:
        SignatureError: the owner did not sign them, or there is no signature.
        ValueError: the file is not such a key.
    """
    from cryptography.exceptions import InvalidSignature

    key = read_public_key(public_key)
    path = directory / SIGNATURE
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise ValueError("it is not a small regular file")
        content = json.loads(path.read_text(encoding="utf-8"))
        signature = base64.b64decode(content["signature"], validate=True)
        named = str(content["key"])
    except FileNotFoundError:
        raise SignatureError(
            f"{directory} is not signed: it has no {SIGNATURE}. Have it signed by whoever exported it (`defended "
            "sign`), or load it without `public_key`."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise SignatureError(f"{path} is not a signature ({error}). Fetch the artefact again.") from error
    try:
        key.verify(signature, _CONTEXT + manifest)
    except InvalidSignature:
        own = key_fingerprint(key)
        why = (
            f"it names the key {named[:64]}, you gave {own}" if named != own else "the manifest was changed afterwards"
        )
        raise SignatureError(
            f"{path} does not hold for this manifest and key: {why}. Do not serve it; fetch the artefact again."
        ) from None


def read_signing_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """Read an Ed25519 private key from a PEM file.

    Raises:
        ValueError: the file is not such a key, or its passphrase is missing or wrong.
    """
    serialization, ed25519 = _cryptography()
    passphrase = os.environ.get(PASSPHRASE)

    def read(content: bytes) -> Any:
        password = passphrase.encode() if passphrase and b"ENCRYPTED" in content else None
        return serialization.load_pem_private_key(content, password)

    what = f"private key, as `defended keygen` makes it, its passphrase, if it has one, in {PASSPHRASE}"
    return _read_key("signing_key", what, path, read, ed25519.Ed25519PrivateKey)


def read_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Read an Ed25519 public key from a PEM file.

    Raises:
        ValueError: the file is not such a key.
    """
    serialization, ed25519 = _cryptography()
    what = "public key, the `.pub` that `defended keygen` makes"
    return _read_key("public_key", what, path, serialization.load_pem_public_key, ed25519.Ed25519PublicKey)


def _read_key(argument: str, what: str, path: str | os.PathLike[str], read: Callable[[bytes], Any], kind: type) -> Any:
    try:
        key = read(Path(path).read_bytes())
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{argument}` must be a PEM file of an Ed25519 {what}. {os.fspath(path)}: {error}") from error
    if not isinstance(key, kind):
        raise ValueError(f"`{argument}` must be an Ed25519 key. {os.fspath(path)} holds a {type(key).__name__}.")
    return key


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ImportError(
            "Signatures need cryptography. Install it with `pip install 'keras-defended[signing]'`."
        ) from error
    return serialization, ed25519
