"""`defended keygen`, `defended sign` and `defended verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defended_cli.common import argument, flag, load_tensorflow, option

ArtefactFolder = Annotated[
    Path, argument("A directory that `defended export` wrote, NAME/VERSION at its end.", "ARTEFACT")
]


def keygen(
    key: Annotated[Path, argument("The private key; KEY.pub is made beside it.", "KEY")],
    passphrase: Annotated[
        bool, flag("--passphrase", "Ask for a passphrase, and encrypt the private key with it.")
    ] = False,
) -> None:
    """Make a key pair that signs artefacts (Ed25519).

    Keep KEY where nothing is served, and give KEY.pub to those who verify. With a passphrase, signing reads it from the
    variable DEFENDED_SIGNING_PASSPHRASE.

    ```
    defended keygen release.key
    defended export runs/digits/model.keras --name digits --sign release.key
    defended verify models/digits/1 --public-key release.key.pub
    ```
    """
    word = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if passphrase else None
    load_tensorflow()
    from defended import serving

    private, public = serving.generate_key(key, word)
    typer.echo(f"Private key: {private}")
    typer.echo(f"Public key:  {public}")


def sign(
    artefact: ArtefactFolder,
    key: Annotated[Path, option("The private key of `defended keygen`.", "KEY")],
) -> None:
    """Sign an artefact's manifest, and with it every file, after comparing them all.

    ```
    defended sign models/digits/1 --key release.key
    ```
    """
    load_tensorflow()
    from defended import serving

    serving.verify(artefact)
    typer.echo(f"Signature: {serving.sign(artefact, key)}")


def verify(
    artefact: ArtefactFolder,
    public_key: Annotated[Path | None, option("The key that must have signed the manifest.", "KEY.pub")] = None,
    digest: Annotated[str | None, option("The manifest's digest, as it was kept elsewhere.", "SHA256")] = None,
) -> None:
    """Compare every file of an artefact with its manifest, and the manifest with a signature or a digest.

    Nothing of the artefact is run. Exit code 2 means that it is not what its manifest says; do not serve it then.

    ```
    defended verify models/digits/1
    defended verify models/digits/1 --public-key release.key.pub
    ```
    """
    load_tensorflow()
    from defended import serving

    manifest = serving.verify(artefact, digest=digest, public_key=public_key)
    signed = "signed by that key" if public_key else "signature not looked at: give --public-key"
    typer.echo(f"{manifest.name}/{manifest.version}: {len(manifest.files)} files are what the manifest lists; {signed}")
    typer.echo(f"digest {manifest.digest}")
